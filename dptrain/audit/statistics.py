"""Honest numbers about an attack: areas, rates, intervals, p-values and false discoveries.

All functions take arrays and work on many patients at once. `inside` and `outside` mean the models that had
the patient and those that had not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.stats import beta, binom, norm, rankdata
from scipy.stats import t as student

from dptrain.audit.scores import Array

LEVEL = 0.95
TESTS = 2  # a p-value is twice the smaller of two (:func:`dptrain.audit.patients.p_values`)
JACKKNIFE_GROUPS = 32  # of models: an interval of a mean costs so many times its statistic
JACKKNIFE_PATIENTS = 1000
EXACT_UP_TO = 256  # largest number of pairs in a fold for which the exact null distribution is used


@dataclass(frozen=True)
class Area:
    """Areas under the ROC of many patients, each [P]; NaN where no fold has both classes.

    auc: share of (inside, outside) pairs of one fold that the evidence orders rightly, ties counted half.
    wins: that share times `pairs`. inside, outside: models of each class in each fold [K, P].
    inflation: factor on the variance for intervals (:func:`dptrain.audit.patients.inflation`).
    """

    auc: Array
    wins: Array
    inside: np.ndarray
    outside: np.ndarray
    inflation: Array | float = 1.0

    @property
    def pairs(self) -> np.ndarray:
        """Compared pairs of models [P]."""
        return np.asarray((self.inside * self.outside).sum(axis=0))


def stratified_auc(evidence: Array, member: np.ndarray, fold: np.ndarray) -> Area:
    """Mann–Whitney statistic summed over folds (van Elteren's strata).

    Args:
        evidence: [M, P]; member: bool [M, P]; fold: [M], or [M, P] where patients differ in what may be compared.
    """
    inside, outside, wins = [], [], np.zeros(evidence.shape[1])
    for compared in _folds(fold, member):
        m, n = (compared & member).sum(axis=0), (compared & ~member).sum(axis=0)
        ranks = rankdata(np.where(compared, evidence, np.inf), axis=0)  # the others rank behind
        u = np.where(compared & member, ranks, 0.0).sum(axis=0) - m * (m + 1) / 2
        wins += np.where(n > 0, u, 0.0)
        inside.append(m)
        outside.append(n)
    m, n = np.stack(inside), np.stack(outside)
    pairs = (m * n).sum(axis=0)
    wins = np.where(np.isnan(evidence).any(axis=0), np.nan, wins)
    return Area(wins / np.where(pairs > 0, pairs, np.nan), wins, m, n)


def _folds(fold: np.ndarray, member: np.ndarray) -> Iterator[np.ndarray]:
    """Which models [M, P] are compared with each other, fold by fold."""
    each = np.broadcast_to(fold if fold.ndim == 2 else fold[:, None], member.shape)
    for number in np.unique(fold):
        yield each == number


def fold_auc(evidence: Array, member: np.ndarray, fold: np.ndarray) -> Array:
    """The AUC [P] of :func:`stratified_auc` alone."""
    return stratified_auc(evidence, member, fold).auc


def auc_interval(area: Area, level: float = LEVEL) -> tuple[Array, Array]:
    """Score interval for each AUC: all θ with |AUC − θ| ≤ z·sqrt(V(θ)).

    V is Hanley & McNeil's variance with Newcombe's balanced sizes (Newcombe 2006, "Confidence intervals for
    an effect size measure based on the Mann–Whitney statistic", method 5), summed over folds. Being solved
    for θ it keeps its coverage near 1, where Wald and DeLong intervals shrink to nothing.
    """
    z = norm.isf((1 - level) / 2)

    def solve(start: Array, end: Array) -> Array:
        good, bad = start.copy(), end.copy()
        for _ in range(50):
            middle = (good + bad) / 2
            inside_interval = (area.auc - middle) ** 2 <= z**2 * area_variance(area, middle)
            good, bad = np.where(inside_interval, middle, good), np.where(inside_interval, bad, middle)
        return good

    low, high = solve(area.auc, np.zeros_like(area.auc)), solve(area.auc, np.ones_like(area.auc))
    undefined = np.isnan(area.auc)
    return np.where(undefined, np.nan, low), np.where(undefined, np.nan, high)


def area_variance(area: Area, auc: Array) -> Array:
    """Variance [P] of the measured AUC of patients whose true one is `auc` [P], see :func:`auc_interval`."""
    m, n = area.inside.astype(float), area.outside.astype(float)
    pairs = m * n
    weight = np.where(pairs > 0, pairs / np.where(area.pairs > 0, area.pairs, 1), 0.0)
    balanced = (m + n) / 2 - 1
    factor = 1 + balanced * (1 - auc) / (2 - auc) + balanced * auc / (1 + auc)
    each = auc * (1 - auc) * factor / np.where(pairs > 0, pairs, 1)
    return np.asarray(area.inflation * np.sum(weight**2 * each, axis=0))


@lru_cache(maxsize=4096)
def _mann_whitney_pmf(m: int, n: int) -> Array:
    """Null distribution of U for m and n values without ties: Gaussian binomial coefficients, normalised."""
    pmf = np.zeros(m * n + 1)
    pmf[0] = 1.0
    for i in range(1, m + 1):
        up = n + i  # times (1 − q^up), then divided by (1 − q^i)
        if up <= m * n:
            pmf[up:] = pmf[up:] - pmf[:-up]
        for j in range(i, m * n + 1):
            pmf[j] += pmf[j - i]
    return pmf / math.comb(m + n, m)


@lru_cache(maxsize=4096)
def _tail(sizes: tuple[tuple[int, int], ...]) -> Array:
    """Pr[sum of U over folds ≥ u] for u = 0, 1, …"""
    pmf = np.ones(1)
    for m, n in sizes:
        pmf = np.convolve(pmf, _mann_whitney_pmf(m, n))
    return np.minimum(np.cumsum(pmf[::-1])[::-1], 1.0)


def auc_p_values(area: Area) -> Array:
    """One-sided p-values [P] of "the patient's presence leaves no trace" (AUC = 1/2), each exact on its own.

    Membership was drawn by the audit, independently of everything else, so without a trace all orders of the
    models of a fold are equally likely: a randomisation test that assumes nothing about the scores. Above
    256 pairs a fold the normal approximation with continuity correction is used. Ties count half and are
    rounded down.
    """
    result = np.full(area.auc.shape, np.nan)
    defined = ~np.isnan(area.auc)
    pairs = area.inside * area.outside
    exact = defined & (pairs.max(axis=0, initial=0) <= EXACT_UP_TO)
    small = np.minimum(area.inside, area.outside)
    large = np.maximum(area.inside, area.outside)
    keys: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for p in np.flatnonzero(exact):
        sizes = tuple(sorted((int(a), int(b)) for a, b in zip(small[:, p], large[:, p], strict=True) if a > 0))
        keys.setdefault(sizes, []).append(int(p))
    for sizes, persons in keys.items():
        result[persons] = _tail(sizes)[np.floor(area.wins[persons] + 1e-9).astype(int)]
    rest = defined & ~exact
    if rest.any():
        m, n = area.inside[:, rest], area.outside[:, rest]
        spread = np.sqrt(np.sum(m * n * (m + n + 1) / 12, axis=0))
        result[rest] = norm.sf((np.floor(area.wins[rest] + 1e-9) - 0.5 - np.sum(m * n, axis=0) / 2) / spread)
    return result


def null_spread(area: Area) -> Array:
    """Standard deviation [P] of the AUC of a patient without a trace, over the draw of membership."""
    m, n = area.inside, area.outside
    variance = np.sum(m * n * (m + n + 1) / 12, axis=0) / np.maximum(area.pairs, 1) ** 2
    return np.asarray(np.sqrt(variance * area.inflation))


def largest_by_chance(area: Area, level: float = LEVEL) -> float:
    """What the largest AUC of as many patients without any trace stays below in `level` of all audits.

    Normal approximation, patients independent. The largest measured AUC is to be held against this, never
    against the ceiling of one patient.
    """
    spread = null_spread(area)[~np.isnan(area.auc)]
    if spread.size == 0:
        return math.nan
    low, high = 0.5, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        below = np.sum(norm.logcdf((middle - 0.5) / np.maximum(spread, 1e-12)))
        low, high = (middle, high) if below < math.log(level) else (low, middle)
    return high


def smallest_p_value(area: Area) -> float:
    """The smallest p-value that the typical patient could get with these models."""
    m, n = np.median(area.inside, axis=1), np.median(area.outside, axis=1)
    return TESTS * float(math.prod(1 / math.comb(int(a + b), int(a)) for a, b in zip(m, n, strict=True)))


def models_needed(patients: int, false_discovery_rate: float, folds: int) -> int:
    """Fewest reference models with which a single exposed patient could pass the false-discovery control."""
    for models in range(2 * folds, 4096, folds):
        size = models // folds
        if TESTS * math.comb(size, size // 2) ** -folds <= false_discovery_rate / max(patients, 1):
            return models
    return 4096


def confirming(patients: int, false_discovery_rate: float) -> int:
    """Fewest fresh models with, and as many without a patient, with which one of `patients` could be confirmed."""
    allowed = false_discovery_rate / (patients * sum(1 / i for i in range(1, patients + 1)))
    half = 1
    while 1 / math.comb(2 * half, half) > allowed:
        half += 1
    return half


def benjamini_hochberg(p_values: Array, *, arbitrary_dependence: bool = False) -> Array:
    """Adjusted p-values [P]: reject where ≤ q and the expected share of false discoveries is at most q.

    In the population game a patient without a trace has a membership that is independent of all scores and
    of all other patients' membership, so Benjamini & Hochberg 1995 holds as it stands. Where models are
    shared otherwise (release game), `arbitrary_dependence` multiplies by Σ 1/i (Benjamini & Yekutieli 2001).
    NaN stays NaN and does not count.
    """
    result = np.full(np.shape(p_values), np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    if tested.size == 0:
        return result
    order = tested[np.argsort(p_values[tested], kind="stable")]
    total = order.size
    factor = float(np.sum(1 / np.arange(1, total + 1))) if arbitrary_dependence else 1.0
    raw = p_values[order] * total * factor / np.arange(1, total + 1)
    result[order] = np.minimum(np.minimum.accumulate(raw[::-1])[::-1], 1.0)
    return result


def clopper_pearson(successes: Array | int, trials: Array | int, level: float = LEVEL) -> tuple[Array, Array]:
    """Exact two-sided interval of a share (Clopper & Pearson 1934); (0, 1) for no trials."""
    k, n = np.asarray(successes, dtype=float), np.asarray(trials, dtype=float)
    tail = (1 - level) / 2
    low = np.where(k > 0, beta.ppf(tail, np.maximum(k, 1e-9), n - k + 1), 0.0)
    high = np.where(k < n, beta.isf(tail, k + 1, np.maximum(n - k, 1e-9)), 1.0)
    return low, high


def wilson(successes: float, trials: float, level: float = LEVEL) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927)."""
    if trials == 0:
        return 0.0, 1.0
    z = float(norm.isf((1 - level) / 2))
    share = successes / trials
    middle = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    below = 1 + z * z / trials
    low = 0.0 if successes == 0 else max(0.0, (middle - half) / below)  # exactly, not by 1e-19
    return low, 1.0 if successes == trials else min(1.0, (middle + half) / below)


@dataclass(frozen=True)
class Rate:
    """TPR at one FPR for many patients, each [P]. extrapolated: from a fitted normal pair, not counted."""

    tpr: Array
    low: Array
    high: Array
    extrapolated: np.ndarray


def tpr_at(
    evidence: Array, member: np.ndarray, fold: np.ndarray, fpr: float, area: Area, level: float = LEVEL
) -> Rate:
    """TPR at a false-positive rate for each patient, counted where the models suffice, else extrapolated.

    Counted (at least 1/fpr models outside in each fold): within a fold the threshold lies between the two order
    statistics of the outside models around rank fpr·(n+1), so that its expected false-positive rate is `fpr`
    exactly. (One threshold for all folds compares what leaving models out has shifted against each other: it
    found 0.088 where nothing leaks and 0.1 was asked.) The interval joins the thresholds' own uncertainty
    (distribution-free order statistics, half of the error, divided among the folds) to Clopper & Pearson's for
    the inside models (the other half); with few models the rate itself leans low (at 64 models 0.56 where 0.64 is
    true), the interval covers. Extrapolated: the equal-variance normal pair with the measured AUC,
    TPR = Φ(Φ⁻¹(fpr) + √2·Φ⁻¹(AUC)), and the same function of the AUC's interval.

    Args:
        fold: [M], or [M, P] where patients differ in what may be compared.
    """
    count_in = member.sum(axis=0)
    half = (1 + level) / 2
    tail = (1 - half) / 2 / len(np.unique(fold))
    strict, loose = np.zeros(member.shape[1], dtype=int), np.zeros(member.shape[1], dtype=int)
    for compared in _folds(fold, member):
        above, outside = _inside_above(evidence, compared & member, compared & ~member)
        strict += above(binom.ppf(tail, outside, fpr).astype(int))
        loose += above(binom.isf(tail, outside, fpr).astype(int) + 1)
    low = clopper_pearson(strict, count_in, half)[0]
    high = clopper_pearson(loose, count_in, half)[1]
    auc_low, auc_high = auc_interval(area, level)
    counted, extrapolated = _counted_tpr(evidence, member, fold, fpr)

    def choose(count: Array, auc: Array) -> Array:
        return np.where(np.isnan(area.auc), np.nan, np.where(extrapolated, binormal_tpr(auc, fpr), count))

    return Rate(choose(counted, area.auc), choose(low, auc_low), choose(high, auc_high), extrapolated)


def tpr_rates(
    evidence: Array, member: np.ndarray, fold: np.ndarray, fprs: Sequence[float], area: Area
) -> dict[float, Rate]:
    """:func:`tpr_at` at several false-positive rates, none larger than at a larger one.

    A smaller rate that is extrapolated is held below the larger one that was counted; limits are only widened.
    """
    rates = {fpr: tpr_at(evidence, member, fold, fpr, area) for fpr in fprs}
    ordered = sorted(fprs)
    for larger, smaller in itertools.pairwise(reversed(ordered)):
        one, bound = rates[smaller], rates[larger]
        rates[smaller] = replace(one, tpr=np.minimum(one.tpr, bound.tpr), low=np.minimum(one.low, bound.low))
    for smaller, larger in itertools.pairwise(ordered):
        rates[larger] = replace(rates[larger], high=np.maximum(rates[larger].high, rates[smaller].high))
    return rates


def fold_tpr(
    evidence: Array, member: np.ndarray, fold: np.ndarray, *, fpr: float, fprs: Sequence[float] = ()
) -> Array:
    """The TPR [P] at `fpr` of :func:`tpr_rates` alone; `fprs`: the rates that it is among."""
    auc = fold_auc(evidence, member, fold)
    least = np.where(np.isnan(auc), np.nan, np.inf)
    for rate in (fpr, *(other for other in fprs if other > fpr)):
        counted, extrapolated = _counted_tpr(evidence, member, fold, rate)
        least = np.minimum(least, np.where(extrapolated, binormal_tpr(auc, rate), counted))
    return least


def _inside_above(
    evidence: Array, inside: np.ndarray, outside: np.ndarray
) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
    """(rank [P] -> inside models above the rank-th largest outside value [P], outside models [P]).

    Rank 0 lies above everything.
    """
    count_out = outside.sum(axis=0)
    descending = -np.sort(np.where(outside, -evidence, np.inf), axis=0)  # outside values first, large to small
    columns = np.arange(inside.shape[1])

    def above(rank: np.ndarray) -> np.ndarray:
        row = np.clip(rank - 1, 0, inside.shape[0] - 1)
        threshold = np.where(rank <= 0, np.inf, np.where(rank > count_out, -np.inf, descending[row, columns]))
        return np.asarray(np.sum(inside & (evidence > threshold), axis=0))

    return above, count_out


def _counted_tpr(evidence: Array, member: np.ndarray, fold: np.ndarray, fpr: float) -> tuple[Array, np.ndarray]:
    """(TPR [P] by thresholds of expected false-positive rate `fpr`, whether a fold has too few models outside)."""
    hits, few = np.zeros(member.shape[1]), np.zeros(member.shape[1], dtype=bool)
    for compared in _folds(fold, member):
        above, outside = _inside_above(evidence, compared & member, compared & ~member)
        rank = fpr * (outside + 1)
        floor = np.floor(rank + 1e-9).astype(int)
        hits += (1 - (rank - floor)) * above(floor) + (rank - floor) * above(floor + 1)
        few |= compared.any(axis=0) & (outside < 1 / fpr - 1e-9)
    return hits / np.maximum(member.sum(axis=0), 1), few


def binormal_tpr(auc: Array, fpr: float) -> Array:
    """TPR at `fpr` of two unit normals whose AUC is `auc`."""
    separation = np.sqrt(2) * norm.ppf(np.clip(auc, 1e-9, 1 - 1e-9))
    return np.asarray(norm.cdf(norm.ppf(fpr) + separation))


VERDICTS = ("exposed", "trace shown", "not shown", "inconclusive")


def verdicts(exposed: np.ndarray, traced: np.ndarray, auc_high: Array, *, tolerance: float) -> np.ndarray:
    """One of :data:`VERDICTS` for each patient.

    exposed: the AUC is shown to lie above a declared value (:func:`dptrain.audit.effects.effects`). trace shown: not
    that, but the presence leaves a trace (adjusted p-value). not shown: neither, and the AUC's interval ends below
    `tolerance`. inconclusive: nothing of this; more reference models would decide.
    """
    cleared = np.nan_to_num(auc_high, nan=1.0) < tolerance
    return np.select([exposed, traced, cleared], list(VERDICTS[:3]), VERDICTS[3])


def pooled_roc(evidence: Array, member: np.ndarray, points: int = 200) -> tuple[Array, Array]:
    """(fpr, tpr) of one threshold for all patients and models, at `points` false-positive rates."""
    defined = ~np.isnan(evidence)
    inside = np.sort(evidence[defined & member])
    outside = np.sort(evidence[defined & ~member])
    grid = np.unique(np.concatenate([[0.0, 1.0], np.geomspace(1e-3, 1, points // 2), np.linspace(0, 1, points // 2)]))
    if inside.size == 0 or outside.size == 0:
        return grid, np.full(grid.shape, np.nan)
    allowed = np.floor(grid * outside.size + 1e-9).astype(int)
    threshold = np.where(allowed >= outside.size, -np.inf, outside[np.clip(outside.size - 1 - allowed, 0, None)])
    return grid, 1 - np.searchsorted(inside, threshold, side="right") / inside.size


def mean_interval(
    statistic: Callable[[Array, np.ndarray, np.ndarray], Array],
    evidence: Array,
    member: np.ndarray,
    fold: np.ndarray,
    *,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Interval of the mean over patients of a statistic of each patient; patients without one are left out.

    Two things vary: the patients, who are independent, and the models, which all patients share: a model that is
    surer than the others is so about everybody, and that does not average out over patients. The first variance is
    that of the values over their number. The second is the jackknife's over groups of models (Efron & Stein 1981),
    less what single patients contribute to it, which the first holds already.

    Args:
        statistic: (evidence [m, p], member [m, p], fold [m]) -> [p]; called with some of the models and patients.
        evidence, member: [M, P]; fold: [M] or [M, P].
    """
    values = statistic(evidence, member, fold)
    defined = np.flatnonzero(~np.isnan(values))
    if defined.size < 2:
        return math.nan, math.nan
    mean = float(values[defined].mean())
    some = defined[:: max(1, defined.size // JACKKNIFE_PATIENTS)]
    number = min(JACKKNIFE_GROUPS, len(fold))
    group = np.arange(len(fold)) % number
    left = [group != g for g in range(number)]
    compared = fold[:, some] if fold.ndim == 2 else fold
    without = np.stack([statistic(evidence[rows][:, some], member[rows][:, some], compared[rows]) for rows in left])
    without = without[:, ~np.isnan(without).any(axis=0)]
    shared = 0.0
    if without.shape[1] > 1:
        both = (number - 1) ** 2 / number * np.var(without.mean(axis=1), ddof=1)
        alone = (number - 1) ** 2 / number * np.var(without, axis=0, ddof=1).mean() / without.shape[1]
        shared = max(0.0, float(both - alone))
    spread = math.sqrt(float(values[defined].var(ddof=1)) / defined.size + shared)
    half = float(student.isf((1 - level) / 2, number - 1)) * spread
    return max(0.0, mean - half), min(1.0, mean + half)


def survival(auc: Array, grid: Sequence[float]) -> list[float]:
    """Share of patients whose AUC is at least each value of the grid."""
    defined = np.sort(auc[~np.isnan(auc)])
    if defined.size == 0:
        return [math.nan for _ in grid]
    return [float(1 - np.searchsorted(defined, value - 1e-12) / defined.size) for value in grid]
