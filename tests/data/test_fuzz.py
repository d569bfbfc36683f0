"""A small part of `make test-hostile`: no traceback, no leak, no merged person; and both outcomes are met."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.hostile_files import fuzz_files, fuzz_rows, fuzz_series


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("fuzz", "number"), [(fuzz_rows, 6000), (fuzz_files, 280), (fuzz_series, 20)])
def test_mutated_input_is_accepted_rightly_or_refused(fuzz: Any, number: int, seed: int) -> None:
    rows = fuzz(number, seed=100 + seed)
    assert [row["first_violation"] for row in rows if row["violations"]] == []
    assert {row["outcome"] for row in rows} == {"accepted", "refused"}
    assert sum(row["cases"] for row in rows) >= number
