"""Terms of budgets, noise that fits several runs, what more runs would cost."""

from __future__ import annotations

import pytest

from dptrain import accounting
from dptrain.accounting.units import from_units
from dptrain.errors import ConfigError
from dptrain.plan import Mechanism

ONE = Mechanism(0.05, 1.2, 200)
DELTA = 1e-5


def test_open_terms_spend_epsilon_and_not_more() -> None:
    terms = accounting.open_terms(3.0, DELTA, [ONE])
    assert accounting.ORDERS[terms.order_index] == terms.order == accounting.best_order(3.0, DELTA, [ONE])
    assert accounting.rdp_epsilon(from_units(terms.units), terms.order, DELTA) == pytest.approx(3.0, rel=1e-6)
    assert terms.minimum_charge == 0.03
    kept = accounting.open_terms(4.0, DELTA, [Mechanism(1.0, 5.0, 10)], order=terms.order, minimum_charge=0.5)
    assert (kept.order, kept.minimum_charge) == (terms.order, 0.5)
    with pytest.raises(ConfigError, match="lock the cohort at once"):
        accounting.open_terms(3.0, DELTA, [ONE], minimum_charge=3.0)
    assert accounting.open_terms(1e-6, DELTA, [ONE], order=terms.order).units <= 0


def test_planned_terms_are_the_joint_loss_and_set_aside_the_rest() -> None:
    joint = accounting.pld_epsilon([ONE, ONE], DELTA)
    terms = accounting.planned_terms(joint, DELTA, [ONE, ONE])
    assert terms.prefixes == (0.0, accounting.pld_epsilon([ONE], DELTA), joint)
    assert terms.units == 0
    roomy = accounting.planned_terms(joint + 5, DELTA, [ONE, ONE])
    aside = accounting.rdp_epsilon(from_units(roomy.units), roomy.order, DELTA / 2)
    assert roomy.units > 0
    assert aside + accounting.pld_epsilon([ONE, ONE], DELTA / 2) <= joint + 5 + 1e-9
    assert accounting.planned_terms(joint / 2, DELTA, [ONE, ONE]).prefixes[-1] > joint / 2


@pytest.mark.parametrize("planned", [True, False])
def test_fitting_noise_is_the_least_that_fits(planned: bool) -> None:
    fitted = accounting.fitting_noise(3.0, DELTA, ONE, 3, planned=planned)
    less = Mechanism(ONE.sample_rate, fitted.noise_multiplier * 0.99, ONE.steps)

    def fits(one: Mechanism) -> bool:
        if planned:
            return accounting.planned_terms(3.0, DELTA, [one] * 3).prefixes[-1] <= 3.0
        terms = accounting.open_terms(3.0, DELTA, [fitted] * 3)
        return float(accounting.rdp([one] * 3, [terms.order])[0]) <= from_units(terms.units)

    assert fits(fitted)
    assert not fits(less)


def test_a_raise_fits_at_the_order_that_it_keeps() -> None:
    order = accounting.best_order(1.0, DELTA, [ONE])
    fitted = accounting.fitting_noise(3.0, DELTA, ONE, 2, order=order)
    cost = float(accounting.rdp([fitted] * 2, [order])[0])
    assert accounting.rdp_epsilon(cost, order, DELTA) == pytest.approx(3.0, rel=1e-3)
    assert accounting.epsilon_after(cost / 2, cost / 2, 1, order, DELTA) == accounting.rdp_epsilon(cost, order, DELTA)
