"""The filter by Gaussian curves: valid for every mixture of runs, tight for Gaussian ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special

from dptrain import accounting
from dptrain.errors import ConfigError
from dptrain.plan import Mechanism
from tests.accounting.exact import gaussian_delta, run


def test_the_charge_of_a_gaussian_run_is_its_own() -> None:
    for noise, steps in ((2.0, 1), (40.0, 100)):
        truth = steps / noise**2
        assert truth * (1 - 1e-4) <= accounting.gaussian_charge(run(1.0, noise, steps), 1e-7) <= truth * 1.002


def test_the_curve_with_tails_covers_the_run() -> None:
    tail, mechanisms = 1e-6, run(0.05, 1.0, 200)
    mu = math.sqrt(accounting.gaussian_charge(mechanisms, tail))
    x = np.logspace(-9, math.log10(0.999), 300)
    curve = (1 - tail) * special.ndtr(-special.ndtri(np.minimum(1.0, x / (1 - tail))) - mu)
    assert np.all(curve <= accounting.tradeoff(mechanisms).beta(x) + 2e-8)
    assert mu < math.sqrt(200) * 1.0, "far below what the run would cost without sampling"


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_what_the_filter_grants_keeps_the_promise_jointly(epsilon: float) -> None:
    delta = 1e-5
    budget = accounting.gaussian_budget(epsilon, delta, runs=3)
    kinds = [run(0.05, 1.6 if epsilon > 2 else 6.0, 400), run(1.0, 25.0, 4), run(0.3, 6.0 if epsilon > 2 else 30, 50)]
    charges = [accounting.to_units(accounting.gaussian_charge(kind, budget.tail)) for kind in kinds]
    granted: list[Mechanism] = []
    spent = count = 0
    for kind, charge in sorted(zip(kinds * 3, charges * 3), key=lambda pair: -pair[1]):
        if count < budget.runs and spent + charge <= budget.units:
            granted, spent, count = [*granted, *kind], spent + charge, count + 1
    assert count >= 1
    assert accounting.pld_epsilon(granted, delta) <= epsilon


def test_it_is_tighter_than_one_order_where_the_loss_is_gaussian_like() -> None:
    epsilon, delta, mechanisms = 3.0, 1e-5, run(0.27, 8.0, 200)
    order = accounting.best_order(epsilon, delta, mechanisms)
    by_order = accounting.rdp_budget(epsilon, delta, order) / float(accounting.rdp(mechanisms, [order])[0])
    budget = accounting.gaussian_budget(epsilon, delta, runs=3)
    by_curve = budget.mu_squared / accounting.gaussian_charge(mechanisms, budget.tail)
    assert by_curve > 1.1 * by_order


def test_the_capacity_is_what_the_promise_allows() -> None:
    for epsilon in (0.1, 1.0, 20.0):
        budget = accounting.gaussian_budget(epsilon, 1e-5, runs=20)
        mu = math.sqrt(budget.mu_squared)
        assert gaussian_delta(mu, epsilon) + budget.runs * budget.tail <= 1e-5
        assert gaussian_delta(mu * 1.001, epsilon) + budget.runs * budget.tail > 1e-5
        assert budget.units <= budget.mu_squared * 2**40
        assert budget.spent_epsilon(budget.mu_squared) == pytest.approx(epsilon, rel=1e-6)
        assert budget.spent_epsilon(budget.mu_squared) <= epsilon * (1 + 1e-9)
        assert budget.spent_epsilon(budget.mu_squared / 4) < epsilon / 1.5
        assert (budget.spent_epsilon(0.0), budget.spent_epsilon(math.inf)) == (0.0, math.inf)


def test_edges() -> None:
    assert accounting.gaussian_charge([], 1e-7) == 0.0
    assert accounting.gaussian_charge(run(0.1, 0.0, 1), 1e-7) == math.inf
    assert accounting.gaussian_charge(run(0.1, 0.01, 1), 1e-7) == math.inf
    for call in (
        lambda: accounting.gaussian_budget(math.nan, 1e-5, runs=1),
        lambda: accounting.gaussian_budget(1.0, 0.0, runs=1),
        lambda: accounting.gaussian_budget(1.0, 1e-5, runs=0),
        lambda: accounting.gaussian_budget(1.0, 1e-5, runs=1, share=1.0),
        lambda: accounting.gaussian_charge(run(0.1, 1.0, 1), 0.0),
        lambda: accounting.gaussian_budget(1.0, 1e-5, runs=1).spent_epsilon(-1.0),
    ):
        with pytest.raises(ConfigError):
            call()
