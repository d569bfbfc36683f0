"""The truth that the engine is held against: one patient at a time, by plain autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dptrain.engine import MARGIN, ClippedSum, PatientGradients

Loss = Callable[[Tensor, Tensor], Tensor]


def squares(output: Tensor, target: Tensor) -> Tensor:
    """Mean square distance of each record's output to its target [N]."""
    return (output.flatten(1) - target.view(-1, 1)).square().mean(1)


def patient_gradients(
    model: nn.Module, x: Tensor, y: Tensor, patient: Tensor, patients: int, loss: Loss = squares
) -> list[dict[str, Tensor]]:
    """Each patient's mean gradient, from that patient's records alone."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = []
    for i in range(patients):
        rows = torch.nonzero(patient == i).flatten()
        if not len(rows):
            found.append({name: torch.zeros_like(p) for name, p in named.items()})
            continue
        value = loss(model(x[rows]), y[rows]).mean()
        parts = torch.autograd.grad(value, list(named.values()), allow_unused=True)
        found.append(
            {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), parts, strict=True)}
        )
    return found


def norms(gradients: list[dict[str, Tensor]]) -> Tensor:
    """[P]"""
    return torch.stack([torch.cat([g.flatten() for g in one.values()]).norm() for one in gradients])


def clipped(gradients: list[dict[str, Tensor]], clip: float) -> dict[str, Tensor]:
    """The sum of the gradients, each clipped to clip·(1−η)."""
    factors = (clip * (1 - MARGIN) / norms(gradients)).clamp(max=1)
    return {name: sum(f * g[name] for f, g in zip(factors, gradients, strict=True)) for name in gradients[0]}


def distance(ours: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Relative l2 distance of two sums over all parameters."""
    assert set(ours) == set(truth)
    gap = sum(float((ours[name] - truth[name]).detach().square().sum()) for name in truth)
    size = sum(float(truth[name].detach().square().sum()) for name in truth)
    return (gap / size) ** 0.5 if size else gap**0.5


def run(
    model: nn.Module, x: Tensor, y: Tensor, patient: Tensor, patients: int, clip: float, loss: Loss = squares, **more
) -> ClippedSum:
    """One clipped sum by the engine, which is taken off again."""
    more = {"measure": False, "verify": True} | more
    engine = PatientGradients(model, max_grad_norm=clip, **more)
    try:
        return engine.clipped_sum(loss(model(x), y), patient, patients)
    finally:
        engine.detach()


def gap(
    model: nn.Module,
    x: Tensor,
    patient: Tensor,
    patients: int,
    *,
    clip: float | None = None,
    loss: Loss = squares,
    **more,
) -> float:
    """Relative distance between the engine's sum and the truth, clipped at the median norm unless told."""
    y = torch.linspace(-1, 1, max(1, len(x)), dtype=x.dtype if x.is_floating_point() else torch.float64)[: len(x)]
    truth = patient_gradients(model, x, y, patient, patients, loss)
    size = norms(truth)
    positive = size[size > 0]
    clip = clip if clip is not None else (float(positive.median()) if len(positive) else 1.0)
    result = run(model, x, y, patient, patients, clip, loss, **more)
    torch.testing.assert_close(
        result.norms, size.double(), rtol=1e-9 if x.dtype == torch.float64 else 1e-4, atol=1e-12
    )
    return distance(result.sums, clipped(truth, clip))
