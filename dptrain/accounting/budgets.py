"""The arithmetic of a budget: what it allows, the noise with which runs fit it, and what more runs would make of it.

An *open* budget gates at one Rényi order, which is fixed at signing as the order that is best for a forecast of
its use (Feldman & Zrnic 2021: a fixed order is a filter for runs that are chosen as one goes). A *planned* budget
is bound to declared mechanisms, and gates by their joint privacy loss distribution.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dptrain.accounting.losses import pld_epsilon
from dptrain.accounting.noise import calibrate_noise
from dptrain.accounting.renyi import ORDERS, best_order, rdp_epsilon
from dptrain.accounting.units import budget_units
from dptrain.errors import ConfigError
from dptrain.plan import Mechanism

TURNS = 10  # at most, to find a forecast's order and noise; two or three are usual


@dataclass(frozen=True)
class Terms:
    """What is signed of a budget.

    Args:
        order: the Rényi order at which it gates (planned: at which its remainder serves other cohorts' runs).
        units: what may be spent at that order, in the ledger's whole units; 0 or less: nothing.
        prefixes: planned: epsilon (joint PLD, at the budget's delta) of the first 0, 1, 2, … declared mechanisms.
    """

    order: float
    units: int
    prefixes: tuple[float, ...] = ()


def open_terms(epsilon: float, delta: float, forecast: Sequence[Mechanism], order: float | None = None) -> Terms:
    """Order and units of an open budget; `order` is kept where it was signed before (a raise)."""
    best = best_order(epsilon, delta, tuple(forecast)) if order is None else order
    return Terms(best, budget_units(epsilon, delta, best))


def planned_terms(epsilon: float, delta: float, declared: Sequence[Mechanism]) -> Terms:
    """Prefixes of a planned budget; where epsilon leaves more than the declared mechanisms cost at delta/2, order and
    units of that remainder (by basic composition: the mechanisms at delta/2, the remainder at delta/2)."""
    declared = tuple(declared)
    prefixes = (0.0, *(float(pld_epsilon(declared[:count], delta)) for count in range(1, len(declared) + 1)))
    order, units = ORDERS[0], 0
    own = float(pld_epsilon(declared, delta / 2))
    with contextlib.suppress(ConfigError):  # too little is set aside for any order: then nothing is
        order = best_order(max(0.0, epsilon - own), delta / 2, declared)
        units = budget_units(epsilon - own, delta / 2, order)
    return Terms(order, units, prefixes)


def noise_for_planned(
    one: Mechanism, runs: int, epsilon: float, delta: float, *, also: tuple[Mechanism, ...] = ()
) -> float:
    """The least noise multiplier at which `runs` such mechanisms, and `also`, together cost at most epsilon (PLD)."""
    return calibrate_noise(epsilon, delta, one.sample_rate, one.steps * runs, also=also)


def noise_for_open(
    one: Mechanism,
    runs: int,
    epsilon: float,
    delta: float,
    *,
    also: tuple[Mechanism, ...] = (),
    order: float | None = None,
) -> float:
    """The least noise multiplier at which `runs` such mechanisms, and `also`, together fit an open budget.

    An open budget takes the order that is best for its forecast, and a forecast at that order's noise may have a
    better one: each turn needs no more noise than the one before. An `order` that is signed already stays.
    """
    steps = one.steps * runs

    def at(best: float) -> float:
        return calibrate_noise(epsilon, delta, one.sample_rate, steps, also=also, accountant="rdp", order=best)

    if order is not None:
        return at(order)
    noise, last = noise_for_planned(one, runs, epsilon, delta, also=also), None
    for _ in range(TURNS):
        best = best_order(epsilon, delta, (replace(one, noise_multiplier=noise, steps=steps), *also))
        noise = at(best)
        if best == last:
            break
        last = best
    return noise


@dataclass(frozen=True)
class After:
    """An open budget after so many more runs: epsilon spent and left, and whether they would be granted."""

    runs: int
    spent: float
    remaining: float
    possible: bool


def after_more_runs(
    charges: Sequence[float], one: float, epsilon: float, delta: float, order: float, counts: Sequence[int]
) -> list[After]:
    """What more runs would make of an open budget: exact, since Rényi divergences of one order add up.

    Args:
        charges: what is spent, run by run, at the budget's order (RDP, not epsilon).
        one: what one more run would cost, likewise.
        counts: so many more runs each.
    """
    spent = math.fsum(charges)
    after = {more: float(rdp_epsilon(spent + more * one, order, delta)) for more in counts}
    return [After(more, total, max(0.0, epsilon - total), total <= epsilon) for more, total in after.items()]
