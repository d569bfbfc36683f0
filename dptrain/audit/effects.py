"""How large the risk is, apart from how many models measured it: who is exposed, and how many truly are.

A trace is *shown* where a test says so, and with enough models the smallest trace is. *Exposed* is an effect: the
lower limit of a patient's AUC lies above a declared value. As models grow in number, those shown to be exposed
become those who are. The shares of patients whose true AUC is so high are bounded by what distributions of true
AUCs agree with the measured ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.stats import beta, norm

from dptrain.audit.scores import Array
from dptrain.audit.statistics import (
    JACKKNIFE_GROUPS,
    JACKKNIFE_PATIENTS,
    LEVEL,
    TESTS,
    Area,
    area_variance,
    auc_interval,
    benjamini_hochberg,
    fold_auc,
)

TRUE = np.round(np.arange(0.35, 1.0001, 0.01), 2)  # true AUCs that a distribution may hold
POINTS = 48  # measured AUCs at which a distribution must agree with what was measured
PATTERNS = 48  # patients whose numbers of models stand for all
POWER = 0.8


@dataclass(frozen=True)
class Effect:
    """Who is exposed. exposed: bool [P]. low: lower limit [P] of their AUCs, NaN for the others.

    `low` holds for the selected: of the limits given, on average at most the false-discovery rate are too high
    (Benjamini & Yekutieli 2005, "False Discovery Rate-Adjusted Multiple Confidence Intervals").
    """

    exposed: np.ndarray
    low: Array


def effects(area: Area, above: float, false_discovery_rate: float) -> Effect:
    """Patients whose AUC is shown to lie above a value: the score test of each, Benjamini & Hochberg over all."""
    p = effect_p_values(area, above)
    exposed = np.nan_to_num(benjamini_hochberg(p), nan=1.0) <= false_discovery_rate
    tested = int(np.sum(~np.isnan(p)))
    low = np.full(len(p), np.nan)
    if exposed.any():
        one_sided = false_discovery_rate * exposed.sum() / tested
        low[exposed] = auc_interval(area, 1 - 2 * one_sided)[0][exposed]
    return Effect(exposed, low)


def effect_p_values(area: Area, above: float) -> Array:
    """One-sided p-values [P] of "the AUC is at most `above`", by the score test that the intervals invert."""
    spread = np.sqrt(area_variance(area, np.full(area.auc.shape, above)))
    return np.where(np.isnan(area.auc), np.nan, norm.sf((area.auc - above) / np.maximum(spread, 1e-12)))


def smallest_seen(area: Area, above: float, false_discovery_rate: float) -> float | None:
    """The smallest AUC of one patient alone, of whom :data:`POWER` of such audits would say that it is above `above`.

    None: not even 1 would be seen. With above = 1/2: the smallest trace that would be shown.
    """
    usable = area.pairs > 0
    if not usable.any():
        return None
    level = false_discovery_rate / usable.sum() / (TESTS if np.median((area.inside > 0).sum(axis=0)) > 1 else 1)

    def spread(auc: float) -> float:
        return math.sqrt(float(np.median(area_variance(area, np.full(area.auc.shape, auc))[usable])))

    needed = above + float(norm.isf(level)) * spread(above)
    for auc in np.arange(round(above, 3), 1.0, 0.005):
        if auc - float(norm.ppf(POWER)) * spread(float(auc)) >= needed:
            return float(round(auc, 3))
    return None


def true_shares(
    evidence: Array, member: np.ndarray, fold: np.ndarray, area: Area, values: Sequence[float], level: float = LEVEL
) -> list[tuple[float, float]]:
    """Limits of the share of patients whose true AUC is at least each of `values`; all hold together at `level`.

    F-localisation (Ignatiadis & Wager 2022, "Confidence Intervals for Nonparametric Empirical Bayes Analysis",
    section 3): the measured AUCs' distribution lies in a band; every distribution of true AUCs whose noisy version
    lies in the band is possible; the limits are the least and the largest share among those, each a linear
    programme. Nothing is assumed of the true AUCs. Band: Dvoretzky–Kiefer–Wolfowitz for the patients (half of the
    error), and the jackknife's variance over groups of models, which all patients share, for the models (the other
    half). Noise of one AUC: beta with the variance that its interval uses.

    Args:
        evidence, member, fold: as :func:`dptrain.audit.statistics.stratified_auc` takes them; area: what it gave.
    """
    usable = np.flatnonzero(~np.isnan(area.auc))
    if usable.size < 2:
        return [(0.0, 1.0) for _ in values]
    points = _points(area.auc[usable])
    measured = np.mean(area.auc[usable][:, None] <= points, axis=0)
    half = (1 - level) / 2
    patients = math.sqrt(math.log(2 / half) / (2 * usable.size))
    spread = _shared_spread(evidence, member, fold, area, points)
    band = patients + float(norm.isf(half / 2 / math.sqrt(len(points)))) * spread
    kernel = _kernel(area, usable, points)
    band = band + _misfit(kernel, measured, band)
    return [_limits(kernel, measured, band, value) for value in values]


def _points(auc: Array) -> Array:
    """Where distributions are compared: between the values that an AUC may take, evenly over those measured."""
    distinct = np.unique(auc)
    between = (distinct[:-1] + distinct[1:]) / 2 if distinct.size > 1 else distinct + 1e-3
    return np.asarray(between[np.unique(np.linspace(0, between.size - 1, min(POINTS, between.size)).astype(int))])


def _shared_spread(evidence: Array, member: np.ndarray, fold: np.ndarray, area: Area, points: Array) -> Array:
    """Standard deviation over models of the share of patients below each point, less what patients bring alone."""
    usable = np.flatnonzero(~np.isnan(area.auc))
    some = usable[:: max(1, usable.size // JACKKNIFE_PATIENTS)]
    number = min(JACKKNIFE_GROUPS, len(fold))
    group = np.arange(len(fold)) % number
    compared = fold[:, some] if fold.ndim == 2 else fold
    width = np.sqrt(area_variance(area, area.auc))[some]
    width = np.maximum(width, np.nanmedian(width) / 2)
    below = []
    for left in range(number):
        rows = group != left
        auc = fold_auc(evidence[rows][:, some], member[rows][:, some], compared[rows])
        below.append(norm.cdf((points - auc[:, None]) / width[:, None]))  # smooth: one model moves single ranks
    without = np.stack(below)  # [groups, patients, points]
    without = without[:, ~np.isnan(without).any(axis=(0, 2))]
    if without.shape[1] < 2:
        return np.full(len(points), 0.5)
    factor = (number - 1) ** 2 / number
    both = factor * without.mean(axis=1).var(axis=0, ddof=1)
    alone = factor * without.var(axis=0, ddof=1).mean(axis=0) / without.shape[1]
    return np.asarray(np.sqrt(np.maximum(both - alone, 0.0)))


def _kernel(area: Area, usable: np.ndarray, points: Array) -> Array:
    """Pr[measured AUC ≤ point | true AUC], [points, true AUCs], over the numbers of models that patients had."""
    some = usable[np.unique(np.linspace(0, usable.size - 1, min(PATTERNS, usable.size)).astype(int))]
    inflation = np.broadcast_to(np.asarray(area.inflation, dtype=float), area.auc.shape)[some]
    picked = Area(area.auc[some], area.wins[some], area.inside[:, some], area.outside[:, some], inflation)
    columns = []
    for auc in TRUE:
        mean = min(float(auc), 0.9995)
        variance = np.minimum(area_variance(picked, np.full(some.size, mean)), 0.98 * mean * (1 - mean))
        size = mean * (1 - mean) / variance - 1
        columns.append(beta.cdf(points[:, None], mean * size, (1 - mean) * size).mean(axis=1))
    return np.stack(columns, axis=1)


def _misfit(kernel: Array, measured: Array, band: Array) -> float:
    """What must be added to the band so that some distribution of true AUCs agrees; 0 where one does."""
    ones = np.ones((len(measured), 1))
    solved = linprog(
        np.r_[np.zeros(len(TRUE)), 1.0],
        A_ub=np.block([[kernel, -ones], [-kernel, -ones]]),
        b_ub=np.r_[measured + band, band - measured],
        A_eq=np.r_[np.ones(len(TRUE)), 0.0][None],
        b_eq=[1.0],
    )
    return 1.0 if solved.x is None else float(solved.x[-1]) * (1 + 1e-6) + 1e-9


def _limits(kernel: Array, measured: Array, band: Array, value: float) -> tuple[float, float]:
    """The least and the largest share at or above `value` among the distributions inside the band."""
    share = (value - 1e-9 <= TRUE).astype(float)
    ends = []
    for sign, unknown in ((1.0, 0.0), (-1.0, 1.0)):
        solved = linprog(
            sign * share,
            A_ub=np.block([[kernel], [-kernel]]),
            b_ub=np.r_[measured + band, band - measured],
            A_eq=np.ones((1, len(TRUE))),
            b_eq=[1.0],
        )
        ends.append(unknown if solved.x is None else min(max(float(share @ solved.x), 0.0), 1.0))
    return ends[0], max(ends)
