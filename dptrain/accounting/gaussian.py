"""A second privacy filter: whole runs, charged by the Gaussian trade-off curve that covers them.

**Why.** A filter at one Rényi order overstates a Gaussian-like loss by 7 to 10 % of epsilon, by nature: it sees
one exponential moment. Gaussian differential privacy composes under full adaptivity without any loss: runs that
are μ₁-, μ₂-, …-GDP, each chosen after seeing the earlier ones, are together μ-GDP as long as Σ μᵢ² ≤ μ² on
every path (Smith & Thakurta 2022, arXiv:2210.17520; Koskela, Tobaben & Honkela 2023, arXiv:2209.15596),
concurrent runs included (Haney et al. 2023, arXiv:2309.05901, for f-DP). A sampled Gaussian run is not μ-GDP for
any useful μ, but only its far tails disagree; so a run is charged with a pair (μ², τ):

    T(M(D), M(D')) ≥ f and T(M(D'), M(D)) ≥ f,   f(x) = (1−τ)·G_μ(min(1, x/(1−τ))),

G_μ being the trade-off curve of N(0, 1) against N(μ, 1). This f belongs to the pair "N(μ, 1), or a mark P with
chance τ" against "N(0, 1), or a mark Q with chance τ".

**Validity.** By Blackwell's theorem (Dong, Roth & Su 2022, arXiv:1905.02383, Theorem 2.10) the run's two output
distributions are images of that pair under one random map. Follow a fully adaptive sequence of runs through these
maps, with Σ μᵢ² ≤ μ² and Σ τᵢ ≤ Τ on every path, and let B be the event that a mark appears. For any set S of
outcomes, P(S ∩ B) ≤ E[Σ τᵢ] ≤ Τ. Without a mark both densities are those of purely Gaussian runs, times the same
Π(1−τᵢ) ≤ 1 of the path; so P(S ∖ B) − e^ε·Q(S) ≤ ∫(p_G − e^ε·q_G)₊, which is at most δ_G(ε, μ), the delta of N(0, 1)
against N(μ, 1), by the theorem cited above. Together: (ε, Τ + δ_G(ε, μ))-DP. Swap D and D' for the other direction.

**What it demands.** A run is charged as a whole before its first step, nothing goes back, and the number of runs
is limited at signing (each takes the same τ). Where that does not suit, :mod:`dptrain.accounting.renyi` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dptrain.accounting._checks import check_delta, check_epsilon, check_mechanisms
from dptrain.accounting.attacks import curve
from dptrain.accounting.units import UNIT_BITS
from dptrain.errors import ConfigError
from dptrain.plan import Mechanism


@dataclass(frozen=True)
class GaussianBudget:
    """What whole runs may spend together so that (epsilon, delta) holds.

    Grant a run if and only if fewer than `runs` runs were granted and the sum of all charges with the new one is
    at most `mu_squared` (in units of 2⁻⁴⁰: `units`).

    Attributes:
        epsilon, delta: the promise.
        runs: the most runs that may ever be granted.
        tail: τ, with which each run's :func:`gaussian_charge` is computed.
        mu_squared: capacity, rounded down.
    """

    epsilon: float
    delta: float
    runs: int
    tail: float
    mu_squared: float

    @property
    def units(self) -> int:
        """The capacity in whole units of 2⁻⁴⁰, rounded down."""
        numerator, denominator = self.mu_squared.as_integer_ratio()
        return (numerator << UNIT_BITS) // denominator

    def spent_epsilon(self, mu_squared: float) -> float:
        """The epsilon, at the budget's delta, of runs whose charges sum to `mu_squared`; rounded up.

        Raises:
            ConfigError: mu_squared negative or NaN.
        """
        if math.isnan(mu_squared) or mu_squared < 0:
            raise ConfigError(f"a charge of {mu_squared} is impossible: it is at least 0.")
        if mu_squared == 0 or math.isinf(mu_squared):
            return mu_squared
        mu, allowed = math.sqrt(mu_squared), (self.delta - self.runs * self.tail) * (1 - 1e-9)
        low, high = 0.0, mu * mu + 40 * mu
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (low, middle) if _delta(mu, middle) <= allowed else (middle, high)
        return high * (1 + 1e-12)


def gaussian_budget(epsilon: float, delta: float, *, runs: int, share: float = 0.1) -> GaussianBudget:
    """The capacity of a filter by Gaussian curves for (epsilon, delta), see the module.

    Args:
        epsilon, delta: the promise.
        runs: the most runs that the budget will ever serve.
        share: the part of delta that is set aside for the runs' tails: τ = share·delta/runs.

    Raises:
        ConfigError: a value out of range.
    """
    epsilon, delta = check_epsilon(epsilon), check_delta(delta)
    if isinstance(runs, bool) or runs != int(runs) or runs < 1:
        raise ConfigError(f"runs={runs} must be a whole number of at least 1.")
    if not 0 < share < 1:
        raise ConfigError(f"share={share} must lie strictly between 0 and 1.")
    allowed = delta * (1 - share) * (1 - 1e-9)
    low, high = 0.0, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _delta(middle, epsilon) <= allowed else (low, middle)
    return GaussianBudget(epsilon, delta, int(runs), share * delta / runs, low * low * (1 - 1e-12))


def gaussian_charge(mechanisms: Sequence[Mechanism], tail: float) -> float:
    """μ² of one whole run: the least Gaussian curve, tails of `tail` apart, that covers it; rounded up.

    Both the bound on the run's trade-off curve (convex, linear between corners) and the Gaussian one (convex) are
    compared at the corners of the former, which suffices: a convex curve below a line at both ends is below it
    in between.

    Args:
        mechanisms: everything that the run releases, fixed before it starts.
        tail: τ of the budget.

    Returns:
        μ², for `to_units`; inf without noise.

    Raises:
        ConfigError: tail outside (0, 1), or an unknown mechanism.
    """
    from scipy import special

    tail = check_delta(tail)
    if not check_mechanisms(mechanisms):
        return 0.0
    bound = curve(tuple(mechanisms), tail / 2)
    alpha = np.asarray(bound.fpr) / (1 - tail)
    beta = np.asarray(bound.fnr) / (1 - tail)
    inside = (alpha < 1) & (beta < 1)
    if not np.all(np.minimum(alpha, beta)[inside] > 0):
        return math.inf
    mu = float(np.max(-special.ndtri(alpha[inside]) - special.ndtri(beta[inside]), initial=0.0))
    return (mu * (1 + 1e-9)) ** 2


def _delta(mu: float, epsilon: float) -> float:
    """delta of N(0, 1) against N(mu, 1): Balle & Wang 2018, arXiv:1805.06530, Theorem 8."""
    from scipy import special

    if mu == 0:
        return 0.0
    return float(special.ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon + special.log_ndtr(-mu / 2 - epsilon / mu)))
