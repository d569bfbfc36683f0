"""Lower bounds on epsilon: never above the truth more often than promised, and high enough to find faults."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binom, norm

from dptrain.audit import bounds

DELTA = 1e-5


def gaussian_separation(epsilon: float) -> float:
    """μ of the Gaussian mechanism that is exactly (ε, 1e-5)-private (Balle & Wang 2018)."""

    def excess(mu: float) -> float:
        return norm.cdf(-epsilon / mu + mu / 2) - math.exp(epsilon) * norm.cdf(-epsilon / mu - mu / 2) - DELTA

    return float(brentq(excess, 1e-3, 20))


def gaussian_tpr(mu: float):
    return lambda fpr: norm.cdf(norm.ppf(fpr) + mu)


@pytest.mark.parametrize(("trainings", "canaries"), [(64, 20), (1, 400), (100, 1)])
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_a_correct_trainer_is_not_accused(trainings: int, canaries: int, epsilon: float) -> None:
    rng = np.random.default_rng(trainings + canaries)
    mu = gaussian_separation(epsilon)
    accused = 0
    for _ in range(60):
        member = rng.random((trainings, canaries)) < 0.5
        scores = rng.normal(size=member.shape) + mu * member
        accused += bounds.lower_bound(scores, member, promised=epsilon, delta=DELTA, tpr=gaussian_tpr(mu)).broken
    assert accused <= 5  # 5 % of 60 is 3


def test_the_tightest_mechanism_is_accused_at_most_at_the_level() -> None:
    """Randomised response meets (ε, 0) with equality: the one-run bound has nothing to spare on it."""
    rng = np.random.default_rng(22)
    accused = 0
    for _ in range(400):
        correct = int(rng.binomial(500, 1 / (1 + math.exp(-1.0))))
        accused += bounds.one_run_epsilon(500, 500, correct, 0.0) > 1.0
    assert accused / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert accused > 0


@pytest.mark.parametrize(("trainings", "canaries"), [(64, 20), (1, 1000)])
def test_noise_scaled_down_four_times_is_found(trainings: int, canaries: int) -> None:
    rng = np.random.default_rng(23)
    mu = 4 * gaussian_separation(1.0)
    member = rng.random((trainings, canaries)) < 0.5
    scores = rng.normal(size=member.shape) + mu * member
    bound = bounds.lower_bound(scores, member, promised=1.0, delta=DELTA)
    assert bound.broken
    assert 1.0 < bound.epsilon < 4.7  # the truth is 4.7
    assert "guarantee is broken" in bounds.broken_sentence(bound)


def test_no_noise_is_found_by_one_canary() -> None:
    rng = np.random.default_rng(24)
    member = rng.random((64, 1)) < 0.5
    bound = bounds.lower_bound(100.0 * member + rng.normal(size=(64, 1)), member, promised=1.0, delta=DELTA)
    assert bound.broken
    assert bound.method.startswith("two-sided")


def test_the_curve_accuses_where_epsilon_is_too_coarse() -> None:
    rng = np.random.default_rng(25)
    mu = gaussian_separation(1.0)
    member = rng.random((3000, 1)) < 0.5
    scores = rng.normal(size=member.shape) + 2 * mu * member
    bound = bounds.lower_bound(scores, member, promised=1.0, delta=DELTA, tpr=gaussian_tpr(mu))
    assert bound.epsilon < 1
    assert bound.curve
    assert bound.broken
    assert "curve" in bounds.broken_sentence(bound)


def test_one_run_bound_by_hand() -> None:
    """δ = 0 is a binomial tail; δ > 0 adds 2mδ·max_i Pr[v > B >= v-i]/i."""
    odds = math.e / (1 + math.e)
    assert bounds.one_run_p_value(10, 10, 10, 1.0, 0.0) == pytest.approx(odds**10)
    extra = max(sum(binom.pmf(8 - j, 10, odds) for j in range(1, i + 1)) / i for i in range(1, 9))
    expected = binom.sf(7, 10, odds) + 2 * 12 * 1e-3 * extra
    assert bounds.one_run_p_value(12, 10, 8, 1.0, 1e-3) == pytest.approx(expected)
    assert bounds.one_run_epsilon(100, 100, 50, 0.0) == 0.0
    assert bounds.one_run_epsilon(1000, 1000, 1000, 0.0) > 5


def test_two_sided_bound_by_hand() -> None:
    limit = 1 - 0.025 ** (1 / 32)  # exact upper limit for 0 of 32
    expected = math.log((1 - DELTA - limit) / limit)
    assert bounds.two_sided_epsilon(32, 32, 0, 32, DELTA) == pytest.approx(expected)
    assert bounds.two_sided_epsilon(16, 32, 16, 32, DELTA) == 0.0
    assert bounds.two_sided_epsilon(0, 0, 0, 0, DELTA) == 0.0


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="correct"):
        bounds.one_run_p_value(10, 5, 6, 1.0, 0.0)


def test_canaries_of_two_kinds_are_judged_apart() -> None:
    """One kind tells everything, the other nothing and is far from it in size: mixed, they would hide each other."""
    rng = np.random.default_rng(26)
    member = rng.random((3, 400)) < 0.5
    scores = rng.normal(size=member.shape) + 6.0 * member
    scores[:, 200:] = 1000 * rng.normal(size=(3, 200))
    kinds = np.arange(400) >= 200
    apart = bounds.lower_bound(scores, member, promised=1.0, delta=DELTA, kinds=kinds)
    mixed = bounds.lower_bound(scores, member, promised=1.0, delta=DELTA)
    assert apart.broken
    assert apart.epsilon > mixed.epsilon
    truth = gaussian_separation(1.0)
    accused = 0
    for _ in range(40):
        coins = rng.random((2, 200)) < 0.5
        drawn = rng.normal(size=coins.shape) + truth * coins
        accused += bounds.lower_bound(drawn, coins, promised=1.0, delta=DELTA, kinds=np.arange(200) % 2).broken
    assert accused <= 4


@pytest.mark.parametrize(("trainings", "canaries"), [(64, 20), (2, 400)])
def test_a_score_that_is_not_finite_silences_no_other_canary(trainings: int, canaries: int) -> None:
    rng = np.random.default_rng(28)
    member = rng.random((trainings, canaries)) < 0.5
    scores = rng.normal(size=member.shape) + 8.0 * member
    whole = bounds.lower_bound(scores, member, promised=1.0, delta=DELTA)
    scores[:, 0] = np.nan
    scores[1, 1] = np.inf
    assert bounds.lower_bound(scores, member, promised=1.0, delta=DELTA).epsilon > 0.8 * whole.epsilon > 1.0


@pytest.mark.parametrize(("trainings", "kinds"), [(64, None), (2, None), (2, np.arange(100) % 2)])
def test_everything_that_is_tried_shares_one_error(
    monkeypatch: pytest.MonkeyPatch, trainings: int, kinds: np.ndarray | None
) -> None:
    """Canaries, guessed shares, kinds and methods: the errors allowed to each add up to that of the whole."""
    spent: list[float] = []
    one_run, limits = bounds.one_run_epsilon, bounds._error_limits

    def one(canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
        spent.append(1 - confidence)
        return one_run(canaries, guesses, correct, delta, confidence)

    seen: set[tuple[int, int, int, int]] = set()

    def two(hits: int, inside: int, false_alarms: int, outside: int, confidence: float) -> tuple[float, float]:
        if (hits, inside, false_alarms, outside) not in seen:  # bound and curve rest on the same limits
            seen.add((hits, inside, false_alarms, outside))
            spent.append(1 - confidence)
        return limits(hits, inside, false_alarms, outside, confidence)

    monkeypatch.setattr(bounds, "one_run_epsilon", one)
    monkeypatch.setattr(bounds, "_error_limits", two)
    rng = np.random.default_rng(29)
    member = rng.random((trainings, 100)) < 0.5
    scores = rng.normal(size=member.shape)
    bounds.lower_bound(scores, member, promised=1.0, delta=DELTA, tpr=gaussian_tpr(1.0), kinds=kinds, confidence=0.9)
    assert len(spent) >= 2
    assert sum(spent) <= 0.1 + 1e-9
