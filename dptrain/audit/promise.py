"""What a patient was promised, as the games measure against it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from dptrain import accounting
from dptrain.accounting.attacks import TradeOff
from dptrain.plan import Plan
from dptrain.records.audit import Promised
from dptrain.records.parts import curve


@dataclass(frozen=True)
class Promise:
    """What a patient was promised; `epsilon` is infinite where nothing was."""

    epsilon: float
    delta: float
    curve: TradeOff | None

    def tpr(self) -> Callable[[float], float] | None:
        """The promised trade-off, FPR -> largest TPR."""
        curve = self.curve
        return None if curve is None else lambda fpr: float(curve.tpr(fpr))


def promise_of(plan: Plan) -> Promise:
    """Epsilon at the plan's delta and the trade-off curve of everything that the plan releases."""
    if not plan.private:
        return Promise(math.inf, plan.delta, None)
    epsilon = accounting.pld_epsilon(plan.mechanisms, plan.delta)
    return Promise(epsilon, plan.delta, accounting.tradeoff(plan.mechanisms))


def promised_json(promise: Promise) -> Promised:
    """As audit.json has it."""
    if promise.curve is None:
        return Promised(infinite=True, delta=promise.delta)
    return Promised(epsilon=promise.epsilon, delta=promise.delta, tradeoff=curve(*promise.curve.points(101)))
