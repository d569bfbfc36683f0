"""Intervals that cover, p-values that are uniform, discoveries that are true."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from scipy.stats import false_discovery_control, kstest, mannwhitneyu, norm

from dptrain.audit import patients, statistics
from dptrain.audit.results import People, summarise
from dptrain.records.audit import NotFinite
from dptrain.settings import AuditConfig
from tests.audit.simulate import gaussian_scores

AUDITS = 1000
RATES = (0.01, 0.05, 0.1)


def compared(scores: np.ndarray, member: np.ndarray, patient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The default attack's values and what they may be compared with."""
    evidence, fold = patients.crossfit(scores, member, patient)
    return patients.comparable(scores, patient, evidence, fold, "student_t")


@pytest.mark.parametrize("models", [32, 64])
@pytest.mark.parametrize("separation", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_gaussian_release_is_measured_right(models: int, separation: float) -> None:
    """AUC Φ(μ/√2) and TPR Φ(Φ⁻¹(α)+μ) lie in at least 94 % of 95 % intervals over 1,000 audits."""
    rng = np.random.default_rng(100 * models + int(10 * separation))
    scores, member, patient = gaussian_scores(rng, models, 3 * AUDITS, separation)
    evidence, fold = compared(scores, member, patient)
    area = statistics.stratified_auc(evidence, member, fold)
    low, high = statistics.auc_interval(area)
    truth = norm.cdf(separation / np.sqrt(2))
    assert np.mean(area.auc) == pytest.approx(truth, abs=0.006)
    assert np.mean((low <= truth) & (truth <= high)) >= 0.94
    for fpr in (0.01, 0.05, 0.1):
        rate = statistics.tpr_at(evidence, member, fold, fpr, area)
        truth = norm.cdf(norm.ppf(fpr) + separation)
        assert np.mean((rate.low <= truth) & (truth <= rate.high)) >= 0.94
        if fpr == 0.1:  # with few models a counted rate leans low, never high
            assert truth - 0.1 < np.mean(rate.tpr[~rate.extrapolated]) < truth + 0.01
        assert np.mean(rate.extrapolated) == pytest.approx(np.mean((~member).sum(axis=0) < 1 / fpr))


def test_many_models_measure_the_rate_itself() -> None:
    rng = np.random.default_rng(11)
    scores, member, patient = gaussian_scores(rng, 1024, 200, 1.5)
    evidence, fold = compared(scores, member, patient)
    area = statistics.stratified_auc(evidence, member, fold)
    for fpr in (0.01, 0.05, 0.1):
        rate = statistics.tpr_at(evidence, member, fold, fpr, area)
        truth = norm.cdf(norm.ppf(fpr) + 1.5)
        assert not rate.extrapolated.any()
        assert np.mean(rate.tpr) == pytest.approx(truth, abs=0.02)
        assert np.mean((rate.low <= truth) & (truth <= rate.high)) >= 0.94
        assert np.mean(rate.high - rate.low) < 0.35


@pytest.mark.parametrize(("records", "correlation"), [(3, 0.0), (8, 0.5)])
def test_pooled_intervals_cover_with_several_records(records: int, correlation: float) -> None:
    """Half of the patients leak: the folds then depend on each other, and the measured factor pays for it."""
    rng = np.random.default_rng(12 + records)
    separation = np.where(np.arange(AUDITS * records) < AUDITS * records // 2, 0.7, 0.0)
    scores, member, patient = gaussian_scores(rng, 64, AUDITS, separation, records=records, correlation=correlation)
    evidence, fold = patients.crossfit(scores, member, patient)
    factor = patients.inflation(scores, member, patient, rng)
    area = dataclasses.replace(statistics.stratified_auc(evidence, member, fold), inflation=factor)
    low, high = statistics.auc_interval(area)
    effective = np.sqrt(records / (1 + (records - 1) * correlation))
    truth = np.where(np.arange(AUDITS) < AUDITS // 2, norm.cdf(0.7 * effective / np.sqrt(2)), 0.5)
    assert np.mean((low <= truth) & (truth <= high)) >= 0.94
    null = slice(AUDITS // 2, None)
    assert np.mean(area.auc[null]) == pytest.approx(0.5, abs=0.012)


def test_shuffled_masks_give_uniform_p_values() -> None:
    rng = np.random.default_rng(13)
    for records in (1, 4):
        scores, member, patient = gaussian_scores(rng, 64, 1500, 1.0, records=records, correlation=0.3)
        shuffled = rng.random(member.shape) < 0.5
        fold = patients.folds_of(64)
        p = patients.p_values(scores, shuffled, patient, fold)
        if records == 1:
            # discrete p-values: make them continuous before the test of uniformity
            assert kstest(p - rng.random(p.size) * 0.01, "uniform").pvalue > 1e-3
        for level in (0.2, 0.05, 0.01):
            assert np.mean(p <= level) <= level + 3 * np.sqrt(level / p.size)


def test_false_discoveries_stay_below_the_nominal_rate() -> None:
    """One patient in five leaks, some through one record of eight; the cross-fitted test would give 12 %."""
    rng = np.random.default_rng(14)
    false, found, naive = [], [], []
    for _ in range(12):
        leaking = np.arange(400) < 80
        separation = np.repeat(np.where(leaking, 2.0, 0.0), 8)
        separation[: 40 * 8 : 1] = np.where(np.arange(40 * 8) % 8 == 0, 2.5, 0.0)
        scores, member, patient = gaussian_scores(rng, 64, 400, separation, records=8, correlation=0.5)
        fold = patients.folds_of(64)
        q = statistics.benjamini_hochberg(patients.p_values(scores, member, patient, fold))
        hit = q <= 0.05
        false.append(np.sum(hit & ~leaking) / max(hit.sum(), 1))
        found.append(np.mean(hit[leaking]))
        evidence, _ = patients.crossfit(scores, member, patient)
        crossed = statistics.auc_p_values(statistics.stratified_auc(evidence, member, fold))
        hit = statistics.benjamini_hochberg(crossed) <= 0.05
        naive.append(np.sum(hit & ~leaking) / max(hit.sum(), 1))
    assert np.mean(false) <= 0.05
    assert np.mean(found) > 0.9
    assert np.mean(naive) > np.mean(false)


def test_pooled_auc_does_not_grow_with_records_but_the_maximum_does() -> None:
    rng = np.random.default_rng(15)
    pooled, best = [], []
    for records in (1, 4, 16):
        scores, member, patient = gaussian_scores(rng, 64, 600, 0.0, records=records)
        evidence, fold = patients.crossfit(scores, member, patient)
        pooled.append(np.mean(statistics.stratified_auc(evidence, member, fold).auc))
        best.append(np.mean(patients.best_record_auc(scores, member, patient, fold)))
    np.testing.assert_allclose(pooled, 0.5, atol=0.015)
    assert best[0] < 0.51
    assert best[1] > 0.56
    assert best[2] > 0.61


@pytest.mark.parametrize("attack", ["student_t", "lira_online", "rmia", "loss"])
def test_pooling_many_records_finds_more_than_one(attack: str) -> None:
    rng = np.random.default_rng(16)
    scores, member, patient = gaussian_scores(rng, 64, 200, 0.8, records=6)
    evidence, fold = patients.crossfit(scores, member, patient, attack=attack)
    auc = np.mean(statistics.stratified_auc(evidence, member, fold).auc)
    assert auc > norm.cdf(0.8 / np.sqrt(2)) + 0.1


def test_a_patient_without_records_is_unknown() -> None:
    rng = np.random.default_rng(17)
    scores, member, _ = gaussian_scores(rng, 32, 3, 1.0)
    evidence, fold = patients.crossfit(scores[:, :2], member, np.array([0, 2]))
    assert np.isnan(evidence[:, 1]).all()
    area = statistics.stratified_auc(evidence, member, fold)
    p = statistics.auc_p_values(area)
    assert np.isnan(area.auc[1])
    assert np.isnan(p[1])
    assert np.isnan(statistics.benjamini_hochberg(p)[1])
    none = np.zeros(3, dtype=bool)
    assert statistics.verdicts(none, none, area.auc, tolerance=0.75)[1] == "inconclusive"


def test_exact_p_values_agree_with_mann_whitney() -> None:
    rng = np.random.default_rng(18)
    evidence = rng.normal(size=(16, 20))
    member = np.zeros((16, 20), dtype=bool)
    member[:7] = True
    area = statistics.stratified_auc(evidence, member, np.zeros(16, dtype=int))
    mine = statistics.auc_p_values(area)
    theirs = [mannwhitneyu(e[:7], e[7:], alternative="greater", method="exact").pvalue for e in evidence.T]
    np.testing.assert_allclose(mine, theirs)


def test_exact_tail_over_folds_by_enumeration() -> None:
    tail = statistics._tail(((2, 2), (1, 3)))
    sums = []
    for a in itertools.combinations(range(4), 2):
        for b in range(4):
            sums.append(sum(a) - 1 + b)
    expected = [np.mean(np.array(sums) >= u) for u in range(len(tail))]
    np.testing.assert_allclose(tail, expected)


def test_false_discovery_control_agrees_with_scipy() -> None:
    p = np.random.default_rng(19).random(50) ** 2
    np.testing.assert_allclose(statistics.benjamini_hochberg(p), false_discovery_control(p))
    np.testing.assert_allclose(
        statistics.benjamini_hochberg(p, arbitrary_dependence=True), false_discovery_control(p, method="by")
    )


def test_perfect_separation_keeps_a_real_interval() -> None:
    evidence = np.arange(32.0)[:, None]
    area = statistics.stratified_auc(evidence, evidence > 15, np.zeros(32, dtype=int))
    low, high = statistics.auc_interval(area)
    assert area.auc[0] == 1
    assert 0.75 < low[0] < 0.95
    assert high[0] == 1


def test_models_needed_suffice() -> None:
    rng = np.random.default_rng(20)
    need = statistics.models_needed(2200, 0.05, patients.FOLDS)
    assert need == 24
    scores, member, patient = gaussian_scores(rng, need, 50, 20.0)
    member = np.tile(np.arange(need)[:, None] % 2 == 0, (1, 50))
    fold = patients.folds_of(need)
    area = statistics.stratified_auc(scores, member, fold)
    assert statistics.smallest_p_value(area) <= 0.05 / 2200
    del patient


def test_clopper_pearson_and_wilson_known_values() -> None:
    low, high = statistics.clopper_pearson(np.array([0, 5, 10]), np.array([10, 10, 10]))
    np.testing.assert_allclose(low, [0, 0.1871, 0.6915], atol=1e-4)
    np.testing.assert_allclose(high, [0.3085, 0.8129, 1], atol=1e-4)
    assert statistics.wilson(0, 0) == (0.0, 1.0)
    np.testing.assert_allclose(statistics.wilson(1, 10), (0.0179, 0.4042), atol=1e-4)


@pytest.mark.parametrize(("models", "records"), [(64, 1), (256, 1), (256, 3), (1024, 2)])
def test_where_nothing_leaks_a_counted_rate_is_its_false_positive_rate(models: int, records: int) -> None:
    """One threshold for all folds found 0.088 where 0.098 is right."""
    rng = np.random.default_rng(32)
    scores, member, patient = gaussian_scores(rng, models, 80_000 // models * 4, 0.0, records=records)
    values, fold = compared(scores, member, patient)
    area = statistics.stratified_auc(values, member, fold)
    counted = 0
    for fpr, rate in statistics.tpr_rates(values, member, fold, RATES, area).items():
        tpr = rate.tpr[~rate.extrapolated]
        if len(tpr) > 200:
            counted += 1
            assert np.mean(tpr) == pytest.approx(fpr, abs=4 * np.std(tpr) / np.sqrt(len(tpr)))
    assert counted >= 1


@pytest.mark.parametrize("models", [24, 64, 256])
@pytest.mark.parametrize("separation", [0.0, 1.0, 3.0])
def test_no_rate_is_larger_than_at_a_larger_false_positive_rate(models: int, separation: float) -> None:
    rng = np.random.default_rng(33)
    for records in (1, 2):
        scores, member, patient = gaussian_scores(rng, models, 200, separation, records=records)
        scores -= np.square(np.minimum(scores, 0))  # far from a normal pair
        values, fold = compared(scores, member, patient)
        area = statistics.stratified_auc(values, member, fold)
        rates = statistics.tpr_rates(values, member, fold, RATES, area)
        for smaller, larger in itertools.pairwise(RATES):
            for end in ("tpr", "low", "high"):
                assert (getattr(rates[smaller], end) <= getattr(rates[larger], end) + 1e-12).all()
        for fpr in RATES:
            np.testing.assert_array_equal(
                statistics.fold_tpr(values, member, fold, fpr=fpr, fprs=RATES), rates[fpr].tpr
            )
            assert (rates[fpr].low <= rates[fpr].tpr).all()
            assert (rates[fpr].tpr <= rates[fpr].high).all()


def test_a_patient_with_one_record_is_compared_over_all_models() -> None:
    rng = np.random.default_rng(34)
    scores, member, _ = gaussian_scores(rng, 64, 3, 1.0)
    patient = np.array([0, 1, 1])
    values, fold = compared(scores, member[:, :2], patient)
    area = statistics.stratified_auc(values, member[:, :2], fold)
    whole = statistics.stratified_auc(scores[:, :1], member[:, :1], np.zeros(64, dtype=int))
    assert area.auc[0] == whole.auc[0]
    assert area.pairs[0] == whole.pairs[0]
    assert area.pairs[1] < area.pairs[0]


def test_pooled_roc_is_a_curve() -> None:
    rng = np.random.default_rng(21)
    scores, member, _ = gaussian_scores(rng, 64, 300, 1.0)
    fpr, tpr = statistics.pooled_roc(scores, member)
    assert (fpr[0], fpr[-1], tpr[-1]) == (0.0, 1.0, 1.0)
    assert (np.diff(tpr) >= 0).all()
    np.testing.assert_allclose(tpr, norm.cdf(norm.ppf(fpr) + 1), atol=0.03)


@pytest.mark.parametrize("records", [1, 4])
def test_the_largest_auc_by_chance_is_passed_in_one_audit_of_twenty(records: int) -> None:
    rng = np.random.default_rng(22)
    passed = 0
    for _ in range(80):
        scores, member, patient = gaussian_scores(rng, 64, 50, 0.0, records=records)
        evidence, fold = patients.crossfit(scores, member, patient)
        factor = patients.inflation(scores, member, patient, rng)
        area = dataclasses.replace(statistics.stratified_auc(evidence, member, fold), inflation=factor)
        passed += np.max(area.auc) > statistics.largest_by_chance(area)  # type: ignore[assignment]
    assert passed <= 10  # 5 % of 80 is 4; 11 or more happen twice in a thousand


@pytest.mark.parametrize("broken", ["a model", "a record", "both"])
def test_scores_that_are_not_finite_spoil_nobody_else(broken: str) -> None:
    """One diverged model, or one record without a score, must not turn exposed patients into unexposed ones."""
    rng = np.random.default_rng(27)
    scores, member, patient = gaussian_scores(rng, 64, 100, 3.0, records=2)
    if broken != "a record":
        scores[5] = np.nan
    if broken != "a model":
        scores[7, 0] = np.inf
    people = People([f"{i:016x}" for i in range(100)], np.full(100, "all"), {})
    audit = summarise(scores, member, patient, people, AuditConfig(), generator=rng).audit
    assert audit.exposed.count > 95
    assert audit.auc.mean > 0.95
    assert audit.not_finite == NotFinite(models=int(broken != "a record"), records=int(broken != "a model"))
    assert audit.references == 64 - audit.not_finite.models


def test_the_interval_of_the_mean_knows_that_patients_share_their_models() -> None:
    """Half of a score's variance is the model's own: resampling patients alone covered 32 % instead of 95 %."""
    rng = np.random.default_rng(28)
    covered = []
    for _ in range(40):
        scores, member, patient = gaussian_scores(rng, 64, 200, 1.0)
        scores = member + np.sqrt(0.5) * (scores - member) + np.sqrt(0.5) * rng.normal(size=(64, 1))
        evidence, fold = patients.crossfit(scores, member, patient)
        low, high = statistics.mean_interval(statistics.fold_auc, evidence, member, fold)
        covered.append(low <= norm.cdf(1 / np.sqrt(2)) <= high)
        assert high - low < 0.09
    assert np.mean(covered) >= 0.85  # of 40


def test_the_parts_of_an_interval_agree_with_the_whole() -> None:
    rng = np.random.default_rng(29)
    scores, member, _ = gaussian_scores(rng, 64, 50, 1.0)
    fold = patients.folds_of(64)
    area = statistics.stratified_auc(scores, member, fold)
    for fpr in (0.01, 0.1):
        whole = statistics.tpr_at(scores, member, fold, fpr, area).tpr
        np.testing.assert_array_equal(statistics.fold_tpr(scores, member, fold, fpr=fpr), whole)


def test_the_smallest_p_value_is_one_that_a_patient_can_get() -> None:
    scores, patient = np.zeros((20, 80)), np.repeat(np.arange(40), 2)
    member = np.tile(np.arange(20)[:, None] % 5 < 2, (1, 40))
    scores += 20.0 * member[:, patient] + np.random.default_rng(30).normal(size=scores.shape)
    fold = patients.folds_of(20)
    area = statistics.stratified_auc(scores[:, ::2], member, fold)
    smallest = patients.p_values(scores, member, patient, fold).min()
    assert statistics.smallest_p_value(area) == pytest.approx(smallest)


@pytest.mark.parametrize("tested", [1, 3, 20])
def test_as_many_fresh_models_as_needed_can_confirm_one_of_several(tested: int) -> None:
    for enough in (True, False):
        half = statistics.confirming(tested, 0.05) - (not enough)
        perfect = np.arange(2.0 * half)[:, None]
        area = statistics.stratified_auc(perfect, perfect >= half, np.zeros(2 * half, dtype=int))
        p = np.r_[statistics.auc_p_values(area), np.ones(tested - 1)]
        assert (statistics.benjamini_hochberg(p, arbitrary_dependence=True)[0] <= 0.05) == enough


def test_the_measured_factor_is_that_of_dependent_folds() -> None:
    """Some of the patients leak through one of sixteen records: the others' AUCs vary far more than nominally."""
    rng = np.random.default_rng(31)
    separation = np.where((np.arange(500 * 16) % 16 == 0) & (np.arange(500 * 16) < 50 * 16), 2.5, 0.0)
    scores, member, patient = gaussian_scores(rng, 64, 500, separation, records=16, correlation=0.3)
    evidence, fold = patients.crossfit(scores, member, patient)
    area = statistics.stratified_auc(evidence, member, fold)
    measured = np.mean(((area.auc - 0.5) / statistics.null_spread(area))[50:] ** 2)
    factor = patients.inflation(scores, member, patient, rng)
    assert measured > 1.4
    assert factor[0] == pytest.approx(measured, rel=0.25)
    single = patients.inflation(scores[:, ::16], member, np.arange(500), rng)
    assert (single == 1).all()
