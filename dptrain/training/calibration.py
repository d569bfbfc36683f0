"""Temperature and conformal sets from one noisy histogram, so that their patients are charged like any other.

Each patient of the calibration split contributes the mean over its records (and labels) of the indicator of
the bin that holds the true class's margin φ, its logit less that of the strongest other class. That vector has
l2 norm at most 1, so the histogram with Gaussian noise σ in every bin is one Gaussian mechanism of sensitivity 1
under add/remove of a patient: the plan's `calibration` mechanism. Everything below is post-processing of it.

Temperature (Guo et al. 2017, section 4.2): a margin divides by T as the logits do. Of two classes, softmax(z/T)
gives the true one the probability sigmoid(φ/T), so that the loss -log sigmoid(φ/T) is exact. Of more, it is the loss
of the truth given that it is one of the model's first two classes (conditional likelihood, Andersen 1970): margins of
truths below these have bins of their own, which count for the sets and not for the temperature.
Conformal sets: Vovk et al. 2005; Angelopoulos & Bates 2021, section 1.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from dptrain.engine import NoiseSource
from dptrain.plain import Json
from dptrain.vocabulary import Activation, Generator, Labels, task_spec

EDGES = np.linspace(-8, 8, 33)
CENTRES = np.concatenate([[-9.0], (EDGES[1:] + EDGES[:-1]) / 2, [9.0]])
MISSED = int(np.searchsorted(EDGES, 0.0)) + 1  # bins of margins below 0, once more for truths below the first two
MISCOVERAGE = 0.1


@dataclass(frozen=True)
class Calibration:
    """temperature divides the logits; a class is in the set where its margin φ/T is at least `threshold`.

    `patients` is the noisy total of the histogram, never the count.
    """

    temperature: float
    threshold: float
    miscoverage: float
    noise_multiplier: float
    patients: float

    def to_dict(self) -> Json:
        """Plain values for JSON."""
        return asdict(self)


def margins(logits: NDArray[np.float64], task: str) -> NDArray[np.float64]:
    """φ of every class: [R] -> [R, 2] (binary), [R, C] -> [R, C] (multiclass) or [R, C, 2] (multilabel)."""
    spec = task_spec(task)
    if spec.one_logit:
        flat = logits.reshape(len(logits))
        return np.stack([-flat, flat], axis=1)
    if spec.labels is Labels.FINDINGS:
        return np.stack([-logits, logits], axis=-1)
    first_two = np.partition(logits, -2, axis=1)
    second, first = first_two[:, -2:-1], first_two[:, -1:]
    with np.errstate(invalid="ignore"):
        return logits - np.where(logits == first, second, first)


def true_margins(logits: NDArray[np.float64], label: np.ndarray, task: str) -> NDArray[np.float64]:
    """φ of the true class: [R, 1], or [R, C] for multilabel."""
    phi = margins(logits, task)
    if task_spec(task).labels is Labels.FINDINGS:
        return np.take_along_axis(phi, label.astype(int)[..., None], axis=2)[..., 0]
    return np.take_along_axis(phi, label.reshape(-1, 1).astype(int), axis=1)


def true_bins(logits: NDArray[np.float64], label: np.ndarray, task: str) -> NDArray[np.int64]:
    """The bin of the true class's margin: [R, 1], or [R, C] for multilabel. Not-a-number counts as the worst margin.

    Multiclass: a truth that is not among the two classes of the largest logits has its bin after all the others.
    """
    phi = np.nan_to_num(true_margins(logits, label, task), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    which = np.searchsorted(EDGES, phi, side="right")
    if task_spec(task).activation is Activation.SOFTMAX:
        preferred = logits > np.take_along_axis(logits, label.reshape(-1, 1).astype(int), axis=1)
        which = np.where(preferred.sum(axis=1, keepdims=True) >= 2, len(CENTRES) + which, which)
    return which


def patient_histogram(which: NDArray[np.int64], patient: NDArray[np.int64], task: str) -> NDArray[np.float64]:
    """One row a patient: the mean over its values of the indicator of their bin; each row sums to 1.

    which: [R, K] bins; patient: [R].
    """
    names, position = np.unique(patient, return_inverse=True)
    missed = MISSED if task_spec(task).activation is Activation.SOFTMAX else 0
    rows = np.zeros((len(names), len(CENTRES) + missed))
    np.add.at(rows, (np.repeat(position, which.shape[1]), which.ravel()), 1.0)
    return np.asarray(rows / np.maximum(rows.sum(axis=1, keepdims=True), 1.0))


def fit_calibration(
    logits: NDArray[np.float64],
    label: np.ndarray,
    patient: NDArray[np.int64],
    task: str,
    *,
    noise_multiplier: float,
    generator: str = Generator.CRYPTOGRAPHIC,
) -> Calibration:
    """Release the noisy histogram once and fit temperature and threshold to it.

    Args:
        logits: [R] or [R, C]; label: [R] or [R, C]; patient: [R] of the calibration split.
        noise_multiplier: σ of the plan's calibration mechanism (0 on cohorts declared public only).
    """
    histogram = torch.from_numpy(patient_histogram(true_bins(logits, label, task), patient, task).sum(axis=0))
    if noise_multiplier > 0:
        source = NoiseSource(generator)
        try:
            histogram = histogram + noise_multiplier * source.normal(histogram.shape, dtype=torch.float64)
        finally:
            source.close()
    return from_histogram(histogram.numpy(), noise_multiplier)


def from_histogram(counts: NDArray[np.float64], noise_multiplier: float) -> Calibration:
    """Post-processing of the noisy histogram [bins]: the only thing that is ever seen of the patients."""
    total = float(counts.sum())
    among, missed = counts[: len(CENTRES)], counts[len(CENTRES) :]
    every = among.copy()
    every[: len(missed)] += missed
    # Adjacent bins are pooled until each is well above the noise; negative noise is not a patient.
    weight, every = (np.maximum(_pooled(part, 2 * noise_multiplier), 0.0) for part in (among, every))
    if weight.sum() <= 0 or every.sum() <= 0:
        return Calibration(1.0, -1e9, MISCOVERAGE, noise_multiplier, total)

    def loss(log_temperature: float) -> float:
        return float((weight * np.logaddexp(0.0, -CENTRES / np.exp(log_temperature))).sum())

    fit = minimize_scalar(loss, bounds=(np.log(0.1), np.log(10.0)), method="bounded")
    temperature = float(np.exp(fit.x))
    cumulative = np.cumsum(every) / every.sum()
    position = int(np.searchsorted(cumulative, MISCOVERAGE, side="left"))
    lower = np.concatenate([[-np.inf], EDGES])
    threshold = lower[min(position, len(lower) - 1)]
    return Calibration(temperature, float(max(threshold, -1e9) / temperature), MISCOVERAGE, noise_multiplier, total)


def _pooled(counts: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """Spread runs of bins evenly until each run holds at least `least`, outermost bins first."""
    pooled = counts.astype(float).copy()
    start = 0
    while start < len(pooled):
        end, total = start, 0.0
        while end < len(pooled) and (end == start or total < least):
            total += counts[end]
            end += 1
        pooled[start:end] = total / (end - start)
        start = end
    return pooled
