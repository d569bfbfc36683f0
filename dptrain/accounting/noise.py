"""The least noise that meets a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from dptrain.accounting._checks import check_delta, check_order
from dptrain.accounting.losses import pld_epsilon
from dptrain.accounting.renyi import ORDERS, rdp, rdp_epsilon
from dptrain.errors import ConfigError
from dptrain.plan import Mechanism

_LARGEST = 1e6
_PRECISION = 1e-4


def calibrate_noise(
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    *,
    also: Sequence[Mechanism] = (),
    accountant: Literal["pld", "rdp"] = "pld",
    order: float | None = None,
) -> float:
    """The smallest noise multiplier, rounded up, with which `steps` steps and `also` meet the target together.

    The result has been evaluated itself: `accountant`'s epsilon of it is at most `target_epsilon`, always.
    It lies less than 0.03 % above the smallest noise that does, as far as the accountant is monotone.

    Args:
        target_epsilon: above 0; inf gives 0 (no noise).
        delta: strictly between 0 and 1.
        sample_rate: q, in (0, 1].
        steps: number of steps.
        also: releases that come on top and keep their own noise (a calibration release, an inherited run).
        accountant: `pld` for a planned budget and for reports; `rdp` for an open budget.
        order: for `rdp`: the budget's order. Without one the best order is taken afterwards, which holds for
            planned use only.

    Raises:
        ConfigError: a value out of range; `also` alone exceeds the target; no noise up to 1e6 meets it.
    """
    if math.isnan(target_epsilon) or target_epsilon <= 0:
        raise ConfigError(f"target_epsilon={target_epsilon} must be above 0.")
    if accountant not in ("pld", "rdp"):
        raise ConfigError(f"accountant={accountant} is unknown: pld or rdp.")
    if order is not None and accountant != "rdp":
        raise ConfigError("an order belongs to accountant=rdp: the loss distribution has none.")
    delta = check_delta(delta)
    orders = ORDERS if order is None else (check_order(order),)
    Mechanism(sample_rate, 1.0, steps)
    if math.isinf(target_epsilon):
        return 0.0

    def by_rdp(mechanisms: Sequence[Mechanism]) -> float:
        return min(rdp_epsilon(float(v), o, delta) for v, o in zip(rdp(mechanisms, orders), orders))

    def by_pld(mechanisms: Sequence[Mechanism]) -> float:
        return pld_epsilon(mechanisms, delta)

    def cost(noise: float, account: Callable[[Sequence[Mechanism]], float]) -> float:
        return account([*also, Mechanism(sample_rate, noise, steps)])

    account = by_pld if accountant == "pld" else by_rdp
    if also and account(list(also)) > target_epsilon:
        raise ConfigError(
            f"the releases that come on top cost epsilon {account(list(also)):.4g} by themselves, "
            f"more than the target of {target_epsilon:g}.",
            remedy="Raise target_epsilon, or give those releases more noise.",
        )
    high = 1.0
    while cost(high, by_rdp) > target_epsilon and high <= _LARGEST:
        high *= 2
    if accountant == "pld" and high > _LARGEST:  # `also` may fit by its distribution alone
        high = 1.0
        while cost(high, by_pld) > target_epsilon and high <= _LARGEST:
            high *= 2
    if high > _LARGEST:
        raise ConfigError(
            f"no noise up to {_LARGEST:g} gives epsilon {target_epsilon:g} at delta {delta:g} in {steps} steps.",
            remedy="Raise target_epsilon, take fewer steps, or a smaller sample rate.",
        )
    high = _least(lambda noise: cost(noise, by_rdp), target_epsilon, high)
    if accountant == "pld":
        high = _least(lambda noise: cost(noise, by_pld), target_epsilon, high)
    noise = _round_up(high)
    while cost(noise, account) > target_epsilon:
        noise = _round_up(noise * (1 + _PRECISION))
    return noise


def _least(epsilon: Callable[[float], float], target: float, high: float) -> float:
    """Noise within the precision above the least with epsilon(noise) ≤ target; `high` is enough.

    Steps down until it is too little, then regula falsi in log noise and log epsilon (Illinois variant),
    nudged so that both ends close in.
    """
    step = 1.05
    above = math.log(max(epsilon(high), 1e-300) / target)
    while True:
        low = high / step
        below = math.log(max(epsilon(low), 1e-300) / target)
        if below > 0:
            break
        high, above, step = low, below, step * step
        if high < 1e-3:
            return high
    side = 0
    while high / low > 1 + _PRECISION:
        gap = math.log(high / low)
        share = below / (below - above) if math.isfinite(below) else 0.5
        nudge = _PRECISION / 3 / gap
        share = min(1 - nudge, max(nudge, share + (nudge if side <= 0 else -nudge)))
        middle = low * math.exp(share * gap)
        value = math.log(max(epsilon(middle), 1e-300) / target)
        if value > 0:
            above = above / 2 if side == 1 else above
            low, below, side = middle, value, 1
        else:
            below = below / 2 if side == -1 else below
            high, above, side = middle, value, -1
    return high


def _round_up(noise: float) -> float:
    """To five significant digits, upwards."""
    digits = 4 - math.floor(math.log10(noise))
    scale = 10.0**digits
    return math.ceil(noise * scale) / scale
