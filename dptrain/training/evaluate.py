"""Metrics with patient-bootstrap intervals, overall and by group. Nothing here is covered by epsilon.

A replicate draws patients with replacement; a patient's records come along with the patient (Efron 1979;
cluster bootstrap, Field & Welsh 2007), so that thirty images of one child do not count as thirty children.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.cells import SMALL_CELL, nested, to_hide
from dptrain.records.metrics import Bin, Bootstrap, Estimates, Group, Metrics, Suppressed
from dptrain.records.parts import Estimate
from dptrain.vocabulary import Activation, Labels, Split, Task, task_spec

Array = NDArray[np.float64]
REPLICATES = 500
LEVEL = 0.95
MINIMUM_OF_A_CLASS = 10
BINS = 10


def _curve(score: Array, label: Array, weight: Array) -> tuple[Array, Array]:
    """Cumulative positive and negative weight at each distinct threshold, highest first: [B, K] each."""
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    weighted = weight[:, order]
    positive = np.add.reduceat(weighted * label[order], starts, axis=1).cumsum(axis=1)
    negative = np.add.reduceat(weighted * (1 - label[order]), starts, axis=1).cumsum(axis=1)
    return positive, negative


def auroc(score: Array, label: Array, weight: Array) -> Array:
    """Area under the ROC curve by trapezoids (ties count half). score, label [R], weight [B, R] -> [B]."""
    positive, negative = _curve(score, label, weight)
    zero = np.zeros((len(weight), 1))
    tp, fp = np.hstack([zero, positive]), np.hstack([zero, negative])
    area = (np.diff(fp, axis=1) * (tp[:, 1:] + tp[:, :-1]) / 2).sum(axis=1)
    return _ratio(area, positive[:, -1] * negative[:, -1])


def average_precision(score: Array, label: Array, weight: Array) -> Array:
    """Sum of precision times the rise in recall over thresholds, without interpolation -> [B]."""
    positive, negative = _curve(score, label, weight)
    precision = _ratio(positive, positive + negative, empty=0.0)
    rise = np.diff(positive, axis=1, prepend=0.0)
    return _ratio((precision * rise).sum(axis=1), positive[:, -1])


def sensitivity_at(specificity: float) -> Callable[[Array, Array, Array], Array]:
    """The best sensitivity at a specificity of at least `specificity`."""

    def metric(score: Array, label: Array, weight: Array) -> Array:
        positive, negative = _curve(score, label, weight)
        sensitivity = _ratio(positive, positive[:, -1:])
        allowed = negative <= (1 - specificity) * negative[:, -1:] + 1e-9
        best = np.where(allowed, sensitivity, 0.0).max(axis=1)
        return np.where(np.isfinite(sensitivity[:, -1]) & (negative[:, -1] > 0), best, np.nan)

    return metric


def brier(score: Array, label: Array, weight: Array) -> Array:
    """Mean squared difference between probability and outcome (Brier 1950) -> [B]."""
    return _ratio((weight * (score - label) ** 2).sum(axis=1), weight.sum(axis=1))


def probability_bins(score: Array, patient: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each record's bin [R]: the first of the equal bins that it spans.

    A bin of fewer than 10 patients is joined to its smaller neighbour: left out, it would follow from the total.
    """
    which = np.minimum((score * BINS).astype(np.int64), BINS - 1)
    while True:
        bins = np.unique(which).tolist()
        sizes = [len(np.unique(patient[which == index])) for index in bins]
        if len(bins) < 2 or min(sizes) >= SMALL_CELL:
            return which
        small = int(np.argmin(sizes))
        beside = min((i for i in (small - 1, small + 1) if 0 <= i < len(bins)), key=lambda i: sizes[i])
        first, second = sorted((small, beside))
        which = np.where(which == bins[second], bins[first], which)


def calibration_error(score: Array, label: Array, weight: Array, which: NDArray[np.int64]) -> Array:
    """Expected calibration error over the bins of :func:`probability_bins` (Guo et al. 2017, eq. 3) -> [B]."""
    total = np.zeros(len(weight))
    for index in np.unique(which):
        inside = which == index
        total += np.abs((weight[:, inside] * (score[inside] - label[inside])).sum(axis=1))
    return _ratio(total, weight.sum(axis=1))


METRICS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "auroc": auroc,
    "average_precision": average_precision,
    "sensitivity_at_90_specificity": sensitivity_at(0.90),
    "sensitivity_at_95_specificity": sensitivity_at(0.95),
    "brier": brier,
}


def _ratio(above: Array, below: Array, empty: float = np.nan) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / np.where(below > 0, below, 1), empty)


def bootstrap_weights(patient: NDArray[np.int64], replicates: int = REPLICATES, seed: int = 0) -> Array:
    """Row 0: every record once; rows 1…replicates: records weighted by how often their patient was drawn.

    Args:
        patient: [R], any integer for each record's patient.
    """
    names, position = np.unique(patient, return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), replicates)
    return np.vstack([np.ones(len(patient)), drawn[:, position]]).astype(np.float64)


def interval(values: Array) -> Estimate:
    """Value of the data (row 0) with the percentile interval of the replicates."""
    value, replicates = values[0], values[1:][np.isfinite(values[1:])]
    if not np.isfinite(value) or len(replicates) < 20:
        return Estimate(value=float(value) if np.isfinite(value) else None)
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=float(value), low=float(low), high=float(high))


def classification(
    probability: Array, label: Array, patient: NDArray[np.int64], classes: Sequence[str], task: str
) -> tuple[Estimates, dict[str, Estimates]]:
    """(overall, by class) metrics of a set of records.

    Args:
        probability: [R] for binary, [R, C] otherwise. label: [R] (class number) or [R, C] for multilabel.

    For several classes each is scored against the rest; the overall figure is the mean over classes with at
    least 10 records on either side (others are withheld by the caller's suppression).
    """
    weight = bootstrap_weights(patient)
    spec = task_spec(task)
    if spec.one_logit:
        columns = {classes[-1] if classes else "positive": (probability.reshape(-1), (label > 0).astype(float))}
    elif spec.labels is Labels.CLASS:
        columns = {name: (probability[:, c], (label == c).astype(float)) for c, name in enumerate(classes)}
    else:
        columns = {name: (probability[:, c], label[:, c].astype(float)) for c, name in enumerate(classes)}
    rows: dict[str, dict[str, Array]] = {}
    for name, (score, truth) in columns.items():
        if min(truth.sum(), (1 - truth).sum()) < (1 if spec.one_logit else MINIMUM_OF_A_CLASS):
            continue
        rows[name] = {metric: function(score, truth, weight) for metric, function in METRICS.items()}
        rows[name]["calibration_error"] = calibration_error(score, truth, weight, probability_bins(score, patient))
    if not rows:
        return {}, {}
    names = [*METRICS, "calibration_error"]
    overall = {metric: interval(np.mean([row[metric] for row in rows.values()], axis=0)) for metric in names}
    if spec.one_logit:
        return overall, {}
    return overall, {name: {m: interval(v) for m, v in row.items()} for name, row in rows.items()}


def reliability(probability: Array, label: Array, patient: NDArray[np.int64]) -> tuple[Bin, ...]:
    """Mean confidence and observed frequency in the bins of :func:`probability_bins`, all classes together.

    Args:
        probability, label: [R] or [R, C]. patient: [R].
    """
    score, truth = probability.reshape(-1), label.reshape(-1).astype(float)
    which = probability_bins(score, np.repeat(patient, len(score) // max(len(patient), 1)))
    equal = np.minimum((score * BINS).astype(int), BINS - 1)
    return tuple(
        Bin(
            low=int(index) / BINS,
            high=(int(equal[which == index].max()) + 1) / BINS,
            confidence=float(score[which == index].mean()),
            observed=float(truth[which == index].mean()),
            count=int((which == index).sum()),
        )
        for index in np.unique(which)
    )


def _document(task: str, split: str, patient: NDArray[np.int64], **results: Any) -> Metrics:
    """`restricted/metrics.json`: the results, and of whom they are."""
    return Metrics(
        split=split,
        level="record",
        task=task,
        patients=len(np.unique(patient)),
        records=len(patient),
        **results,
        bootstrap=Bootstrap(replicates=REPLICATES, level=LEVEL, unit="patient"),
    )


def _too_few(task: str, split: str, patient: NDArray[np.int64]) -> Metrics | None:
    """The document that says nothing, where so few patients are scored that any figure tells of single ones."""
    if len(np.unique(patient)) >= SMALL_CELL:
        return None
    hidden = Suppressed(group="patients", value="all", why=f"fewer than {SMALL_CELL} patients")
    return _document(task, split, patient, overall={}, by_class={}, groups={}, suppressed=(hidden,))


def evaluate_classification(
    probability: Array,
    label: Array,
    patient: NDArray[np.int64],
    groups: Mapping[str, Sequence[str]],
    *,
    task: str,
    classes: Sequence[str],
    split: str = Split.TEST,
) -> Metrics:
    """`restricted/metrics.json` of a classification: overall, by class, by group, with small cells suppressed.

    The rule of small cells holds for the whole as for a group: of fewer than 10 patients nothing is said.
    """
    if (few := _too_few(task, split, patient)) is not None:
        return few
    overall, by_class = classification(probability, label, patient, classes, task)
    tables, suppressed = _by_group(
        groups,
        patient,
        lambda inside: one_sided(label[inside], task),
        lambda inside: classification(probability[inside], label[inside], patient[inside], classes, task)[0],
    )
    spec = task_spec(task)
    if spec.labels is Labels.FINDINGS:
        for column_index, name in enumerate(classes):
            if name not in by_class:
                have = int(label[:, column_index].sum())
                why = f"{have} positive records: fewer than {MINIMUM_OF_A_CLASS}"
                suppressed.append(Suppressed(group="class", value=name, why=why))
    truth = _one_hot(label, len(classes)) if spec.activation is Activation.SOFTMAX else label
    return _document(
        task,
        split,
        patient,
        overall=overall,
        by_class=by_class,
        groups=tables,
        suppressed=tuple(suppressed),
        reliability=reliability(probability, truth, patient),
    )


def _by_group(
    groups: Mapping[str, Sequence[str]],
    patient: NDArray[np.int64],
    withheld: Callable[[NDArray[np.bool_]], str | None],
    metrics: Callable[[NDArray[np.bool_]], Estimates],
) -> tuple[dict[str, dict[str, Group]], list[Suppressed]]:
    """Metrics of each group of each column, and the cells that are withheld, with the reason.

    Args:
        groups: column -> each record's group; records without one are in none.
        withheld: records inside [R] -> why nothing is said of them though they are not few, or None.
        metrics: records inside [R] -> their metrics.
    """
    suppressed: list[Suppressed] = []
    shown: dict[tuple[str, str], NDArray[np.bool_]] = {}
    for column, values in groups.items():
        rows = {value: np.array([item == value for item in values], dtype=bool) for value in sorted({"", *values})}
        members = {value: set(patient[inside].tolist()) for value, inside in rows.items()}
        unknown = members.pop("")
        reasons = {value: why for value in members if (why := withheld(rows[value]))}
        hidden = to_hide(members, unknown, hidden=reasons)
        suppressed += [Suppressed(group=column, value=value, why=why) for value, why in hidden.items()]
        shown.update({(column, value): rows[value] for value in members if value not in hidden})
    betraying = nested({name: np.flatnonzero(inside).tolist() for name, inside in shown.items()}, patient.tolist())
    suppressed += [Suppressed(group=column, value=value, why=why) for (column, value), why in betraying.items()]
    tables: dict[str, dict[str, Group]] = {column: {} for column in groups}
    for (column, value), inside in shown.items():
        if (column, value) not in betraying:
            patients, records = len(np.unique(patient[inside])), int(inside.sum())
            tables[column][value] = Group(patients=patients, records=records, metrics=metrics(inside))
    return tables, suppressed


def one_sided(label: np.ndarray, task: str) -> str | None:
    """Why a group is withheld that has too few records of a class to score, or None."""
    if task_spec(task).one_logit and min((label > 0).sum(), (label <= 0).sum()) < MINIMUM_OF_A_CLASS:
        return f"fewer than {MINIMUM_OF_A_CLASS} records of one class"
    return None


def _one_hot(label: np.ndarray, classes: int) -> np.ndarray:
    return np.asarray(np.eye(classes)[label.astype(int)])


def evaluate_segmentation(
    dice: Array,
    patient: NDArray[np.int64],
    groups: Mapping[str, Sequence[str]],
    *,
    classes: Sequence[str],
    split: str = Split.TEST,
) -> Metrics:
    """`restricted/metrics.json` of a segmentation. dice: [R, C], one value a record and structure.

    Of fewer than 10 patients nothing is said.
    """
    if (few := _too_few(Task.SEGMENTATION, split, patient)) is not None:
        return few

    def table(values: Array, of: NDArray[np.int64]) -> tuple[Estimates, dict[str, Estimates]]:
        weight = bootstrap_weights(of)
        present = np.isfinite(values)
        each = _ratio(weight @ np.where(present, values, 0.0), weight @ present.astype(float))
        by_class = {name: {"dice": interval(each[:, c])} for c, name in enumerate(classes)}
        return {"dice": interval(each.mean(axis=1))}, by_class

    overall, by_class = table(dice, patient)
    tables, suppressed = _by_group(
        groups,
        patient,
        lambda _: None,
        lambda inside: table(dice[inside], patient[inside])[0],
    )
    return _document(
        Task.SEGMENTATION,
        split,
        patient,
        overall=overall,
        by_class=by_class,
        groups=tables,
        suppressed=tuple(suppressed),
    )
