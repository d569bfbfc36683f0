"""Faults planted in the engine itself and the default audit of a run: exit code 6, by a named detector.

The stack that trains reference models has its own tests of the same faults (`test_planted.py`); here the loop, the
loader, the clipping and the noise that made the promise are tried.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dptrain import accounting, cli
from dptrain.audit import residual
from dptrain.audit.games.canaries import canary_bound
from dptrain.audit.games.checks import residual_checks
from dptrain.audit.promise import promise_of
from dptrain.audit.statistics import clopper_pearson
from dptrain.errors import EXIT_GUARANTEE_BROKEN
from dptrain.settings import AuditConfig, OptimizerConfig
from dptrain.training.run import train
from tests.audit.faults import FAULTS
from tests.audit.made import make_material, make_plan
from tests.audit.test_residual import BY
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


QUICK = ["audit.models=2", "audit.new_scan=0", "audit.processes=1"]


@pytest.mark.parametrize("fault", list(FAULTS))
def test_the_command_ends_with_six_for_a_broken_engine(
    make_site: Callable[..., Site],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    """At epsilon 8, where no canary of the default design could have refuted anything."""
    site = make_site(8.0)
    words = [*WORDS, "privacy.target_epsilon=8"]
    folder = train(site.settings(f"training.run={site.folder / 'run'}", *words), say=lambda _: None).folder
    FAULTS[fault](monkeypatch)
    canaries = [] if fault == "no clipping" else ["audit.canaries=0"]
    assert cli.main(["audit", f"run={folder.path}", *QUICK, *canaries]) == EXIT_GUARANTEE_BROKEN
    told = capsys.readouterr()
    assert "The guarantee is broken: on made-up patients the released steps are not" in told.err
    audit = json.loads((folder.audit / "audit.json").read_text())
    assert BY[fault] in [row["name"] for row in audit["checks"] if row["confirmed"]]
    assert BY[fault] in told.err
    if not canaries:
        assert audit["canary"]["provable"] < audit["promised"]["epsilon"]
        assert "canaries" in [row["what"] for row in audit["withheld"]]


def test_the_command_does_not_accuse_the_correct_engine(
    make_site: Callable[..., Site], capsys: pytest.CaptureFixture[str]
) -> None:
    site = make_site(8.0)
    folder = train(site.settings(f"training.run={site.folder / 'run'}", *WORDS), say=lambda _: None).folder
    assert cli.main(["audit", f"run={folder.path}", *QUICK, "audit.canaries=400"]) == 0
    audit = json.loads((folder.audit / "audit.json").read_text())
    assert audit["canary"]["broken"] is False
    assert audit["canary"]["epsilon_lower"] < 1.0 < audit["canary"]["provable"]
    assert [row["name"] for row in audit["checks"]] == list(residual.NAMES)
    assert not [row for row in audit["checks"] if row["confirmed"]]
    assert sum(row["level"] for row in audit["checks"]) <= 5e-4
    told = capsys.readouterr().out
    assert "mechanism on made-up patients (any epsilon): 4 statistics" in told
    assert "with every guess right they would have proved" in told


def test_a_detector_that_speaks_once_and_not_again_accuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 6 needs the same detector on a fresh run."""
    first, heard = [residual.Detector("noise scale", 1e-9), residual.Detector("draws", 0.5)], []

    def detectors(_: Any) -> list[residual.Detector]:
        heard.append(1)
        return first if len(heard) == 1 else [residual.Detector("noise scale", 0.3), residual.Detector("draws", 1e-9)]

    monkeypatch.setattr(residual, "detectors", detectors)
    rows = residual_checks(head(), AuditConfig(), torch.device("cpu"))
    assert [(row.failed, row.confirmed) for row in rows] == [(True, False), (False, None)]
    assert len(heard) == 2


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
    """Repeated audits, with few trainings (compared with each other) and with many (each with itself)."""
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
    assert low <= 5e-4


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["noise / 4", "no clipping", "clipped by record"])
def test_many_trainings_find_every_fault_by_single_canaries(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """64 trainings of the engine with 40 canaries, each compared with itself."""
    material = head()
    promise = promise_of(material.plan)
    FAULTS[fault](monkeypatch)
    found = canary_bound(material, promise, AuditConfig(canaries=40, canary_trainings=64, processes=1))
    assert found is not None
    assert found[0].broken
    assert np.isfinite(found[0].epsilon)
