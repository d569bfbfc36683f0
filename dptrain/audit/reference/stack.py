"""A stack of models: whose patients are drawn, noise once a step, one optimiser for all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dptrain.audit.reference.material import Material
from dptrain.plan import Plan
from dptrain.training.step import Update


class Draws:
    """Poisson draws of patients for a stack of models, from one generator keyed by the operating system.

    One stream serves all models of the stack in turn, so no two models share a number.

    Args:
        member: bool [M, P], who is in which model.
    """

    def __init__(self, material: Material, member: Tensor, device: torch.device) -> None:
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
        self.member = member.to(device)
        self.rate = material.plan.sample_rate
        usable = torch.from_numpy(material.trained.copy()).to(device)
        broken = ~torch.isfinite(material.inputs.flatten(1)).all(dim=1)
        if broken.any():  # such a patient's gradient is not finite: the engine lets it count as zero
            usable &= ~torch.isin(material.patient, material.patient[broken]).to(device)
        rows = torch.nonzero(usable).squeeze(1)
        owner = material.patient.to(device)[rows]
        order = torch.argsort(owner, stable=True)
        self.rows, self.owner = rows[order], owner[order]  # trained records, sorted by patient
        counts = torch.bincount(self.owner, minlength=material.patients)
        cap = material.plan.max_records_per_patient
        self.counts = counts.clamp(max=cap)
        starts = torch.cumsum(counts, 0) - counts
        self.capped = [
            (starts[crowded][:, None] + torch.arange(int(n), device=device), cap)
            for n in torch.unique(counts[counts > cap])
            for crowded in [torch.nonzero(counts == n).squeeze(1)]
        ]

    def weights(self) -> Tensor:
        """[M, rows]: 1/(records drawn of the patient) where the record takes part in this step, else 0."""
        chance = torch.rand(self.member.shape, generator=self.generator, device=self.member.device)
        drawn = (self.member & (chance < self.rate)).float() / self.counts.clamp(min=1)
        weights = drawn[:, self.owner]
        for positions, cap in self.capped:
            keys = torch.rand((weights.shape[0], *positions.shape), generator=self.generator, device=weights.device)
            chosen = keys.argsort(dim=2).argsort(dim=2) < cap
            weights[:, positions] *= chosen
        return weights

    def noise(self, like: Tensor, scale: float) -> Tensor:
        """Gaussian noise of standard deviation `scale`, of the shape of `like`."""
        return torch.randn(like.shape, generator=self.generator, device=like.device) * scale


class Stack(nn.Module):
    """Parameters [M, …] of all models, with the optimiser and the average of the run."""

    def __init__(self, material: Material, starts: Sequence[dict[str, Tensor]], device: torch.device) -> None:
        super().__init__()
        self.names = [name for name, p in material.module.named_parameters() if p.requires_grad]
        self.weights = nn.ParameterList(
            [nn.Parameter(torch.stack([s[name] for s in starts]).to(device, torch.float32)) for name in self.names]
        )
        self._plan = material.plan
        steps, ema = material.plan.steps, material.ema
        self._step = Update(list(self.weights), material.optimizer, steps=steps, ema=ema)

    def by_name(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.weights, strict=True))

    def release(self, sums: Sequence[Tensor], draws: Draws) -> None:
        """The rest of a step: noise once on every model's sum of clipped gradients, then the update."""
        self.update(noisy_mean(sums, draws, self._plan))

    def update(self, gradients: Sequence[Tensor]) -> None:
        """One step of the optimiser and of the average, as a run takes it."""
        self._step.apply(gradients)

    def final(self) -> dict[str, Tensor]:
        average = self._step.average
        values = [w.detach() for w in self.weights] if average is None else average
        return dict(zip(self.names, values, strict=True))


def factors(square: Tensor, clip: float) -> Tensor:
    """min(1, C/‖g‖) from squared norms; 0 for a norm that is not finite."""
    norm = square.clamp(min=0).sqrt()
    factor = (clip / norm.clamp(min=1e-30)).clamp(max=1.0)
    return torch.where(torch.isfinite(norm), factor, torch.zeros_like(factor))


def noisy_mean(sums: Sequence[Tensor], draws: Draws, plan: Plan) -> list[Tensor]:
    """Noise once, then the plan's normaliser."""
    if plan.noise_multiplier > 0:
        scale = plan.noise_multiplier * plan.max_grad_norm
        sums = [value + draws.noise(value, scale) for value in sums]
    return [value / plan.expected_batch_size for value in sums]


def pairs(owner: Tensor) -> tuple[Tensor, Tensor]:
    """All unordered pairs of rows with the same owner, each row with itself included; owner is sorted."""
    rows = torch.arange(owner.numel(), device=owner.device)
    first, second = [rows], [rows]
    offset = 1
    while offset < owner.numel():
        same = torch.nonzero(owner[offset:] == owner[:-offset]).squeeze(1)
        if same.numel() == 0:
            break
        first.append(same)
        second.append(same + offset)
        offset += 1
    return torch.cat(first), torch.cat(second)


@dataclass
class Drawn:
    """The rows that take part in one step, padded, all [M, b].

    index: of the record. position: among the trained records sorted by patient. owner: −1 for padding.
    """

    index: Tensor
    position: Tensor
    weight: Tensor
    owner: Tensor


def drawn(draws: Draws) -> Drawn:
    weights = draws.weights()
    which, position = torch.nonzero(weights, as_tuple=True)
    counts = torch.bincount(which, minlength=weights.shape[0])
    width = max(int(counts.max()), 1)
    column = torch.arange(which.numel(), device=which.device) - (torch.cumsum(counts, 0) - counts)[which]
    shape = (weights.shape[0], width)
    place = torch.zeros(shape, dtype=torch.long, device=which.device)
    owner = torch.full(shape, -1, dtype=torch.long, device=which.device)
    weight = torch.zeros(shape, device=which.device)
    place[which, column] = position
    owner[which, column] = draws.owner[position]
    weight[which, column] = weights[which, position]
    return Drawn(draws.rows[place], place, weight, owner)


def segments(owner: Tensor) -> Tensor:
    """Number of each row's patient within its model, 0, 1, …; padding joins a last segment: [M, b]."""
    new = torch.ones_like(owner, dtype=torch.bool)
    new[:, 1:] = owner[:, 1:] != owner[:, :-1]
    return torch.cumsum(new, dim=1) - 1


def shared(module: nn.Module) -> dict[str, Tensor]:
    """What all models of a stack share: frozen parameters and buffers."""
    fixed = {name: p.detach() for name, p in module.named_parameters() if not p.requires_grad}
    return {**fixed, **{name: b.detach() for name, b in module.named_buffers()}}
