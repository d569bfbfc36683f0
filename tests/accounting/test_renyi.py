"""Rényi divergences: against 40 digits, closed forms and two public accountants; never below the truth."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from dptrain import accounting
from dptrain.accounting import ORDERS, renyi
from dptrain.errors import ConfigError
from dptrain.plan import Mechanism
from tests.accounting.exact import divergence, gaussian_delta, run

CASES = [
    (0.0256, 0.9, 1.5),
    (0.0256, 0.9, 7.25),
    (0.001, 0.5, 1.0625),
    (0.001, 5.0, 2.5),
    (1e-4, 1.0, 15.5),
    (0.01, 0.6, 4.75),
    (0.27, 3.0, 3.875),
    (0.5, 1.0, 1.0625),
    (0.9, 0.5, 2.5),
    (0.05, 2.0, 18.5),
]
rates = st.floats(1e-4, 1.0)
noises = st.floats(0.3, 50.0)


def check_upper_bound(rdp: Callable[[float, float, float], float]) -> None:
    """The check that planted faults must fail: at least the truth in both directions, and close to it."""
    for rate, noise, order in CASES:
        truth = max(divergence(rate, noise, order, direction) for direction in ("remove", "add"))
        assert truth <= rdp(rate, noise, order) <= truth * (1 + 1e-9) + 1e-17, (rate, noise, order)


def ours(rate: float, noise: float, order: float) -> float:
    return float(accounting.rdp(run(rate, noise, 1), [order])[0])


def test_fractional_orders_against_forty_digits() -> None:
    check_upper_bound(ours)


def one_direction_only(rate: float, noise: float, order: float) -> float:
    return float(accounting.rdp(run(rate, noise, 1), [order], direction="add")[0])


def floor_of_the_order(rate: float, noise: float, order: float) -> float:
    return ours(rate, noise, max(2, math.floor(order)))


def rounded_down(rate: float, noise: float, order: float) -> float:
    return ours(rate, noise, order) * (1 - 1e-6)


def coarse_quadrature(rate: float, noise: float, order: float) -> float:
    x = np.arange(-10, order / noise + 10, 1.5)
    ratio = 1 - rate + rate * np.exp(x / noise - 1 / (2 * noise**2))
    return float(np.log(np.sum(1.5 * np.exp(-x * x / 2) / math.sqrt(2 * math.pi) * ratio**order)) / (order - 1))


def public_series(rate: float, noise: float, order: float) -> float:
    from dp_accounting.rdp import rdp_privacy_accountant

    logging.disable(logging.CRITICAL)
    try:
        return float(rdp_privacy_accountant._compute_rdp_poisson_subsampled_gaussian(rate, noise, [order])[0])
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    "fault", [one_direction_only, floor_of_the_order, rounded_down, coarse_quadrature, public_series]
)
def test_planted_faults_are_caught(fault: Callable[[float, float, float], float]) -> None:
    with pytest.raises(AssertionError):
        check_upper_bound(fault)


@pytest.mark.parametrize(("rate", "noise", "order"), [*CASES[:6], (0.5, 0.03, 2.5)])
def test_the_add_direction_against_forty_digits(rate: float, noise: float, order: float) -> None:
    truth = divergence(rate, noise, order, "add")
    got = float(accounting.rdp(run(rate, noise, 1), [order], direction="add")[0])
    assert truth <= got <= truth * (1 + 1e-8)


@given(rates.filter(lambda q: q < 1), noises, st.sampled_from([2, 3, 5, 8, 17, 64]))
@settings(max_examples=60, deadline=None)
def test_quadrature_agrees_with_the_closed_sum(rate: float, noise: float, order: int) -> None:
    by_quadrature = renyi._log_excess(rate, noise, float(order))
    closed = renyi._log_excess_closed(rate, noise, order)
    assert by_quadrature == pytest.approx(closed, abs=1e-9, rel=1e-12)


@given(rates, noises)
@settings(max_examples=40, deadline=None)
def test_removing_is_the_worse_direction(rate: float, noise: float) -> None:
    remove = accounting.rdp(run(rate, noise, 1), direction="remove")
    add = accounting.rdp(run(rate, noise, 1), direction="add")
    assert np.all(add <= remove * (1 + 1e-9) + 1e-20)
    assert np.array_equal(accounting.rdp(run(rate, noise, 1)), remove)


@given(rates, noises, st.integers(1, 5000))
@settings(max_examples=60, deadline=None)
def test_monotone_in_everything(rate: float, noise: float, steps: int) -> None:
    base = accounting.rdp(run(rate, noise, steps))
    up = 1 + 1e-9
    assert np.all(np.diff(base) >= -1e-9 * base[1:]), "a higher order costs less"
    assert np.all(accounting.rdp(run(rate, noise * 1.1, steps)) <= base * up)
    assert np.all(accounting.rdp(run(min(1.0, rate * 1.1), noise, steps)) >= base / up)
    assert np.all(accounting.rdp(run(rate, noise, steps + 1)) > base)
    assert np.all(accounting.rdp(run(rate, noise, steps) + run(1.0, 9.0, 1)) > base)
    assert np.all(base <= np.array(ORDERS) * steps / (2 * noise**2) * up), "sampling never costs more"


def test_agrees_with_dp_accounting_at_whole_orders_and_with_opacus() -> None:
    from dp_accounting.rdp import rdp_privacy_accountant
    from opacus.accountants.analysis import rdp as opacus

    whole = [2, 3, 5, 8, 16, 32, 64]
    for rate, noise in [(0.0256, 0.9), (0.05, 2.0), (0.27, 3.0), (0.01, 0.6), (1.0, 4.0), (0.001, 1.0)]:
        mine = accounting.rdp(run(rate, noise, 1000), whole)
        theirs = 1000 * rdp_privacy_accountant._compute_rdp_poisson_subsampled_gaussian(rate, noise, whole)
        assert mine == pytest.approx(theirs, rel=1e-9)
        orders = [1.5, 2.5, 4.75, 8.5, 24.0]
        theirs = opacus.compute_rdp(q=rate, noise_multiplier=noise, steps=1000, orders=orders)
        assert accounting.rdp(run(rate, noise, 1000), orders) == pytest.approx(theirs, rel=1e-3)


def test_gaussian_closed_form_and_additivity() -> None:
    orders = np.array(ORDERS)
    assert accounting.rdp(run(1.0, 2.5, 7)) == pytest.approx(7 * orders / (2 * 2.5**2), rel=1e-12)
    both = accounting.rdp([*run(0.1, 1.0, 10), *run(1.0, 3.0, 2)])
    assert both == pytest.approx(accounting.rdp(run(0.1, 1.0, 10)) + accounting.rdp(run(1.0, 3.0, 2)), rel=1e-12)
    assert np.all(accounting.rdp([]) == 0)


def test_without_noise_and_with_hardly_any() -> None:
    assert np.all(np.isinf(accounting.rdp(run(0.1, 0.0, 1))))
    assert np.all(np.isinf(accounting.rdp([*run(0.1, 1.0, 1), *run(0.1, 0.0, 1)])))
    tiny = accounting.rdp(run(0.1, 0.01, 1))
    assert np.all(tiny >= np.array(ORDERS) / (2 * 0.01**2)), "sampling is not counted on at hardly any noise"
    assert np.all(np.isfinite(accounting.rdp(run(0.5, 0.03, 10))))


def test_the_grid_never_changes_its_meaning() -> None:
    assert accounting.ORDERS_VERSION == 1
    assert len(ORDERS) == 138
    assert (ORDERS[0], ORDERS[47], ORDERS[-1]) == (1.0625, 4.0, 1024.0)
    assert math.fsum(ORDERS) == 7447.5
    assert list(ORDERS) == sorted(set(ORDERS))
    assert all((order * 16).is_integer() for order in ORDERS), "exact in any database"


# Conversions


def test_conversion_against_the_formula_by_hand() -> None:
    # alpha = 2, rdp = 1, delta = 1/16: delta(eps) = exp(1 - eps)/4, so eps = 1 + ln 4.
    assert accounting.rdp_epsilon(1.0, 2.0, 1 / 16) == pytest.approx(1 + math.log(4), rel=1e-12)
    assert accounting.rdp_delta(1.0, 2.0, 1 + math.log(4)) == pytest.approx(1 / 16, rel=1e-12)
    assert accounting.rdp_budget(1 + math.log(4), 1 / 16, 2.0) == pytest.approx(1.0, rel=1e-12)


def test_conversion_agrees_with_dp_accounting() -> None:
    from dp_accounting.rdp import rdp_privacy_accountant

    for value, order, delta in [(0.5, 18.0, 1e-5), (2.1, 7.25, 1e-6), (9.0, 2.0, 1e-5), (0.01, 64.0, 1e-6)]:
        theirs = rdp_privacy_accountant.compute_epsilon([order], [value], delta)[0]
        assert accounting.rdp_epsilon(value, order, delta) == pytest.approx(theirs, rel=1e-9)
        theirs = rdp_privacy_accountant.compute_delta([order], [value], 2 * value + 1)[0]
        assert accounting.rdp_delta(value, order, 2 * value + 1) == pytest.approx(theirs, rel=1e-9)


@given(st.floats(0.05, 50), st.floats(1e-12, 1e-2), st.sampled_from(ORDERS))
@settings(max_examples=300, deadline=None)
def test_a_spent_budget_never_exceeds_its_promise(epsilon: float, delta: float, order: float) -> None:
    budget = accounting.rdp_budget(epsilon, delta, order)
    if budget > 0:
        assert accounting.rdp_epsilon(budget, order, delta) <= epsilon
        assert accounting.rdp_delta(budget, order, epsilon) <= delta * (1 + 1e-9), "itself rounded up"
        assert accounting.rdp_epsilon(budget * (1 + 1e-9) + 1e-12, order, delta) > epsilon * (1 - 1e-9)


@given(st.floats(0.01, 5), st.sampled_from(ORDERS), st.floats(1e-9, 0.1))
@settings(max_examples=200, deadline=None)
def test_conversion_is_valid_for_the_gaussian(mu: float, order: float, delta: float) -> None:
    epsilon = accounting.rdp_epsilon(order * mu * mu / 2, order, delta)
    assert gaussian_delta(mu, epsilon) <= delta * (1 + 1e-9)


def lossless_delta(value: float, order: float, epsilon: float) -> float:
    """The largest delta that any pair with this divergence can have: a Bernoulli pair (tpr, fpr) attains it."""
    limit = (order - 1) * value

    def fpr(tpr: float) -> float:
        """Smallest fpr with tpr^α fpr^(1-α) + (1-tpr)^α (1-fpr)^(1-α) ≤ exp(limit)."""

        def excess(log_x: float) -> float:
            x = math.exp(log_x)
            rest = order * math.log1p(-tpr) + (1 - order) * math.log1p(-x) if tpr < 1 else -math.inf
            return float(np.logaddexp(order * math.log(tpr) + (1 - order) * log_x, rest)) - limit

        low = math.log(tpr) - limit * order / (order - 1) - 50
        return math.exp(optimize.brentq(excess, low, math.log(tpr)))

    best = optimize.minimize_scalar(
        lambda log_t: -(math.exp(log_t) - math.exp(epsilon) * fpr(math.exp(log_t))),
        bounds=(-40, -1e-9),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return float(-best.fun)


@pytest.mark.parametrize("epsilon", [1.0, 3.0, 8.0, 20.0])
def test_the_lossless_conversion_would_gain_nothing(epsilon: float) -> None:
    delta = 1e-5
    order = accounting.best_order(epsilon, delta, run(1.0, 5.0, 1))
    spent = accounting.rdp_budget(epsilon, delta, order)
    assert lossless_delta(spent, order, epsilon) == pytest.approx(delta, rel=0.01)
    smaller = optimize.brentq(
        lambda e: math.log(lossless_delta(spent, order, e) / delta), epsilon / 2, epsilon * 1.01
    )
    assert epsilon * 0.999 <= smaller <= epsilon * (1 + 1e-6)


def test_best_order_is_the_best_of_the_grid_and_follows_the_rate() -> None:
    for forecast in (run(0.0256, 0.9, 1200), run(1.0, 5.0, 1), run(0.01, 0.8, 300)):
        best = accounting.best_order(3.0, 1e-5, forecast)
        share = {o: accounting.rdp_budget(3.0, 1e-5, o) / accounting.rdp(forecast, [o])[0] for o in ORDERS}
        assert share[best] == max(share.values())
    assert accounting.best_order(3.0, 1e-5, run(1.0, 5.0, 1)) == 7.5
    assert accounting.best_order(3.0, 1e-5, run(0.002, 0.7, 300)) < 7.5


@pytest.mark.parametrize("bad", [math.nan, -1.0])
def test_impossible_values_are_refused(bad: float) -> None:
    for call in (
        lambda: accounting.rdp(run(0.1, 1.0, 1), [bad]),
        lambda: accounting.rdp_epsilon(bad, 2.0, 1e-5),
        lambda: accounting.rdp_epsilon(1.0, bad, 1e-5),
        lambda: accounting.rdp_epsilon(1.0, 2.0, bad),
        lambda: accounting.rdp_delta(bad, 2.0, 1.0),
        lambda: accounting.rdp_delta(1.0, 2.0, bad),
        lambda: accounting.rdp_budget(bad, 1e-5, 2.0),
        lambda: accounting.rdp_budget(1.0, bad, 2.0),
        lambda: accounting.rdp_budget(1.0, 1e-5, bad),
        lambda: accounting.best_order(bad, 1e-5, run(0.1, 1.0, 1)),
    ):
        with pytest.raises(ConfigError):
            call()


def test_infinite_and_empty_forecasts_and_strange_mechanisms() -> None:
    with pytest.raises(ConfigError):
        accounting.best_order(1.0, 1e-5, [])
    with pytest.raises(ConfigError):
        accounting.best_order(1.0, 1e-5, run(0.1, 0.0, 1))
    with pytest.raises(ConfigError):
        accounting.best_order(1e-4, 1e-12, run(0.1, 1.0, 1))
    with pytest.raises(ConfigError):
        accounting.rdp([(0.1, 1.0, 1)])  # type: ignore[list-item]
    with pytest.raises(ConfigError):
        accounting.rdp_budget(math.inf, 1e-5, 2.0)
    assert accounting.rdp_epsilon(math.inf, 2.0, 1e-5) == math.inf
    assert accounting.rdp_delta(math.inf, 2.0, 1.0) == 1.0
    assert accounting.rdp_epsilon(0.0, 2.0, 1e-5) == 0.0
    assert accounting.rdp_budget(0.01, 1e-9, 1.0625) == 0.0
    assert Mechanism(0.1, 1.0, 1) in run(0.1, 1.0, 1)
