"""Who may be one person under two names: whose presence shows in another's scores.

Two ids of one person are trained on apart and clipped apart. Each hides the other: a model without the one often has
the other, and both look safer than the person is.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import norm, rankdata

from dptrain.audit.scores import Array

BLOCK = 2000
CHANCE = 0.05  # probability that an audit in which nobody is linked suspects anybody


def suspected_links(values: Array, member: np.ndarray, chance: float = CHANCE) -> list[tuple[int, int]]:
    """Pairs of patients (a < b) of whom each one's membership raises the other's evidence, the clearest first.

    The sum of the correlations of a's evidence with b's coin and of b's with a's, after the own coin's part is taken
    out; both coins are fair and independent, so that without a link it is about normal. Bonferroni over all pairs. A
    hint, no finding: near copies of a patient do the same.

    Args:
        values: [M, P], as :func:`dptrain.audit.patients.comparable` gives them; member: bool [M, P].
    """
    models, count = values.shape
    usable = np.isfinite(values).all(axis=0) & (member.sum(axis=0) >= 2) & ((~member).sum(axis=0) >= 2)
    if count < 2 or models < 8:
        return []
    scores = norm.ppf((rankdata(np.where(np.isfinite(values), values, 0.0), axis=0) - 0.5) / models)
    inside = member.astype(float)
    own_in = (scores * inside).sum(axis=0) / np.maximum(inside.sum(axis=0), 1)
    own_out = (scores * (1 - inside)).sum(axis=0) / np.maximum((1 - inside).sum(axis=0), 1)
    left = _unit(scores - np.where(member, own_in, own_out)) * usable
    coins = _unit(inside - inside.mean(axis=0)) * usable
    needed = float(norm.isf(chance / (count * (count - 1) / 2)))
    pairs: list[tuple[float, int, int]] = []
    for start in range(0, count, BLOCK):
        some = slice(start, start + BLOCK)
        both = (left[:, some].T @ coins + coins[:, some].T @ left) * math.sqrt(models / 2)
        for row, column in np.argwhere(both > needed).tolist():
            if start + row < column:
                pairs.append((-float(both[row, column]), start + row, column))
    return [(one, other) for _, one, other in sorted(pairs)]


def _unit(columns: Array) -> Array:
    size = np.sqrt(np.square(columns).sum(axis=0))
    return np.asarray(columns / np.where(size > 0, size, 1.0))
