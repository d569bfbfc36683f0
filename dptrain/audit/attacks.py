"""Membership attacks on frozen score matrices; plain NumPy.

Every attack has the signature `attack(reference, member, target) -> evidence`:

    reference  scores [M, R] of R records under M reference models (see :mod:`dptrain.audit.scores`)
    member     bool [M, R]: was the record in that model's training set
    target     scores [T, R] of the models that are attacked
    evidence   [T, R], large where the record looks like a member; NaN where the reference models cannot say
               (fewer than two with or without the record, where the attack needs them)

A target model must not be among the reference models (:func:`dptrain.audit.patients.crossfit` sees to it).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import log_expit, logsumexp, polygamma, psi
from scipy.stats import norm

from dptrain.audit.scores import Array

Attack = Callable[..., Array]

RECORD_VARIANCE_FROM = 32  # models with, and models without: Carlini et al. 2022, section VI-A (64 in all)
SMALLEST_SHIFT = 1e-3  # standard deviations; keeps the direction "trained on it, knows it better" where nothing leaks


@dataclass(frozen=True)
class Classes:
    """Mean and variance of a record's score over the models that had it and over those that had not, each [R]."""

    count_in: Array
    count_out: Array
    mean_in: Array
    mean_out: Array
    var_in: Array
    var_out: Array

    @property
    def within(self) -> Array:
        """Pooled variance within the two classes, with count_in + count_out − 2 degrees of freedom."""
        freedom = np.maximum(self.count_in + self.count_out - 2, 1)
        total = (self.count_in - 1) * self.var_in + (self.count_out - 1) * self.var_out
        return np.where(self.enough, total / freedom, np.nan)

    @property
    def enough(self) -> np.ndarray:
        """Whether two models with and two without the record exist."""
        return (self.count_in >= 2) & (self.count_out >= 2)


def classes(reference: Array, member: Array) -> Classes:
    """Moments of both classes. Masked entries are left out of the sums, never filled with a number.

    (Filling them with 0 and then sorting or averaging is the public implementations' mistake: scores are
    signed, so a 0 may be the largest of them.)
    """
    inside = np.asarray(member, dtype=bool)
    shift = np.nanmean(reference, axis=0)  # numerical only: sums of squares are taken about it
    centred = reference - shift
    count_in, count_out = inside.sum(axis=0).astype(float), (~inside).sum(axis=0).astype(float)

    def moments(which: np.ndarray, count: Array) -> tuple[Array, Array]:
        mean = np.where(which, centred, 0.0).sum(axis=0) / np.where(count > 0, count, np.nan)
        square = np.where(which, (centred - mean) ** 2, 0.0).sum(axis=0)
        return mean + shift, square / np.where(count > 1, count - 1, np.nan)

    mean_in, var_in = moments(inside, count_in)
    mean_out, var_out = moments(~inside, count_out)
    return Classes(count_in, count_out, mean_in, mean_out, var_in, var_out)


def _variance(values: Array, counts: Array, how: str) -> Array:
    """Per-record variances, or their mean over all records (Carlini et al.: below 64 models)."""
    few = float(np.median(counts)) < RECORD_VARIANCE_FROM
    if how == "record" or (how == "auto" and not few):
        chosen = values
    else:
        measured = values[~np.isnan(values)]
        chosen = np.full_like(values, measured.mean() if measured.size else np.nan)
    return np.maximum(chosen, 1e-24)


def lira_online(reference: Array, member: Array, target: Array, *, variance: str = "auto") -> Array:
    """Gaussian log likelihood ratio of "in" against "out" (Carlini et al. 2022, algorithm 1).

    Args:
        variance: `record`, `global` (one for all records), or `auto`: global below 64 models, where a
            variance for each record costs more than it gives.
    """
    c = classes(reference, member)
    var_in = _variance(c.var_in, c.count_in, variance)
    var_out = _variance(c.var_out, c.count_out, variance)
    evidence = norm.logpdf(target, c.mean_in, np.sqrt(var_in)) - norm.logpdf(target, c.mean_out, np.sqrt(var_out))
    return np.where(c.enough, evidence, np.nan)


def lira_offline(reference: Array, member: Array, target: Array, *, variance: str = "auto") -> Array:
    """One-sided test against the models without the record: −log Pr[Z ≥ φ] (Carlini et al. 2022, equation 4).

    A score *above* what models without the record give is evidence for membership; one far below is
    evidence against it (a likelihood −log p_out(φ) would take both for members).
    """
    c = classes(reference, member)
    sd = np.sqrt(_variance(c.var_out, c.count_out, variance))
    return np.where(c.count_out >= 2, -norm.logsf(target, c.mean_out, sd), np.nan)


def rmia(
    reference: Array,
    member: Array,
    target: Array,
    *,
    gamma: float = 1.0,
    log_probability: bool = False,
    population: np.ndarray | None = None,
    owner: np.ndarray | None = None,
) -> Array:
    """Share of population records z that x beats in its probability ratio by the factor `gamma`.

    ratio(x) = p(x | target) / mean_θ p(x | θ), the mean taken half over models with x and half over models
    without (Zarifzadeh, Liu, Shokri 2024, "Low-Cost High-Power Membership Inference Attacks", section 3;
    online). At gamma = 1 it is the rank of x among the population; under a private training hardly any ratio
    reaches 2, and a larger gamma calls everybody alike.

    Args:
        log_probability: the scores are log p already; else p = expit(score), which inverts φ.
        population: bool [T, R], the records z for each target: those that the attacker knows to be outside of its
            training set. None: all records.
        owner: [R], the patient of each record. x is never compared with records of its own patient: whether those
            are in the population says whether x is a member. None: each record is a patient.
    """
    c = classes(reference, member)
    inside = np.asarray(member, dtype=bool)
    log_p = reference if log_probability else log_expit(reference)
    log_target = target if log_probability else log_expit(target)

    def log_mean(which: np.ndarray, count: Array) -> Array:
        return np.asarray(logsumexp(np.where(which, log_p, -np.inf), axis=0) - np.log(np.maximum(count, 1)))

    prior = np.logaddexp(log_mean(inside, c.count_in), log_mean(~inside, c.count_out)) - np.log(2)
    ratio = log_target - prior
    records = ratio.shape[1]
    one, sibling = _siblings(np.arange(records) if owner is None else owner)
    evidence = np.full(ratio.shape, np.nan)
    for t in range(ratio.shape[0]):
        z = c.enough if population is None else c.enough & population[t]
        needed = ratio[t] - np.log(gamma)
        beaten = np.searchsorted(np.sort(ratio[t, z]), needed, side="right")
        own = np.bincount(one, z[sibling] & (ratio[t, sibling] <= needed[one]), records)
        others = z.sum() - np.bincount(one, z[sibling], records)
        evidence[t] = (beaten - own) / np.maximum(others, 1)
    return np.where(c.enough, evidence, np.nan)


def _siblings(owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of records (x, z) of one patient, x = z too, as two lists of places."""
    order = np.argsort(owner, kind="stable")
    _, first, counts = np.unique(owner[order], return_index=True, return_counts=True)
    size = np.repeat(counts, counts)
    start = np.repeat(np.repeat(first, counts), size)
    step = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    return np.repeat(order, size), order[start + step]


def loss_threshold(reference: Array, member: Array, target: Array) -> Array:
    """The score itself: one threshold for all records (Yeom et al. 2018). Uses no reference model."""
    del reference, member
    return np.array(target, dtype=float)


@dataclass(frozen=True)
class Prior:
    """What all records together say about one record's variance and shift.

    variance, freedom: scaled inverse chi-squared prior of the variance within a class. shift_mean,
    shift_variance: normal prior of the distance of the class means in standard deviations. shift_within: the
    part of shift_variance that lies between the records of one patient (None: all of it).
    """

    variance: float
    freedom: float
    shift_mean: float
    shift_variance: float
    shift_within: float | None = None

    def scale(self, c: Classes) -> Array:
        """Shrunken standard deviations [R]."""
        own = np.maximum(c.count_in + c.count_out - 2, 0)
        within = np.where(c.enough, c.within, 0.0)
        total = self.freedom * self.variance + np.where(c.enough, own, 0.0) * within
        below = self.freedom + np.where(c.enough, own, 0.0)
        return np.sqrt(np.maximum(total / np.maximum(below, 1e-12), 1e-24))


def fit_prior(c: Classes) -> Prior:
    """Moments of the log variances (Smyth 2004, section 6.2; limma) and of the standardised shifts."""
    within, enough = c.within, c.enough
    freedom = float(np.median((c.count_in + c.count_out - 2)[enough])) if enough.any() else 1.0
    positive = enough & (np.nan_to_num(within) > 0)
    if positive.sum() < 3:
        return Prior(float(np.nanmean(within)) if enough.any() else 1.0, 1e-6, 0.0, 0.0)
    log_var = np.log(within[positive])
    excess = log_var - psi(freedom / 2) + np.log(freedom / 2)
    spread = float(excess.var(ddof=1) - polygamma(1, freedom / 2))
    prior_freedom = 2 * _trigamma_inverse(spread) if spread > 1e-6 else 1e6
    variance = float(np.exp(excess.mean() + psi(prior_freedom / 2) - np.log(prior_freedom / 2)))
    prior = Prior(variance, prior_freedom, 0.0, 0.0)
    raw = ((c.mean_in - c.mean_out) / prior.scale(c))[enough]
    noise = 1 / c.count_in[enough] + 1 / c.count_out[enough]
    between = max(float(np.var(raw) - np.mean(noise)), 0.0)
    return Prior(variance, prior_freedom, float(raw.mean()), between)


@dataclass(frozen=True)
class Moderated:
    """Empirical-Bayes estimates for each record, each [R] but `freedom`.

    centre: middle between the two class means. scale: shrunken standard deviation within a class. shift:
    shrunken distance of the class means in units of `scale`, never below a small positive number. raw: that
    distance before shrinking. noise: its sampling variance.
    """

    centre: Array
    scale: Array
    shift: Array
    freedom: float
    raw: Array
    noise: Array


def moderate(reference: Array, member: Array, prior: Prior | None = None) -> Moderated:
    """Borrow strength across records: with few models each record's own variance and shift are mostly noise.

    Training on a record raises its score, so shifts are kept positive: the fitted direction can then not
    follow chance.

    Args:
        prior: fitted to the same records (default), or given, as :func:`fit_prior` returns it.
    """
    c = classes(reference, member)
    prior = fit_prior(c) if prior is None else prior
    scale = prior.scale(c)
    noise = 1 / np.maximum(c.count_in, 1) + 1 / np.maximum(c.count_out, 1)
    raw = (c.mean_in - c.mean_out) / scale
    shift = (prior.shift_variance * raw + noise * prior.shift_mean) / (prior.shift_variance + noise)
    own = float(np.median((c.count_in + c.count_out - 2)[c.enough])) if c.enough.any() else 1.0
    return Moderated(
        centre=(c.mean_in + c.mean_out) / 2,
        scale=np.where(c.enough, scale, np.nan),
        shift=np.maximum(shift, SMALLEST_SHIFT),
        freedom=min(own + prior.freedom, 1e6),
        raw=raw,
        noise=noise,
    )


def student_t(reference: Array, member: Array, target: Array) -> Array:
    """Log ratio of two Student-t predictive densities with shrunken per-record scale and shift (the default).

    Both classes share the scale, so a few models suffice; see :func:`moderate`.
    """
    m = moderate(reference, member)
    z = (target - m.centre) / m.scale
    return t_log_ratio((z + m.shift / 2) ** 2, (z - m.shift / 2) ** 2, m.freedom, 1)


def t_log_ratio(distance_out: Array, distance_in: Array, freedom: float, dimension: float | Array) -> Array:
    """log t(in) − log t(out) of a (multivariate) t density from squared distances in scale units."""
    return (freedom + dimension) / 2 * (np.log1p(distance_out / freedom) - np.log1p(distance_in / freedom))


def _trigamma_inverse(value: float) -> float:
    """x with ψ'(x) = value, by Newton's method (Smyth 2004, appendix)."""
    if value > 1e7:
        return 1 / math.sqrt(value)
    x = 0.5 + 1 / value
    for _ in range(50):
        tri = float(polygamma(1, x))
        step = tri * (1 - tri / value) / float(polygamma(2, x))
        x += step
        if -step / x < 1e-8:
            break
    return float(x)


ATTACKS: dict[str, Attack] = {
    "student_t": student_t,
    "lira_online": lira_online,
    "lira_offline": lira_offline,
    "rmia": rmia,
    "loss": loss_threshold,
}
