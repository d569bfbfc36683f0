"""What a run costs, as whole numbers: RDP at every order of the fixed grid, rounded up once and never again.

A charge is linear in steps: T steps of one mechanism cost T times one step, exactly, at each order (adaptive
composition of RDP: Mironov 2017, Proposition 1). So a charge stores one step and "the rest" (every other
mechanism, for instance the noisy calibration release, paid whole with the first step), each as whole units of
:mod:`dptrain.accounting.units`. Sums of whole numbers do not drift, and the rounding is upward.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from dptrain.accounting.units import INFINITE_UNITS, to_units
from dptrain.errors import LedgerRefused
from dptrain.plain import Json
from dptrain.plan import Mechanism

ORDERS_VERSIONS = (1,)


def pack(values: Sequence[int]) -> str:
    """Whole numbers below 2^64 as base64 text, big-endian."""
    packed = array("Q", values)
    if sys.byteorder == "little":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()


def unpack(text: str) -> array[int]:
    """The numbers of :func:`pack`."""
    values = array("Q")
    values.frombytes(base64.b64decode(text, validate=True))
    if sys.byteorder == "little":
        values.byteswap()
    return values


@dataclass(frozen=True)
class Charge:
    """RDP of one step and of the rest, packed; None where it is infinite (no noise)."""

    step: str | None
    rest: str | None

    def at(self, order_index: int, steps: int) -> int:
        """Units at one order for this many committed steps; INFINITE_UNITS where nothing finite holds."""
        if steps <= 0:
            return 0
        if self._step is None:
            return INFINITE_UNITS
        rest = 0 if self._rest is None else self._rest[order_index]
        return min(INFINITE_UNITS, self._step[order_index] * steps + rest)

    @cached_property
    def _step(self) -> array[int] | None:
        return None if self.step is None else unpack(self.step)

    @cached_property
    def _rest(self) -> array[int] | None:
        return None if self.rest is None else unpack(self.rest)

    def to_dict(self) -> Json:
        """Plain values for JSON."""
        return {"step": self.step, "rest": self.rest, "orders_version": ORDERS_VERSIONS[-1]}

    @classmethod
    def from_dict(cls, values: Json) -> Charge:
        """Back from :meth:`to_dict`. Raises LedgerRefused for an unknown grid of orders."""
        if values["orders_version"] not in ORDERS_VERSIONS:
            raise LedgerRefused(f"the ledger's charges use RDP orders of version {values['orders_version']}.")
        return cls(values["step"], values["rest"])


def charge_of(mechanisms: Sequence[Mechanism]) -> Charge:
    """The worst-case charge of a plan's mechanisms; the first is the training itself.

    The bounds per order come from :func:`dptrain.accounting.rdp`. Raises ConfigError for NaN or negative ones.
    """
    if any(mechanism.noise_multiplier == 0 for mechanism in mechanisms):
        return Charge(None, None)
    from dptrain import accounting

    training, *others = mechanisms
    one = Mechanism(training.sample_rate, training.noise_multiplier, 1, training.what)
    step = pack([to_units(float(value)) for value in accounting.rdp([one])])
    return Charge(step, pack(accounting.charge_units(others)) if others else None)
