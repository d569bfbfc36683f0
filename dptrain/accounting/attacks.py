"""What an attacker can reach at most against one patient: the trade-off curve and its readings."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np

from dptrain.accounting._checks import check_mechanisms
from dptrain.accounting.losses import hockey_stick, pld_epsilon
from dptrain.accounting.renyi import Array
from dptrain.errors import ConfigError
from dptrain.plan import Mechanism

_POINTS = 2000
_TAIL = 1e-8  # the curve ends at the epsilon that belongs to this delta
_LARGEST = 500.0  # above that epsilon the curve is 0: nothing is promised
MU_FLOOR = 1e-4


@dataclass(frozen=True)
class TradeOff:
    """A lower bound on the errors of every test whether one patient took part.

    f(α) is the least false-negative rate of a test with false-positive rate α, in whichever direction the
    attacker tests; its bound here is convex, decreasing, symmetric and piecewise linear. It holds for every
    attack, whatever the attacker knows, and whatever the attack is (reconstruction included).

    Built from (ε, δ(ε)) by f(α) = max over ε ≥ 0 of max(0, 1 − δ − e^ε·α, e^(−ε)·(1 − δ − α)): Dong, Roth & Su
    2022, "Gaussian differential privacy" (arXiv:1905.02383, Eq. 5 and section 2.4). Each δ(ε) is an upper
    bound and any subset of ε is valid, so f is a valid lower bound.

    Attributes:
        fpr: false-positive rates of the corners, ascending from 0 to 1.
        fnr: f there.
    """

    fpr: tuple[float, ...] = field(repr=False)
    fnr: tuple[float, ...] = field(repr=False)

    @overload
    def beta(self, alpha: float) -> float: ...
    @overload
    def beta(self, alpha: Array) -> Array: ...
    def beta(self, alpha: float | Array) -> float | Array:
        """f(alpha): the least false-negative rate at false-positive rate(s) `alpha` in [0, 1].

        Raises:
            ConfigError: a rate outside [0, 1].
        """
        rates = np.asarray(alpha, dtype=np.float64)
        if not np.all((rates >= 0) & (rates <= 1)):
            raise ConfigError(f"a false-positive rate of {alpha} is no probability: 0 to 1 is allowed.")
        values = np.interp(rates, self.fpr, self.fnr)
        return float(values) if values.ndim == 0 else values

    @overload
    def tpr(self, fpr: float) -> float: ...
    @overload
    def tpr(self, fpr: Array) -> Array: ...
    def tpr(self, fpr: float | Array) -> float | Array:
        """The highest true-positive rate of any attack at false-positive rate(s) `fpr`: 1 − f(fpr)."""
        return 1 - self.beta(fpr)

    @property
    def auc(self) -> float:
        """The highest area under the ROC curve of any attack: 1 − ∫f, exact for the corners."""
        x, y = np.asarray(self.fpr), np.asarray(self.fnr)
        return float(1 - np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))

    @property
    def advantage(self) -> float:
        """The highest TPR − FPR of any attack (total variation distance; δ at ε = 0)."""
        return float(1 - min(a + b for a, b in zip(self.fpr, self.fnr)))

    @overload
    def reconstruction(self, kappa: float) -> float: ...
    @overload
    def reconstruction(self, kappa: Array) -> Array: ...
    def reconstruction(self, kappa: float | Array) -> float | Array:
        """γ: the highest chance of reconstructing a record that a guess gets right with chance `kappa`.

        γ = 1 − f(κ): Hayes, Mahloujifar & Balle 2023, "Bounding training data reconstruction in DP-SGD"
        (arXiv:2302.07225, section 3); κ is the chance under the attacker's prior alone, without
        the model.
        """
        return self.tpr(kappa)

    @property
    def mu(self) -> float:
        """GDP-equivalent: the least μ such that N(0, 1) against N(μ, 1) is nowhere harder to tell apart.

        "Nowhere" means wherever both error rates are at least 1e-4 (MU_FLOOR): what an audit of a cohort can
        measure. Deeper in the tails a sampled mechanism is not Gaussian and no useful μ exists (Gomez et al.
        2025, arXiv:2503.10945, report a μ in the same way). inf without noise, 0 for nothing.
        """
        from scipy import special

        low = self.beta(MU_FLOOR)
        if low < MU_FLOOR:
            return float("inf")
        # f is linear and the Gaussian curve convex between corners: below at both ends is below throughout.
        corners = [(MU_FLOOR, low), *((a, b) for a, b in zip(self.fpr, self.fnr) if min(a, b) >= MU_FLOOR)]
        alpha, beta = np.array(corners).T
        return max(0.0, float(np.max(special.ndtri(1 - alpha) - special.ndtri(beta))))

    def points(self, n: int = 200) -> tuple[Array, Array]:
        """(fpr, highest tpr) at n false-positive rates from 0 to 1, dense near 0 on a logarithmic axis.

        Raises:
            ConfigError: n below 3.
        """
        if n < 3:
            raise ConfigError(f"n={n} must be at least 3.")
        small = np.logspace(-5, -1, n // 2)
        large = np.linspace(0.1, 1, n - len(small))[1:]
        fpr = np.concatenate(([0.0], small, large))
        return fpr, self.tpr(fpr)


def tradeoff(mechanisms: Sequence[Mechanism]) -> TradeOff:
    """The trade-off curve of `mechanisms` together, add/remove, for a plan that is fixed beforehand.

    Returns:
        A pessimistic curve from the privacy loss distribution; f = 0 without noise, f(α) = 1 − α for nothing.

    Raises:
        ConfigError: an unknown mechanism.

    Source: see :class:`TradeOff` and :mod:`dptrain.accounting.losses`.
    """
    return curve(tuple(mechanisms), _TAIL)


@functools.lru_cache(maxsize=16)
def curve(mechanisms: tuple[Mechanism, ...], tail: float) -> TradeOff:
    """As :func:`tradeoff`, drawn out to the epsilon that belongs to a delta of `tail`."""
    steps = check_mechanisms(mechanisms)
    if not steps:
        return TradeOff((0.0, 1.0), (1.0, 0.0))
    largest = pld_epsilon(mechanisms, tail)
    if largest > _LARGEST:
        return TradeOff((0.0, 1.0), (0.0, 0.0))
    epsilons = np.linspace(0, largest, _POINTS)
    deltas = np.minimum(1.0, hockey_stick(mechanisms, epsilons))
    # Lines β = height − slope·α, from steep to flat; the last is β = 0.
    slopes = np.concatenate((np.exp(epsilons)[::-1], np.exp(-epsilons)[1:], [0.0]))
    heights = np.concatenate((1 - deltas[::-1], (np.exp(-epsilons) * (1 - deltas))[1:], [0.0]))
    return _corners(slopes, heights)


def _corners(slopes: Array, heights: Array) -> TradeOff:
    """The maximum of the lines β = height − slope·α over [0, 1], slopes descending, as corners."""
    kept: list[tuple[float, float]] = []
    starts: list[float] = []  # where each kept line takes over
    for slope, height in zip(slopes.tolist(), heights.tolist()):
        start = 0.0
        while kept:
            above, top = kept[-1]
            if above <= slope:
                start = starts[-1] if height > top else float("inf")
            else:
                start = max(0.0, (top - height) / (above - slope))
            if start > starts[-1]:
                break
            kept.pop()
            starts.pop()
            start = 0.0
        if start < 1:
            kept.append((slope, height))
            starts.append(start)
    ends = [*starts[1:], 1.0]
    fpr = [0.0, *ends]
    fnr = [kept[0][1], *(max(0.0, height - slope * end) for (slope, height), end in zip(kept, ends))]
    return TradeOff(tuple(fpr), tuple(fnr))
