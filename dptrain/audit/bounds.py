"""Lower bounds on epsilon from canary patients: what the promise cannot be if these guesses were right.

Canaries are planted patients, each in or out of each training by an independent fair coin. All bounds hold
whatever the trainer does inside; they only assume that the coins were fair and unseen. A correct trainer is
accused with probability at most 1 − confidence, over everything that :func:`lower_bound` tries.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from dptrain.audit.scores import Array
from dptrain.audit.statistics import clopper_pearson

GUESSED = (0.02, 0.1, 0.5)  # shares guessed "in" and "out"; the rest is abstained from
CALIBRATION = 0.25  # share of the trainings that only sets locations and scales
FEW_TRAININGS = 16  # below this, canaries are compared with each other instead of with other trainings
LARGEST = 30.0


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Largest probability with which an (ε, δ)-private trainer lets `correct` of `guesses` be right.

    Steinke, Nasr, Jagielski 2023, "Privacy Auditing with One (1) Training Run", theorem 5.2: with
    B ~ Binomial(guesses, e^ε/(1+e^ε)), the bound is Pr[B ≥ v] + 2·m·δ·max_i Pr[v > B ≥ v−i]/i.

    Args:
        canaries: m coins in all (over several independent trainings: their product is one mechanism).
        guesses: how many of them were guessed; fixed before looking. correct: v.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(
            f"correct={correct}, guesses={guesses}, canaries={canaries}: each may be at most the next, correct >= 0"
        )
    odds = 1 / (1 + math.exp(-epsilon))
    base = float(binom.sf(correct - 1, guesses, odds))
    if delta == 0 or correct == 0:
        return min(base, 1.0)
    steps = np.arange(1, correct + 1)
    below = np.cumsum(binom.pmf(correct - steps, guesses, odds))
    return min(base + 2 * canaries * delta * float(np.max(below / steps)), 1.0)


def one_run_epsilon(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> float:
    """Largest ε that :func:`one_run_p_value` rejects at this confidence; 0 where it rejects none."""
    return _largest_rejected(
        lambda epsilon: one_run_p_value(canaries, guesses, correct, epsilon, delta) <= 1 - confidence
    )


def two_sided_epsilon(
    hits: int, inside: int, false_alarms: int, outside: int, delta: float, confidence: float = 0.95
) -> float:
    """ε from one yes-or-no test of one canary over many trainings.

    Clopper–Pearson upper limits of both error rates, each at half of the error; then (Kairouz, Oh, Viswanath
    2015; Nasr et al. 2021) ε ≥ ln((1−δ−FPR)/FNR) and ln((1−δ−FNR)/FPR).
    """
    fpr, fnr = _error_limits(hits, inside, false_alarms, outside, confidence)
    best = 0.0
    for one, other in ((fpr, fnr), (fnr, fpr)):
        if 1 - delta - one > other > 0:
            best = max(best, math.log((1 - delta - one) / other))
    return best


def _error_limits(hits: int, inside: int, false_alarms: int, outside: int, confidence: float) -> tuple[float, float]:
    """Upper limits of (FPR, FNR) that hold together with probability `confidence`."""
    fpr = float(clopper_pearson(false_alarms, outside, confidence)[1])
    fnr = float(clopper_pearson(inside - hits, inside, confidence)[1])
    return fpr, fnr


def _largest_rejected(rejects: Callable[[float], bool]) -> float:
    if not rejects(0.0):
        return 0.0
    low, high = 0.0, LARGEST
    if rejects(high):
        return high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if rejects(middle) else (low, middle)
    return low


def standardise(scores: Array) -> tuple[Array, int]:
    """Canary scores [T, m] as evidence that is comparable over canaries, and how many trainings it used up.

    With at least 16 trainings: location and scale of each canary from the first quarter of them, without a
    look at membership. With fewer: location and scale of all canaries of the same training, which must be
    made alike. A score that is not finite says nothing (0): one such canary must not silence the others.
    """
    trainings = scores.shape[0]
    scores = np.where(np.isfinite(scores), scores, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a training without a finite score
        if trainings >= FEW_TRAININGS:
            used = max(4, int(CALIBRATION * trainings))
            centre, scale = np.nanmean(scores[:used], axis=0), np.nanstd(scores[:used], axis=0, ddof=1)
            scale = np.sqrt((scale**2 + np.nanmean(scale**2)) / 2)
        else:
            used = 0
            centre, scale = np.nanmedian(scores, axis=1, keepdims=True), np.nanstd(scores, axis=1, keepdims=True)
    return np.nan_to_num((scores[used:] - centre) / np.maximum(scale, 1e-12)), used


@dataclass(frozen=True)
class LowerBound:
    """What the canaries prove.

    epsilon: lower bound at `confidence`. method: the one that gave it. canaries, trainings: how many.
    curve: whether the measured error rates of a canary lie beyond the promised trade-off curve (None: no
    curve was given). broken: epsilon above the promise, or beyond the curve. provable: the bound that these canaries
    would have given if every guess had been right; a promise above it cannot be refuted by them.
    """

    epsilon: float
    method: str
    confidence: float
    canaries: int
    trainings: int
    promised: float
    curve: bool | None
    broken: bool
    provable: float = math.nan


def lower_bound(
    scores: Array,
    member: np.ndarray,
    *,
    promised: float,
    delta: float,
    confidence: float = 0.95,
    tpr: Callable[[float], float] | None = None,
    kinds: np.ndarray | None = None,
) -> LowerBound:
    """The better of two bounds, each at half of the allowed error; with few trainings the one-run bound alone.

    Args:
        scores: [T, m] scores of m canary patients in T independent trainings; larger: better known.
        member: bool [T, m], independent fair coins.
        promised: ε that was promised, `inf` for none; delta: at this δ.
        tpr: the promised trade-off, FPR -> largest TPR. Its test costs no error of its own: it is wrong only where
            the limits of the two-sided method are.
        kinds: [m], which canaries are made alike; only these are compared with each other where there are few
            trainings, and each kind takes its part of the error. None: all are.
    """
    trainings, canaries = scores.shape
    level = 1 - (1 - confidence) / 2 if trainings >= FEW_TRAININGS else confidence
    alike = [np.ones(canaries, dtype=bool)]
    if kinds is not None and trainings < FEW_TRAININGS:
        alike = [kinds == kind for kind in np.unique(kinds)]
    each = 1 - (1 - level) / len(alike)
    evidence, used = standardise(scores)
    coins = member[used:]
    one_run = [_one_run(standardise(scores[:, some])[0], coins[:, some], delta, each) for some in alike]
    bounds = {"one run (Steinke et al. 2023)": max(one_run)}
    beyond: bool | None = None
    if trainings >= FEW_TRAININGS:
        each = 1 - (1 - level) / canaries
        epsilon = 0.0
        beyond = None if tpr is None else False
        for column in range(canaries):
            guessed, truth = evidence[:, column] > 0, coins[:, column]
            hits, alarms = int(np.sum(guessed & truth)), int(np.sum(guessed & ~truth))
            inside, outside = int(truth.sum()), int((~truth).sum())
            epsilon = max(epsilon, two_sided_epsilon(hits, inside, alarms, outside, delta, each))
            if tpr is not None and not beyond:
                fpr, fnr = _error_limits(hits, inside, alarms, outside, each)
                beyond = fpr < 1 and 1 - fnr > float(tpr(fpr)) + 1e-9
        bounds["two-sided Clopper–Pearson"] = epsilon
    method, epsilon = max(bounds.items(), key=lambda item: item[1])
    return LowerBound(
        epsilon, method, confidence, canaries, trainings, promised, beyond, epsilon > promised or bool(beyond)
    )


def provable(member: np.ndarray, *, delta: float, confidence: float, kinds: np.ndarray | None = None) -> float:
    """The largest ε that canaries with these coins [T, m] could prove: what perfect guesses give."""
    perfect = lower_bound(
        member.astype(float), member, promised=math.inf, delta=delta, confidence=confidence, kinds=kinds
    )
    return perfect.epsilon


def canaries_needed(
    promised: float, delta: float, trainings: int, confidence: float, most: int = 1 << 17
) -> int | None:
    """Canaries a training, a power of two, with which perfect guesses refute the promise; None: not up to `most`.

    Where δ·canaries is no longer small the one-run bound stops growing, and no number is enough.
    """
    level = 1 - (1 - confidence) / (2 if trainings >= FEW_TRAININGS else 1)
    parts = 1 if trainings >= FEW_TRAININGS else 2
    each = 1 - (1 - level) / parts / len(GUESSED)
    for power in range(1, most.bit_length()):
        coins = (1 << power) * trainings // parts
        guesses = [2 * int(share * coins) for share in GUESSED if int(share * coins) > 0]
        if any(one_run_p_value(coins, n, n, promised, delta) <= 1 - each for n in guesses):
            return 1 << power
    return None


def _one_run(evidence: Array, member: np.ndarray, delta: float, confidence: float) -> float:
    """The one-run bound with a fixed menu of guessed shares, the error divided among them."""
    flat, truth = evidence.reshape(-1), member.reshape(-1)
    order = np.argsort(flat, kind="stable")
    best = 0.0
    for share in GUESSED:
        count = int(share * flat.size)
        if count < 1:
            continue
        correct = int(np.sum(truth[order[flat.size - count :]])) + int(np.sum(~truth[order[:count]]))
        level = 1 - (1 - confidence) / len(GUESSED)
        best = max(best, one_run_epsilon(flat.size, 2 * count, correct, delta, level))
    return best


def broken_sentence(bound: LowerBound, unit: str = "patient") -> str:
    """What to tell a person when the promise does not hold."""
    if bound.epsilon > bound.promised:
        return (
            f"The guarantee is broken: {bound.canaries} planted {unit}s prove that epsilon is at least "
            f"{bound.epsilon:.2f} (confidence {bound.confidence:.0%}, {bound.method}), but {bound.promised:.3g} "
            "was promised."
        )
    return (
        f"The guarantee is broken: planted {unit}s were recognised more often than the promised trade-off curve "
        f"(epsilon {bound.promised:.3g}) allows (confidence {bound.confidence:.0%})."
    )
