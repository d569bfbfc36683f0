"""Rényi differential privacy of the Poisson-subsampled Gaussian, and the filter of open budgets.

**The mechanism.** One step with rate q and noise multiplier σ compares P = (1−q)·N(0, σ²) + q·N(1, σ²) (the
patient is in the data) with Q = N(0, σ²) (the patient is not); this pair dominates every pair of neighbours
(Mironov, Talwar & Zhang 2019, arXiv:1908.10530, section 3; Zhu, Dong & Wang 2022, arXiv:2106.08567, for the
pair as such). Removing is D_α(P‖Q), adding is D_α(Q‖P); section 3.1 there shows D_α(Q‖P) ≤ D_α(P‖Q), so that
the worst direction is the first at every order. Both are computed here, and tests compare them.

**The number.** With t(x) = x/σ − 1/(2σ²), w = q(eᵗ − 1) and x standard normal, E[w] = 0, thus

    exp((α−1)·D_α(P‖Q)) − 1 = E[(1+w)^α − 1 − αw],   exp((α−1)·D_α(Q‖P)) − 1 = E[(1+w)^(1−α) − 1 − (1−α)w].

Both integrands are nowhere negative (Bernoulli's inequality): nothing cancels, unlike in the alternating
series of public accountants, which can be off by factors or diverge at fractional orders. Integer orders
have a closed sum of non-negative terms (same paper, section 3.3). Fractional orders use the trapezoidal
rule, whose error has a proven bound (:func:`_log_excess`).

**The filter.** For one fixed order α, adaptively chosen mechanisms (each run chosen after seeing the earlier
ones, concurrent runs included) whose divergences of order α sum to at most ρ on every path are together
(α, ρ)-RDP: Feldman & Zrnic 2021 (arXiv:2008.11193, section 4, the Rényi privacy filter), Haney et al. 2023
(arXiv:2309.05901) for concurrent interaction. This does *not* hold for a minimum over orders taken
afterwards, nor in general for privacy loss distributions; so a budget names one order, once.

**The conversion.** (α, ρ)-RDP implies (ε, δ)-DP with

    δ = exp((α−1)(ρ−ε)) · (1−1/α)^α / (α−1),

Canonne, Kamath & Steinke 2020 (arXiv:2004.00010, Proposition 12); the same as Asoodeh et al. 2020
(arXiv:2001.05990, Eq. 20). The lossless conversion (Asoodeh et al. 2021, "Three variants of differential
privacy") is smaller by a factor 1 − exp(−(α−1)ρ) in δ at most; for budgets of ε ≥ 1 at δ ≤ 1e-5
this is below 0.1 % of ε (tests measure it), and is not taken.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from dptrain.accounting._checks import check_delta, check_epsilon, check_mechanisms, check_order
from dptrain.errors import ConfigError
from dptrain.plan import Mechanism

Array = npt.NDArray[np.float64]
Direction = Literal["worst", "remove", "add"]

ORDERS_VERSION = 1


def _grid() -> tuple[float, ...]:
    """1+1/16 … 4, then steps of 3 to 6 %: an order that is 3 % off its best costs 0.05 % of epsilon."""
    pieces = [(16, 17, 64), (4, 17, 32), (2, 17, 32), (1, 17, 32), (1 / 2, 17, 32), (1 / 4, 17, 32)]
    fine = [k / per_unit for per_unit, first, last in pieces for k in range(first, last + 1)]
    return (*fine, 160.0, 192.0, 224.0, 256.0, 320.0, 384.0, 448.0, 512.0, 768.0, 1024.0)


#: The fixed grid of Rényi orders, ascending, all exact binary fractions. Charges are stored per order: the
#: meaning of version 1 never changes; another grid is another version.
ORDERS: tuple[float, ...] = _grid()

_TARGET = 85.0  # natural log of the relative error that quadrature and truncation are cut to: e^-85 = 1e-37
_LEAST_NOISE = 0.02  # below this the subsampled mechanism is charged as if everyone took part


def rdp(
    mechanisms: Sequence[Mechanism], orders: Sequence[float] = ORDERS, *, direction: Direction = "worst"
) -> Array:
    """Upper bounds on the Rényi divergence of `mechanisms` together, one for each order.

    Args:
        mechanisms: what is released; steps and mechanisms add up. Nothing at all costs 0.
        orders: orders above 1.
        direction: `worst` (add/remove adjacency, the default), or one direction alone, for tests.

    Returns:
        Divergences in nats, [len(orders)], rounded up; inf where a noise multiplier is 0. Valid for adaptive
        choice of mechanisms at each single order (see the module).

    Raises:
        ConfigError: an order not above 1, or an unknown mechanism.

    Source: Mironov, Talwar & Zhang 2019, arXiv:1908.10530, sections 3.2 and 3.3.
    """
    wanted = tuple(check_order(order) for order in orders)
    total = np.zeros(len(wanted))
    for (rate, noise), steps in check_mechanisms(mechanisms).items():
        single = np.array(_single(rate, noise, wanted, direction))
        total = np.nextafter(total + np.nextafter(steps * single, np.inf), np.inf)
    return total


def rdp_epsilon(rdp: float, order: float, delta: float) -> float:
    """The epsilon of a mechanism with Rényi divergence `rdp` at `order`, for `delta`; rounded up, at least 0.

    Raises:
        ConfigError: rdp negative or NaN, order not above 1, delta outside (0, 1).

    Source: Canonne, Kamath & Steinke 2020, arXiv:2004.00010, Proposition 12, solved for epsilon. At rdp = 0
    nothing depends on the patient, and epsilon is 0.
    """
    rdp, order, delta = _check_rdp(rdp), check_order(order), check_delta(delta)
    if rdp == 0 or math.isinf(rdp):
        return rdp
    parts = (rdp, math.log1p(-1 / order), -(math.log(delta) + math.log(order)) / (order - 1))
    return max(0.0, math.fsum(parts) + _rounding(parts))


def rdp_delta(rdp: float, order: float, epsilon: float) -> float:
    """The delta of a mechanism with Rényi divergence `rdp` at `order`, for `epsilon`; rounded up, at most 1.

    Raises:
        ConfigError: rdp negative or NaN, order not above 1, epsilon negative or not finite.

    Source: as for :func:`rdp_epsilon`.
    """
    rdp, order, epsilon = _check_rdp(rdp), check_order(order), check_epsilon(epsilon)
    if math.isinf(rdp):
        return 1.0
    if rdp == 0:
        return 0.0
    parts = ((order - 1) * rdp, -(order - 1) * epsilon, (order - 1) * math.log1p(-1 / order), -math.log(order))
    return math.exp(min(0.0, math.fsum(parts) + _rounding(parts)))


def rdp_budget(epsilon: float, delta: float, order: float) -> float:
    """What the divergences of order `order` may sum to, in nats, so that (epsilon, delta) holds; rounded down.

    This is the capacity of the filter of an open budget: as long as the charges' sum stays at or below it,
    everything released together is (epsilon, delta)-DP, however the runs were chosen (see the module). 0 if
    the order is useless for this target (an order near 1 with a small delta): such a budget allows nothing.

    Raises:
        ConfigError: epsilon negative or not finite, delta outside (0, 1), order not above 1.

    Source: Canonne, Kamath & Steinke 2020, Proposition 12, solved for the divergence.
    """
    epsilon, delta, order = check_epsilon(epsilon), check_delta(delta), check_order(order)
    parts = (epsilon, -math.log1p(-1 / order), (math.log(delta) + math.log(order)) / (order - 1))
    return max(0.0, math.fsum(parts) - 2 * _rounding(parts))


def best_order(epsilon: float, delta: float, forecast: Sequence[Mechanism]) -> float:
    """The order of the grid at which (epsilon, delta) allows the most repeats of `forecast`.

    A choice made from public numbers before anything is spent; any order gives a valid budget, this one the
    largest. The number of repeats at order α is `rdp_budget(ε, δ, α) / rdp(forecast, α)`.

    Raises:
        ConfigError: the forecast is empty or has no noise, or no order allows anything.

    Source: Feldman & Zrnic 2021, arXiv:2008.11193 (a filter works at one order, fixed beforehand).
    """
    cost = rdp(forecast)
    if not check_mechanisms(forecast) or not np.all(np.isfinite(cost)):
        raise ConfigError(
            "the order of a budget follows from a forecast of private use: at least one run with noise.",
            remedy="Give sample rate, noise multiplier and steps of a typical run.",
        )
    repeats = np.array([rdp_budget(epsilon, delta, order) for order in ORDERS]) / cost
    best = int(np.argmax(repeats))
    if repeats[best] <= 0:
        raise ConfigError(
            f"epsilon={epsilon:g} at delta={delta:g} is too small for an open budget: no order allows anything.",
            remedy="Raise epsilon, or sign a planned budget for declared runs.",
        )
    return ORDERS[best]


def _check_rdp(rdp: float) -> float:
    if math.isnan(rdp) or rdp < 0:
        raise ConfigError(f"a Rényi divergence of {rdp} is impossible: it is at least 0.")
    return float(rdp)


def _rounding(parts: Sequence[float]) -> float:
    """More than the rounding error of a short sum of these terms, each a few units in the last place off."""
    return 1e-15 * (1 + sum(abs(part) for part in parts))


@functools.lru_cache(maxsize=512)
def _single(rate: float, noise: float, orders: tuple[float, ...], direction: Direction) -> tuple[float, ...]:
    """Divergence of one step at each order, rounded up."""
    return tuple(_single_at(rate, noise, order, direction) for order in orders)


def _single_at(rate: float, noise: float, order: float, direction: Direction) -> float:
    if noise == 0:
        return math.inf
    gaussian = order / (2 * noise * noise)
    if rate == 1 or noise < _LEAST_NOISE:
        # Without sampling, exactly (Mironov 2017, Proposition 7). With sampling an upper bound: the divergence
        # is quasi-convex and P is a mixture of N(0, σ²) and N(1, σ²).
        return math.nextafter(gaussian * (1 + 1e-15), math.inf)
    if direction == "add":
        log_excess = _log_excess(rate, noise, 1 - order)
    elif order == int(order):
        log_excess = _log_excess_closed(rate, noise, int(order))
    else:
        log_excess = _log_excess(rate, noise, order)
    moment = math.log1p(math.exp(log_excess)) if log_excess < 0 else float(np.logaddexp(0.0, log_excess))
    return math.nextafter(moment * (1 + 1e-15) / (order - 1), math.inf)


@functools.lru_cache(maxsize=2048)
def _log_binomials(n: int) -> Array:
    return np.array([math.log(math.comb(n, k)) for k in range(n + 1)])


def _log_excess_closed(rate: float, noise: float, order: int) -> float:
    """log(exp((α−1)·D_α(P‖Q)) − 1) at an integer order α ≥ 2; rounded up.

    Σ_{k=2…α} C(α,k) (1−q)^(α−k) q^k (exp((k²−k)/(2σ²)) − 1): the binomial sum of arXiv:1908.10530, section
    3.3, with the sum of the weights, 1, taken off term by term (the terms k = 0, 1 vanish).
    """
    k = np.arange(2, order + 1, dtype=np.float64)
    exponent = (k * k - k) / (2 * noise * noise)
    log_expm1 = exponent + np.log(-np.expm1(-exponent))
    terms = _log_binomials(order)[2:] + (order - k) * math.log1p(-rate) + k * math.log(rate) + log_expm1
    return _log_sum(terms, scale=float(np.max(np.abs(exponent))) + order * abs(math.log(rate)))


def _log_excess(rate: float, noise: float, power: float) -> float:
    """log E[(1+w)^p − 1 − p·w] for p > 1 or p < 0, w = q(exp(x/σ − 1/(2σ²)) − 1), x standard normal; an upper bound.

    The trapezoidal rule with step h, plus a bound on all that it leaves out:

    - *the step*: g analytic in |Im x| < a with ∫|g(x+ib)|dx ≤ M there has |Σ h·g(kh) − ∫g| ≤
      2M/(exp(2πa/h) − 1) (Trefethen & Weideman 2014, "The exponentially convergent trapezoidal rule", Theorem
      5.1). Here 1 + w = (1−q) + q·exp(…) is 0 first at |Im x| = πσ. For p > 1, |1 + w(x+ib)| ≤ 1 + w(x), so
      M ≤ exp(a²/2)·(E[(1+w)^p] + 1 + 2pq) up to a = πσ. For p < 0, |1 + w(x+ib)| ≥ (1 + w(x))/√2 as long as
      the two summands are at most a right angle apart, a ≤ πσ/2, and M grows by 2^(|p|/2);
    - *the tails*: normal tails of N(0,1) (left) and N(p/σ, 1) or N(1/σ, 1) (right) beyond `cut`, with weights
      at most E[(1+w)^p]·q^(−p), (1−q)^p and the like;
    - *rounding*: relative, in proportion to the largest exponent.

    The first two are below e^-80 of E[(1+w)^p]; both are added all the same.
    """
    widest = math.pi * noise if power > 1 else math.pi * noise / 2
    a = min(widest, math.sqrt(2 * _TARGET))
    grows = 0.0 if power > 1 else abs(power) * math.log(2) / 2
    h = 2 * math.pi * a / (_TARGET + grows + a * a / 2)
    log_rate, log_rest = math.log(rate), math.log1p(-rate)
    if power > 1:
        lower, upper = -math.sqrt(2 * _TARGET), power / noise + math.sqrt(2 * (_TARGET - power * log_rate))
    else:
        lower, upper = -math.sqrt(2 * (_TARGET + power * log_rest)), 1 / noise + math.sqrt(2 * _TARGET)
    x = h * np.arange(math.floor(lower / h), math.ceil(upper / h) + 1)
    t = x / noise - 1 / (2 * noise * noise)
    with np.errstate(over="ignore", under="ignore"):
        w = rate * np.expm1(np.minimum(t, 700.0))
        near = np.abs(w) < 0.5
        u = np.where(near, np.log1p(np.where(near, w, 0.0)), np.logaddexp(log_rest, log_rate + t))
        terms = _log_bernoulli_excess(w, u, power) - x * x / 2 + math.log(h / math.sqrt(2 * math.pi))
    scale = float(np.max(np.abs(power * u) + x * x / 2))
    excess = _log_sum(terms, scale=scale)
    moment = np.logaddexp(0.0, excess)
    left_out = math.log(8) + math.log(2 + 2 * abs(power)) + moment - _TARGET
    return float(np.logaddexp(excess, left_out))


def _log_bernoulli_excess(w: Array, u: Array, power: float) -> Array:
    """log((1+w)^p − 1 − p·w) with u = log(1+w); −inf where it is 0."""
    value = np.empty_like(w)
    small = np.abs(w) * (abs(power) + 2) < 0.05
    v = w[small]
    series = np.ones_like(v)
    for k in range(12, 2, -1):  # Taylor: p(p−1)/2·w²·(1 + (p−2)/3·w·(1 + (p−3)/4·w·(…)))
        series = 1 + (power - k + 1) / k * v * series
    value[small] = power * (power - 1) / 2 * v * v * series
    v, exponent = w[~small], power * u[~small]
    big = (exponent > 60) | (u[~small] > 500)
    value[~small] = np.where(big, 1.0, np.expm1(np.where(big, 0.0, exponent)) - power * v)
    logs = np.full_like(w, -np.inf)
    np.log(value, out=logs, where=value > 0)
    rest = logs[~small]
    # Upper bounds, since w > 0 there: (1+w)^p for p > 1, |p|·(1+w) for p < 0.
    rest[big] = exponent[big] if power > 1 else math.log(-power) + u[~small][big]
    logs[~small] = rest
    return logs


def _log_sum(terms: Array, *, scale: float) -> float:
    """log Σ exp(terms), rounded up by more than the error of terms whose parts are as large as `scale`."""
    top = float(np.max(terms))
    total = float(np.sum(np.exp(terms - top)))
    return top + math.log(total) + 1e-11 + 1e-15 * scale
