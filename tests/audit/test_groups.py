"""Group shares: adjusted, with intervals, small cells hidden so that they stay hidden."""

from __future__ import annotations

import numpy as np
import pytest

from dptrain.audit import masks
from dptrain.audit.groups import by_group, record_band


def test_a_difference_that_is_the_class_alone_goes_away() -> None:
    """Exposure follows class; women have the exposed class more often. Adjusted shares agree, raw ones do not."""
    rng = np.random.default_rng(0)
    sex = np.where(rng.random(4000) < 0.5, "F", "M")
    ill = rng.random(4000) < np.where(sex == "F", 0.8, 0.2)
    exposed = rng.random(4000) < np.where(ill, 0.4, 0.05)
    table = by_group(exposed, {"sex": sex}, ill.astype(str), rng).table["sex"]
    assert abs(table["F"].raw_share - table["M"].raw_share) > 0.15
    assert abs(table["F"].share - table["M"].share) < 0.04
    for row in table.values():
        assert row.low <= row.share <= row.high


def test_bootstrap_intervals_cover() -> None:
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(200):
        group = np.where(np.arange(300) < 150, "a", "b")
        exposed = rng.random(300) < 0.3
        row = by_group(exposed, {"g": group}, np.zeros(300), rng, replicates=300).table["g"]["a"]
        covered.append(row.low <= 0.3 <= row.high)
    assert np.mean(covered) >= 0.9


def test_small_cells_are_hidden_and_cannot_be_subtracted() -> None:
    rng = np.random.default_rng(2)
    site = np.array(["a"] * 100 + ["b"] * 60 + ["c"] * 4)
    groups = by_group(rng.random(164) < 0.3, {"site": site}, np.zeros(164), rng)
    assert set(groups.table["site"]) == {"a"}
    assert {entry.value for entry in groups.suppressed} == {"b", "c"}
    two = np.array(["a"] * 100 + ["b"] * 6 + ["c"] * 6)
    groups = by_group(rng.random(112) < 0.3, {"site": two}, np.zeros(112), rng)
    assert set(groups.table["site"]) == {"a"}


def test_no_group_less_one_of_another_column_tells_of_a_few() -> None:
    finer = np.repeat(["a", "b", "c", "d"], [5, 6, 29, 20])
    coarser = np.where(np.isin(finer, ["a", "c"]), "p", "q")
    groups = by_group(np.zeros(60), {"E": coarser, "C": finer}, np.zeros(60), np.random.default_rng(6))
    assert {column: set(rows) for column, rows in groups.table.items()} == {"C": {"c", "d"}}
    assert {row.value for row in groups.suppressed} == set("abpq")


def test_nobody_exposed_still_has_an_upper_limit() -> None:
    rng = np.random.default_rng(3)
    rows = by_group(np.zeros(100, dtype=bool), {"g": np.arange(100) % 2}, np.zeros(100), rng).table["g"]
    assert rows["0"].share == 0
    assert rows["0"].high == pytest.approx(0.0711, abs=1e-3)


def test_unknown_values_and_single_groups_make_no_table() -> None:
    rng = np.random.default_rng(4)
    groups = by_group(
        np.ones(40), {"x": np.array([""] * 20 + ["a"] * 20), "y": np.array(["b"] * 40)}, np.zeros(40), rng
    )
    assert groups.table == {}


def test_record_bands() -> None:
    assert list(record_band(np.array([1, 2, 3, 4, 5, 31]))) == ["1", "2", "3-4", "3-4", "5+", "5+"]


def test_masks_are_fair_distinct_and_hashed() -> None:
    one, two = masks.draw(64, 500), masks.draw(64, 500)
    assert one.mean() == pytest.approx(0.5, abs=0.02)
    assert (one != two).mean() == pytest.approx(0.5, abs=0.02)
    assert len({row.tobytes() for row in one}) == 64
    assert masks.digest(one) == masks.digest(one.copy())
    assert masks.digest(one) != masks.digest(two)
    assert masks.digest(one) != masks.digest(one.reshape(32, 1000))


@pytest.mark.parametrize(
    ("sizes", "unknown", "hidden"),
    [
        ({"a": 100, "b": 50, "c": 20}, 0, ""),
        ({"a": 100, "b": 50, "c": 4}, 0, "bc"),
        ({"a": 100, "b": 50, "c": 4, "d": 4}, 0, "bcd"),  # eight hidden ones are a small cell, too
        ({"a": 100, "b": 50, "c": 8, "d": 8}, 0, "cd"),
        ({"a": 100, "b": 50}, 3, "b"),  # the total would tell of the three without a group
        ({"a": 100, "b": 50}, 40, ""),
        ({"a": 100, "b": 50, "c": 4}, 40, "c"),
        ({"a": 100, "b": 4}, 0, "ab"),
    ],
)
def test_nothing_small_follows_from_the_total(sizes: dict[str, int], unknown: int, hidden: str) -> None:
    column = np.concatenate([np.repeat(list(sizes), list(sizes.values())), np.repeat("", unknown)])
    table = by_group(np.zeros(column.size), {"g": column}, np.zeros(column.size), np.random.default_rng(5)).table
    assert set(table.get("g", {})) == set(sizes) - set(hidden)
