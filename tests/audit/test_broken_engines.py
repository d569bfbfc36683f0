"""Faults planted in the engine itself, real trainings, and the command: the bound passes the promise, exit code 6.

The stack that trains reference models has its own tests of the same faults (`test_planted.py`); here every canary
training runs the loop, the loader, the clipping and the noise that made the promise.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dptrain import accounting, cli
from dptrain.audit.games.canaries import canary_bound
from dptrain.audit.promise import promise_of
from dptrain.audit.statistics import clopper_pearson
from dptrain.errors import EXIT_GUARANTEE_BROKEN
from dptrain.settings import AuditConfig, OptimizerConfig
from dptrain.training import step
from dptrain.training.run import train
from tests.audit.made import make_material, make_plan
from tests.training.conftest import Site, make_site

__all__ = ["make_site"]

SIDE = 64  # thousands of directions: a few hundred canaries hardly touch each other
WORDS = [
    f"data.image_shape=[1,{SIDE},{SIDE}]",
    f"data.transforms=[{{_target_:monai.transforms.Resized,keys:[image],spatial_size:[{SIDE},{SIDE}]}},"
    "{_target_:monai.transforms.ScaleIntensityRanged,keys:[image],a_min:0,a_max:255,b_min:0,b_max:1}]",
    *("model=linear", f"model.network.in_features={SIDE * SIDE}", "model.network.num_classes=1"),
    *("privacy.target_epsilon=1", "privacy.max_records_per_patient=8"),
    *("optimizer.lr=0.1", "optimizer.momentum=0", "training.ema=0"),
]
AUDIT = ["audit.models=8", "audit.canaries=400", "audit.new_scan=0", "audit.processes=1"]


def less_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the promised noise."""
    correct = step.PatientOptimizer  # type: ignore[attr-defined]

    def broken(optimizer: Any, *, noise_multiplier: float, **rest: Any) -> Any:
        return correct(optimizer, noise_multiplier=noise_multiplier / 4, **rest)

    monkeypatch.setattr(step, "PatientOptimizer", broken)


def no_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is clipped, while the sums say that they are (the optimiser refuses sums that do not)."""
    correct = step.PatientGradients  # type: ignore[attr-defined]

    def broken(model: nn.Module, *, max_grad_norm: float, **rest: Any) -> Any:
        gradients = correct(model, max_grad_norm=1e6 * max_grad_norm, **rest)
        honest = gradients.clipped_sum

        def lying(*args: Any) -> Any:
            return dataclasses.replace(honest(*args), max_grad_norm=max_grad_norm)

        gradients.clipped_sum = lying  # type: ignore[assignment]
        return gradients

    monkeypatch.setattr(step, "PatientGradients", broken)


def clipped_by_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each record is clipped as if it were a patient, and the promise is sold by patient."""
    correct = step.PatientGradients  # type: ignore[attr-defined]

    def broken(model: nn.Module, **rest: Any) -> Any:
        gradients = correct(model, **rest)
        by_patient = gradients.clipped_sum

        def by_record(losses: torch.Tensor, patient: torch.Tensor, patients: int) -> Any:
            return by_patient(losses, torch.arange(len(losses), device=losses.device), len(losses))

        gradients.clipped_sum = by_record
        return gradients

    monkeypatch.setattr(step, "PatientGradients", broken)


FAULTS = {"noise scaled down": less_noise, "no clipping": no_clipping, "clipped by record": clipped_by_record}
TRAININGS = {"noise scaled down": 15, "no clipping": 4, "clipped by record": 6}  # the first is the smallest fault


@pytest.mark.parametrize("fault", list(FAULTS))
def test_the_command_ends_with_six_for_a_broken_engine(
    make_site: Callable[..., Site],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    site = make_site(8.0)
    FAULTS[fault](monkeypatch)
    folder = train(site.settings(f"training.run={site.folder / 'run'}", *WORDS), say=lambda _: None).folder
    words = [*AUDIT, f"audit.canary_trainings={TRAININGS[fault]}"]
    assert cli.main(["audit", f"run={folder.path}", *words]) == EXIT_GUARANTEE_BROKEN
    told = capsys.readouterr()
    assert "The guarantee is broken: 400 planted patients prove that epsilon is at least" in told.err
    canary = json.loads((folder.audit / "audit.json").read_text())["canary"]
    assert canary["broken"] is True
    assert canary["epsilon_lower"] > 1.0


def test_the_command_does_not_accuse_the_correct_engine(make_site: Callable[..., Site]) -> None:
    site = make_site(8.0)
    folder = train(site.settings(f"training.run={site.folder / 'run'}", *WORDS), say=lambda _: None).folder
    assert cli.main(["audit", f"run={folder.path}", *AUDIT, "audit.canary_trainings=3"]) == 0
    canary = json.loads((folder.audit / "audit.json").read_text())["canary"]
    assert canary["broken"] is False
    assert canary["epsilon_lower"] < 1.0


def head(steps: int = 12) -> Any:
    """A head whose every training takes a moment, at epsilon 1."""
    noise = accounting.calibrate_noise(1.0, 1e-5, 1 / 3, steps)
    plan = make_plan(public_size=60, expected_batch_size=20, steps=steps, noise_multiplier=noise, max_grad_norm=1.0)
    return make_material(
        module=nn.Linear(1024, 1),
        shape=(1024,),
        patients=52,
        plan=plan,
        optimizer=OptimizerConfig(name="sgd", lr=0.1),
    )


@pytest.mark.slow
@pytest.mark.parametrize("trainings", [2, 32])
def test_a_correct_engine_is_not_accused_more_often_than_the_level(trainings: int) -> None:
    """Repeated audits at 95 %, with few trainings (compared with each other) and with many (each with itself)."""
    material = head()
    promise = promise_of(material.plan)
    audits = 60 if trainings == 2 else 12
    config = AuditConfig(canaries=100 if trainings == 2 else 20, canary_trainings=trainings, processes=1)
    accused = 0
    for _ in range(audits):
        found = canary_bound(material, promise, config)
        assert found is not None
        accused += found[0].broken
    low, high = clopper_pearson(accused, audits)
    print(f"{accused} of {audits} audits of {trainings} trainings accused (95 % interval {low:.3f} to {high:.3f})")
    assert low <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("fault", list(FAULTS))
def test_many_trainings_find_every_fault_by_single_canaries(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """64 trainings of the engine with 40 canaries, each compared with itself."""
    material = head()
    promise = promise_of(material.plan)
    FAULTS[fault](monkeypatch)
    found = canary_bound(material, promise, AuditConfig(canaries=40, canary_trainings=64, processes=1))
    assert found is not None
    assert found[0].broken
    assert np.isfinite(found[0].epsilon)
