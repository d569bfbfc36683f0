"""Faults planted in the engine that makes the promise: what a privacy bug looks like from the inside."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dptrain.engine import ClippedSum, noise
from dptrain.training import step

Fault = Callable[[pytest.MonkeyPatch], None]


def _noise_times(factor: float) -> Fault:
    def plant(patch: pytest.MonkeyPatch) -> None:
        correct = step.PatientOptimizer  # type: ignore[attr-defined]

        def broken(optimizer: Any, *, noise_multiplier: float, **rest: Any) -> Any:
            return correct(optimizer, noise_multiplier=noise_multiplier * factor, **rest)

        patch.setattr(step, "PatientOptimizer", broken)

    return plant


def no_clipping(patch: pytest.MonkeyPatch) -> None:
    """Nobody is clipped, while the sums say that they are (the optimiser refuses sums that do not)."""
    correct = step.PatientGradients  # type: ignore[attr-defined]

    def broken(model: nn.Module, *, max_grad_norm: float, **rest: Any) -> Any:
        gradients = correct(model, max_grad_norm=1e6 * max_grad_norm, **rest)
        honest = gradients.clipped_sum

        def lying(*args: Any) -> Any:
            return dataclasses.replace(honest(*args), max_grad_norm=max_grad_norm)

        gradients.clipped_sum = lying  # type: ignore[assignment]
        return gradients

    patch.setattr(step, "PatientGradients", broken)


def clipped_by_record(patch: pytest.MonkeyPatch) -> None:
    """Each record is clipped as if it were a patient, and the sum is taken over records."""
    correct = step.PatientGradients  # type: ignore[attr-defined]

    def broken(model: nn.Module, **rest: Any) -> Any:
        gradients = correct(model, **rest)
        by_patient = gradients.clipped_sum

        def by_record(losses: torch.Tensor, patient: torch.Tensor, patients: int) -> Any:
            rows = torch.where(patient < 0, -1, torch.arange(len(losses), device=losses.device))
            return by_patient(losses, rows, len(losses))

        gradients.clipped_sum = by_record
        return gradients

    patch.setattr(step, "PatientGradients", broken)


def reused_seed(patch: pytest.MonkeyPatch) -> None:
    """Every source of noise gets the same bits."""

    def reused(kind: str) -> Callable[[np.ndarray], None]:
        bits = np.random.SFC64(0)

        def fill(words: np.ndarray) -> None:
            words.view(np.uint64)[:] = bits.random_raw(len(words))

        return fill

    patch.setattr(noise, "new_bits", reused)


def realised_normaliser(patch: pytest.MonkeyPatch) -> None:
    """The noisy sum is divided by the patients drawn."""

    class Realised(step.PatientOptimizer):  # type: ignore[name-defined]
        drawn = 0

        def accumulate(self, chunk: ClippedSum | None = None) -> None:
            super().accumulate(chunk)
            self.drawn += 0 if chunk is None else chunk.patients

        def add_noise(self) -> None:
            super().add_noise()
            for p in self.params:
                p.grad *= self.expected_batch_size / max(1, self.drawn)
            self.drawn = 0

    patch.setattr(step, "PatientOptimizer", Realised)


def noise_by_chunk(patch: pytest.MonkeyPatch) -> None:
    """Noise is added once for each physical chunk."""

    class Repeated(step.PatientOptimizer):  # type: ignore[name-defined]
        chunks = 0
        noise_multiplier: float

        def accumulate(self, chunk: ClippedSum | None = None) -> None:
            super().accumulate(chunk)
            self.chunks += chunk is not None

        def add_noise(self) -> None:
            once = self.noise_multiplier
            self.noise_multiplier = once * max(1, self.chunks) ** 0.5
            super().add_noise()
            self.noise_multiplier, self.chunks = once, 0

    patch.setattr(step, "PatientOptimizer", Repeated)


FAULTS: dict[str, Fault] = {
    "no noise": _noise_times(1e-12),
    "noise / 4": _noise_times(0.25),
    "noise x 1e-4": _noise_times(1e-4),
    "no clipping": no_clipping,
    "clipped by record": clipped_by_record,
    "reused seed": reused_seed,
    "realised normaliser": realised_normaliser,
    "noise by chunk": noise_by_chunk,
}
