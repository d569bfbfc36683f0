"""Rows of a table as vectors, by publicly declared ranges and vocabularies; nothing is fitted to the data."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence

import numpy as np

from dptrain.data.faults import Faults
from dptrain.data.manifest import Manifest
from dptrain.settings import TableConfig
from dptrain.settings.data import features_of

_COMMA = re.compile(r"[+-]?\d+,\d+")


def feature_names(table: TableConfig) -> list[str]:
    """One name a slot of the vector, in order."""
    names = list(table.numeric)
    for column, values in table.categorical.items():
        names += [f"{column}={value}" for value in values] + [f"{column}=other"]
    for column, edges in table.binned.items():
        names += [f"{column}<{edges[1]:g}"] + [f"{column}>={edge:g}" for edge in edges[1:]] + [f"{column}=other"]
    return names


def encode(manifest: Manifest, table: TableConfig, decimal: str = ".", faults: Faults | None = None) -> np.ndarray:
    """All rows as float32 [R, F]; see :class:`TableConfig` for how each kind of column is encoded.

    Text that is neither a number nor declared missing is a fault in a numeric column. What is missing, and what falls
    into "other", is counted.
    """
    faults = Faults() if faults is None else faults
    features = np.zeros((len(manifest), features_of(table)), dtype=np.float32)
    missing = set(table.missing)
    at = 0
    for column, (low, high) in table.numeric.items():
        texts = manifest.columns[column]
        numbers = numbers_of(texts, missing, decimal)
        _no_numbers(manifest, column, numbers, missing, decimal, faults)
        empty = sum(text in missing for text in texts)
        faults.pass_over(f"cells of '{column}' without a value: they become 0", empty)
        scaled = (np.clip(numbers, low, high) - low) / (high - low) * 2 - 1
        features[:, at] = np.nan_to_num(scaled, nan=0.0)
        at += 1
    rows = np.arange(len(manifest))
    for column, values in table.categorical.items():
        slots = {str(value): slot for slot, value in enumerate(values)}
        slot_of = np.array([slots.get(text, len(values)) for text in manifest.columns[column]], dtype=np.int64)
        features[rows, at + slot_of] = 1
        _others(column, int((slot_of == len(values)).sum()), len(manifest), faults)
        at += len(values) + 1
    for column, edges in table.binned.items():
        numbers = numbers_of(manifest.columns[column], missing, decimal)
        slot = np.clip(np.searchsorted(np.asarray(edges, dtype=float), numbers, side="right") - 1, 0, None)
        features[rows, at + np.where(np.isnan(numbers), len(edges), slot)] = 1
        _others(column, int(np.isnan(numbers).sum()), len(manifest), faults)
        at += len(edges) + 1
    return features


def _no_numbers(
    manifest: Manifest, column: str, numbers: np.ndarray, missing: set[str], decimal: str, faults: Faults
) -> None:
    texts = manifest.columns[column]
    for i in np.flatnonzero(np.isnan(numbers)).tolist():
        if texts[i] in missing:
            continue
        if decimal == "." and _COMMA.fullmatch(texts[i]):
            remedy = "data.decimal=','"
        else:
            remedy = "Correct the cells, or name texts that mean nothing: data.table.missing=['', '?', …]."
        faults.add(f"no number in column '{column}'", manifest.rows[i], remedy=remedy)


def _others(column: str, count: int, rows: int, faults: Faults) -> None:
    faults.pass_over(f"cells of '{column}' that count as 'other'", count)
    if count == rows and rows:
        faults.notes.append(f"every row of '{column}' counts as 'other': are its values the declared ones?")


def numbers_of(texts: Sequence[str], missing: Collection[str] = (), decimal: str = ".") -> np.ndarray:
    """Texts as float64 [R]; NaN where the text is missing, no number or not finite."""
    numbers = np.full(len(texts), np.nan)
    for i, text in enumerate(texts):
        if text in missing or "_" in text:
            continue
        try:
            number = float(text if decimal == "." else text.replace(".", "\0").replace(decimal, "."))
        except ValueError:
            continue
        if math.isfinite(number):
            numbers[i] = number
    return numbers


def row_bytes(manifest: Manifest, columns: Sequence[str]) -> list[np.ndarray]:
    """Each row's texts as bytes, for its hash."""
    texts = [manifest.columns[name] for name in columns]
    return [np.frombuffer("\x1f".join(row).encode(), dtype=np.uint8) for row in zip(*texts)]
