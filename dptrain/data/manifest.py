"""Manifests: rows of text that say which record belongs to whom, whatever the file they come from.

Every reader (:mod:`~dptrain.data.delimited`, :mod:`~dptrain.data.decathlon`, :mod:`~dptrain.data.npz`,
:mod:`~dptrain.data.dicom`) makes a :class:`Manifest` of text columns; :mod:`dptrain.data.reading` chooses among them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import numpy as np

from dptrain.data.faults import Faults


@dataclass(repr=False)
class Manifest:
    """Rows of text, column by column.

    Args:
        columns: name -> one text a row.
        rows: how people find each row ("row 17", "training item 3").
        folder: what file names are relative to.
        arrays: the arrays of an NPZ archive, by name; empty elsewhere.
        index: positions of the rows in those arrays.
        stacks: file lists of the volumes that are made of several DICOM files, by `file` text.
    """

    columns: dict[str, list[str]]
    rows: list[str]
    folder: Path
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    index: list[int] = field(default_factory=list)
    stacks: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Manifest({len(self)} rows)"

    def take(self, index: Sequence[int]) -> Manifest:
        """The manifest of some of its rows; arrays stay whole."""
        columns = {name: [texts[i] for i in index] for name, texts in self.columns.items()}
        kept = [self.index[i] for i in index] if self.index else []
        return Manifest(columns, [self.rows[i] for i in index], self.folder, self.arrays, kept, self.stacks)


def cell_text(value: object) -> str:
    """A value as manifest text: truth values are 0 and 1, whole numbers have no point, nothing is rounded."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) < 64:
        return str(int(value)) if value == value.to_integral_value() else str(value)
    return str(value)


def join(
    manifest: Manifest,
    key: str,
    table: Manifest,
    table_key: str,
    names: Iterable[str],
    faults: Faults,
) -> None:
    """Add columns of `table` to the manifest by a common key.

    Contradictions become faults; rows of the table that no record asks for are counted.
    """
    wanted = [name for name in names if name in table.columns]
    if table_key not in table.columns or key not in manifest.columns:
        faults.add(f"the table cannot be joined: column '{table_key}' or '{key}' is missing")
        return
    first: dict[str, dict[str, str]] = {}
    for i, row in enumerate(table.rows):
        values = {name: table.columns[name][i] for name in wanted}
        before = first.setdefault(table.columns[table_key][i], values)
        for name in wanted:
            if before[name] != values[name]:
                faults.add(f"column '{name}' contradicts an earlier row of the same '{table_key}'", row)
    for name in wanted:
        manifest.columns[name] = [first.get(text, {}).get(name, "") for text in manifest.columns[key]]
    asked = set(manifest.columns[key])
    faults.pass_over(
        "rows of the joined table that belong to no record",
        sum(text not in asked for text in table.columns[table_key]),
    )
