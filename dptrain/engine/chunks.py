"""The one shape that every physical chunk has.

Kernels choose their order of sums by the number of rows, so that a patient's last digits, and with them the side of a
kink that an activation falls on, would follow how many others were drawn: at a ReLU three patients had a gradient of
zero in a chunk of three rows and one of norm 6e5 in a chunk of four. Every chunk therefore has the same public number
of rows; those that nobody fills are zeros and count nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NOBODY = -1
"""Patient of the rows that only fill a chunk."""


@dataclass(frozen=True)
class ChunkShape:
    """What is public about the chunks of a training.

    Attributes:
        rows: of every chunk.
        of_patient: rows that one patient has at most.
        of_record: rows of one record, views and crops counted.
    """

    rows: int
    of_patient: int
    of_record: int

    @property
    def alone(self) -> ChunkShape:
        """The shape where patients run one at a time."""
        return ChunkShape(self.of_patient, self.of_patient, self.of_record)


def enough_rows(most: int, expected_patients: int, of_patient: int, of_record: int) -> int:
    """Rows of a chunk that seldom leaves many empty: those of an expected draw and two deviations, `most` at most.

    All of it is public. Records beyond one a patient take further chunks rather than wider ones.
    """
    usual = math.ceil((expected_patients + 2 * math.sqrt(expected_patients)) * of_record)
    return max(of_patient, min(most, -(-usual // 16) * 16))


def filled(values: Tensor, rows: int, with_: float = 0) -> Tensor:
    """`values` [N, …] with rows of `with_` after it: [rows, …]; a copy of one layout, also where none is missing.

    A network may change its input in place; a chunk that fails is run again from the values as they came.
    """
    chunk = values.new_full((max(rows, len(values)), *values.shape[1:]), with_)
    chunk[: len(values)] = values
    return chunk
