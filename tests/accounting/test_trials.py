"""The best of a random number of trials."""

from __future__ import annotations

import math

import pytest

from dptrain import accounting
from dptrain.accounting import trials
from dptrain.errors import ConfigError
from tests.accounting.exact import run

TRIAL = run(0.05, 2.0, 400)
DELTA = 1e-5


@pytest.mark.parametrize("distribution", ["poisson", "geometric", "logarithmic"])
def test_agrees_with_dp_accounting_on_the_same_orders(distribution: str) -> None:
    from dp_accounting.rdp import rdp_privacy_accountant

    shape = {"poisson": math.inf, "geometric": 1.0, "logarithmic": 0.0}[distribution]
    orders = list(accounting.ORDERS)
    theirs = rdp_privacy_accountant._compute_rdp_repeat_and_select(orders, accounting.rdp(TRIAL), 12.0, shape)
    epsilon = rdp_privacy_accountant.compute_epsilon(orders, theirs, DELTA)[0]
    mine = accounting.random_stopping_epsilon(
        TRIAL,
        DELTA,
        expected_trials=12.0,
        distribution=distribution,  # type: ignore[arg-type]
    )
    # Poisson: theirs bounds the trial's δ by Rényi divergences, ours by the loss distribution: smaller.
    assert mine <= epsilon * (1 + 1e-6)
    if distribution != "poisson":
        assert mine == pytest.approx(epsilon, rel=1e-6)


def test_lies_between_one_trial_and_the_plain_sum() -> None:
    one = accounting.pld_epsilon(TRIAL, DELTA)
    for trials_expected in (2.0, 10.0, 50.0):
        best = accounting.random_stopping_epsilon(TRIAL, DELTA, expected_trials=trials_expected)
        assert one < best
    plain = accounting.pld_epsilon(run(0.05, 2.0, 400 * 50), DELTA)
    assert best < plain
    costs = [accounting.random_stopping_epsilon(TRIAL, DELTA, expected_trials=n) for n in (1.0, 2.0, 8.0, 32.0)]
    assert costs == sorted(costs)


@pytest.mark.parametrize("mean", [1.0, 1.5, 10.0, 1000.0])
def test_the_logarithmic_distribution_has_the_mean_asked_for(mean: float) -> None:
    gamma = trials._gamma(mean)
    value = 1.0 if gamma == 1 else (1 / gamma - 1) / math.log(1 / gamma)
    assert value == pytest.approx(mean, rel=1e-6)


def test_edges() -> None:
    assert accounting.random_stopping_epsilon([], DELTA, expected_trials=5) == 0.0
    assert accounting.random_stopping_epsilon(run(0.1, 0.0, 1), DELTA, expected_trials=5) == math.inf
    for bad in (math.nan, 0.5, -1, math.inf):
        with pytest.raises(ConfigError):
            accounting.random_stopping_epsilon(TRIAL, DELTA, expected_trials=bad)
    with pytest.raises(ConfigError):
        accounting.random_stopping_epsilon(TRIAL, DELTA, expected_trials=5, distribution="ten")  # type: ignore[arg-type]
