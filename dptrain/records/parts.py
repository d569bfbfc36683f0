"""Small pieces that several files share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self, SupportsFloat

from dptrain.records.shape import Path, Public, Reader, Record, Share, number


@dataclass(frozen=True, kw_only=True)
class Estimate(Record):
    """A measured value with its interval; a bare number is one without."""

    value: Public[float | None]
    low: Public[float | None] = None
    high: Public[float | None] = None

    @classmethod
    def holds(cls, value: object) -> bool:
        return True

    @classmethod
    def from_json(cls, value: object, reader: Reader | None = None, path: Path | None = ()) -> Self | None:
        bare = not isinstance(value, dict)
        estimate = super().from_json({"value": number(value)} if bare else value, reader, None)
        return None if estimate is None or estimate.value is None else estimate


@dataclass(frozen=True, kw_only=True)
class Curve(Record):
    """False positive rates and the true positive rates at them, sorted; both between 0 and 1."""

    fpr: Public[tuple[Share, ...]]
    tpr: Public[tuple[Share, ...]]

    @classmethod
    def holds(cls, value: object) -> bool:
        return value is not None

    @classmethod
    def from_json(cls, value: object, reader: Reader | None = None, path: Path | None = ()) -> Self | None:
        points = columns(value, ("fpr", "tpr"))
        if points is None and reader is not None:
            reader.fault(path)
        return None if points is None else cls(fpr=points[0], tpr=points[1])

    def at(self, rate: float) -> float:
        """The true positive rate at `rate`, by straight lines between the points."""
        xs, ys = self.fpr, self.tpr
        if rate <= xs[0]:
            return float(max(b for a, b in zip(xs, ys) if a == xs[0])) if rate == xs[0] else float(ys[0])
        for left, right, low, high in zip(xs, xs[1:], ys, ys[1:]):
            if rate <= right:
                return float(low + (high - low) * (rate - left) / (right - left)) if right > left else float(high)
        return float(ys[-1])


def columns(value: object, names: tuple[str, str]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Two lists of one length with values between 0 and 1, sorted by the first; or None."""
    xs, ys = (value.get(name) if isinstance(value, dict) else None for name in names)
    if not (isinstance(xs, list | tuple) and isinstance(ys, list | tuple) and len(xs) == len(ys) >= 2):
        return None
    points = [(number(a), number(b)) for a, b in zip(xs, ys)]
    good = sorted((a, b) for a, b in points if a is not None and b is not None and 0 <= a <= 1 and 0 <= b <= 1)
    if len(good) != len(points):
        return None
    return tuple(a for a, _ in good), tuple(b for _, b in good)


def curve(fpr: Iterable[SupportsFloat], tpr: Iterable[SupportsFloat]) -> Curve:
    """Arrays of numbers as a curve."""
    return Curve(fpr=tuple(float(value) for value in fpr), tpr=tuple(float(value) for value in tpr))
