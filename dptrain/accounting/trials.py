"""Choosing the best of a random number of trials costs much less than all trials together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from dptrain.accounting._checks import check_delta, check_mechanisms
from dptrain.accounting.losses import hockey_stick
from dptrain.accounting.renyi import ORDERS, Array, rdp, rdp_epsilon
from dptrain.errors import ConfigError
from dptrain.plan import Mechanism

Distribution = Literal["poisson", "geometric", "logarithmic"]


def random_stopping_epsilon(
    trial: Sequence[Mechanism],
    delta: float,
    *,
    expected_trials: float,
    distribution: Distribution = "poisson",
) -> float:
    """Epsilon of releasing only the best of a random number of independent trials, each costing `trial`.

    It holds if, and only if: the number of trials K is drawn from the distribution beforehand, by a
    cryptographic generator, and kept secret; hyper-parameters are drawn anew for each trial by a rule that is
    fixed beforehand; only the best trial is released, nothing of the others, and not K; and the score that
    decides is a function of what the trial releases and of public or unprotected data. An ordinary sweep,
    where all trials are seen, costs the plain sum: `pld_epsilon(trial * trials, delta)`.

    Args:
        trial: what one trial releases.
        delta: strictly between 0 and 1.
        expected_trials: E[K], at least 1.
        distribution: of K. `poisson` (K = 0 possible: then nothing is released), `geometric` on 1, 2, …, or
            `logarithmic` on 1, 2, … (heavier tail, smaller cost).

    Returns:
        An upper bound, minimised over the grid of orders; inf without noise; never below one trial's.

    Raises:
        ConfigError: expected_trials below 1, an unknown distribution, delta outside (0, 1).

    Source: Papernot & Steinke 2022, "Hyperparameter tuning with Rényi differential privacy"
    (arXiv:2110.03620), Theorem 2 (truncated negative binomial with η = 1: geometric, η = 0: logarithmic)
    and Theorem 6 (Poisson).
    """
    steps, delta = check_mechanisms(trial), check_delta(delta)
    if not (math.isfinite(expected_trials) and expected_trials >= 1):
        raise ConfigError(f"expected_trials={expected_trials} must be a finite number of at least 1.")
    if distribution not in ("poisson", "geometric", "logarithmic"):
        raise ConfigError(f"distribution={distribution} is unknown: poisson, geometric or logarithmic.")
    if not steps:
        return 0.0
    if any(noise == 0 for _, noise in steps):
        return math.inf
    orders, single = np.array(ORDERS), rdp(trial)
    chosen = single + math.log(expected_trials) / (orders - 1)
    if distribution == "poisson":
        # δ̂ at ε̂ = log(1 + 1/(λ−1)), ascending in ε̂ as the table wants it.
        chosen = chosen + expected_trials * hockey_stick(trial, np.log1p(1 / (orders - 1))[::-1])[::-1]
    else:
        shape, gamma = (1, 1 / expected_trials) if distribution == "geometric" else (0, _gamma(expected_trials))
        chosen = chosen + (1 + shape) * _least(single, orders, gamma)
    chosen = np.nextafter(chosen * (1 + 1e-14), np.inf)
    return min(rdp_epsilon(float(value), order, delta) for value, order in zip(chosen, ORDERS))


def _least(single: Array, orders: Array, gamma: float) -> float:
    """min over λ̂ of (1 − 1/λ̂)·ε̂ + log(1/γ)/λ̂; at λ̂ = 1, where any ε̂ will do, it is log(1/γ)."""
    values = (1 - 1 / orders) * single - math.log(gamma) / orders
    return min(float(np.min(values)), -math.log(gamma))


def _gamma(expected_trials: float) -> float:
    """γ of the logarithmic distribution with mean (1/γ − 1)/log(1/γ), rounded down (which costs more)."""
    low, high = 0.0, 700.0  # of log(1/γ); the mean ascends in it
    for _ in range(200):
        middle = (low + high) / 2
        mean = math.expm1(middle) / middle if middle > 0 else 1.0
        low, high = (middle, high) if mean < expected_trials else (low, middle)
    return math.exp(-high)
