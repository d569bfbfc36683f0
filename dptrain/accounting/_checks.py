"""Refusals that all modules of the accounting share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dptrain.errors import ConfigError
from dptrain.plan import Mechanism


def check_epsilon(epsilon: float) -> float:
    """`epsilon` if finite and at least 0; ConfigError otherwise."""
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ConfigError(f"epsilon={epsilon} must be a finite number of at least 0.")
    return float(epsilon)


def check_delta(delta: float) -> float:
    """`delta` if strictly between 0 and 1; ConfigError otherwise."""
    if not (math.isfinite(delta) and 0 < delta < 1):
        raise ConfigError(
            f"delta={delta} must lie strictly between 0 and 1.",
            remedy="Leave it unset for min(1e-5, 1/(10 N)), N being the number of patients declared public.",
        )
    return float(delta)


def check_order(order: float) -> float:
    """`order` if finite and above 1; ConfigError otherwise."""
    if not (math.isfinite(order) and order > 1):
        raise ConfigError(f"the Rényi order {order} must be a finite number above 1.")
    return float(order)


def check_mechanisms(mechanisms: Sequence[Mechanism]) -> dict[tuple[float, float], int]:
    """Steps by (sample rate, noise multiplier), the same settings taken together.

    Composition does not depend on the order of the mechanisms, so the dictionary is sorted: the same set
    of mechanisms always gives the same number, to the last bit.

    Raises:
        ConfigError: something in the sequence is not a Mechanism (an event of unknown cost is never free).
    """
    steps: dict[tuple[float, float], int] = {}
    for mechanism in mechanisms:
        if not isinstance(mechanism, Mechanism):
            raise ConfigError(
                f"the cost of a {type(mechanism).__name__} is unknown.",
                remedy="Describe the release as dptrain.plan.Mechanism(sample_rate, noise_multiplier, steps).",
            )
        key = (float(mechanism.sample_rate), float(mechanism.noise_multiplier))
        steps[key] = steps.get(key, 0) + int(mechanism.steps)
    return dict(sorted(steps.items()))
