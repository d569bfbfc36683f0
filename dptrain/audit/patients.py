"""From records to patients: pooled evidence, fitted on some reference models and read off others.

A patient's evidence is the joint likelihood ratio of all of the patient's records. Taking the best record
instead makes patients with many images look exposed where nothing leaks; :func:`best_record_auc` is kept as
the baseline that shows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from dptrain.audit.attacks import (
    ATTACKS,
    SMALLEST_SHIFT,
    Moderated,
    Prior,
    classes,
    fit_prior,
    moderate,
    t_log_ratio,
)
from dptrain.audit.scores import Array
from dptrain.audit.statistics import auc_p_values, null_spread, stratified_auc
from dptrain.errors import ConfigError
from dptrain.plain import Json
from dptrain.terminal.words import suggest
from dptrain.vocabulary import Labels, task_spec

FOLDS = 4
TEST = "randomisation tests: blind, and Student-t on held-out models"  # :func:`p_values`, whatever the attack


def folds_of(models: int, folds: int = FOLDS) -> np.ndarray:
    """Fold number of each model [M]; folds differ by one model at most. Membership is never looked at."""
    return np.arange(models) * min(folds, models) // models


def check_attack(name: str) -> str:
    """The name, if there is such an attack. Raises ConfigError with the nearest names."""
    if name not in ATTACKS:
        raise ConfigError(f"There is no attack '{name}'.", remedy=suggest(name, list(ATTACKS)))
    return name


def measurable(scores: Array) -> tuple[np.ndarray, np.ndarray]:
    """Models [M] and records [R] whose scores are finite, each bool; all attacks need a number in every cell.

    A model without a finite score for most of the records has diverged and is left out; then every record is left
    out that some other model gives no finite score. Membership is never looked at, so p-values stay exact.
    """
    finite = np.isfinite(scores)
    some = finite.any(axis=0)
    models = finite[:, some].mean(axis=1) > 0.5 if some.any() else np.zeros(len(scores), dtype=bool)
    return models, finite[models].all(axis=0) & some


def by_size(patient: np.ndarray, patients: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(patients [p], their records [p, k]) for every number of records k that occurs."""
    order = np.argsort(patient, kind="stable")
    counts = np.bincount(patient, minlength=patients)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    for k in np.unique(counts[counts > 0]):
        persons = np.flatnonzero(counts == k)
        yield persons, order[starts[persons][:, None] + np.arange(k)]


def pooled_evidence(
    reference: Array,
    member: np.ndarray,
    target: Array,
    patient: np.ndarray,
    *,
    attack: str = "student_t",
    task: str = "binary",
    outside: np.ndarray | None = None,
) -> Array:
    """A patient's evidence for membership in each target model.

    Args:
        reference: [M, R] scores; member: bool [M, P] by patient; target: [T, R]; patient: [R] positions 0…P−1.
        attack: `student_t` takes the joint density of the records (their scores move together from model to
            model, so their evidence is not simply added); every other attack sums over records, `rmia` and
            `loss` average.
        task: for `segmentation` the scores are log p already (the negative loss), which `rmia` must know.
        outside: bool [T, P], patients known to be outside of each target: the population of `rmia`, in which nobody
            is compared with the own records. None: everybody.

    Returns:
        [T, P], NaN for a patient without records or without enough reference models.
    """
    check_attack(attack)
    patients = member.shape[1]
    if attack == "student_t":
        return _joint_t(reference, member, target, patient, None)
    asked: Json = {}
    if attack == "rmia":
        asked = {"log_probability": task_spec(task).labels is Labels.MASK, "owner": patient}
        asked["population"] = None if outside is None else outside[:, patient]
    per_record = ATTACKS[attack](reference, member[:, patient], target, **asked)
    pooled = np.full((target.shape[0], patients), np.nan)
    for persons, records in by_size(patient, patients):
        values = per_record[:, records]
        pooled[:, persons] = values.mean(axis=2) if attack in ("rmia", "loss") else values.sum(axis=2)
    return pooled


@dataclass(frozen=True)
class _Joint:
    """A cohort's moderated records and how those of one patient hang together.

    unit: scores [M, R] less their class means, scaled to length 1. common: mean correlation between the
    records of a patient, [P].
    """

    moderated: Moderated
    prior: Prior
    unit: Array
    common: Array


def _joint(reference: Array, member: np.ndarray, patient: np.ndarray, prior: Prior | None) -> _Joint:
    """Moderate the records; fit the prior of their shifts on two levels, patients and records."""
    inside = member[:, patient]
    c = classes(reference, inside)
    given = prior
    prior = fit_prior(c) if prior is None else prior
    m = moderate(reference, inside, prior)
    residual = np.where(np.isnan(m.scale), 0.0, reference - np.where(inside, c.mean_in, c.mean_out))
    size = np.sqrt(np.sum(residual**2, axis=0))
    unit = residual / np.where(size > 0, size, 1.0)
    common = np.zeros(member.shape[1])
    spread, weight = 0.0, 0
    for persons, records in by_size(patient, member.shape[1]):
        k = records.shape[1]
        if k == 1:
            continue
        together = np.stack([np.sum(unit[:, rows].sum(axis=1) ** 2) for rows in records])
        common[persons] = np.clip((together - k) / (k * (k - 1)), 0.0, 0.95)
        excess = np.var(m.raw[records], axis=1, ddof=1) - m.noise[records].mean(axis=1) * (1 - common[persons])
        spread += (k - 1) * float(np.nansum(excess))
        weight += (k - 1) * int(np.sum(~np.isnan(excess)))
    if given is None:
        within = min(max(spread / weight, 0.0), prior.shift_variance) if weight else prior.shift_variance
        prior = replace(prior, shift_within=within)
    return _Joint(m, prior, unit, common)


def _joint_shift(joint: _Joint, persons: np.ndarray, records: np.ndarray) -> Array:
    """Shifts [p, k], shrunken towards their patient's, and those towards the cohort's."""
    m, prior, k = joint.moderated, joint.prior, records.shape[1]
    within = prior.shift_variance if prior.shift_within is None else prior.shift_within
    between = prior.shift_variance - within
    noise = m.noise[records].mean(axis=1)
    common = joint.common[persons]
    mean = m.raw[records].mean(axis=1)
    mean_noise = noise * (1 + (k - 1) * common) / k + within / k
    of_patient = (between * mean + mean_noise * prior.shift_mean) / (between + mean_noise)
    keep = within / (within + noise * (1 - common))
    shrunk = of_patient[:, None] + keep[:, None] * (m.raw[records] - of_patient[:, None])
    return np.asarray(np.maximum(shrunk, SMALLEST_SHIFT))


def _joint_t(reference: Array, member: np.ndarray, target: Array, patient: np.ndarray, prior: Prior | None) -> Array:
    """Multivariate t log likelihood ratio with shrunken shifts and a shrunken correlation matrix.

    Correlation: Schäfer & Strimmer 2005, "A shrinkage approach to large-scale covariance matrix estimation",
    target F (constant correlation), with Var(r) = (1 − r²)²/(freedom − 1).
    """
    joint = _joint(reference, member, patient, prior)
    m = joint.moderated
    z = (target - m.centre) / m.scale
    freedom_own = max(reference.shape[0] - 2, 2)
    pooled = np.full((target.shape[0], member.shape[1]), np.nan)
    for persons, records in by_size(patient, member.shape[1]):
        k = records.shape[1]
        if k == 1:
            first = records[:, 0]
            half = m.shift[first] / 2
            pooled[:, persons] = t_log_ratio((z[:, first] + half) ** 2, (z[:, first] - half) ** 2, m.freedom, 1)
            continue
        step = max(1, int(4e6 / (k * max(k, reference.shape[0]))))
        for part in range(0, persons.size, step):
            some, rows = persons[part : part + step], records[part : part + step]
            inverse = _shrunken_inverse(np.moveaxis(joint.unit[:, rows], 0, 1), freedom_own)
            shift = _joint_shift(joint, some, rows)[:, None, :]  # [p, 1, k]
            points = np.moveaxis(z[:, rows], 0, 1)  # [p, T, k]
            out, into = points + shift / 2, points - shift / 2
            pooled[:, some] = t_log_ratio(
                np.maximum(np.sum((out @ inverse) * out, axis=2), 0),
                np.maximum(np.sum((into @ inverse) * into, axis=2), 0),
                m.freedom,
                k,
            ).T
    return pooled


def _shrunken_inverse(unit: Array, freedom: int) -> Array:
    """Inverse of the shrunken correlation matrix [p, k, k] from columns of unit length [p, M, k].

    Target: one correlation for all pairs of a patient's records (never negative), which is what a patient
    whose records move together looks like.
    """
    k = unit.shape[2]
    others = 1 - np.eye(k)
    correlation = (np.swapaxes(unit, 1, 2) @ unit) * others
    common = np.clip(correlation.sum(axis=(1, 2)) / (k * (k - 1)), 0.0, 0.95)[:, None, None]
    noise = np.sum((1 - correlation**2) ** 2 * others, axis=(1, 2)) / max(freedom - 1, 1)
    signal = np.sum((correlation - common) ** 2 * others, axis=(1, 2))
    weight = np.clip(np.where(signal > noise, noise / np.where(signal > 0, signal, 1.0), 1.0), 0.02, 1.0)
    off = (common + (1 - weight)[:, None, None] * (correlation - common)) * others
    return np.asarray(np.linalg.inv(off + np.eye(k)))


def crossfit(
    scores: Array,
    member: np.ndarray,
    patient: np.ndarray,
    *,
    attack: str = "student_t",
    folds: int = FOLDS,
    task: str = "binary",
    prior_member: np.ndarray | None = None,
) -> tuple[Array, np.ndarray]:
    """Attack every reference model with the models of the other folds.

    Args:
        scores: [M, R]; member: bool [M, P]; patient: [R].
        prior_member: fit the prior of `student_t` with this membership instead (:func:`inflation` does).

    Returns:
        evidence [M, P] and the fold of each model [M]. Compare values within a fold only (
        :func:`dptrain.audit.statistics.stratified_auc` does): between folds, leaving a model out shifts the
        fit against it, which pushes a pooled AUC below one half where nothing leaks.
    """
    fold = folds_of(scores.shape[0], folds)
    evidence = np.full(member.shape, np.nan)
    for number in np.unique(fold):
        judged = fold == number
        fitted = scores[~judged], member[~judged], scores[judged], patient
        if prior_member is not None and attack == "student_t":
            prior = _joint(scores[~judged], prior_member[~judged], patient, None).prior
            evidence[judged] = _joint_t(*fitted, prior)
        else:
            evidence[judged] = pooled_evidence(*fitted, attack=attack, task=task, outside=~member[judged])
    return evidence, fold


ORDERED_BY_SCORE = ("student_t", "lira_offline", "loss")  # of one record: larger score, more evidence


def comparable(
    scores: Array, patient: np.ndarray, evidence: Array, fold: np.ndarray, attack: str
) -> tuple[Array, np.ndarray]:
    """What of each patient may be compared over models, and with which: (values [M, P], fold [M, P]).

    Cross-fitted evidence: within a fold only. Of a patient with one record, where the attack's evidence only rises
    with the score, the score itself, over all models: nothing was fitted.
    """
    values, folds = evidence.copy(), np.repeat(fold[:, None], evidence.shape[1], axis=1)
    if attack in ORDERED_BY_SCORE:
        alone = np.bincount(patient, minlength=evidence.shape[1])[patient] == 1
        values[:, patient[alone]] = scores[:, alone]
        folds[:, patient[alone]] = fold.min(initial=0)
    return values, folds


def inflation(
    scores: Array,
    member: np.ndarray,
    patient: np.ndarray,
    generator: np.random.Generator,
    *,
    attack: str = "student_t",
    folds: int = FOLDS,
    task: str = "binary",
) -> Array:
    """By how much cross-fitting widens the AUC of a patient without a trace, as a variance factor ≥ 1 [P].

    Each fold is judged by weights learned on the others, which are judged by weights learned on it: the
    folds of a patient with several records are dependent, and the plain variance is too small (by up to
    1.7 times for 16 records). The factor is measured: membership is shuffled within the folds, everything
    else stays, and the variance of the resulting AUCs is compared with the nominal one, over all patients
    with about as many records. A patient with one record has the factor 1 exactly.
    """
    shuffled = np.empty_like(member)
    fold = folds_of(scores.shape[0], folds)
    for number in np.unique(fold):
        rows = np.flatnonzero(fold == number)
        shuffled[rows] = generator.permuted(member[rows], axis=0)
    evidence, _ = crossfit(scores, shuffled, patient, attack=attack, folds=folds, task=task, prior_member=member)
    area = stratified_auc(evidence, shuffled, fold)
    nominal = null_spread(area) ** 2
    counts = np.bincount(patient, minlength=member.shape[1])
    factor = np.ones(member.shape[1])
    for lowest, highest in ((2, 2), (3, 4), (5, 8), (9, 16), (17, np.inf)):
        counted = (counts >= lowest) & (counts <= highest) & ~np.isnan(area.auc) & (nominal > 0)
        if counted.any():
            # the floor of a small group: 20 further patients with a factor of 1.5
            ratio = np.sum((area.auc[counted] - 0.5) ** 2 / nominal[counted])
            factor[(counts >= lowest) & (counts <= highest)] = max(1.0, (ratio + 20 * 1.5) / (counted.sum() + 20))
    return factor


def p_values(scores: Array, member: np.ndarray, patient: np.ndarray, fold: np.ndarray) -> Array:
    """Exact p-values [P] of "the patient's presence leaves no trace in any record".

    Twice the smaller of two randomisation tests, each exact whatever the scores' distribution:

    - *blind*: the Mann–Whitney test of the sum of the patient's scores, standardised and decorrelated
      without a look at membership (finds a trace spread over the records);
    - *split*: the test of :func:`pooled_evidence` on the second half of the folds, fitted on the first
      (finds a trace in one record among many).

    The cross-fitted evidence itself must not be tested so: its folds depend on each other (see
    :func:`inflation`), and 12 % of discoveries would be false where 5 % were promised. For a patient with
    one record the blind test is the test of the score itself, and it stands alone.
    """
    blind = auc_p_values(stratified_auc(_blind(scores, patient, member.shape[1]), member, fold))
    numbers = np.unique(fold)
    if numbers.size < 2:
        return blind
    first = np.isin(fold, numbers[: numbers.size // 2])
    learned = pooled_evidence(scores[first], member[first], scores[~first], patient)
    split = auc_p_values(stratified_auc(learned, member[~first], fold[~first]))
    several = np.bincount(patient, minlength=member.shape[1]) > 1
    both = np.minimum(1.0, 2 * np.fmin(blind, split))
    return np.where(several, both, blind)


def _blind(scores: Array, patient: np.ndarray, patients: int) -> Array:
    """Sum of each patient's scores after standardising and decorrelating, membership unseen: [M, P]."""
    centred = scores - scores.mean(axis=0)
    size = np.sqrt(np.sum(centred**2, axis=0))
    unit = centred / np.where(size > 0, size, 1.0)
    total = np.full((scores.shape[0], patients), np.nan)
    for persons, records in by_size(patient, patients):
        k = records.shape[1]
        if k == 1:
            total[:, persons] = unit[:, records[:, 0]]
            continue
        step = max(1, int(4e6 / (k * max(k, scores.shape[0]))))
        for part in range(0, persons.size, step):
            values = np.moveaxis(unit[:, records[part : part + step]], 0, 1)
            weights = _shrunken_inverse(values, scores.shape[0] - 1).sum(axis=2)
            total[:, persons[part : part + step]] = np.einsum("pmk,pk->mp", values, np.maximum(weights, 0.0))
    return total


def best_record_auc(scores: Array, member: np.ndarray, patient: np.ndarray, fold: np.ndarray) -> Array:
    """The baseline: for each patient [P] the largest AUC among the patient's records.

    It grows with the number of records where nothing leaks at all; never read it as a risk.
    """
    record = stratified_auc(scores, member[:, patient], fold).auc
    best = np.full(member.shape[1], np.nan)
    for persons, records in by_size(patient, member.shape[1]):
        best[persons] = record[records].max(axis=1)
    return best
