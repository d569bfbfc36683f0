"""Small cells: which groups of a table are withheld, so that nothing is told of a few patients."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

SMALL_CELL = 10  # fewer patients tell of single ones


def to_hide(
    members: Mapping[str, Collection[int]],
    unknown: Collection[int],
    small_cell: int = SMALL_CELL,
    hidden: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Groups to suppress, and why: the small ones, and others until what is hidden cannot be had by subtraction.

    The total less all shown groups tells of the hidden ones and of patients whose group is unknown, together: unless
    there are none of them, they must be at least `small_cell`.

    Args:
        members: group -> its patients; a patient whose records differ is in several.
        unknown: patients with a record in no group, who count in the total.
        hidden: groups that are suppressed for another reason -> why.
    """
    small = {name: f"fewer than {small_cell} patients" for name in members if len(set(members[name])) < small_cell}
    suppressed = {**(hidden or {}), **small}
    rest = set(unknown).union(*(members[name] for name in suppressed))
    for name in sorted(members.keys() - suppressed.keys(), key=lambda name: (len(set(members[name])), name)):
        if not rest or len(rest) >= small_cell:
            break
        suppressed[name] = "the smallest remaining group, which would betray those suppressed"
        rest.update(members[name])
    return suppressed


def nested(
    shown: Mapping[tuple[str, str], Collection[int]], patient: Sequence[int], small_cell: int = SMALL_CELL
) -> dict[tuple[str, str], str]:
    """Groups to suppress, and why, as they hold another one that is shown and the rest is of a few patients.

    Args:
        shown: (column, group) of all columns -> its records.
        patient: each record's patient.
    """
    suppressed: dict[tuple[str, str], str] = {}
    kept: list[frozenset[int]] = []
    for name in sorted(shown, key=lambda name: (len(shown[name]), name)):
        records = frozenset(shown[name])
        rests = ({patient[record] for record in records - other} for other in kept if other < records)
        if any(len(rest) < small_cell for rest in rests):
            suppressed[name] = f"less another group it would tell of fewer than {small_cell} patients"
        else:
            kept.append(records)
    return suppressed
