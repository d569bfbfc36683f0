"""What an attack looks at: one number a record and model, large where the model knows the record well.

Source: Carlini et al. 2022, "Membership Inference Attacks From First Principles", section IV-C (logit scaling).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from dptrain.errors import ConfigError
from dptrain.vocabulary import Labels, task_spec

Array = NDArray[np.float64]


def confidence(logits: ArrayLike, labels: ArrayLike, task: str) -> Array:
    """Logit-scaled confidence φ = log p_y − log Σ_{j≠y} p_j, computed from logits without forming p.

    Args:
        logits: `binary`: [..., R], [..., R, 1] or [..., R, 2]; `multiclass`: [..., R, C]; `multilabel`: [..., R, L].
        labels: `binary` 0/1 [R]; `multiclass` class numbers [R]; `multilabel` 0/1 [R, L], NaN where a label
            is unknown.
        task: one of the three; for `segmentation` take :func:`from_loss`.

    Returns:
        φ [..., R]; of a multi-label record the mean over its known labels (0 where none is known).

    Raises:
        ConfigError: another task.
    """
    values = np.asarray(logits, dtype=np.float64)
    truth = np.asarray(labels)
    spec = task_spec(task)
    if spec.one_logit and not (values.ndim >= 2 and values.shape[-1] == 2 and values.shape[-2] == truth.size):
        truth = truth.reshape(-1)
        if values.shape[-1] == 1 and values.ndim >= 2 and values.shape[-2] == truth.size:
            values = values[..., 0]
        # two classes with one logit z: p_1 = 1/(1+e^-z), so φ is z for label 1 and -z for label 0
        return np.where(truth > 0.5, values, -values)
    if spec.labels is Labels.CLASS:
        chosen = truth.reshape(-1).astype(np.int64)
        rows = np.arange(chosen.size)
        own = values[..., rows, chosen].copy()
        others = values.copy()
        others[..., rows, chosen] = -np.inf
        return np.asarray(own - logsumexp(others, axis=-1))
    if spec.labels is Labels.FINDINGS:
        given = ~np.isnan(truth.astype(np.float64))
        signed = np.where(given, np.where(truth > 0.5, values, -values), 0.0)
        return np.asarray(signed.sum(axis=-1) / np.maximum(given.sum(axis=-1), 1))
    raise ConfigError(f"there is no confidence for task '{task}': take from_loss.")


def from_loss(losses: ArrayLike) -> Array:
    """The score of a record where only its loss [..., R] is known (segmentation): the negative loss."""
    return -np.asarray(losses, dtype=np.float64)
