"""Exposure is an effect: what is said of a plan does not grow with the number of models that audit it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from dptrain.audit import effects, patients, statistics
from dptrain.audit.results import People, summarise
from dptrain.settings import AuditConfig
from tests.audit.simulate import gaussian_scores

VALUES = (0.6, 0.75, 0.9)


def cohort(generator: np.random.Generator, count: int) -> np.ndarray:
    """True AUCs [P]: most hardly above chance, some at 0.68, a few at 0.92."""
    kind = generator.random(count)
    return np.select([kind < 0.7, kind < 0.9], [generator.uniform(0.5, 0.55, count), np.full(count, 0.68)], 0.92)


def audited(
    generator: np.random.Generator, auc: np.ndarray, models: int, *, shared: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, statistics.Area, np.ndarray]:
    """(values, member, fold, area, traced) of one audit; `shared`: part of a score's variance that is the model's."""
    separation = np.sqrt(2) * norm.ppf(auc)
    scores, member, patient = gaussian_scores(generator, models, len(auc), separation)
    noise = scores - separation * member
    noise = np.sqrt(1 - shared) * noise + np.sqrt(shared) * generator.normal(size=(models, 1))
    scores = noise + separation * member
    evidence, fold = patients.crossfit(scores, member, patient)
    values, compared = patients.comparable(scores, patient, evidence, fold, "student_t")
    q = statistics.benjamini_hochberg(patients.p_values(scores, member, patient, fold))
    return values, member, compared, statistics.stratified_auc(values, member, compared), q <= 0.05


@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_the_same_plan_audited_with_more_models_is_told_alike(shared: float) -> None:
    """The share of those with a trace trebles from 32 to 256 models; the true shares stay within all limits."""
    rng = np.random.default_rng(40)
    auc = cohort(rng, 400)
    truth = [np.mean(auc >= value) for value in VALUES]
    traced, widths, limits = [], [], []
    for models in (32, 64, 128, 256):
        values, member, fold, area, trace = audited(rng, auc, models, shared=shared)
        found = effects.true_shares(values, member, fold, area, VALUES)
        for (low, high), true in zip(found, truth, strict=True):
            assert low <= true <= high
        traced.append(int(trace.sum()))
        widths.append(found[0][1] - found[0][0])
        limits.append(found)
    assert traced[-1] > 2 * traced[0]
    assert widths[-1] < widths[0]
    for one in limits:  # any two audits agree
        for other in limits:
            assert all(a[0] <= b[1] and b[0] <= a[1] for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("models", [32, 128])
def test_limits_of_the_true_shares_cover(models: int) -> None:
    rng = np.random.default_rng(41)
    covered = []
    for _ in range(14):
        auc = cohort(rng, 150)
        values, member, fold, area, _ = audited(rng, auc, models, shared=0.3)
        found = effects.true_shares(values, member, fold, area, VALUES)
        covered.append(all(low <= np.mean(auc >= v) <= high for (low, high), v in zip(found, VALUES, strict=True)))
    assert np.mean(covered) >= 0.92  # at most one in fourteen


def test_limits_are_no_excuse_for_saying_nothing() -> None:
    """2,000 patients of two kinds, 256 models: the share at 0.75 is known to a few per cent."""
    rng = np.random.default_rng(42)
    auc = np.where(np.arange(2000) < 600, 0.9, 0.5)
    values, member, fold, area, _ = audited(rng, auc, 256)
    (low, high) = effects.true_shares(values, member, fold, area, [0.75])[0]
    assert 0.24 < low <= 0.3 <= high < 0.36
    nobody = audited(rng, np.full(2000, 0.5), 256)
    assert effects.true_shares(*nobody[:4], [0.75])[0][1] < 0.08


@pytest.mark.parametrize("models", [32, 64, 256])
def test_whoever_is_not_above_is_not_called_exposed(models: int) -> None:
    """Half of the patients lie exactly at the border, where a wrong word is likeliest."""
    rng = np.random.default_rng(43)
    false, wrong, exposed = [], [], 0
    for _ in range(15):
        auc = np.where(np.arange(300) < 150, 0.6, 0.93)
        area = audited(rng, auc, models)[3]
        effect = effects.effects(area, 0.6, 0.05)
        exposed += int(effect.exposed.sum())
        false.append(np.sum(effect.exposed & (auc <= 0.6)) / max(effect.exposed.sum(), 1))
        wrong.append(np.sum(effect.low[effect.exposed] > auc[effect.exposed]) / max(effect.exposed.sum(), 1))
        assert (effect.low[effect.exposed] > 0.6 - 1e-9).all()  # the limits agree with the verdict
        assert np.isnan(effect.low[~effect.exposed]).all()
    assert np.mean(false) <= 0.05
    assert np.mean(wrong) <= 0.06
    assert exposed > 15 * 150 * 0.5


def test_a_small_trace_of_everybody_is_no_exposure_however_many_models_show_it() -> None:
    rng = np.random.default_rng(44)
    auc = np.full(300, 0.57)
    for models in (64, 1024):
        area, traced = audited(rng, auc, models)[3:]
        assert effects.effects(area, 0.6, 0.05).exposed.sum() <= 1
    assert traced.sum() > 200


@pytest.mark.parametrize(("models", "above"), [(64, 0.5), (256, 0.5), (256, 0.6)])
def test_the_smallest_auc_is_seen_in_eight_of_ten(models: int, above: float) -> None:
    rng = np.random.default_rng(45)
    area = audited(rng, np.full(200, 0.5), models)[3]
    smallest = effects.smallest_seen(area, above, 0.05)
    assert smallest is not None
    alone = audited(rng, np.full(1000, smallest), models)[3]
    level = 0.05 / 200
    p = statistics.auc_p_values(alone) if above == 0.5 else effects.effect_p_values(alone, above)
    assert np.mean(p <= level) == pytest.approx(0.8, abs=0.12)


def test_so_few_models_see_nobody() -> None:
    rng = np.random.default_rng(46)
    area = audited(rng, np.full(500, 0.5), 12)[3]
    assert effects.smallest_seen(area, 0.6, 0.05) is None


def test_the_summary_tells_trace_from_exposure() -> None:
    rng = np.random.default_rng(47)
    auc = np.where(np.arange(300) < 60, 0.95, 0.6)
    separation = np.sqrt(2) * norm.ppf(auc)
    scores, member, patient = gaussian_scores(rng, 256, 300, separation)
    people = People([f"{i:016x}" for i in range(300)], np.full(300, "all"), {})
    summary = summarise(scores, member, patient, people, AuditConfig(), generator=rng)
    audit: Any = summary.audit
    assert 50 <= audit.exposed.count <= 65
    assert audit.exposed.above == 0.6
    assert audit.traced.count > audit.exposed.count + 30
    assert audit.verdicts.exposed + audit.verdicts.trace_shown == audit.traced.count
    assert sum(dataclasses.astuple(audit.verdicts)) == 300
    assert summary.traced.sum() == audit.traced.count
    for row in audit.true_auc:
        assert row.low <= np.mean(auc >= row.auc) <= row.high
    assert 0.5 < audit.smallest_seen.trace < audit.smallest_seen.exposed < 0.9
    assert {row["verdict"] for row in summary.rows} >= {"exposed", "trace shown"}
    exposed = [row for row in summary.rows if row["verdict"] == "exposed"]
    assert all(row["exposed_low"] > 0.6 for row in exposed)
