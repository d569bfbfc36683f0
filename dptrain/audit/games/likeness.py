"""How like a reconstruction is to the picture that it should be, beside what no attack at all would reach.

Medical pictures of one kind are alike: a mean chest X-ray looks like everybody's. No likeness is told here without
its three nulls: the nearest *other* patient's picture, the best guess without the model, and the same
reconstruction held against somebody else. All pictures are float arrays [side, side] (or any shape) between 0 and
1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from dptrain.audit.scores import Array

RECOVERED = 0.9  # structural similarity from which a picture counts as reconstructed
SIGMA, REACH = 1.5, 3.5  # of the window: 11 pixels wide


@dataclass(frozen=True)
class Likeness:
    """One reconstruction against the truth, and its nulls.

    rank: place of the right patient in a line-up ordered by likeness to the reconstruction, 1 the first.
    shuffled: the same reconstruction against another patient.
    """

    ssim: float
    psnr: float
    nearest_other: float
    guess: float
    shuffled: float
    rank: int
    candidates: int

    @property
    def recovered(self) -> bool:
        """Nearer than anybody else's picture, the right patient first, and a structural similarity of 0.9 or more."""
        return self.rank == 1 and self.ssim >= max(RECOVERED, self.nearest_other)


def ssim(one: Array, two: Array) -> float:
    """Mean structural similarity of two pictures between 0 and 1, in any number of dimensions.

    Wang, Bovik, Sheikh & Simoncelli 2004, "Image quality assessment", Eq. 13: Gaussian window of 1.5 pixels, K1 =
    0.01, K2 = 0.03; the mean over the pixels whose window lies inside, as in their program.
    """
    x, y = np.asarray(one, dtype=np.float64), np.asarray(two, dtype=np.float64)

    def smooth(values: Array) -> Array:
        return np.asarray(gaussian_filter(values, SIGMA, truncate=REACH))

    mean_x, mean_y = smooth(x), smooth(y)
    variance_x, variance_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    value = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    edge = int(SIGMA * REACH + 0.5)
    inner = tuple(slice(edge, -edge) if length > 2 * edge else slice(None) for length in value.shape)
    return float(value[inner].mean())


def psnr(one: Array, two: Array) -> float:
    """Peak signal-to-noise ratio in dB of pictures between 0 and 1, at most 100 (float32 ends near there)."""
    error = float(np.mean((np.asarray(one, dtype=np.float64) - two) ** 2))
    return min(100.0, -10 * float(np.log10(max(error, 1e-10))))


def correlations(pictures: Array, others: Array) -> Array:
    """Pearson correlation of each of [N, …] with each of [M, …]: [N, M]; 0 where one is flat or not finite."""

    def standard(values: Array) -> Array:
        flat = np.nan_to_num(np.asarray(values, dtype=np.float64).reshape(len(values), -1), posinf=0, neginf=0)
        flat = flat / np.maximum(np.abs(flat).max(axis=1, keepdims=True), 1e-300)
        flat = flat - flat.mean(axis=1, keepdims=True)
        return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12))

    return np.asarray(standard(pictures) @ standard(others).T)


def likeness(picture: Array, target: int, pictures: Array, *, guess: Array, shuffled: int) -> Likeness:
    """One reconstruction against the picture of `target`, one of `pictures` [K, …]: the line-up and the nulls.

    Args:
        guess: what the attacker would show without the model (the mean of public or known pictures).
        shuffled: another of the pictures.
    """
    truth = np.asarray(pictures[target])
    like = correlations(picture[None], pictures)[0]
    others = np.delete(np.arange(len(pictures)), target)
    nearest = others[int(np.argmax(correlations(truth[None], pictures[others])[0]))]
    shown = np.clip(np.nan_to_num(picture), 0, 1)
    return Likeness(
        ssim=ssim(shown, truth),
        psnr=psnr(shown, truth),
        nearest_other=ssim(pictures[nearest], truth),
        guess=ssim(guess, truth),
        shuffled=ssim(shown, pictures[shuffled]),
        rank=1 + int(np.sum(like[others] >= like[target])),
        candidates=len(pictures),
    )


def nearest_other(target: int, pictures: Array) -> int:
    """The position of the picture, of another than `target`, that is most like the target's."""
    like = correlations(pictures[target][None], pictures)[0]
    like[target] = -np.inf
    return int(np.argmax(like))


def rank_p_value(ranks: Array, candidates: int) -> float:
    """Chance that ranks drawn uniformly from 1…K have so small a sum: the exact null of a line-up.

    Args:
        ranks: one a trial; candidates: K.
    """
    distribution = np.ones(1)
    for _ in range(len(ranks)):  # a sum of uniform numbers: one running sum a trial
        running = np.concatenate(([0.0], np.cumsum(np.concatenate((distribution, np.zeros(candidates - 1))))))
        distribution = (
            running[1:] - running[np.maximum(np.arange(len(running) - 1) - candidates + 1, 0)]
        ) / candidates
    return float(min(1.0, distribution[: int(np.sum(np.asarray(ranks) - 1)) + 1].sum()))
