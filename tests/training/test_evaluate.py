"""Metrics against scikit-learn, intervals that know patients, small cells that stay closed."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
from sklearn import metrics as sk

from dptrain.training import evaluate as ev


def sample(n: int = 400, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.3).astype(float)
    score = 1 / (1 + np.exp(-(rng.normal(size=n) + 1.5 * label - 1)))
    return (np.round(score, 1) if ties else score), label


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_agree_with_scikit_learn(ties: bool) -> None:
    score, label = sample(ties=ties)
    weight = np.vstack([np.ones(len(score)), np.random.default_rng(1).integers(0, 4, len(score))]).astype(float)
    for b, row in enumerate(weight):
        assert ev.auroc(score, label, weight)[b] == pytest.approx(sk.roc_auc_score(label, score, sample_weight=row))
        assert ev.average_precision(score, label, weight)[b] == pytest.approx(
            sk.average_precision_score(label, score, sample_weight=row)
        )
        assert ev.brier(score, label, weight)[b] == pytest.approx(
            sk.brier_score_loss(label, score, sample_weight=row)
        )
        fpr, tpr, _ = sk.roc_curve(label, score, sample_weight=row, drop_intermediate=False)
        assert ev.sensitivity_at(0.9)(score, label, weight)[b] == pytest.approx(tpr[fpr <= 0.1 + 1e-9].max())


def test_calibration_error_by_hand() -> None:
    score = np.repeat([0.05, 0.05, 0.95, 0.95], 5)
    label = np.repeat([0.0, 1.0, 1.0, 1.0], 5)
    # bins of ten: |0.05 - 0.5| and |0.95 - 1|, half the weight each
    which = ev.probability_bins(score, np.arange(20))
    assert ev.calibration_error(score, label, np.ones((1, 20)), which)[0] == pytest.approx(0.5 * 0.45 + 0.5 * 0.05)


def test_no_bin_tells_of_fewer_than_ten_patients() -> None:
    """Nor does what all others leave of the calibration error; ten records of one patient are one patient."""
    rng = np.random.default_rng(0)
    score = np.r_[rng.uniform(0.02, 0.18, 150), rng.uniform(0.82, 0.98, 50), np.full(10, 0.35)]
    patient = np.r_[np.arange(200), np.full(10, 200)]
    label = (rng.random(210) < score).astype(int)
    found = ev.evaluate_classification(score, label, patient, {}, task="binary", classes=["a", "b"])
    rows = found.reliability
    assert sum(cast("int", row.count) for row in rows) == 210
    assert rows[0].low == 0.0
    assert rows[-1].high == 1.0
    for row in rows:
        inside = (row.low <= score) & (score < row.high)
        assert inside.sum() == row.count
        assert len(set(patient[inside])) >= 10
    error = sum(row.count * abs(row.confidence - row.observed) for row in rows) / 210
    assert found.overall["calibration_error"].value == pytest.approx(error)


def test_fewer_than_ten_patients_make_one_bin() -> None:
    score = np.linspace(0.05, 0.95, 9)
    (row,) = ev.reliability(score, np.arange(9) % 2, np.arange(9))  # type: ignore[arg-type]
    assert (row.low, row.high, row.count) == (0.0, 1.0, 9)


def test_one_class_gives_no_number_instead_of_a_wrong_one() -> None:
    weight = np.ones((1, 3))
    assert np.isnan(ev.auroc(np.array([0.1, 0.2, 0.3]), np.ones(3), weight)[0])
    assert np.isnan(ev.sensitivity_at(0.9)(np.array([0.1, 0.2, 0.3]), np.ones(3), weight)[0])


def test_the_bootstrap_draws_patients_not_records() -> None:
    patient = np.repeat(np.arange(50), 4)
    weight = ev.bootstrap_weights(patient, 200)
    assert weight.shape == (201, 200)
    assert (weight[0] == 1).all()
    by_patient = weight[1:].reshape(200, 50, 4)
    assert (by_patient == by_patient[..., :1]).all()
    assert (by_patient[..., 0].sum(axis=1) == 50).all()


def test_copies_of_a_patient_s_records_do_not_narrow_the_interval() -> None:
    score, label = sample(120)
    once = ev.interval(ev.auroc(score, label, ev.bootstrap_weights(np.arange(120))))
    ten = ev.interval(
        ev.auroc(np.repeat(score, 10), np.repeat(label, 10), ev.bootstrap_weights(np.repeat(np.arange(120), 10)))
    )
    assert ten.high - ten.low == pytest.approx(once.high - once.low, rel=1e-6)


def test_intervals_cover_the_truth() -> None:
    # two normals a distance 1 apart: AUC = Phi(1/sqrt 2) = 0.7602
    rng, inside = np.random.default_rng(0), 0
    for _ in range(200):
        label = (rng.random(150) < 0.5).astype(float)
        score = rng.normal(size=150) + label
        found = ev.interval(ev.auroc(score, label, ev.bootstrap_weights(np.arange(150), 300)))
        inside += found.low <= 0.7602 <= found.high
    assert inside >= 180


def test_small_groups_and_rare_findings_are_withheld() -> None:
    rng = np.random.default_rng(0)
    label = np.stack([(rng.random(300) < 0.4), (np.arange(300) < 4)], 1).astype(float)
    sex = np.where(np.arange(300) < 8, "X", np.where(np.arange(300) < 200, "F", "M"))
    table = ev.evaluate_classification(
        rng.random((300, 2)),
        label,
        np.arange(300),
        {"sex": sex},  # type: ignore[dict-item]
        task="multilabel",
        classes=["a", "b"],
    )
    assert list(table.by_class) == ["a"]
    assert list(table.groups["sex"]) == ["F"]  # with M shown, the total would tell of X: its Brier score is a mean
    assert {row.value for row in table.suppressed} == {"X", "M", "b"}


def test_no_group_less_one_of_another_column_tells_of_a_few() -> None:
    """p = a and c, q = b and d: with all of p and c shown, p less c would tell of a, which is hidden."""
    finer = np.repeat(["a", "b", "c", "d"], [5, 6, 29, 20])
    coarser = np.where(np.isin(finer, ["a", "c"]), "p", "q")
    rng = np.random.default_rng(0)
    for groups in ({"C": finer, "E": coarser}, {"E": coarser, "C": finer}):
        table = ev.evaluate_segmentation(rng.random((60, 1)), np.arange(60), groups, classes=["x"])  # type: ignore[arg-type]
        assert set(table.groups["C"]) == {"c", "d"}
        assert table.groups["E"] == {}
        why = {row.value: row.why for row in table.suppressed if row.group == "E"}
        assert why == dict.fromkeys("pq", "less another group it would tell of fewer than 10 patients")


def test_segmentation_scores_structures_by_patient() -> None:
    dice = np.array([[0.8, 0.6], [0.9, np.nan], [0.7, 0.5]] * 10)
    table = ev.evaluate_segmentation(dice, np.arange(30), {}, classes=["anterior", "posterior"])
    assert table.by_class["anterior"]["dice"].value == pytest.approx(0.8)
    assert table.by_class["posterior"]["dice"].value == pytest.approx(0.55)


@pytest.mark.parametrize("patients", [2, 9, 10])
def test_of_fewer_than_ten_patients_nothing_is_said(patients: int) -> None:
    random = np.random.default_rng(0)
    patient = np.repeat(np.arange(patients), 8)
    label = np.arange(len(patient), dtype=np.float64) % 2
    score = random.uniform(size=len(patient))
    of_class = ev.evaluate_classification(score, label, patient, {}, task="binary", classes=["no", "yes"])
    of_mask = ev.evaluate_segmentation(random.uniform(size=(len(patient), 1)), patient, {}, classes=["liver"])
    for metrics in (of_class, of_mask):
        assert bool(metrics.overall) == (patients >= 10)
        assert bool(metrics.suppressed) == (patients < 10)
        if patients < 10:
            assert (metrics.by_class, metrics.groups, metrics.reliability) == ({}, {}, ())
