"""What a budget lets be spent, the noise with which runs fit into it, and what more runs would cost.

*Open* budgets gate the sum of worst-case RDP at one order, fixed at signing as the best one for a forecast of their
use; *planned* ones the joint PLD of what they declare (:mod:`dptrain.ledger.gate` says why each is valid).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dptrain.accounting.losses import pld_epsilon
from dptrain.accounting.noise import calibrate_noise
from dptrain.accounting.renyi import ORDERS, best_order, rdp_epsilon
from dptrain.accounting.units import budget_units, from_units, to_units
from dptrain.errors import ConfigError
from dptrain.plan import Mechanism

TURNS = 10  # at most, to find a forecast's order and noise; two or three are usual


@dataclass(frozen=True)
class Terms:
    """What a budget lets be spent.

    Attributes:
        order: RDP order at which charges are summed; `order_index`: its place in ORDERS.
        units: RDP that may be spent at that order (planned: by runs of *other* cohorts on the same patients).
        minimum_charge: below this remainder, in nats of RDP, an open budget is exhausted.
        prefixes: planned: `prefixes[k]` is the joint epsilon of the first k declared mechanisms.
    """

    order: float
    units: int
    minimum_charge: float = 0.0
    prefixes: tuple[float, ...] = ()

    @property
    def order_index(self) -> int:
        """Where the order stands in the grid."""
        return list(ORDERS).index(self.order)

    @property
    def minimum_units(self) -> int:
        """The smallest charge in units."""
        return to_units(self.minimum_charge)


def open_terms(
    epsilon: float,
    delta: float,
    forecast: Sequence[Mechanism],
    *,
    order: float | None = None,
    minimum_charge: float | None = None,
) -> Terms:
    """The terms of an open budget; `units` is 0 or less where (epsilon, delta) leaves nothing to spend.

    Args:
        order: of the budget that is changed (a raise keeps it); None: the best one for the forecast.
        minimum_charge: None: 1 % of epsilon, at most a tenth of what may be spent.

    Raises ConfigError for a minimum charge above everything that may be spent.
    """
    order = best_order(epsilon, delta, forecast) if order is None else order
    units = budget_units(epsilon, delta, order)
    allowed = from_units(max(0, units))
    if minimum_charge is None:
        minimum_charge = min(epsilon / 100, allowed / 10)
    if units > 0 and minimum_charge > allowed:
        raise ConfigError(
            f"minimum_charge={minimum_charge:g} would lock the cohort at once: at order {order:g} at most "
            f"{allowed:.3g} can be spent.",
            remedy="Choose a smaller minimum charge.",
        )
    return Terms(order, units, minimum_charge)


def planned_terms(epsilon: float, delta: float, declared: Sequence[Mechanism]) -> Terms:
    """The terms of a planned budget; they fit only if `prefixes[-1]` is at most epsilon.

    Its own mechanisms are accounted at delta/2 by joint PLD; what remains of epsilon, at the other delta/2, is
    set aside for other cohorts' runs on the same patients (basic composition). Often that is nothing.
    """
    prefixes = (0.0, *(float(pld_epsilon(declared[:k], delta)) for k in range(1, len(declared) + 1)))
    order, units = ORDERS[0], 0
    if prefixes[-1] <= epsilon:
        own = float(pld_epsilon(declared, delta / 2))
        with contextlib.suppress(ConfigError):  # too little is set aside for any order: then nothing is
            order = best_order(max(0.0, epsilon - own), delta / 2, declared)
            units = budget_units(epsilon - own, delta / 2, order)
    return Terms(order, units, prefixes=prefixes)


def fitting_noise(
    epsilon: float,
    delta: float,
    one: Mechanism,
    runs: int,
    *,
    also: Sequence[Mechanism] = (),
    planned: bool = False,
    order: float | None = None,
) -> Mechanism:
    """`one` with the least noise at which so many runs of it, and `also`, stay within the budget by its own gate.

    An open budget takes the order that is best for its forecast, and a forecast at that order's noise may have a
    better one: each turn needs no more noise than the one before.

    Args:
        planned: whether the budget is a planned one, gated by joint PLD.
        order: of the open budget that is changed, which a raise keeps.
    """
    steps = one.steps * runs
    noise = calibrate_noise(epsilon, delta, one.sample_rate, steps, also=also)
    if planned:
        return replace(one, noise_multiplier=noise)
    last = order
    for _ in range(TURNS):
        used = (replace(one, noise_multiplier=noise, steps=steps), *also)
        best = best_order(epsilon, delta, used) if order is None else order
        noise = calibrate_noise(epsilon, delta, one.sample_rate, steps, also=also, accountant="rdp", order=best)
        if best == last:
            break
        last = best
    return replace(one, noise_multiplier=noise)


def epsilon_after(spent: float, cost: float, runs: int, order: float, delta: float) -> float:
    """Epsilon of an open budget after so many more runs that cost `cost` each (nats of RDP at its order).

    Exact: RDP adds up. `spent` is what was spent at that order before.
    """
    return float(rdp_epsilon(spent + runs * cost, order, delta))
