"""Privacy loss distributions: the tight account of mechanisms that are fixed beforehand.

**Validity.** One step is dominated by the pair (P, Q) of :mod:`dptrain.accounting.renyi`, for removing, and
(Q, P), for adding; products of dominating pairs dominate the composition, adaptive in the values released but
not in the mechanisms (Zhu, Dong & Wang 2022, arXiv:2106.08567, Theorem 10 for composition, Theorem 11 for
Poisson sampling under add/remove). The hockey-stick divergence of the product is thus an
upper bound on delta. dp-accounting discretises the loss so that this divergence only grows (Doroshenko et al.
2022, "Connect the dots", arXiv:2207.04380, Algorithm 1), convolves by Fourier transform, and counts truncated
tails as infinite loss. Both directions are computed and the worse one counts.

A number of this kind holds for a *planned* set of mechanisms. It is not a filter: runs chosen after seeing
earlier results need :mod:`dptrain.accounting.renyi` (Rogers et al. 2016; arXiv:2602.06756).

**Rounding.** The transform's rounding error, of order (steps × machine epsilon), is added to delta
(:func:`fourier_error`). Where that or the size of the table makes the distribution useless (a delta below
1e-10, an epsilon in the hundreds), the smallest bound over the grid of Rényi orders stands in; it is just as
valid for planned mechanisms, and the smaller of the two is returned always.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dptrain.accounting._checks import check_delta, check_epsilon, check_mechanisms
from dptrain.accounting.renyi import ORDERS, Array, rdp, rdp_delta, rdp_epsilon
from dptrain.errors import ConfigError
from dptrain.plan import Mechanism, Plan

if TYPE_CHECKING:
    from dp_accounting import DpEvent
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

Steps = Mapping[tuple[float, float], int]

_SPREAD = 4e-4  # how much discretisation may add to the variance of the total loss, relative
_FINEST, _COARSEST = 2.0**-24, 2.0**-10  # grid of the loss, in nats
_CELLS = 2**21  # largest table
_LARGEST = 300.0  # above this epsilon (at delta 1e-12) no distribution is built


def pld_epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """The epsilon of `mechanisms` together at `delta`, add/remove, for a plan that is fixed beforehand.

    Args:
        mechanisms: everything released; the empty sequence costs 0.
        delta: strictly between 0 and 1.

    Returns:
        An upper bound (pessimistic discretisation and rounding), typically within 0.1 % of the true value;
        inf where a noise multiplier is 0.

    Raises:
        ConfigError: delta outside (0, 1), or an unknown mechanism.

    Source: see the module.
    """
    steps, delta = check_mechanisms(mechanisms), check_delta(delta)
    return _epsilon(steps, 1, delta)


def pld_delta(mechanisms: Sequence[Mechanism], epsilon: float) -> float:
    """The delta of `mechanisms` together at `epsilon`; an upper bound, at most 1 (1 without noise).

    Raises:
        ConfigError: epsilon negative or not finite, or an unknown mechanism.

    Source: see the module.
    """
    steps, epsilon = check_mechanisms(mechanisms), check_epsilon(epsilon)
    if not steps:
        return 0.0
    best = min(rdp_delta(value, order, epsilon) for order, value in zip(ORDERS, _rdp(steps, 1)))
    composed = _compose(steps, 1)
    if composed is not None:
        best = min(best, float(composed.get_delta_for_epsilon(epsilon)) + fourier_error(steps))
    return best


def group(mechanisms: Sequence[Mechanism], k: int, delta: float) -> float:
    """The epsilon of `mechanisms` at `delta` for k patients together: all k added, or all k removed.

    With Poisson draws, of k patients Binomial(k, q) take part in a step, and the mixture of N(j, σ²) with
    those weights against N(0, σ²) dominates: Ganesh 2024, "Tight group-level DP guarantees for DP-SGD with
    sampling via mixture of Gaussians mechanisms" (arXiv:2401.10294, section on Poisson sampling), built on
    Choquette-Choo et al. 2023 (arXiv:2310.15526, Corollary 4.7); tight for sums. Much smaller than k·ε with
    the δ that follows from general group privacy. For losses too large for a table, k patients who all
    take part in every step stand in (sensitivity k, no sampling), a valid upper bound.

    Args:
        mechanisms: everything released.
        k: number of patients (or of records, where records are the unit), a whole number of at least 1.
        delta: strictly between 0 and 1.

    Returns:
        An upper bound on epsilon; at k = 1 that of :func:`pld_epsilon`; inf where a noise multiplier is 0.

    Raises:
        ConfigError: k not a whole number of at least 1, delta outside (0, 1), or an unknown mechanism.
    """
    if isinstance(k, bool) or k != int(k) or k < 1:
        raise ConfigError(f"k={k} must be a whole number of patients, at least 1.")
    steps, delta = check_mechanisms(mechanisms), check_delta(delta)
    return _epsilon(steps, int(k), delta)


def epsilon_over_steps(
    mechanisms: Sequence[Mechanism] | Plan, delta: float, points: int = 50
) -> list[tuple[int, float]]:
    """Epsilon at `delta` after so many steps, the mechanisms taken one after the other.

    Args:
        mechanisms: a plan, or mechanisms in the order in which they run.
        delta: strictly between 0 and 1.
        points: how many steps to look at, evenly spread, the first and the last always among them.

    Returns:
        (step, epsilon), both ascending; the last is (all steps, `pld_epsilon(mechanisms, delta)`). Each is an
        upper bound for a run that is planned to end there; not a licence to stop when one likes the model.

    Raises:
        ConfigError: points below 1, delta outside (0, 1), or an unknown mechanism.
    """
    if isinstance(mechanisms, Plan):
        mechanisms = mechanisms.mechanisms
    delta, together = check_delta(delta), check_mechanisms(mechanisms)
    if points < 1:
        raise ConfigError(f"points={points} must be at least 1.")
    if not together:
        return []
    total = sum(together.values())
    wanted = sorted({round(step) for step in np.linspace(1, total, points)} | {total})
    grid = _interval(together, 1)
    curve: list[tuple[int, float]] = []
    so_far = 0.0
    for step in wanted:
        so_far = max(so_far, _epsilon(check_mechanisms(_first(mechanisms, step)), 1, delta, grid))
        curve.append((step, so_far))
    return curve


def hockey_stick(mechanisms: Sequence[Mechanism], epsilons: Array) -> Array:
    """Delta at each of the ascending `epsilons` (at least 0), [len(epsilons)], each an upper bound."""
    steps = check_mechanisms(mechanisms)
    if not steps:
        return np.zeros_like(epsilons)
    composed = _compose(steps, 1)
    if composed is None:
        divergences = list(zip(ORDERS, _rdp(steps, 1)))
        return np.array([min(rdp_delta(value, order, float(e)) for order, value in divergences) for e in epsilons])
    exact = np.asarray(composed.get_delta_for_epsilon(epsilons), dtype=np.float64)
    return np.clip(exact, 0, 1) + fourier_error(steps)


def event(mechanisms: Sequence[Mechanism]) -> DpEvent:
    """The mechanisms as a dp-accounting event, for its accountants or to hand on.

    Raises:
        ConfigError: an unknown mechanism.
    """
    import dp_accounting

    parts: list[DpEvent] = []
    for (rate, noise), count in check_mechanisms(mechanisms).items():
        release: DpEvent = dp_accounting.GaussianDpEvent(noise) if noise > 0 else dp_accounting.NonPrivateDpEvent()
        if rate < 1:
            release = dp_accounting.PoissonSampledDpEvent(rate, release)
        parts.append(dp_accounting.SelfComposedDpEvent(release, count))
    return dp_accounting.ComposedDpEvent(parts)


def fourier_error(steps: Steps) -> float:
    """What is added to delta for the rounding of the Fourier transforms.

    The spectrum of a probability vector has modulus at most 1, so that its T-th power carries T times the
    relative error of one transform (a few machine epsilons); the mean of the power's modulus is the largest
    entry of the result, p, and a tail of K cells collects at most K·p ≤ 10 of it (the total loss spreads over
    about 10 standard deviations). 1e-15·(T + 100) is that with the usual square-root growth of random
    errors left unused; tests compare with the Gaussian closed form at delta 1e-10.
    """
    return 1e-15 * (sum(steps.values()) + 100)


def _first(mechanisms: Sequence[Mechanism], count: int) -> list[Mechanism]:
    """The first `count` steps of the mechanisms, in order."""
    prefix = []
    for mechanism in mechanisms:
        if count <= 0:
            break
        now = min(count, mechanism.steps)
        prefix.append(Mechanism(mechanism.sample_rate, mechanism.noise_multiplier, now, mechanism.what))
        count -= now
    return prefix


def _epsilon(steps: Steps, k: int, delta: float, grid: float | None = None) -> float:
    if not steps:
        return 0.0
    best = min(rdp_epsilon(value, order, delta) for order, value in zip(ORDERS, _rdp(steps, k)))
    slack = fourier_error(steps)
    composed = _compose(steps, k, grid) if delta > slack else None
    if composed is not None:
        best = min(best, float(composed.get_epsilon_for_delta(delta - slack)) * (1 + 1e-12))
    return best


def _rdp(steps: Steps, k: int) -> list[float]:
    """Divergences at each order of the grid; for k > 1 those of k patients who take part in every step."""
    if k == 1:
        return [float(v) for v in rdp([Mechanism(rate, noise, count) for (rate, noise), count in steps.items()])]
    if any(noise == 0 for _, noise in steps):
        return [math.inf] * len(ORDERS)
    energy = sum(count * (k / noise) ** 2 for (_, noise), count in steps.items())
    return [order * energy / 2 * (1 + 1e-12) for order in ORDERS]


def _weights(rate: float, k: int) -> tuple[list[float], list[float]]:
    """How many of the k take part in a step, and with which probability."""
    if rate == 1:
        return [float(k)], [1.0]
    chances = [math.comb(k, j) * rate**j * (1 - rate) ** (k - j) for j in range(k + 1)]
    return [float(j) for j in range(k + 1)], chances


def _interval(steps: Steps, k: int) -> float | None:
    """Width of a cell of the loss table, a power of 2, or None if there is to be no table.

    Rounding a loss within cells of width h adds at most h²/4 to its variance, a step; h is chosen so that this
    stays below a share `_SPREAD` of the variance of all steps, roughly their χ² divergence, and so that
    the table fits.
    """
    if any(noise == 0 for _, noise in steps):
        return None
    largest = k * min(rdp_epsilon(value, order, 1e-12) for order, value in zip(ORDERS, _rdp(steps, 1)))
    if largest > _LARGEST:
        return None
    spread = 0.0
    single = 0.0
    for (rate, noise), count in steps.items():
        shifts, chances = _weights(rate, k)
        mean = sum(shift * chance for shift, chance in zip(shifts, chances))
        spread += count * min(mean * mean * math.expm1(min(50.0, 1 / noise**2)), (k / noise) ** 2)
        single = max(single, (k / noise) * (k / noise + 22) * 2)
    width = min(2 * math.sqrt(_SPREAD * spread / sum(steps.values())), largest / 1000)
    width = max(width, 4 * largest / _CELLS, single / _CELLS)
    return 2.0 ** math.floor(math.log2(min(max(width, _FINEST), _COARSEST)))


def _compose(steps: Steps, k: int, grid: float | None = None) -> PrivacyLossDistribution | None:
    width = grid if grid is not None else _interval(steps, k)
    return None if width is None else _composed(tuple(steps.items()), k, width)


@functools.lru_cache(maxsize=8)
def _composed(items: tuple[tuple[tuple[float, float], int], ...], k: int, width: float) -> PrivacyLossDistribution:
    total = None
    for (rate, noise), count in items:
        part = _one_step(rate, noise, k, width)
        part = part.self_compose(count) if count > 1 else part
        total = part if total is None else total.compose(part)
    return total


@functools.lru_cache(maxsize=16)
def _one_step(rate: float, noise: float, k: int, width: float) -> PrivacyLossDistribution:
    from dp_accounting.pld import privacy_loss_distribution as pld

    if k == 1 or rate == 1:
        return pld.from_gaussian_mechanism(
            noise,
            sensitivity=k,
            sampling_prob=rate,
            value_discretization_interval=width,
            pessimistic_estimate=True,
            use_connect_dots=True,
        )
    shifts, chances = _weights(rate, k)
    return pld.from_mixture_gaussian_mechanism(
        noise,
        shifts,
        chances,
        value_discretization_interval=width,
        pessimistic_estimate=True,
        use_connect_dots=True,
    )
