"""Training: the loop, checkpoints, evaluation, the run folder. Importing it is light; torch comes with use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dptrain.lazy import attach

if TYPE_CHECKING:
    from dptrain.training.bundle import load_bundle as load_bundle
    from dptrain.training.bundle import predict as predict
    from dptrain.training.inputs import Prepared as Prepared
    from dptrain.training.inputs import Run as Run
    from dptrain.training.inputs import load_run as load_run
    from dptrain.training.inputs import prepare as prepare
    from dptrain.training.loop import Checkpoints as Checkpoints
    from dptrain.training.loop import FitResult as FitResult
    from dptrain.training.loop import fit as fit
    from dptrain.training.planning import calibrate as calibrate
    from dptrain.training.planning import make_plan as make_plan
    from dptrain.training.run import evaluate_run as evaluate_run
    from dptrain.training.run import train as train
    from dptrain.training.step import PrivateStep as PrivateStep

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "bundle": ("load_bundle", "predict"),
        "loop": ("Checkpoints", "FitResult", "fit"),
        "planning": ("calibrate", "make_plan"),
        "run": ("evaluate_run", "train"),
        "inputs": ("Prepared", "Run", "load_run", "prepare"),
        "step": ("PrivateStep",),
    },
)
