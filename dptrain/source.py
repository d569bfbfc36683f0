"""Where records come from: the contract between a cohort and files, arrays, tables, datasets or a sealed store.

A source is asked for pixels by two callers alone: registration, which checks and hashes them, and the loader under a
grant. It knows nothing of patients, splits or charges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Item: TypeAlias = dict[str, Any]  # as MONAI's transforms take it: image, and label where that is an image


@dataclass(frozen=True, slots=True, repr=False)
class Sample:
    """One record after the deterministic transforms: plain tensors.

    image: float32 [C, …]. label: int64 [1, …] where the label is an image, else None.
    """

    image: Tensor
    label: Tensor | None = None


class Unreadable(Exception):
    """A record cannot be read; the message is safe to show (no id, name, label or pixel).

    Args:
        cause: what is wrong, as the end of a sentence that begins with "the image".
        detail: what is particular to this record (a number of pages).
        remedy: what to do, ready to paste where that is possible.
    """

    def __init__(self, cause: str, *, detail: str = "", remedy: str = "") -> None:
        super().__init__(cause)
        self.cause, self.detail, self.remedy = cause, detail, remedy


@dataclass(frozen=True)
class Fault:
    """What is wrong with one record: the cause, what is particular to it (a shape), and what to do."""

    cause: str
    detail: str = ""
    remedy: str = ""


class Source(Protocol):
    """Records by position, 0…R−1."""

    @property
    def parallel(self) -> bool:
        """Whether several threads read faster than one (files do, arrays in memory do not)."""

    def check(self, i: int) -> tuple[np.ndarray | None, list[Fault]]:
        """What is hashed of record i (None where it cannot be read), and what is wrong with it."""

    def item(self, i: int) -> Sample:
        """Record i after the deterministic transforms."""

    def present(self) -> bool:
        """Whether the place of the records is there at all (a folder that is mounted); says nothing of any record."""

    def batch(self, indices: Sequence[int]) -> Tensor | None:
        """Many images at once, float32 [n, …], or None where they are read one by one."""
