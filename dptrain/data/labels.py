"""Labels and groups: texts of a manifest as class numbers, label images as whole numbers 0…C."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import numpy as np

from dptrain.data import tables
from dptrain.data.dicom import years
from dptrain.data.faults import Faults
from dptrain.data.manifest import Manifest
from dptrain.settings import DataConfig
from dptrain.settings.data import BACKGROUND
from dptrain.vocabulary import Labels, task_spec

UNKNOWN = "unknown"


def labels_of(config: DataConfig, manifest: Manifest, faults: Faults) -> np.ndarray:
    """int64 [R] (binary, multiclass), float32 [R, C] (multilabel), empty [R, 0] (segmentation)."""
    kind = task_spec(config.task).labels
    if kind is Labels.MASK:
        return np.zeros((len(manifest), 0), dtype=np.int64)
    multilabel = kind is Labels.FINDINGS
    classes = ["0", "1"] if multilabel else list(config.classes)
    number = {text: classes.index(name) for text, name in config.label_values.items()}
    number = number or {name: i for i, name in enumerate(classes)}
    remedy = f"Name each text of the column: data.label_values={{TEXT: {json.dumps(classes[0])}, …}}."
    columns = []
    for name in config.columns.label:
        column = np.zeros(len(manifest), dtype=np.int64)
        for i, text in enumerate(manifest.columns[name]):
            if text in number:
                column[i] = number[text]
            elif not text:
                faults.add(f"no label in column '{name}'", manifest.rows[i], remedy="Leave it out with data.drop.")
            else:
                faults.add(
                    f"unknown label in column '{name}': allowed are {', '.join(number)}",
                    manifest.rows[i],
                    remedy=remedy,
                )
        columns.append(column)
    return np.stack(columns, axis=1).astype(np.float32) if multilabel else columns[0]


def groups_of(config: DataConfig, manifest: Manifest, faults: Faults) -> dict[str, np.ndarray]:
    """Column -> one text a record; numbers in bins, and DICOM's ages (`045Y`) as years."""
    groups = {}
    missing = set(config.table.missing) | {""}
    for name in config.columns.groups:
        texts = manifest.columns[name]
        if name in config.columns.bins:
            texts = _binned(config, name, texts, missing, faults)
        groups[name] = np.array([UNKNOWN if text in missing else text for text in texts], dtype=object)
    return groups


def _binned(config: DataConfig, name: str, texts: Sequence[str], missing: set[str], faults: Faults) -> list[str]:
    edges = [float(edge) for edge in config.columns.bins[name]]
    names = [
        f"below {edges[0]:g}",
        *(f"{low:g} to below {high:g}" for low, high in itertools.pairwise(edges)),
        f"{edges[-1]:g} and above",
    ]
    numbers = tables.numbers_of([years(text) for text in texts], missing, config.decimal)
    slots = np.searchsorted(np.asarray(edges), numbers, side="right")
    lost = sum(np.isnan(number) and text not in missing for number, text in zip(numbers, texts))
    faults.pass_over(f"texts of column '{name}' that are no number: their group is '{UNKNOWN}'", lost)
    return [UNKNOWN if np.isnan(number) else names[slot] for number, slot in zip(numbers, slots)]


def image_values(config: DataConfig) -> dict[float, int] | None:
    """Value in a label image -> class number, where `data.label_values` names them; 0 is background by default."""
    if task_spec(config.task).labels is not Labels.MASK or not config.label_values:
        return None
    number = {BACKGROUND: 0} | {name: i for i, name in enumerate(config.classes, start=1)}
    return {0.0: 0} | {float(text): number[name] for text, name in config.label_values.items()}


def as_classes(label: np.ndarray, values: dict[float, int]) -> np.ndarray | None:
    """A label image by class number, or None where it holds a value that nobody named."""
    mapped = np.full(label.shape, -1, dtype=np.int64)
    for value, number in values.items():
        mapped[label == value] = number
    return None if (mapped < 0).any() else mapped
