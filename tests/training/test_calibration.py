"""Calibration sees its patients only through one noisy histogram of sensitivity 1."""

from __future__ import annotations

import numpy as np
import pytest

from dptrain.training import calibration as cal


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_one_patient_moves_the_histogram_by_at_most_one(task: str) -> None:
    rng = np.random.default_rng(0)
    for records in (1, 3, 30):
        shape = (records,) if task == "binary" else (records, 4)
        logits = rng.normal(size=shape) * 20
        logits.reshape(-1)[0] = np.nan
        label = rng.integers(0, 2, shape) if task == "multilabel" else rng.integers(0, 2, records)
        rows = cal.patient_histogram(cal.true_margins(logits, label, task), np.zeros(records, dtype=int))
        assert rows.shape == (1, len(cal.CENTRES))
        assert np.linalg.norm(rows) <= 1 + 1e-12
        assert rows.min() >= 0


def test_margins_are_log_odds() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1]]))
    phi = cal.margins(logits, "multiclass")
    assert phi[0] == pytest.approx([np.log(0.7 / 0.3), np.log(0.2 / 0.8), np.log(0.1 / 0.9)])
    assert cal.margins(np.array([1.5]), "binary")[0] == pytest.approx([-1.5, 1.5])


def overconfident(n: int, factor: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.normal(size=n) * 2
    label = (rng.random(n) < 1 / (1 + np.exp(-true))).astype(int)
    return true * factor, label


@pytest.mark.parametrize("noise", [0.0, 5.0])
def test_temperature_undoes_overconfidence(noise: float) -> None:
    logits, label = overconfident(3000, 3.0)
    found = cal.fit_calibration(logits, label, np.arange(3000), "binary", noise_multiplier=noise)
    assert found.temperature == pytest.approx(3.0, rel=0.2)


@pytest.mark.parametrize("noise", [0.0, 5.0])
def test_conformal_sets_hold_the_truth_as_often_as_they_say(noise: float) -> None:
    logits, label = overconfident(2000, 1.0)
    found = cal.fit_calibration(logits, label, np.arange(2000), "binary", noise_multiplier=noise)
    fresh, truth = overconfident(20000, 1.0, seed=1)
    covered = cal.true_margins(fresh / found.temperature, truth, "binary") >= found.threshold
    assert covered.mean() >= 1 - cal.MISCOVERAGE - 0.02


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
    from dptrain.training.run import conformal_report

    # One patient comes nine times and is always judged wrongly, nine others come once and are judged rightly.
    patient = np.array([0] * 9 + list(range(1, 10)))
    logits = np.array([-3.0] * 9 + [3.0] * 9)
    sets = cal.Calibration(temperature=1.0, threshold=0.0, miscoverage=0.1, noise_multiplier=0.0, patients=10.0)
    found = conformal_report(logits, np.ones(18, dtype=np.int64), patient, "binary", sets)
    assert found["coverage"] == pytest.approx(0.9)
    assert found["set_size"] == pytest.approx(1.0)
