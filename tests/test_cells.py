"""Nothing small follows from a table and its total."""

from __future__ import annotations

from dptrain.cells import SMALL_CELL, nested, to_hide


def test_patients_of_several_groups_count_once() -> None:
    """Two hidden views of the same six patients are six patients, not twelve."""
    few = range(6)
    views = {"lateral": few, "oblique": few, "front": range(20, 50), "back": range(50, 100)}
    assert set(to_hide(views, [])) == {"lateral", "oblique", "front"}


def test_groups_withheld_for_another_reason_are_not_betrayed_either() -> None:
    groups = {"a": range(12), "b": range(12, 20), "c": range(20, 60)}
    assert to_hide(groups, [], hidden={"a": "one class"}) == {"a": "one class", "b": "fewer than 10 patients"}


def test_of_nested_groups_the_larger_is_hidden_where_the_rest_is_small() -> None:
    one, more, most, all_of_them = range(20), range(26), range(32), range(45)
    shown = {("A", "a"): one, ("B", "b"): more, ("C", "c"): most, ("D", "d"): all_of_them, ("E", "e"): range(20)}
    assert set(nested(shown, range(45))) == {("B", "b")}  # without it, twelve are the least that one can tell
    assert set(nested(shown, [record // 2 for record in range(45)])) == {("B", "b"), ("C", "c")}  # two each


def test_ten_are_shown_and_nine_are_not() -> None:
    """The border itself, of a group and of what is left by subtraction."""
    assert SMALL_CELL == 10
    assert to_hide({"ten": range(10), "many": range(20, 60)}, []) == {}
    assert set(to_hide({"nine": range(9), "more": range(20, 50), "many": range(50, 90)}, [])) == {"nine", "more"}
    assert to_hide({"more": range(20, 50), "many": range(50, 90)}, range(10)) == {}
    assert set(to_hide({"more": range(20, 50), "many": range(50, 90)}, range(9))) == {"more"}
    assert nested({("A", "a"): range(20), ("B", "b"): range(30)}, range(30)) == {}
    assert set(nested({("A", "a"): range(20), ("B", "b"): range(29)}, range(29))) == {("B", "b")}
