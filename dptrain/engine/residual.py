"""Whether what was released is the clipped sum plus the noise that was promised: a test of the residual.

    r = (released noisy mean · normaliser − clipped sum, computed independently in float64) / (σC)

must be standard normal, and independent over coordinates and steps, at any ε: with the sum known, noise cannot hide a
fault. Each fault has a statistic of its own, with a p-value that is exact or an excellent approximation at the sizes
that occur (thousands of coordinates); together they raise a false alarm with a probability of at most
:data:`FALSE_ALARM`.

| statistic | finds |
|---|---|
| scale | noise of another size: Σr² against χ² |
| missing noise | coordinates without noise, such as one layer's: how many |r| are below 0.01, against a binomial |
| shape | noise that is not normal: Kolmogorov and Smirnov |
| reused seed | steps whose noise is another's: the largest correlation of two steps, Bonferroni over pairs |
| dependence | coordinates that follow their neighbours: correlations at lags up to 8, or of the two halves |
| realised normaliser | division by what was drawn: the part of r along the clipped sum |
| unclipped sum | patients who passed the clip: the part of r along what clipping took away |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

FALSE_ALARM = 1e-6
NEAR = 0.01
LAGS = 8


@dataclass(frozen=True)
class Residual:
    """What the test found.

    Attributes:
        p: name of a statistic -> its p-value.
        alarms: names of those that standard normal noise gives less often than :data:`FALSE_ALARM` in all.
    """

    p: dict[str, float]
    alarms: tuple[str, ...]

    @property
    def sound(self) -> bool:
        return not self.alarms


def judge(residual: Tensor, directions: Mapping[str, Tensor] | None = None) -> Residual:
    """Test residuals for what they should be.

    Args:
        residual: r [steps, coordinates]; thousands of coordinates, or many steps, for any power.
        directions: name of a fault -> [steps, coordinates], where it would move r; by any length.
    """
    r = residual.double()
    if not bool(torch.isfinite(r).all()):
        return Residual({"scale": 0.0}, ("scale",))
    steps, size = r.shape
    number = r.numel()
    p = {
        "scale": _two_sided_chi2(float(r.square().sum()), number),
        "missing noise": float(
            stats.binom.sf(int((r.abs() < NEAR).sum()) - 1, number, math.erf(NEAR / math.sqrt(2)))
        ),
        "shape": float(stats.kstest(r.flatten()[:: max(1, number // 100_000)].numpy(), "norm").pvalue),
        "dependence": _dependence(r),
    }
    if steps > 1:
        unit = r / r.norm(dim=1, keepdim=True).clamp_min(1e-300)
        pairs = (unit @ unit.T).triu(1).abs().max() * math.sqrt(size)
        p["reused seed"] = min(1.0, steps * (steps - 1) / 2 * _two_sided(float(pairs)))
    for name, direction in (directions or {}).items():
        length = direction.double().norm(dim=1)
        along = (r * direction.double()).sum(1)[length > 0] / length[length > 0]
        if len(along):  # each is standard normal
            everywhere = float(along.sum()) / math.sqrt(len(along))
            p[name] = min(
                1.0, 2 * min(_two_sided(everywhere), _two_sided_chi2(float(along.square().sum()), len(along)))
            )
    return Residual(p, tuple(name for name, value in p.items() if value * len(p) < FALSE_ALARM))


def _dependence(r: Tensor) -> float:
    """The least p-value of correlations along the coordinates, Bonferroni over them."""
    size = r.shape[1]
    products = [(r[:, lag:] * r[:, :-lag]).flatten() for lag in range(1, min(LAGS, size - 1) + 1)]
    if size > 2 * LAGS:
        products.append((r[:, : size // 2] * r[:, size // 2 : size // 2 * 2]).flatten())
    found = [_two_sided(float(product.sum()) / math.sqrt(len(product))) for product in products if len(product) > 100]
    return min(1.0, len(found) * min(found)) if found else 1.0


def _two_sided(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2))


def _two_sided_chi2(value: float, freedom: int) -> float:
    return min(1.0, 2 * min(float(stats.chi2.sf(value, freedom)), float(stats.chi2.cdf(value, freedom))))
