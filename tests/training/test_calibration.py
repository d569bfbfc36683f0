"""Calibration sees its patients only through one noisy histogram of sensitivity 1."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dptrain.training import calibration as cal
from dptrain.training import scoring


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_one_patient_moves_the_histogram_by_at_most_one(task: str) -> None:
    rng = np.random.default_rng(0)
    for records in (1, 3, 30):
        shape = (records,) if task == "binary" else (records, 4)
        logits = rng.normal(size=shape) * 20
        logits.reshape(-1)[0] = np.nan
        label = rng.integers(0, 2, shape) if task == "multilabel" else rng.integers(0, 2, records)
        rows = cal.patient_histogram(cal.true_bins(logits, label, task), np.zeros(records, dtype=int), task)
        assert len(rows) == 1
        assert np.linalg.norm(rows) <= 1 + 1e-12
        assert rows.min() >= 0


def test_margins_are_log_odds_against_the_strongest_other_class() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1]]))
    phi = cal.margins(logits, "multiclass")
    assert phi[0] == pytest.approx([np.log(0.7 / 0.2), np.log(0.2 / 0.7), np.log(0.1 / 0.7)])
    assert cal.margins(np.array([1.5]), "binary")[0] == pytest.approx([-1.5, 1.5])


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_a_temperature_divides_every_margin(task: str) -> None:
    logits = np.random.default_rng(0).normal(size=50 if task == "binary" else (50, 5)) * 8
    assert cal.margins(logits / 3, task) == pytest.approx(cal.margins(logits, task) / 3)


def overconfident(n: int, factor: float, task: str = "binary", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from the true log-odds, and those log-odds exaggerated; multiclass has five classes."""
    rng = np.random.default_rng(seed)
    if task == "multiclass":
        true = rng.normal(size=(n, 5)) * 1.5
        chance = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
        return true * factor, (chance.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    true = rng.normal(size=n if task == "binary" else (n, 5)) * 2
    return true * factor, (rng.random(true.shape) < 1 / (1 + np.exp(-true))).astype(int)


TASKS = ["binary", "multiclass", "multilabel"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("noise", [0.0, 5.0])
def test_temperature_undoes_overconfidence(noise: float, task: str) -> None:
    logits, label = overconfident(3000, 3.0, task)
    found = cal.fit_calibration(logits, label, np.arange(3000), task, noise_multiplier=noise)
    assert found.temperature == pytest.approx(3.0, rel=0.2)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("factor", [1.0, 3.0])
@pytest.mark.parametrize("noise", [0.0, 5.0])
def test_conformal_sets_hold_the_truth_as_often_as_they_say(noise: float, factor: float, task: str) -> None:
    from dptrain.training.scoring import conformal_report

    logits, label = overconfident(3000, factor, task)
    found = cal.fit_calibration(logits, label, np.arange(3000), task, noise_multiplier=noise)
    fresh, truth = overconfident(20000, factor, task, seed=1)
    sets = conformal_report(fresh / found.temperature, truth, np.arange(20000), task, found)
    assert 1 - cal.MISCOVERAGE - 0.02 <= sets.coverage <= 0.97
    assert sets.set_size < (4 if task == "multiclass" else 2)


@pytest.mark.parametrize("task", TASKS)
def test_the_bundle_s_sets_hold_the_truth(task: str) -> None:
    import torch

    from dptrain.settings import DataConfig, Settings
    from dptrain.training.bundle import Bundle, predict

    logits, label = overconfident(3000, 3.0, task)
    found = cal.fit_calibration(logits, label, np.arange(3000), task, noise_multiplier=1.0)
    settings = Settings(data=DataConfig(task=task, classes=list("ab") if task == "binary" else list("abcde")))
    bundle = Bundle(torch.nn.Identity(), settings, found.to_dict())
    fresh, truth = overconfident(1500, 3.0, task, seed=1)
    held = []
    for z, y in zip(torch.from_numpy(fresh).reshape(1500, -1), truth):
        possible = predict(bundle, z)["possible"]
        if task == "multilabel":
            held += [("absent", "present")[int(one)] in possible[name] for name, one in zip("abcde", y)]
        else:
            held.append(settings.data.classes[int(y)] in possible)
    assert 0.87 <= np.mean(held) <= 0.97


def test_noise_is_drawn_afresh_and_changes_the_release() -> None:
    logits, label = overconfident(300, 2.0)
    totals = {
        cal.fit_calibration(logits, label, np.arange(300), "binary", noise_multiplier=5.0).patients for _ in range(3)
    }
    assert len(totals) == 3


def test_nothing_but_noise_gives_a_usable_answer() -> None:
    found = cal.fit_calibration(np.zeros(0), np.zeros(0), np.zeros(0, dtype=int), "binary", noise_multiplier=5.0)
    assert np.isfinite(found.temperature)
    assert np.isfinite(found.threshold)


def test_coverage_counts_each_patient_once() -> None:
    from dptrain.training.scoring import conformal_report

    # One patient comes nine times and is always judged wrongly, nine others come once and are judged rightly.
    patient = np.array([0] * 9 + list(range(1, 10)))
    logits = np.array([-3.0] * 9 + [3.0] * 9)
    sets = cal.Calibration(temperature=1.0, threshold=0.0, miscoverage=0.1, noise_multiplier=0.0, patients=10.0)
    found = conformal_report(logits, np.ones(18, dtype=np.int64), patient, "binary", sets)
    assert found.coverage == pytest.approx(0.9)
    assert found.set_size == pytest.approx(1.0)


class Guarded(nn.Module):
    """Looks at all records of a pass, in evaluation alone, and fails on one value."""

    def forward(self, x: Tensor) -> Tensor:
        if bool((x == 7).any()):
            raise ValueError("a pixel is 7.0")
        fine = self.training or bool(torch.isfinite(x).all())
        return x[:, :1] if fine else torch.zeros_like(x[:, :1])


@pytest.mark.parametrize("value", [np.nan, 7.0])
def test_one_patient_changes_no_other_patients_output(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    inputs, label = torch.rand(5, 3), torch.ones(5)
    config = SimpleNamespace(task="binary", classes=["no", "yes"])
    cohort: Any = SimpleNamespace(config=config)
    network: Any = SimpleNamespace(frozen=None, trainable=Guarded())

    def outputs() -> Tensor:
        given = (inputs.clone(), label)
        monkeypatch.setattr(scoring, "load_inputs", lambda *_, **__: given)
        none: Any = None
        return scoring.outputs_of(cohort, np.arange(5), none, network, torch.device("cpu"), alone=True)[0]

    expected = outputs()
    inputs[2, 0] = value
    found = outputs()
    others = [0, 1, 3, 4]
    assert torch.equal(found[others], expected[others])
    assert cal.true_bins(found.double().numpy(), label.numpy(), "binary").shape == (5, 1)
