"""The optimiser: sums of clipped patient gradients in, noise once a logical step, one update out."""

from __future__ import annotations

import math
from typing import Any

import torch
from opacus.optimizers import DPOptimizerFastGradientClipping
from torch import Tensor

from dptrain.engine.noise import NoiseSource
from dptrain.engine.sums import ClippedSum
from dptrain.engine.tape import sum_dtype
from dptrain.errors import CheckRefused


class PatientOptimizer(DPOptimizerFastGradientClipping):  # type: ignore[misc]  # opacus has no type hints
    """Opacus's optimiser for summed gradients, with patient sums, an explicit normaliser and our own noise.

    A logical step is: :meth:`accumulate` for each chunk (none at all for an empty draw), then :meth:`step`,
    which adds N(0, (noise_multiplier · max_grad_norm)²) to the sum once, divides by `expected_batch_size`
    (never by the realised number of patients) and lets the wrapped optimiser step.

    Args:
        optimizer: any torch optimiser over the trainable parameters.
        noise_multiplier: noise standard deviation over `max_grad_norm`; 0 for none.
        max_grad_norm: the clip that the sums were made with; `inf` only with a noise multiplier of 0.
        expected_batch_size: expected patients a logical step, public.
        noise: where the noise comes from.

    Raises:
        CheckRefused: a trainable parameter of the optimiser that a sum does not hold, a sum clipped to
            another norm, or one that is used twice.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_batch_size: int,
        noise: NoiseSource,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("loss_reduction", "mean") != "mean" or kwargs.get("secure_mode") or kwargs.get("generator"):
            raise CheckRefused(
                "the noisy sum is always divided by expected_batch_size, and the noise always comes from `noise`.",
                remedy="Leave loss_reduction, generator and secure_mode out.",
            )
        if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
            raise CheckRefused(f"noise_multiplier={noise_multiplier} must be finite and at least 0.")
        if not max_grad_norm > 0 or (math.isinf(max_grad_norm) and noise_multiplier > 0):
            raise CheckRefused(f"max_grad_norm={max_grad_norm} must be above 0, and finite where there is noise.")
        if not expected_batch_size or expected_batch_size < 1:
            raise CheckRefused(f"expected_batch_size={expected_batch_size} must be at least 1.")
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            **kwargs,
        )
        self.noise = noise
        if noise_multiplier > 0:
            noise.prepare(sum(p.numel() for p in self.params))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients and unspent sums, and free their memory (as torch does, and Opacus does not)."""
        super().zero_grad(set_to_none)

    def accumulate(self, chunk: ClippedSum | None = None) -> None:
        """Add a chunk's clipped sums. Without a chunk (Opacus's call inside step): complete an empty draw."""
        if chunk is None:
            for p in self.params:
                if p.summed_grad is None:
                    p.summed_grad = torch.zeros_like(p, dtype=sum_dtype(p))
            return
        if chunk.max_grad_norm != self.max_grad_norm:
            raise CheckRefused(
                f"this sum was clipped to {chunk.max_grad_norm:g}, but the noise is made for {self.max_grad_norm:g}."
            )
        if chunk.used:
            raise CheckRefused("this sum was accumulated before: its patients would count twice.")
        sums = {id(parameter): chunk.sums[name] for name, parameter in chunk.parameters.items()}
        missing = sum(1 for p in self.params if id(p) not in sums)
        if missing:
            raise CheckRefused(
                f"{missing} of the optimiser's trainable parameters have no clipped sum.",
                remedy="Give PatientGradients the module that owns them, or freeze them (requires_grad_(False)).",
            )
        chunk.used = True
        for p in self.params:
            if p.summed_grad is None:
                p.summed_grad = sums[id(p)]
            else:
                p.summed_grad.add_(sums[id(p)])

    def add_noise(self) -> None:
        """Put (sum + noise) / expected_batch_size into `p.grad`, in float32 (float64 for float64 parameters).

        Sum and noise are each divided on their way, so that every parameter is passed over once: :meth:`scale_grad`
        has nothing left to do.
        """
        std = self.noise_multiplier * self.max_grad_norm if self.noise_multiplier else 0.0
        scale = 1 / self.expected_batch_size
        single = [p for p in self.params if sum_dtype(p) == torch.float32]
        drawn = None
        if std and single:
            count = sum(p.numel() for p in single)
            drawn = self.noise.normal(count, device=single[0].device).mul_(std * scale)
        start = 0
        for p in self.params:
            total: Tensor = p.summed_grad
            if hasattr(total, "_processed"):
                raise CheckRefused("these sums were used in an earlier step: noise would be added to them again.")
            if not std:
                grad = total.div_(self.expected_batch_size)
            elif drawn is not None and total.dtype == torch.float32:
                grad = drawn[start : start + p.numel()].view(p.shape).to(p.device).add_(total, alpha=scale)
                start += p.numel()
            else:
                grad = self.noise.normal(p.shape, torch.float64, p.device).mul_(std * scale).add_(total, alpha=scale)
            total._processed = True  # type: ignore[attr-defined]
            p.grad = grad if grad.dtype == p.dtype else grad.to(p.dtype)

    def scale_grad(self) -> None:
        """Nothing: :meth:`add_noise` has divided."""

    def step(self, closure: Any = None) -> float | None:
        """Add the noise once, divide, update; the sums are spent afterwards."""
        result: float | None = super().step(closure)
        if not self._is_last_step_skipped:
            for p in self.params:
                p.summed_grad = None
        return result
