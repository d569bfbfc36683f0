"""The counter of tests that fail by chance reads pytest's summary right."""

from __future__ import annotations

from tests.again import failures


def test_failures_are_read_from_the_summary() -> None:
    summary = """
=========================== short test summary info ============================
FAILED tests/audit/test_run.py::test_one[adam-cnn labels] - AssertionError: a - b
ERROR tests/data/test_formats.py::test_two
1 failed, 7 passed, 1 error in 2.71s
"""
    first, second = failures(summary)
    assert first == "tests/audit/test_run.py::test_one[adam-cnn labels]"
    assert second == "tests/data/test_formats.py::test_two"
    assert failures("8 passed in 1.00s") == []
