"""Attacks on score matrices: known answers, and the mistakes of public implementations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import norm

from dptrain.audit import attacks
from dptrain.audit.patients import best_record_auc, crossfit, folds_of
from dptrain.audit.scores import confidence, from_loss
from dptrain.audit.statistics import stratified_auc
from dptrain.errors import ConfigError
from tests.audit.simulate import gaussian_scores


def test_confidence_is_the_scaled_logit() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 5, 4)) * 3
    labels = rng.integers(0, 4, 5)
    p = np.exp(log_softmax(logits, axis=-1))[:, np.arange(5), labels]
    np.testing.assert_allclose(confidence(logits, labels, "multiclass"), np.log(p) - np.log1p(-p))
    one = rng.normal(size=(3, 5, 1))
    two = np.concatenate([np.zeros_like(one), one], axis=-1)
    binary = rng.integers(0, 2, 5)
    expected = confidence(two, binary, "multiclass")
    np.testing.assert_allclose(confidence(one, binary, "binary"), expected)
    np.testing.assert_allclose(confidence(one[..., 0], binary, "binary"), expected)
    np.testing.assert_allclose(confidence(two, binary, "binary"), expected)


def test_confidence_of_many_labels_leaves_unknown_ones_out() -> None:
    logits = np.array([[[2.0, -1.0, 5.0]]])
    np.testing.assert_allclose(confidence(logits, np.array([[1.0, 0.0, np.nan]]), "multilabel"), [[1.5]])
    np.testing.assert_allclose(confidence(logits, np.full((1, 3), np.nan), "multilabel"), [[0.0]])
    np.testing.assert_allclose(from_loss([0.5]), [-0.5])
    with pytest.raises(ConfigError, match="segmentation"):
        confidence(logits, np.zeros(1), "segmentation")


def test_confidence_does_not_overflow() -> None:
    logits = np.array([[[800.0, 0.0]], [[-800.0, 0.0]]])
    np.testing.assert_allclose(confidence(logits, np.array([0]), "multiclass"), [[800.0], [-800.0]])


@pytest.mark.parametrize("name", list(attacks.ATTACKS))
def test_every_attack_finds_a_gaussian_trace(name: str) -> None:
    rng = np.random.default_rng(1)
    scores, member, _ = gaussian_scores(rng, 256, 400, 2.0)
    evidence = attacks.ATTACKS[name](scores[:128], member[:128], scores[128:])
    auc = stratified_auc(evidence, member[128:], np.zeros(128, dtype=int)).auc
    assert np.mean(auc) == pytest.approx(norm.cdf(np.sqrt(2)), abs=0.015)


@pytest.mark.parametrize("name", [name for name in attacks.ATTACKS if name != "rmia"])
def test_no_attack_moves_with_a_constant(name: str) -> None:
    """A constant added to all scores changes no order; entries masked by a 0 would make it do so.

    (RMIA compares probabilities, which a shift of the logit changes.)
    """
    rng = np.random.default_rng(2)
    scores, member, _ = gaussian_scores(rng, 20, 30, 1.0)
    one = attacks.ATTACKS[name](scores[:16], member[:16], scores[16:])
    two = attacks.ATTACKS[name](scores[:16] - 50, member[:16], scores[16:] - 50)
    np.testing.assert_array_equal(np.argsort(one, axis=0), np.argsort(two, axis=0))


def test_offline_lira_has_the_right_sign() -> None:
    """A score far below all models without the record speaks against membership, not for it."""
    rng = np.random.default_rng(3)
    scores, member, _ = gaussian_scores(rng, 64, 1, 1.0)
    target = np.array([[-6.0], [0.0], [6.0]])
    evidence = attacks.lira_offline(scores, member, target)[:, 0]
    assert evidence[0] < evidence[1] < evidence[2]


def test_offline_lira_needs_no_model_with_the_record() -> None:
    rng = np.random.default_rng(4)
    scores = rng.normal(size=(16, 5))
    evidence = attacks.lira_offline(scores, np.zeros((16, 5), dtype=bool), np.full((1, 5), 3.0))
    assert np.isfinite(evidence).all()
    assert np.isnan(attacks.lira_online(scores, np.zeros((16, 5), dtype=bool), np.full((1, 5), 3.0))).all()


def test_few_models_share_one_variance() -> None:
    rng = np.random.default_rng(5)
    scores, member, _ = gaussian_scores(rng, 16, 200, 1.0)
    auto = attacks.lira_online(scores, member, scores)
    np.testing.assert_array_equal(auto, attacks.lira_online(scores, member, scores, variance="global"))
    scores, member, _ = gaussian_scores(rng, 160, 200, 1.0)
    auto = attacks.lira_online(scores, member, scores)
    np.testing.assert_array_equal(auto, attacks.lira_online(scores, member, scores, variance="record"))


def test_shrunken_variance_beats_both_extremes_with_few_models() -> None:
    """Records differ in spread by up to tenfold: neither one variance for all nor one for each is right."""
    rng = np.random.default_rng(6)
    spread = np.exp(rng.normal(scale=0.8, size=500))
    found = {}
    for name, attack in {
        "shrunken": attacks.student_t,
        "record": lambda r, m, t: attacks.lira_online(r, m, t, variance="record"),
        "global": lambda r, m, t: attacks.lira_online(r, m, t, variance="global"),
    }.items():
        inside, outside = [], []
        draws = np.random.default_rng(7)
        for _ in range(20):
            scores, member, _ = gaussian_scores(draws, 13, 500, 2.0)
            evidence = attack(scores[:12] * spread, member[:12], scores[12:] * spread)[0]
            usable = ~np.isnan(evidence)
            inside.append(evidence[usable & member[12]])
            outside.append(evidence[usable & ~member[12]])
        threshold = np.quantile(np.concatenate(outside), 0.99)
        found[name] = float(np.mean(np.concatenate(inside) > threshold))
    assert found["shrunken"] > found["record"] + 0.02
    assert found["shrunken"] > found["global"] + 0.02


def test_prior_recovers_known_variances_and_shifts() -> None:
    rng = np.random.default_rng(8)
    member = rng.random((40, 4000)) < 0.5
    shift = rng.normal(1.0, 0.5, 4000)
    scores = 3 * (rng.normal(size=(40, 4000)) + shift * member)
    prior = attacks.fit_prior(attacks.classes(scores, member))  # type: ignore[arg-type]
    assert prior.variance == pytest.approx(9, rel=0.03)
    assert prior.freedom > 300
    assert prior.shift_mean == pytest.approx(1.0, abs=0.03)
    assert prior.shift_variance == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("name", list(attacks.ATTACKS))
def test_constant_scores_give_no_evidence_and_no_warning(name: str) -> None:
    member = np.arange(16)[:, None] % 2 == np.arange(4)[None] % 2
    with np.errstate(all="raise", under="ignore"):
        evidence = attacks.ATTACKS[name](np.ones((16, 4)), member, np.ones((2, 4)))
    assert np.ptp(evidence) == 0


def test_rmia_compares_with_the_population() -> None:
    rng = np.random.default_rng(9)
    scores, member, _ = gaussian_scores(rng, 64, 300, 2.0)
    evidence = attacks.rmia(scores[1:], member[1:], scores[:1])
    assert evidence.min() >= 0
    assert evidence.max() <= 1
    assert evidence[0, member[0]].mean() > evidence[0, ~member[0]].mean() + 0.1


def test_rmia_compares_with_others_who_are_outside() -> None:
    """Never with the own patient's records, though these are in the population of a model without them."""
    rng = np.random.default_rng(12)
    scores, member, patient = gaussian_scores(rng, 40, 8, 1.0, records=3)
    reference, inside = scores[4:], member[4:, patient]
    log_p = -np.log1p(np.exp(-scores))
    prior = np.log(
        np.mean([np.ma.array(np.exp(log_p[4:]), mask=hidden).mean(axis=0) for hidden in (~inside, inside)], axis=0)
    )
    outside = ~member[:4]
    evidence = attacks.rmia(reference, inside, scores[:4], population=outside[:, patient], owner=patient)
    for t in range(4):
        ratio = log_p[t] - prior
        for x in range(24):
            z = outside[t, patient] & (patient != patient[x])
            assert evidence[t, x] == pytest.approx(np.mean(ratio[z] <= ratio[x]))


@pytest.mark.parametrize("records", [1, 3])
@pytest.mark.parametrize(("confident", "spread"), [(0.0, 0.0), (4.0, 0.0), (-3.0, 1.0), (2.0, 2.0)])
@pytest.mark.parametrize("name", list(attacks.ATTACKS))
def test_no_attack_lies_far_below_the_plain_loss(name: str, confident: float, spread: float, records: int) -> None:
    """A small trace, as a private training leaves it, in records of any difficulty.

    (RMIA with gamma 2 and the members in its population found a mean AUC of 0.52 where the loss found 0.77.)
    """
    rng = np.random.default_rng(13)
    scores, member, patient = gaussian_scores(rng, 64, 150, 1.0, records=records)
    scores = 0.2 * scores + confident + spread * rng.normal(size=scores.shape[1])
    auc = {}
    for attack in ("loss", name):
        evidence, fold = crossfit(scores, member, patient, attack=attack)
        auc[attack] = np.mean(stratified_auc(evidence, member, fold).auc)
    assert auc[name] > auc["loss"] - 0.05


def test_rmia_finds_nothing_where_nothing_is() -> None:
    rng = np.random.default_rng(14)
    scores, member, patient = gaussian_scores(rng, 64, 300, 0.0, records=2, correlation=0.5)
    evidence, fold = crossfit(scores, member, patient, attack="rmia")
    assert np.mean(stratified_auc(evidence, member, fold).auc) == pytest.approx(0.5, abs=0.015)


def test_masked_entries_never_win() -> None:
    """Scores are negative, so the 0 of a masked entry would be the largest in any sort or maximum."""
    rng = np.random.default_rng(10)
    scores = rng.normal(size=(32, 6)) - 40
    member = np.zeros((32, 6), dtype=bool)
    member[:4] = True
    c = attacks.classes(scores, member)
    np.testing.assert_allclose(c.mean_in, scores[:4].mean(axis=0))
    np.testing.assert_allclose(c.var_out, scores[4:].var(axis=0, ddof=1))
    log_p = -np.exp(rng.normal(size=(32, 6)))
    evidence = attacks.rmia(log_p, member, log_p[:1], gamma=2.0, log_probability=True)
    prior = np.log((np.exp(log_p[:4]).mean(axis=0) + np.exp(log_p[4:]).mean(axis=0)) / 2)
    ratio = log_p[0] - prior
    expected = [np.mean(np.delete(ratio, x) <= ratio[x] - np.log(2)) for x in range(6)]
    np.testing.assert_allclose(evidence[0], expected)


def test_the_best_record_is_among_the_patients_own() -> None:
    """Patients with few records next to patients with many: no padding takes part in a maximum."""
    rng = np.random.default_rng(11)
    patient = np.array([0, 1, 1, 1, 2])
    scores = rng.normal(size=(32, 5)) - 40
    member = rng.random((32, 3)) < 0.5
    fold = folds_of(32)
    best = best_record_auc(scores, member, patient, fold)
    each = stratified_auc(scores, member[:, patient], fold).auc
    np.testing.assert_allclose(best, [each[0], each[1:4].max(), each[4]])
