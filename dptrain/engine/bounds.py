"""How much rounding may move a patient's clipped gradient, and who may not be trusted to float32.

A patient is clipped to C(1−η) so that what float32 rounds on the way cannot pass C. η is one budget, spent here
and nowhere else:

| share | pays for | kept by |
|---|---|---|
| :data:`NORMS` | the norm, where float32 products give it | :func:`norm_error`: else it is taken in float64 |
| :data:`FACTORS` | the factor, rounded to float32 and multiplied in | a unit of float32 each: :data:`SMALLEST` |
| :data:`SUMS` | the weighted sum of rows in float32 | :func:`sum_error`: else the patient is added apart |

What is left of η is nobody's. The bounds are in float64 and made of the largest values and the lengths of rows as
well, not of those products alone whose error they bound: where these underflow or overflow, the bound is large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MARGIN = 1e-3
"""η: gradients are clipped to C(1−η), so that rounding in norms, factors and products cannot pass C."""
NORMS = MARGIN / 2
"""Share of η: relative error of a norm."""
FACTORS = MARGIN / 16
"""Share of η: relative error of a factor and of the product with it."""
SUMS = MARGIN / 4
"""Share of η: rounding that one patient's rows bring into a float32 sum, in units of C."""
SMALLEST = 2.0**-96
"""Factors below this size are multiplied in float64: float32 would keep fewer and fewer of their digits."""
CLIPS = (2.0**-40, 2.0**60)
"""The clips that float32 gradients can be held to: below, squares of a gradient's values underflow."""
LAMBDA = 3.0
"""Rounding errors of n sums grow as λ√n (Higham & Mary 2019, Theorem 2.4), never beyond n."""


def product_error(length: int, dtype: torch.dtype) -> float:
    """Relative error of a sum of `length` products, against the sum of their absolute values."""
    return min(length, LAMBDA * math.sqrt(length)) * torch.finfo(dtype).eps / 2


@dataclass(frozen=True)
class Inner:
    """What a squared norm by Gram matrices is made of: |Σ_t a_t g_tᵀ|² = Σ_{t,t'} (a_t·a_t')(g_t·g_t').

    Attributes:
        lengths: of the inner products on either side; 1 where one side is an index.
        terms: T, rows of a patient.
        rows: rows of the chunk, the length of the sum that the weighted product takes.
    """

    lengths: tuple[int, int]
    terms: int
    rows: int

    def relative(self, dtype: torch.dtype) -> float:
        """Error of the squared norm against (Σ_t |a_t||g_t|)²."""
        one, two = (product_error(length, dtype) for length in self.lengths)
        return one + two + 8 * torch.finfo(dtype).eps

    def lost(self, largest: tuple[Tensor, Tensor]) -> Tensor:
        """What underflow may take from the squared norm [P], infinite where products may overflow; in float64.

        `largest`: largest absolute values of each patient's rows on either side [P], float64.
        """
        (first, second), limits = self.lengths, torch.finfo(torch.float32)
        one, two = first * largest[0].square(), second * largest[1].square()  # |a_t|² and |g_t|² at most
        tiny = self.terms**2 * limits.tiny * (first * two + second * one + 1)
        high = torch.stack([one, two, self.terms**2 * one * two]).amax(0) > limits.max / 2**8
        return torch.where(high, math.inf, tiny)


def norm_error(inner: Inner, absolute: Tensor, largest: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """At most how far a squared norm [P] found in `dtype` is off; `absolute` is (Σ_t |a_t||g_t|)² [P], float64."""
    error = inner.relative(dtype) * absolute
    return error + inner.lost(largest) if dtype == torch.float32 else error


def sum_error(inner: Inner, absolute: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
    """Square of the rounding [P] that a patient's rows bring into the weighted sum."""
    return absolute * (product_error(inner.rows, dtype) * factors).square()
