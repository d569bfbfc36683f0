"""Tiny cohorts written by the tests."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dptrain.settings import ColumnsConfig, DataConfig

FIELDS = ["file", "patient_id", "label", "split", "sex", "age"]


def rows(patients: int = 8, records: int = 2) -> list[dict[str, str]]:
    """Rows of a cohort: the last patient tests, the one before validates, all others train."""
    made = []
    for p in range(patients):
        split = "test" if p == patients - 1 else "validation" if p == patients - 2 else "train"
        for r in range(records):
            made.append(
                {
                    "file": f"images/secret{p}_{r}.png",
                    "patient_id": f"secret{p}",
                    "label": str(p % 2),
                    "split": split,
                    "sex": "FM"[p % 2],
                    "age": str(10 + 10 * p),
                }
            )
    return made


def picture(seed: int, shape: Sequence[int] = (8, 6)) -> np.ndarray:
    """Different pixels for every seed."""
    return np.random.default_rng(seed).integers(0, 256, tuple(shape), dtype=np.uint8)


def write(
    folder: Path, made: Sequence[dict[str, str]], *, images: bool = True, shape: Sequence[int] = (8, 6)
) -> None:
    """Write manifest.csv and, for each different file named, a PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(made[0]))
        writer.writeheader()
        writer.writerows(made)
    for seed, name in enumerate(dict.fromkeys(row["file"] for row in made if images and row.get("file"))):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed, shape)).save(path)


def settings(folder: Path, **changes: Any) -> DataConfig:
    """Settings that fit :func:`write`."""
    config = DataConfig(
        name="tiny",
        root=str(folder),
        issuer="clinic",
        columns=ColumnsConfig(split="split", groups=["sex", "age"], bins={"age": [18, 65]}),
        label_values={"0": "negative", "1": "positive"},
        image_shape=[1, 8, 6],
    )
    return replace(config, **changes)


def changed(settings: Any, changes: dict[str, Any]) -> Any:
    """Settings with some values changed, by their dotted names."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        head, _, rest = name.partition(".")
        sections.setdefault(head, {})[rest] = value
    return replace(
        settings,
        **{
            head: inner[""] if "" in inner else changed(getattr(settings, head), inner)
            for head, inner in sections.items()
        },
    )
