"""Data lists as MONAI and the Medical Segmentation Decathlon write them: JSON with a list of items a section."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

from dptrain.data.delimited import read_text
from dptrain.data.faults import Faults
from dptrain.data.manifest import Manifest, cell_text
from dptrain.errors import DataUnreadable
from dptrain.identity import patient_text
from dptrain.settings import DataConfig

SECTIONS = ("training", "validation", "test")


class _Twice(ValueError):
    """A name occurs twice in one JSON object."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise _Twice
    return values


def read_decathlon(config: DataConfig, path: Path, faults: Faults) -> Manifest:
    """The items of the sections as rows; numbers are read exactly (`17.0` and `17` are one patient)."""
    text = read_text(path, faults, config.encoding)
    try:
        content = json.loads(text, parse_float=Decimal, object_pairs_hook=_object)
    except _Twice:
        raise DataUnreadable(f"An item of the data list {path} names one thing twice.") from None
    except (ValueError, RecursionError):
        raise DataUnreadable(f"The data list {path} is no valid JSON.") from None
    if not isinstance(content, dict):
        raise DataUnreadable(f"The data list {path} is no JSON object with sections such as 'training'.")
    lists = [name for name in SECTIONS if isinstance(content.get(name), list)]
    items: list[dict[str, str]] = []
    rows: list[str] = []
    for section in config.sections or lists:
        if not isinstance(content.get(section), list):
            faults.add(f"section '{section}' is missing: there are {', '.join(lists) or 'none'}")
            continue
        for number, item in enumerate(content[section], start=1):
            name = f"{section} item {number}"
            if not isinstance(item, dict):
                faults.add("no object with image, label and patient", name)
                continue
            texts = {key: _text(value, key == config.columns.patient) for key, value in item.items()}
            items.append({**texts, "section": section})
            rows.append(name)
    others = [name for name in content if name in lists and config.sections and name not in config.sections]
    faults.pass_over("items of other sections", sum(len(content[name]) for name in others))
    names = list(dict.fromkeys(key for item in items for key in item))
    return Manifest({key: [item.get(key, "") for item in items] for key in names}, rows, path.parent)


def _text(value: object, patient: bool) -> str:
    """A JSON value as manifest text; a list of files becomes one text of lines (their channels are joined)."""
    if patient:
        return patient_text(value) if isinstance(value, str | int | Decimal) else ""
    if isinstance(value, list):
        return "\n".join(cell_text(element) for element in value)
    return cell_text(value)
