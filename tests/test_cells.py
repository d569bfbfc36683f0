"""Nothing small follows from a table and its total."""

from __future__ import annotations

from dptrain.cells import to_hide


def test_patients_of_several_groups_count_once() -> None:
    """Two hidden views of the same six patients are six patients, not twelve."""
    few = range(6)
    views = {"lateral": few, "oblique": few, "front": range(20, 50), "back": range(50, 100)}
    assert set(to_hide(views, [])) == {"lateral", "oblique", "front"}


def test_groups_withheld_for_another_reason_are_not_betrayed_either() -> None:
    groups = {"a": range(12), "b": range(12, 20), "c": range(20, 60)}
    assert to_hide(groups, [], hidden={"a": "one class"}) == {"a": "one class", "b": "fewer than 10 patients"}
