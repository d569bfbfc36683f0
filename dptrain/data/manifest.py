"""Manifests: rows of text that say which record belongs to whom. Every fault is found before any is reported.

A manifest is a CSV, a Decathlon JSON, a folder of DICOM files, the row arrays of an NPZ archive, or a table;
all become one :class:`Manifest` of text columns. Faults name rows and columns, never ids, labels or files.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dptrain.data.records import quiet_libraries
from dptrain.errors import ConfigError, DataUnreadable
from dptrain.settings import DataConfig
from dptrain.settings.data import ANY, check_complete, folder_of
from dptrain.vocabulary import Format

DICOM_COLUMNS = (
    "PatientID",
    "IssuerOfPatientID",
    "PatientSex",
    "PatientAge",
    "ViewPosition",
    "Modality",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "AccessionNumber",
)
DECATHLON_SECTIONS = ("training", "validation", "test")


@dataclass(repr=False)
class Manifest:
    """Rows of text, column by column.

    Args:
        columns: name -> one text a row.
        rows: how people find each row ("row 17", "training item 3").
        folder: what file names are relative to.
        arrays: the arrays of an NPZ archive, by name; empty elsewhere.
        stacks: file lists of the volumes that are made of several DICOM files, by `file` text.
    """

    columns: dict[str, list[str]]
    rows: list[str]
    folder: Path
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    stacks: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Manifest({len(self)} rows)"

    def take(self, index: Sequence[int]) -> Manifest:
        """The manifest of some of its rows; arrays stay whole."""
        columns = {name: [texts[i] for i in index] for name, texts in self.columns.items()}
        return Manifest(columns, [self.rows[i] for i in index], self.folder, self.arrays, self.stacks)


def read_manifest(config: DataConfig) -> Manifest:
    """The manifest's rows that the settings keep.

    Raises:
        ConfigError: settings that contradict each other.
        DataUnreadable: every fault of the manifest itself, with its rows; pixels are not looked at here.
    """
    faults: list[str] = []
    with quiet_libraries():
        manifest = load_manifest(config, faults)
    raise_faults(faults)
    return manifest


def raise_faults(faults: Sequence[str]) -> None:
    """Raise DataUnreadable with all faults, if there are any."""
    if faults:
        number = f"{len(faults)} faults" if len(faults) > 1 else "1 fault"
        raise DataUnreadable(
            f"The data cannot be used: {number}. Nothing was charged.",
            faults=list(faults),
            remedy="Correct the manifest or the files, or leave rows out with data.keep and data.drop.",
        )


def load_manifest(config: DataConfig, faults: list[str]) -> Manifest:
    """As :func:`read_manifest`, adding to `faults` and going on wherever that is possible."""
    check_complete(config)
    folder = folder_of(config)
    if not folder.is_dir():
        raise DataUnreadable(
            f"The data folder does not exist: {folder}",
            remedy="Set data.root (and data.folder) to where the data lies.",
        )
    if config.format == Format.DICOM:
        manifest = _read_dicom_folder(config, folder, faults)
    else:
        path = folder / config.manifest
        if not path.is_file():
            raise DataUnreadable(
                f"The manifest does not exist: {path}", remedy=f"Set data.manifest. {_nearest_file(path)}".strip()
            )
        readers: dict[str, Callable[[DataConfig, Path, list[str]], Manifest]] = {
            "decathlon": _read_decathlon,
            "npz": _read_npz,
        }
        manifest = readers.get(config.format, _read_csv)(config, path, faults)
        manifest.folder = folder
    if not manifest.rows:
        faults.append("the manifest has no rows")
        return manifest
    missing = _missing_columns(config, manifest)
    faults.extend(missing)
    return _filtered(config, manifest)


def _nearest_file(path: Path) -> str:
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir() if entry.is_file()])
    return f"Did you mean {' or '.join(near)}?" if near else ""


def wanted_columns(config: DataConfig) -> list[str]:
    """The columns that the settings name, each once."""
    columns = config.columns
    names = [columns.patient, *columns.label, *columns.groups, *config.keep, *config.drop]
    if config.format in (Format.CSV, Format.DECATHLON):
        names.append(columns.image)
    if config.format == Format.TABLE:
        names += [*config.table.numeric, *config.table.categorical, *config.table.binned]
    names += [name for name in (columns.split, columns.issuer, config.split.by) if name]
    return list(dict.fromkeys(names))


def _missing_columns(config: DataConfig, manifest: Manifest) -> list[str]:
    faults = []
    known = list(manifest.columns)
    for name in wanted_columns(config):
        if name not in manifest.columns:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
            faults.append(f"column '{name}' is missing: {hint}")
    return faults


def _filtered(config: DataConfig, manifest: Manifest) -> Manifest:
    if not config.keep and not config.drop:
        return manifest
    kept = []
    empty = [""] * len(manifest)
    keep = [(manifest.columns.get(name, empty), text) for name, text in config.keep.items()]
    drop = [(manifest.columns.get(name, empty), text) for name, text in config.drop.items()]
    for i in range(len(manifest)):
        wanted = all(texts[i] == text or (text == ANY and texts[i]) for texts, text in keep)
        unwanted = any(texts[i] == text or (text == ANY and texts[i]) for texts, text in drop)
        if wanted and not unwanted:
            kept.append(i)
    return manifest.take(kept)


def _read_text(path: Path, faults: list[str]) -> str:
    """The file's text; lines that are not UTF-8 become faults, and reading goes on."""
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataUnreadable(f"The manifest {path} cannot be read ({type(error).__name__}).") from None
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        for number, line in enumerate(raw.split(b"\n"), start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                faults.append(f"line {number} is not UTF-8 text")
        return raw.decode("utf-8", errors="replace")


def read_table(path: Path, faults: list[str], *, what: str = "row") -> Manifest:
    """A CSV file (gzip by its name) as text columns. Row 1 is the header, as spreadsheets count."""
    text = _read_text(path, faults)
    if "\0" in text:
        faults.append("the table holds NUL characters: it is no text file")
        text = text.replace("\0", "")
    reader = csv.reader(io.StringIO(text, newline=""))
    header: list[str] = []
    rows: list[list[str]] = []
    names: list[str] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        for number, row in enumerate(reader, start=2):
            if not row:
                continue
            if len(row) != len(header):
                faults.append(f"{what} {number} has {len(row)} fields where the header has {len(header)}")
                row = (row + [""] * len(header))[: len(header)]
            rows.append(row)
            names.append(f"{what} {number}")
    except csv.Error:
        faults.append(f"{what} {len(rows) + 2} is no valid CSV")
    for name in sorted({name for name in header if header.count(name) > 1}):
        faults.append(f"column '{name}' occurs twice in the header")
    texts = list(zip(*rows)) if rows else [() for _ in header]
    columns = {name: [text.strip() for text in texts[i]] for i, name in enumerate(header)}
    return Manifest(columns, names, path.parent)


def _read_csv(config: DataConfig, path: Path, faults: list[str]) -> Manifest:
    return read_table(path, faults)


def _read_decathlon(config: DataConfig, path: Path, faults: list[str]) -> Manifest:
    try:
        content = json.loads(_read_text(path, faults))
    except ValueError:
        raise DataUnreadable(f"The data list {path} is no valid JSON.") from None
    if not isinstance(content, dict):
        raise DataUnreadable(f"The data list {path} is no JSON object with sections such as 'training'.")
    sections = config.sections or [
        name for name in content if name in DECATHLON_SECTIONS and isinstance(content[name], list)
    ]
    items: list[dict[str, str]] = []
    rows: list[str] = []
    for section in sections:
        if not isinstance(content.get(section), list):
            faults.append(f"section '{section}' is missing: there are {', '.join(content)}")
            continue
        for number, item in enumerate(content[section], start=1):
            name = f"{section} item {number}"
            if not isinstance(item, dict):
                faults.append(f"{name} is no object with image, label and patient")
                continue
            items.append({**{str(key): _text(value) for key, value in item.items()}, "section": section})
            rows.append(name)
    known = list(dict.fromkeys(key for item in items for key in item))
    return Manifest({key: [item.get(key, "") for item in items] for key in known}, rows, path.parent)


def _text(value: object) -> str:
    """A JSON value as manifest text; a list of files becomes one text of lines (their channels are joined)."""
    if isinstance(value, list):
        return "\n".join(str(part) for part in value)
    return "" if value is None else str(value)


def _read_npz(config: DataConfig, path: Path, faults: list[str]) -> Manifest:
    arrays = read_npz(path)
    image = config.columns.image
    if image not in arrays:
        near = difflib.get_close_matches(image, list(arrays), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(arrays)}"
        raise DataUnreadable(f"The archive has no array '{image}' (data.columns.image): {hint}")
    length = len(arrays[image])
    columns: dict[str, list[str]] = {}
    for name, array in arrays.items():
        if name == image or array.ndim != 1 or len(array) != length:
            continue
        if name in config.npz.lookup:
            columns[name] = _looked_up(array, config.npz.lookup[name], name, arrays, faults)
        else:
            columns[name] = texts_of(array)
    manifest = Manifest(columns, [f"row {i}" for i in range(length)], path.parent, arrays)
    if config.npz.table is not None:
        _join(
            manifest,
            config.columns.patient,
            read_table(path.parent / config.npz.table, faults, what="table row"),
            config.npz.table_patient,
            [name for name in config.columns.groups if name not in columns],
            faults,
        )
    return manifest


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an NPZ archive; pickled objects are refused."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataUnreadable(
            f"The archive {path} cannot be read ({type(error).__name__}).",
            remedy="It must be an .npz of plain arrays (no pickled objects), written whole.",
        ) from None


def texts_of(array: np.ndarray) -> list[str]:
    """Values as manifest text: truth values become 0 and 1, whole numbers lose their point."""
    if array.dtype.kind == "b":
        array = array.astype(np.int8)
    if array.dtype.kind == "S":
        return [value.decode("utf-8", errors="replace") for value in array.tolist()]
    if array.dtype.kind == "f":
        return ["" if np.isnan(value) else f"{value:g}" for value in array.tolist()]
    return [str(value) for value in array.tolist()]


def _looked_up(
    array: np.ndarray, target: str, name: str, arrays: Mapping[str, np.ndarray], faults: list[str]
) -> list[str]:
    if target not in arrays or arrays[target].ndim != 1 or array.dtype.kind not in "iu":
        faults.append(f"array '{name}' cannot be looked up in '{target}': whole numbers and a list of names needed")
        return [""] * len(array)
    names = texts_of(arrays[target])
    outside = (array < 0) | (array >= len(names))
    faults.extend(f"row {i}: '{name}' points outside '{target}'" for i in np.flatnonzero(outside).tolist())
    return ["" if bad else names[value] for value, bad in zip(array.tolist(), outside.tolist())]


def _join(
    manifest: Manifest, key: str, table: Manifest, table_key: str, names: Sequence[str], faults: list[str]
) -> None:
    """Add columns of `table` to the manifest by a common key; contradictions become faults."""
    wanted = [name for name in names if name in table.columns]
    if table_key not in table.columns or key not in manifest.columns:
        faults.append(f"the table cannot be joined: column '{table_key}' or '{key}' is missing")
        return
    found: dict[str, dict[str, str]] = {}
    for i, row in enumerate(table.rows):
        values = {name: table.columns[name][i] for name in wanted}
        before = found.setdefault(table.columns[table_key][i], values)
        for name in wanted:
            if before[name] != values[name]:
                faults.append(f"{row}: '{name}' contradicts an earlier row of the same patient")
    for name in wanted:
        manifest.columns[name] = [found.get(text, {}).get(name, "") for text in manifest.columns[key]]


def _read_dicom_folder(config: DataConfig, folder: Path, faults: list[str]) -> Manifest:
    try:
        import pydicom
    except ImportError:
        raise ConfigError(
            "Reading DICOM needs pydicom.", remedy="Install the extra: pip install 'dptrain[medical]'."
        ) from None
    tags = [*DICOM_COLUMNS, "ImagePositionPatient", "InstanceNumber", "Rows"]
    items: list[dict[str, str]] = []
    order: list[tuple[float, ...]] = []
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_dicom(path)]
    for path in files:
        name = f"file {len(items) + 1}"
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
            item = {tag: str(header.get(tag, "") or "").strip() for tag in DICOM_COLUMNS}
            position = header.get("ImagePositionPatient")
            place = float(position[2]) if position else float(header.get("InstanceNumber") or 0)
            pixels = header.get("Rows")
        except Exception:
            faults.append(f"{name} (in order of path): the DICOM header cannot be read")
            continue
        if pixels is None:  # DICOMDIR, structured reports and the like
            continue
        item["PatientAge"] = _years(item["PatientAge"])
        item["file"] = path.relative_to(folder).as_posix()
        items.append(item)
        order.append((place,))
    stacks: dict[str, list[str]] = {}
    if config.dicom.series:
        items, stacks = _series(items, order)
    known = ["file", *DICOM_COLUMNS]
    manifest = Manifest(
        {name: [item[name] for item in items] for name in known},
        [f"file {i + 1}" for i in range(len(items))],
        folder,
        stacks=stacks,
    )
    if config.dicom.labels is not None:
        path = folder / config.dicom.labels
        if not path.is_file():
            raise DataUnreadable(f"The label table does not exist: {path}", remedy="Set data.dicom.labels.")
        table = read_table(path, faults, what="label row")
        extra = [name for name in table.columns if name not in manifest.columns]
        _join(manifest, config.dicom.labels_on, table, config.dicom.labels_on, extra, faults)
    return manifest


def _series(
    items: list[dict[str, str]], order: list[tuple[float, ...]]
) -> tuple[list[dict[str, str]], dict[str, list[str]]]:
    groups: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(item["SeriesInstanceUID"], []).append(i)
    kept: list[dict[str, str]] = []
    stacks: dict[str, list[str]] = {}
    for members in groups.values():
        members.sort(key=lambda i: order[i])
        first = items[members[0]]
        kept.append(first)
        stacks[first["file"]] = [items[i]["file"] for i in members]
    return kept, stacks


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    if path.suffix.lower() not in ("", ".ima"):
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _years(text: str) -> str:
    """A DICOM age (`045Y`, `018M`) in whole years."""
    per_year = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}
    digits, unit = text[:-1], text[-1:]
    if unit not in per_year or not digits.isdigit():
        return ""
    return str(int(int(digits) / per_year[unit]))
