"""Rows of a chunk: as many as were said, whoever is in it."""

from __future__ import annotations

import pytest
import torch

from dptrain.engine.chunks import NOBODY, ChunkShape, enough_rows, filled


@pytest.mark.parametrize("missing", [0, 1, 2, 5])
def test_a_chunk_has_all_its_rows_however_few_are_missing(missing: int) -> None:
    values = torch.arange(12.0).reshape(6, 2)[: 6 - missing]
    rows = filled(values, 6, 7.0)
    assert rows.shape == (6, 2)
    assert torch.equal(rows[: 6 - missing], values)
    assert (rows[6 - missing :] == 7.0).all()
    assert rows.data_ptr() != values.data_ptr()  # a network may change its input in place
    assert rows.is_contiguous()


def test_empty_rows_are_zero_and_nobody_s() -> None:
    assert filled(torch.ones(1, 2), 3).tolist() == [[1, 1], [0, 0], [0, 0]]
    assert filled(torch.tensor([0, 1]), 4, NOBODY).tolist() == [0, 1, NOBODY, NOBODY]
    assert NOBODY < 0


@pytest.mark.parametrize(
    ("most", "expected", "of_patient", "of_record", "rows"),
    [
        (64, 4, 1, 1, 16),  # 4 + 2·2 rows, in sixteens
        (64, 4, 1, 2, 16),
        (64, 9, 1, 2, 32),
        (64, 16, 1, 1, 32),
        (64, 1000, 1, 1, 64),
        (64, 4, 100, 1, 100),  # one patient is never cut
        (20, 9, 1, 2, 20),
    ],
)
def test_rows_follow_the_expected_draw(most: int, expected: int, of_patient: int, of_record: int, rows: int) -> None:
    assert enough_rows(most, expected, of_patient, of_record) == rows


def test_alone_is_one_patient_s_rows() -> None:
    assert ChunkShape(rows=64, of_patient=8, of_record=2).alone == ChunkShape(8, 8, 2)
