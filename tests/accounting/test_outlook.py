"""The forecast that `dptrain plan` shows, and the start of the package."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from dptrain import accounting
from dptrain.accounting.outlook import overhead
from dptrain.errors import ConfigError
from tests.accounting.exact import gaussian_epsilon, run


def test_runs_that_fit_do_fit_and_one_more_does_not() -> None:
    epsilon, delta, mechanisms = 8.0, 1e-5, run(0.27, 8.0, 200)
    seen = accounting.forecast(epsilon, delta, mechanisms)
    cost = accounting.charge_units(mechanisms, [seen.order])[0]
    budget = accounting.budget_units(epsilon, delta, seen.order)
    assert seen.runs_open * cost <= budget < (seen.runs_open + 1) * cost
    assert accounting.pld_epsilon(run(0.27, 8.0, 200 * seen.runs_planned), delta) <= epsilon
    assert accounting.pld_epsilon(run(0.27, 8.0, 200 * (seen.runs_planned + 1)), delta) > epsilon
    assert seen.epsilon_joint <= seen.epsilon_gate <= epsilon
    assert 0 < seen.overhead < 0.1


def test_a_budget_below_one_run_says_so_and_advises_a_planned_one() -> None:
    seen = accounting.forecast(1.0, 1e-5, run(0.01, 1.03, 300))
    assert (seen.runs_open, seen.runs_planned) == (0, 1)
    assert (seen.epsilon_gate, seen.epsilon_joint) == (0.0, 0.0)
    assert seen.advise_planned
    assert not accounting.forecast(1.0, 1e-5, run(1.0, 1.0, 1)).runs_planned


def test_overhead_of_the_gaussian_by_hand() -> None:
    order, epsilon, delta = 7.5, 3.0, 1e-5
    spent = accounting.rdp_budget(epsilon, delta, order)
    steps = math.floor(spent / (order / (2 * 40.0**2)))
    expected = epsilon / gaussian_epsilon(math.sqrt(steps) / 40.0, delta) - 1
    assert overhead(epsilon, delta, run(1.0, 40.0, 10), order) == pytest.approx(expected, abs=5e-4)
    assert math.isnan(overhead(0.001, 1e-5, run(1.0, 1.0, 1), 2.0))


def test_a_forecast_needs_noise() -> None:
    with pytest.raises(ConfigError):
        accounting.forecast(1.0, 1e-5, run(0.1, 0.0, 1))
    with pytest.raises(ConfigError):
        accounting.forecast(math.nan, 1e-5, run(0.1, 1.0, 1))


def test_importing_the_package_imports_nothing_heavy() -> None:
    """The ledger's `show` starts in under half a second; units and conversions need no scipy at all."""
    script = (
        "import sys, dptrain.accounting as a; "
        "heavy = {'numpy', 'scipy', 'dp_accounting', 'torch'} & set(sys.modules); assert not heavy, heavy; "
        "a.to_units(1.0); a.from_units(5); assert 'numpy' not in sys.modules; "
        "a.rdp_epsilon(1.0, 2.0, 1e-5); a.budget_units(1.0, 1e-5, 18.0); "
        "heavy = {'scipy', 'dp_accounting', 'torch'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_public_name_exists() -> None:
    for name in accounting.__all__:
        assert getattr(accounting, name) is not None
    assert "rdp" in dir(accounting)
    with pytest.raises(AttributeError):
        accounting.no_such_name  # noqa: B018
