"""Patient gradients: norms, clipping and noise, on Opacus's extension points."""

from dptrain.engine.bounds import MARGIN
from dptrain.engine.gradients import Entangled, PatientGradients
from dptrain.engine.noise import NoiseSource
from dptrain.engine.optimizer import PatientOptimizer
from dptrain.engine.sums import ClippedSum

__all__ = [
    "MARGIN",
    "ClippedSum",
    "Entangled",
    "NoiseSource",
    "PatientGradients",
    "PatientOptimizer",
]
