"""Rows of a table as vectors, by publicly declared ranges and vocabularies; nothing is fitted to the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dptrain.data.manifest import Manifest
from dptrain.settings import TableConfig
from dptrain.settings.data import features_of


def feature_names(table: TableConfig) -> list[str]:
    """One name a slot of the vector, in order."""
    names = list(table.numeric)
    for column, values in table.categorical.items():
        names += [f"{column}={value}" for value in values] + [f"{column}=other"]
    for column, edges in table.binned.items():
        names += [f"{column}<{edges[1]:g}"] + [f"{column}>={edge:g}" for edge in edges[1:]] + [f"{column}=other"]
    return names


def encode(manifest: Manifest, table: TableConfig) -> np.ndarray:
    """All rows as float32 [R, F]; see :class:`TableConfig` for how each kind of column is encoded."""
    features = np.zeros((len(manifest), features_of(table)), dtype=np.float32)
    missing = set(table.missing)
    at = 0
    for column, (low, high) in table.numeric.items():
        numbers = numbers_of(manifest.columns[column], missing)
        scaled = (np.clip(numbers, low, high) - low) / (high - low) * 2 - 1
        features[:, at] = np.nan_to_num(scaled, nan=0.0)
        at += 1
    rows = np.arange(len(manifest))
    for column, values in table.categorical.items():
        slots = {str(value): slot for slot, value in enumerate(values)}
        found = np.array([slots.get(text, len(values)) for text in manifest.columns[column]])
        features[rows, at + found] = 1
        at += len(values) + 1
    for column, edges in table.binned.items():
        numbers = numbers_of(manifest.columns[column], missing)
        slot = np.clip(np.searchsorted(np.asarray(edges, dtype=float), numbers, side="right") - 1, 0, None)
        features[rows, at + np.where(np.isnan(numbers), len(edges), slot)] = 1
        at += len(edges) + 1
    return features


def numbers_of(texts: Sequence[str], missing: set[str] | frozenset[str] = frozenset()) -> np.ndarray:
    """Texts as float64 [R]; NaN where the text is missing, no number or not finite."""
    numbers = np.full(len(texts), np.nan)
    for i, text in enumerate(texts):
        if text in missing:
            continue
        try:
            numbers[i] = float(text)
        except ValueError:
            continue
    numbers[~np.isfinite(numbers)] = np.nan
    return numbers


def row_bytes(manifest: Manifest, columns: Sequence[str]) -> list[np.ndarray]:
    """Each row's texts as bytes, for its hash."""
    texts = [manifest.columns[name] for name in columns]
    return [np.frombuffer("\x1f".join(row).encode(), dtype=np.uint8) for row in zip(*texts)]
