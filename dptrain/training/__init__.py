"""Training: the loop, checkpoints, evaluation, the run folder. Importing it is light; torch comes with use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dptrain.training.bundle import load_bundle as load_bundle
    from dptrain.training.bundle import predict as predict
    from dptrain.training.loop import FitResult as FitResult
    from dptrain.training.loop import fit as fit
    from dptrain.training.losses import loss_for_task as loss_for_task
    from dptrain.training.planning import calibrate as calibrate
    from dptrain.training.planning import make_plan as make_plan
    from dptrain.training.run import evaluate_run as evaluate_run
    from dptrain.training.run import train as train
    from dptrain.training.session import Prepared as Prepared
    from dptrain.training.session import Run as Run
    from dptrain.training.session import load_run as load_run
    from dptrain.training.session import prepare as prepare

_HOME = {
    "FitResult": "loop",
    "Prepared": "session",
    "Run": "session",
    "calibrate": "planning",
    "evaluate_run": "run",
    "fit": "loop",
    "load_bundle": "bundle",
    "load_run": "session",
    "loss_for_task": "losses",
    "make_plan": "planning",
    "predict": "bundle",
    "prepare": "session",
    "train": "run",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
