"""What `dptrain audit` prints of numbers that a small audit may not have."""

from __future__ import annotations

import pytest

from dptrain.commands.acts.audit import estimate
from dptrain.records.audit import NewScan


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0.5234, 0.41, 0.63), "0.523 (0.410 to 0.630)"),
        ((0.5234, None, None), "0.523 (no interval)"),  # it used to end with an internal error, exit code 1
        ((None, None, None), "not measurable: too few models had the patient in or out"),
    ],
)
def test_an_auc_without_an_interval_is_told(values: tuple[float | None, ...], said: str) -> None:
    auc, low, high = values
    assert estimate(NewScan(auc=auc, low=low, high=high, patients=9)) == said
