"""Patient gradients: norms, clipping and noise, on Opacus's extension points. Torch comes with use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dptrain.lazy import attach

if TYPE_CHECKING:
    from dptrain.engine.bounds import MARGIN as MARGIN
    from dptrain.engine.gradients import Entangled as Entangled
    from dptrain.engine.gradients import PatientGradients as PatientGradients
    from dptrain.engine.noise import NoiseSource as NoiseSource
    from dptrain.engine.optimizer import PatientOptimizer as PatientOptimizer
    from dptrain.engine.sums import ClippedSum as ClippedSum

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "bounds": ("MARGIN",),
        "gradients": ("Entangled", "PatientGradients"),
        "noise": ("NoiseSource",),
        "optimizer": ("PatientOptimizer",),
        "sums": ("ClippedSum",),
    },
)
