"""Charges as whole numbers: exact, upwards, and additive however a run is cut."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptrain import accounting
from dptrain.accounting import INFINITE_UNITS, UNIT_BITS
from dptrain.errors import ConfigError
from tests.accounting.exact import run


@given(st.floats(0, 1e6))
def test_units_round_up_and_budgets_down(value: float) -> None:
    units = accounting.to_units(value)
    assert Fraction(units, 2**UNIT_BITS) >= Fraction(value) > Fraction(units - 1, 2**UNIT_BITS)
    assert accounting.from_units(units) >= value


@given(st.integers(0, 2**61))
def test_units_show_at_least_what_was_spent(units: int) -> None:
    assert Fraction(accounting.from_units(units)) >= Fraction(units, 2**UNIT_BITS)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=8))
def test_leases_add_up_to_the_run_exactly(leases: list[int]) -> None:
    whole = accounting.charge_units(run(0.0256, 0.9, sum(leases)), [3.5, 18.0])
    parts = [accounting.charge_units(run(0.0256, 0.9, lease), [3.5, 18.0]) for lease in leases]
    assert [sum(column) for column in zip(*parts)] == whole


@given(st.floats(0.1, 50), st.floats(1e-9, 1e-3), st.sampled_from([1.5, 3.5, 7.5, 18.0, 64.0]))
def test_a_budget_in_units_keeps_the_promise(epsilon: float, delta: float, order: float) -> None:
    budget = accounting.budget_units(epsilon, delta, order)
    if budget:
        assert accounting.rdp_epsilon(accounting.from_units(budget), order, delta) <= epsilon


def test_charges_bound_the_divergence_and_cost_next_to_nothing() -> None:
    mechanisms = [*run(0.0256, 0.9, 1200), *run(1.0, 20.0, 1)]
    charges = accounting.charge_units(mechanisms)
    assert len(charges) == len(accounting.ORDERS)
    for units, nats in zip(charges, accounting.rdp(mechanisms)):
        assert nats * (1 - 1e-12) <= accounting.from_units(units) <= nats * (1 + 1e-6)


def test_no_float_drift_over_a_million_small_charges() -> None:
    step = accounting.charge_units(run(1e-4, 5.0, 1), [6.0])[0]
    exact = Fraction(float(accounting.rdp(run(1e-4, 5.0, 1), [6.0])[0])) * 10**6
    assert Fraction(step * 10**6, 2**UNIT_BITS) >= exact


def test_without_noise_no_budget_is_enough() -> None:
    assert accounting.charge_units(run(0.1, 0.0, 1), [2.0]) == [INFINITE_UNITS]
    assert accounting.charge_units([*run(0.1, 1.0, 1), *run(0.1, 0.0, 9)], [2.0]) == [INFINITE_UNITS]
    assert accounting.budget_units(1000.0, 1e-5, 2.0) < INFINITE_UNITS
    assert accounting.from_units(INFINITE_UNITS) == math.inf
    assert INFINITE_UNITS < 2**63


def test_impossible_charges_are_refused() -> None:
    for bad in (math.nan, -1e-9):
        with pytest.raises(ConfigError):
            accounting.to_units(bad)
    with pytest.raises(ConfigError):
        accounting.from_units(-1)
    with pytest.raises(ConfigError):
        accounting.budget_units(1e7, 1e-5, 2.0)
    with pytest.raises(ConfigError):
        accounting.budget_units(math.nan, 1e-5, 2.0)
    assert accounting.to_units(math.inf) == accounting.to_units(1e300) == INFINITE_UNITS


def test_units_at_their_borders() -> None:
    """A whole unit is itself, the least bit more is one more; shown again, never less and by at most one float."""
    unit = 2.0**-UNIT_BITS
    assert accounting.to_units(0.0) == accounting.from_units(0) == 0
    assert accounting.to_units(unit) == 1
    assert accounting.to_units(math.nextafter(unit, 1)) == accounting.to_units(math.nextafter(2 * unit, 0)) == 2
    assert accounting.to_units(5e-324) == 1
    assert accounting.from_units(1) == unit
    odd = (1 << 53) + 1  # no float is that many units
    assert accounting.from_units(odd) == math.nextafter((1 << 53) * unit, math.inf)
    assert math.isfinite(accounting.from_units(INFINITE_UNITS - 1))


@pytest.mark.parametrize("order", [1.5, 3.5, 64.0])
def test_a_budget_is_rounded_down_by_less_than_a_unit(order: float) -> None:
    exact = Fraction(accounting.rdp_budget(3.0, 1e-5, order)) * 2**UNIT_BITS
    assert exact - 1 < accounting.budget_units(3.0, 1e-5, order) <= exact
