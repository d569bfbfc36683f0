"""A few private steps of made-up patients, and the residual of what they release (:mod:`dptrain.engine.residual`)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dptrain.data import PatientBatch
from dptrain.engine import MARGIN
from dptrain.engine.chunks import ChunkShape
from dptrain.engine.residual import Residual, judge
from dptrain.models.draws import FixedDraws
from dptrain.models.losses import Loss
from dptrain.models.preflight import Finding
from dptrain.plan import Plan
from dptrain.settings import OptimizerConfig
from dptrain.training.step import PrivateStep


@dataclass
class _Drawn:
    """Made-up patients of one step, a record each, in one chunk; none for an empty draw."""

    step: int
    image: Tensor
    label: Tensor
    patients: int

    def chunks(self) -> Iterator[PatientBatch]:
        if self.patients:
            yield PatientBatch(self.image, self.label, torch.arange(self.patients), self.patients)


def residual_of(
    model: nn.Module,
    plan: Plan,
    loss: Loss,
    image: Tensor,
    label: Tensor,
    *,
    steps: int = 4,
    kind: type[PrivateStep] = PrivateStep,
) -> Residual:
    """Take private steps of made-up patients and judge what they release against sums that are computed apart.

    Gradients of the sums are taken by plain autograd in float64, a patient at a time. The weights stand still, and
    the first draw is empty.

    Args:
        model: a copy is tried.
        plan: clip, noise and normaliser.
        image, label: made-up patients, one record each; each step draws another number of them.
        kind: the step, or a subclass whose parts are to be tried.
    """
    rate = OptimizerConfig(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0)
    step = kind(copy.deepcopy(model), replace(plan, steps=steps), loss=loss, optimizer=rate)
    step.shape = ChunkShape(len(image), 1, 1)
    counts = [number * len(image) // max(1, steps - 1) for number in range(steps)]
    draws = [_Drawn(number, image[:count], label[:count], count) for number, count in enumerate(counts)]
    scale = plan.noise_multiplier * plan.max_grad_norm
    residuals, sums, taken = [], [], []
    with torch.random.fork_rng(devices=[]), step:
        named = [dict(step.model.named_parameters())[name].shape for name in step.names]
        for drawn in draws:
            with FixedDraws(range(len(image))):
                released = step.noisy_mean(step.clipped_sum(drawn))
            flat = torch.cat([value.detach().flatten().double().cpu() for value in released])
            clipped, whole = _sums(model, loss, drawn, step.names, plan.max_grad_norm)
            residuals.append((flat * plan.expected_batch_size - clipped) / scale)
            sums.append(clipped)
            taken.append(whole - clipped)
            step.update([torch.zeros(shape) for shape in named])
    directions = {"realised normaliser": torch.stack(sums), "unclipped sum": torch.stack(taken)}
    return judge(torch.stack(residuals), directions)


def _sums(model: nn.Module, loss: Loss, drawn: _Drawn, names: list[str], clip: float) -> tuple[Tensor, Tensor]:
    """The sum of clipped gradients and that of gradients, flat, in float64."""
    twin = copy.deepcopy(model).double().train()
    parameters = dict(twin.named_parameters())
    clipped = torch.zeros(sum(parameters[name].numel() for name in names), dtype=torch.float64)
    whole = clipped.clone()
    for i in range(drawn.patients):
        image = drawn.image[i : i + 1]
        with FixedDraws([i]):
            value = loss(twin(image.double() if image.is_floating_point() else image), drawn.label[i : i + 1]).mean()
        parts = torch.autograd.grad(value, [parameters[name] for name in names], allow_unused=True)
        flat = [torch.zeros_like(parameters[n]) if g is None else g for n, g in zip(names, parts, strict=True)]
        gradient = torch.cat([part.flatten() for part in flat])
        whole += gradient
        clipped += gradient * min(1.0, clip * (1 - MARGIN) / max(float(gradient.norm()), 1e-300))
    return clipped, whole


TRIED = Plan(public_size=100, expected_batch_size=6, steps=4, noise_multiplier=1.0, max_grad_norm=1.0, delta=1e-3)
"""Noise as large as the clip: what is tried is the step, at any size of it."""


def try_noise(model: nn.Module, loss: Loss, image: Tensor, label: Tensor) -> Finding:
    """What the check says of the mechanism itself, for this network on this machine."""
    residual = residual_of(model, TRIED, loss, image[:6], label[:6])
    if residual.sound:
        least = min(residual.p.values())
        why = f"residuals of {TRIED.steps} made-up steps are standard normal (least p {least:.2g})"
        return Finding("noise and clipping", "ok", why)
    why = f"what is released is not the clipped sum with the promised noise: {', '.join(residual.alarms)}"
    return Finding("noise and clipping", "refused", why, "Report this: it is a fault of the program or the machine.")
