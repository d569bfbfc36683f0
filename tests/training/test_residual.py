"""The residual of what is released finds wrong mechanisms at any ε, and does not cry wolf."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dptrain import models
from dptrain.accounting import calibrate_noise
from dptrain.engine.residual import FALSE_ALARM, judge
from dptrain.plan import Plan
from dptrain.training.step import Draw, PrivateStep, StepSum
from dptrain.training.trial import residual_of

EPSILONS = [1.0, 8.0, 20.0]


@functools.cache
def plan_at(epsilon: float) -> Plan:
    """24 of 400 patients expected, 40 steps, a clip far below the gradients' norms."""
    noise = calibrate_noise(epsilon, 1e-4, 24 / 400, 40)
    return Plan(
        public_size=400, expected_batch_size=24, steps=40, noise_multiplier=noise, max_grad_norm=0.05, delta=1e-4
    )


def tried(epsilon: float, kind: type[PrivateStep] = PrivateStep) -> tuple[str, ...]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 1))
    image, _ = models.made_up((1, 8, 8), "binary", 24, 2, 0)
    label = torch.ones(24)
    return residual_of(
        network, plan_at(epsilon), models.loss_for_task("binary"), image.float(), label, kind=kind
    ).alarms


class LessNoise(PrivateStep):
    """A tenth less noise."""

    def noisy_mean(self, total: StepSum) -> list[Tensor]:
        self._private.noise_multiplier = 0.9 * self.plan.noise_multiplier
        return super().noisy_mean(total)


class OneLayerWithout(PrivateStep):
    """No noise on one small parameter."""

    def noisy_mean(self, total: StepSum) -> list[Tensor]:
        kept = total.tensors[0].clone()
        gradient = super().noisy_mean(total)
        gradient[0].copy_(kept / self.plan.expected_batch_size)
        return gradient


class SameNoise(PrivateStep):
    """The noise of the first step in all of them."""

    first: list[Tensor] | None = None

    def noisy_mean(self, total: StepSum) -> list[Tensor]:
        sums = [value.clone() for value in total.tensors]
        gradient = super().noisy_mean(total)
        noise = [g * self.plan.expected_batch_size - s for g, s in zip(gradient, sums, strict=True)]
        self.first = self.first or noise
        for g, s, n in zip(gradient, sums, self.first, strict=True):
            g.copy_((s + n) / self.plan.expected_batch_size)
        return gradient


class Realised(PrivateStep):
    """Divided by the number that was drawn."""

    def noisy_mean(self, total: StepSum) -> list[Tensor]:
        drawn = max(1, total.patients)
        return [g * self.plan.expected_batch_size / drawn for g in super().noisy_mean(total)]


class OnlySumByRealised(PrivateStep):
    """The sum alone divided by the number that was drawn: the noise has its size."""

    def clipped_sum(self, batch: Draw) -> StepSum:
        total = super().clipped_sum(batch)
        for value in total.tensors:
            value.mul_(self.plan.expected_batch_size / max(1, total.patients))
        return total


class Unclipped(PrivateStep):
    """Every patient clipped to three times the clip."""

    def __enter__(self) -> PrivateStep:
        step = super().__enter__()
        self._gradients.max_grad_norm = 3 * self.plan.max_grad_norm
        return step

    def clipped_sum(self, batch: Draw) -> StepSum:
        kept, self._private.max_grad_norm = self._private.max_grad_norm, self._gradients.max_grad_norm
        try:
            return super().clipped_sum(batch)
        finally:
            self._private.max_grad_norm = kept


FAULTS: dict[type[PrivateStep], str] = {
    LessNoise: "scale",
    OneLayerWithout: "missing noise",
    SameNoise: "reused seed",
    Realised: "scale",
    OnlySumByRealised: "realised normaliser",
    Unclipped: "unclipped sum",
}


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_a_sound_step_raises_no_alarm(epsilon: float) -> None:
    assert tried(epsilon) == ()


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
def test_planted_faults_are_found_by_name(kind: type[PrivateStep], epsilon: float) -> None:
    """Each of three times: the power is not a matter of luck."""
    for _ in range(3):
        assert FAULTS[kind] in tried(epsilon, kind)


def test_false_alarms_are_as_rare_as_said() -> None:
    """2,000 sound residuals: the p-values are spread as p-values are, and none alarms."""
    generator = torch.Generator().manual_seed(0)
    counted: dict[str, list[float]] = {}
    for _ in range(2000):
        r = torch.randn(3, 700, generator=generator, dtype=torch.float64)
        direction = torch.randn(3, 700, generator=generator, dtype=torch.float64) ** 3
        found = judge(r, {"along": direction})
        assert found.sound, found
        for name, p in found.p.items():
            counted.setdefault(name, []).append(p)
    for name, values in counted.items():
        for level in (0.001, 0.01, 0.05):
            share = sum(p < level for p in values) / len(values)
            assert share < level + 5 * (level / len(values)) ** 0.5, (name, level)
    assert FALSE_ALARM < 1e-3 / 100


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("shape", lambda r: r.sign() * (0.5 + 0.7 * r.abs() ** 0.3)),
        ("dependence", lambda r: (r + r.roll(1, 1)) / 2**0.5),
        ("dependence", lambda r: torch.cat([r[:, :2500], r[:, :2500]], 1)),
        ("reused seed", lambda r: r[:1].expand_as(r)),
        ("reused seed", lambda r: torch.cat([r[:1], -r[:1], r[2:]])),
        ("scale", lambda r: r * torch.nan),
        ("scale", lambda r: r * 1.05),
    ],
)
def test_each_statistic_finds_its_fault(name: str, spoil: Callable[[Tensor], Tensor]) -> None:
    r = torch.randn(4, 5000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert judge(r).sound
    assert name in judge(spoil(r)).alarms
