"""Predictions for files: a row for each, with how sure the model may be, and why a file was flagged or refused."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dptrain.data.inference import look
from dptrain.data.pictures import SUFFIXES
from dptrain.errors import ConfigError, DataUnreadable
from dptrain.files import whole_or_nothing
from dptrain.records import RunFolder
from dptrain.terminal.progress import progress
from dptrain.training.bundle import NETWORK, Bundle, load_bundle, predict
from dptrain.vocabulary import Format

OK, FLAGGED, REFUSED = "ok", "flagged", "refused"
KNOWN = (*SUFFIXES, ".nii", ".nii.gz", ".npy", ".dcm", ".dicom", "")


@dataclass(frozen=True)
class File:
    """One file, and what its row of a manifest says beside."""

    name: str
    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """What is said of one file.

    status: ok, flagged (unlike the trained images) or refused (nothing is said). values: a column each.
    """

    file: File
    status: str
    why: str
    values: Mapping[str, str]


def bundle_of(folder: Path) -> Bundle:
    """The model of a run's folder, or a bundle that stands alone. Raises ConfigError where there is none."""
    for root in (RunFolder(folder).model, folder):
        if (root / NETWORK).is_file():
            return load_bundle(root)
    raise ConfigError(
        f"{folder} holds no model.", remedy="Name the folder that `dptrain train` printed, or an unpacked bundle."
    )


def files_of(source: Path, column: str = "file") -> list[File]:
    """One file, the images below a folder in the order of their names, or the rows of a CSV.

    Raises:
        ConfigError: nothing there. DataUnreadable: a CSV without that column.
    """
    if source.is_dir():
        every = sorted(path for path in source.rglob("*") if path.is_file() and not path.name.startswith("."))
        files = [File(str(path.relative_to(source)), path) for path in every if _suffix(path) in KNOWN]
        if not files:
            raise ConfigError(f"{source} holds no image.", remedy="PNG, JPEG, TIFF, BMP, DICOM, NIfTI or .npy files.")
        return files
    if not source.exists():
        raise ConfigError(f"{source} does not exist.", remedy="Name a folder, an image, or a CSV that lists images.")
    if source.suffix.lower() != ".csv":
        return [File(source.name, source)]
    return list(_listed(source, column))


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else os.path.splitext(name)[1]


def _listed(manifest: Path, column: str) -> Iterator[File]:
    with manifest.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if column not in (rows.fieldnames or ()):
            names = ", ".join(rows.fieldnames or ())
            raise DataUnreadable(
                f"{manifest.name} has no column '{column}'.", remedy=f"Name it: column=…. There are: {names}."
            )
        for row in rows:
            rest = {name: text or "" for name, text in row.items() if name not in (column, None)}
            yield File(row[column], manifest.parent / row[column], rest)


def predict_files(bundle: Bundle, files: list[File]) -> list[Prediction]:
    """A prediction for each file in order; what cannot be read, or would mean nothing, is refused with its reason."""
    if bundle.settings.data.format == Format.TABLE:
        raise ConfigError(
            "this model reads rows of a table, and `predict` images only.",
            remedy="Load it in Python: dptrain.training.bundle.load_bundle, then predict with a tensor.",
        )
    rows = []
    with progress(len(files), "predicting") as bar:
        for file in files:
            rows.append(_one(bundle, file))
            bar.advance(1)
    return rows


def _one(bundle: Bundle, file: File) -> Prediction:
    try:
        image, reasons = look(bundle.settings.data, file.path)
    except DataUnreadable as error:
        return Prediction(file, REFUSED, error.message, {})
    why = "; ".join(reason.why for reason in reasons)
    if image is None:
        return Prediction(file, REFUSED, why, {})
    return Prediction(file, FLAGGED if reasons else OK, why, columns_of(predict(bundle, image)))


def columns_of(result: Mapping[str, object]) -> dict[str, str]:
    """A prediction as columns of a table."""
    columns: dict[str, str] = {}
    for name, value in result.items():
        if name in ("probability", "voxels") and isinstance(value, Mapping):
            shown = (lambda number: f"{number:.4f}") if name == "probability" else str
            columns |= {f"{name} {key}": shown(number) for key, number in value.items()}
        elif name == "possible":
            named = {key: " or ".join(words) for key, words in value.items()} if isinstance(value, Mapping) else {}
            columns |= {f"possible {key}": text for key, text in named.items()}
            if isinstance(value, list):
                columns[name] = " or ".join(value)
        else:
            columns[name.replace("_", " ")] = str(value)
    return columns


def write(target: Path, rows: list[Prediction]) -> None:
    """The predictions as a CSV, whole or not at all; columns of a manifest come after the file's name."""
    beside = list(dict.fromkeys(name for row in rows for name in row.file.columns))
    values = list(dict.fromkeys(name for row in rows for name in row.values))
    taken = {"file", "status", "why", *values}
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_nothing(target) as file:
        writer = csv.writer(file)
        heads = [f"{name} (given)" if name in taken else name for name in beside]
        writer.writerow(["file", *heads, "status", "why", *values])
        for row in rows:
            given = [row.file.columns.get(name, "") for name in beside]
            answers = [row.values.get(name, "") for name in values]
            writer.writerow([row.file.name, *given, row.status, row.why, *answers])
