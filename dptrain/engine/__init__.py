"""Patient gradients: norms, clipping and noise, on Opacus's extension points."""

from dptrain.engine.gradients import MARGIN, ClippedSum, Entangled, PatientGradients
from dptrain.engine.noise import NoiseSource
from dptrain.engine.optimizer import PatientOptimizer

__all__ = [
    "MARGIN",
    "ClippedSum",
    "Entangled",
    "NoiseSource",
    "PatientGradients",
    "PatientOptimizer",
]
