"""Charges as whole numbers: sums of any length are exact and cannot drift in anyone's favour.

A unit is 2⁻⁴⁰ nats of Rényi divergence (about 1e-12). Charges round up to whole units, budgets round down.
A run is charged by the step: steps × (units of one step), so that the leases of a run add up to the charge
of the run exactly, however it is cut. The rounding costs at most 1e-12 nats a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dptrain.errors import ConfigError
from dptrain.plan import Mechanism

UNIT_BITS = 40

#: The charge of something without privacy, or with more than 4 million nats. No budget reaches it. It fits
#: into 64 bits; a sum of two does not always, so add charges as Python integers.
INFINITE_UNITS = 1 << 62


def to_units(rdp: float) -> int:
    """Whole units of 2⁻⁴⁰ nats, rounded up, exactly; :data:`INFINITE_UNITS` for inf and anything that large.

    Raises:
        ConfigError: negative or NaN.
    """
    if math.isnan(rdp) or rdp < 0:
        raise ConfigError(f"a charge of {rdp} is impossible: it is a number of at least 0.")
    if math.isinf(rdp):
        return INFINITE_UNITS
    numerator, denominator = float(rdp).as_integer_ratio()
    return min(INFINITE_UNITS, -((-numerator << UNIT_BITS) // denominator))


def from_units(units: int) -> float:
    """Nats of so many units, rounded up to the next float; inf from :data:`INFINITE_UNITS` on.

    Raises:
        ConfigError: negative.
    """
    if units < 0:
        raise ConfigError(f"a charge of {units} units is impossible: it is at least 0.")
    if units >= INFINITE_UNITS:
        return math.inf
    nats = units / (1 << UNIT_BITS)
    numerator, denominator = nats.as_integer_ratio()
    return nats if numerator << UNIT_BITS >= units * denominator else math.nextafter(nats, math.inf)


def budget_units(epsilon: float, delta: float, order: float) -> int:
    """Units that a filter at `order` may spend so that (epsilon, delta) holds; rounded down.

    Grant a charge if and only if spent + charge ≤ budget, all in units. See
    :func:`dptrain.accounting.rdp_budget` for validity and errors.

    Raises:
        ConfigError: as there; also a budget so large that it protects nobody (over 2²⁰ nats).
    """
    from dptrain.accounting.renyi import rdp_budget

    nats = rdp_budget(epsilon, delta, order)
    if nats > 1 << 20:
        raise ConfigError(f"epsilon={epsilon:g} protects nobody.", remedy="Choose a budget below 100.")
    numerator, denominator = nats.as_integer_ratio()
    return (numerator << UNIT_BITS) // denominator


def charge_units(mechanisms: Sequence[Mechanism], orders: Sequence[float] | None = None) -> list[int]:
    """The charge of `mechanisms` in units at each order: Σ steps × to_units(one step), capped at infinity.

    Linear in steps: the charge of steps 0…n and of n…T add up to that of 0…T exactly.

    Args:
        mechanisms: what is released.
        orders: orders above 1; the whole grid by default (what the ledger stores with each grant).

    Raises:
        ConfigError: as :func:`dptrain.accounting.rdp`.
    """
    from dptrain.accounting.renyi import ORDERS, rdp

    wanted = ORDERS if orders is None else tuple(orders)
    total = [0] * len(wanted)
    for mechanism in mechanisms:
        one = Mechanism(mechanism.sample_rate, mechanism.noise_multiplier, 1)
        for index, step in enumerate(rdp([one], wanted)):
            total[index] = min(INFINITE_UNITS, total[index] + mechanism.steps * to_units(float(step)))
    return total
