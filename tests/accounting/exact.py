"""Values that do not come from the code under test: closed forms and high precision."""

from __future__ import annotations

import math

import mpmath
from scipy import optimize, special

from dptrain.plan import Mechanism


def run(rate: float, noise: float, steps: int) -> list[Mechanism]:
    return [Mechanism(rate, noise, steps)]


def gaussian_delta(mu: float, epsilon: float) -> float:
    """delta of N(0,1) against N(mu,1): Balle & Wang 2018, Theorem 8."""
    near, far = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
    return float(special.ndtr(near) - math.exp(epsilon + special.log_ndtr(far)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The epsilon that belongs to it."""
    if gaussian_delta(mu, 0) <= delta:
        return 0.0
    return float(optimize.brentq(lambda e: gaussian_delta(mu, e) - delta, 0, mu * mu + 40 * mu + 1, xtol=1e-13))


def divergence(rate: float, noise: float, order: float, direction: str) -> float:
    """One step's Rényi divergence, by adaptive quadrature in 40 digits."""
    with mpmath.workdps(40):
        q, s, a = mpmath.mpf(rate), mpmath.mpf(noise), mpmath.mpf(order)
        power = a if direction == "remove" else 1 - a

        def integrand(x: mpmath.mpf) -> mpmath.mpf:
            ratio = 1 - q + q * mpmath.exp(x / s - 1 / (2 * s * s))
            return mpmath.npdf(x) * ratio**power

        middle = a / s if direction == "remove" else mpmath.mpf(0)
        crossing = s * mpmath.log((1 - q) / q) + 1 / (2 * s)
        ends = sorted({mpmath.mpf(-40), mpmath.mpf(0), middle, crossing, middle + 40, mpmath.mpf(40)})
        ends = [end for end in ends if -40 <= end <= middle + 40]
        return float(mpmath.log(mpmath.quad(integrand, ends, maxdegree=9)) / (a - 1))
