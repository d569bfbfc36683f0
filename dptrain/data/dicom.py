"""A folder of DICOM files as rows: whose they are, what they show, and which of them form a volume.

A series is one volume where its files agree in issuer, patient, study and series (DICOM PS3.3, C.7.3.1): a series UID
alone does not name a person, de-identifiers leave it empty or share it. Slices are ordered along the normal of their
own plane (PS3.3, C.7.6.2.1.1), never by name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from dptrain.data.delimited import read_table
from dptrain.data.faults import Faults
from dptrain.data.manifest import Manifest, join
from dptrain.data.paths import inside
from dptrain.errors import ConfigError, DataUnreadable
from dptrain.settings import DataConfig

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# Header field -> the name by which docs and other formats call the same thing.
FIELDS = {
    "PatientID": "patient_id",
    "IssuerOfPatientID": "issuer",
    "PatientSex": "sex",
    "PatientAge": "age",
    "ViewPosition": "view",
    "StudyDate": "study_date",
    "Modality": "modality",
    "StudyInstanceUID": "",
    "SeriesInstanceUID": "",
    "SOPInstanceUID": "",
    "AccessionNumber": "",
}
VOLUME = ("IssuerOfPatientID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID")  # what one volume has in common
GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "InstanceNumber", "Rows")
SUFFIXES = (".dcm", ".dicom", ".ima")
FLAT = 1e-3  # cosines: two planes of one orientation differ by less
APART = 1e-2  # mm: two slices at one place are nearer than this
UNEVEN = 0.05  # of the usual gap


def is_dicom(path: Path) -> bool:
    """Whether a file says so itself: `DICM` after 128 bytes (PS3.10, 7.1), whatever it is called."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_dicom_folder(config: DataConfig, folder: Path, faults: Faults) -> Manifest:
    """Every DICOM image below the folder as a row, or every series as one."""
    pydicom = _pydicom()
    tags = [*FIELDS, *GEOMETRY]
    table_file = None if config.dicom.labels is None else _label_file(config, folder)
    items: list[dict[str, str]] = []
    places: list[Place] = []
    names: list[str] = []
    number = 0
    for path in _files(folder, faults, config.outside == "allowed"):
        if not (path.suffix.lower() in SUFFIXES or is_dicom(path)):
            if path != table_file:
                faults.pass_over("files that are no DICOM")
            continue
        number += 1
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
            item = {tag: _text(header, tag) for tag in FIELDS}
            place = Place(header)
            rows = header.get("Rows")
        except Exception:  # damaged headers raise errors of many kinds
            faults.add("the DICOM header cannot be read", f"file {number} (in order of path)")
            continue
        if rows is None:
            faults.pass_over("DICOM files without an image (directories, reports, plans, waveforms)")
            continue
        items.append({**item, "file": path.relative_to(folder).as_posix()})
        places.append(place)
        names.append(f"file {number}")
    stacks: dict[str, list[str]] = {}
    if config.dicom.series:
        items, names, stacks = _series(items, names, places, faults)
    columns = {name: [item[name] for item in items] for name in ("file", *FIELDS)}
    columns |= {other: columns[field] for field, other in FIELDS.items() if other}
    manifest = Manifest(columns, names, folder, stacks=stacks)
    if table_file is not None:
        key = config.dicom.labels_on
        table = read_table(
            table_file,
            faults,
            what="label row",
            wanted=[key],
            delimiter=config.delimiter,
            encoding=config.encoding,
        )
        join(manifest, key, table, key, [name for name in table.columns if name not in manifest.columns], faults)
    return manifest


def _text(header: Mapping[str, Any] | Dataset, tag: str) -> str:
    text = str(header.get(tag, "") or "").strip()
    return years(text) if tag == "PatientAge" else text


def _pydicom() -> ModuleType:
    try:
        import pydicom
    except ImportError:
        raise ConfigError(
            "Reading DICOM needs pydicom.", remedy="Install the extra: pip install 'dptrain[medical]'."
        ) from None
    return pydicom


def _label_file(config: DataConfig, folder: Path) -> Path:
    path = inside(folder, config.dicom.labels or "", outside=config.outside == "allowed")
    if path is None:
        raise DataUnreadable(
            "The label table of data.dicom.labels lies outside of the cohort's folder.",
            remedy="Move it there, or declare data.outside=allowed.",
        )
    if not path.is_file():
        raise DataUnreadable(f"The label table does not exist: {path}", remedy="Set data.dicom.labels.")
    return path


def _files(folder: Path, faults: Faults, outside: bool) -> Iterator[Path]:
    """Every file below the folder, in order of path; links that lead out of it are counted, not followed."""
    every: list[Path] = []
    for place, folders, files in os.walk(folder, followlinks=False):
        faults.pass_over("linked folders", sum(os.path.islink(os.path.join(place, name)) for name in folders))
        every += [Path(place, name) for name in files]
    for path in sorted(every):
        if inside(folder, path.relative_to(folder).as_posix(), outside=outside) is None:
            faults.pass_over("links that lead out of the cohort's folder (data.outside=allowed reads them)")
        elif path.is_file():
            yield path


class Place:
    """Where a slice lies: position and orientation in the patient (mm, LPS), and its number in the acquisition."""

    def __init__(self, header: Mapping[str, Any] | Dataset) -> None:
        self.position = numbers(header.get("ImagePositionPatient"), 3)
        self.orientation = numbers(header.get("ImageOrientationPatient"), 6)
        number = header.get("InstanceNumber")
        self.number = None if number in (None, "") else int(number)


def numbers(values: Sequence[float] | None, count: int) -> np.ndarray | None:
    """So many finite numbers of a header field, or None."""
    if values is None or len(values) != count:
        return None
    array = np.array([float(value) for value in values])
    return array if np.isfinite(array).all() else None


def normal_of(orientation: np.ndarray) -> np.ndarray | None:
    """The unit normal of a plane from its row and column cosines [6], or None where they span none."""
    normal = np.cross(orientation[:3], orientation[3:])
    length = float(np.linalg.norm(normal))
    return None if length <= 0.5 else np.asarray(normal / length)


def order_of(places: Sequence[Place]) -> tuple[list[int], str]:
    """The order of a volume's slices, and why they make no volume (empty where they do).

    Along the normal of the planes; where no orientation is stated, along the line on which the positions lie; where
    no position is stated, by instance number.
    """
    every = list(range(len(places)))
    if len(places) == 1:
        return every, ""
    if any(place.position is None for place in places):
        steps = [place.number for place in places]
        if any(place.position is not None for place in places) or None in steps or len(set(steps)) < len(steps):
            return every, "the slices of a series have neither positions nor different instance numbers"
        return sorted(every, key=lambda i: steps[i] or 0), ""
    positions = np.stack([place.position for place in places if place.position is not None])
    orientations = [place.orientation for place in places]
    if any(one is None for one in orientations):
        direction = _line_of(positions)
        if direction is None:
            return every, "a series holds several images at one position: several echoes, times or reconstructions"
    else:
        if np.ptp(np.stack([one for one in orientations if one is not None]), axis=0).max() > FLAT:
            return every, "the slices of a series have different orientations (a localizer?)"
        assert orientations[0] is not None
        direction = normal_of(orientations[0])
        if direction is None:
            return every, "the orientation of a series spans no plane"
    along = positions @ direction
    order = np.argsort(along, kind="stable")
    gaps = np.diff(along[order])
    usual = float(np.median(gaps))
    if gaps.min() < APART:
        return every, "a series holds several images at one position: several echoes, times or reconstructions"
    if np.abs(gaps - usual).max() > max(UNEVEN * usual, APART):
        return every, "the slices of a series are unevenly spaced: some are missing, or it is no single volume"
    return order.tolist(), ""


def _line_of(positions: np.ndarray) -> np.ndarray | None:
    """The direction of the line on which positions lie, rising along its largest coordinate."""
    apart = positions - positions[0]
    lengths = np.linalg.norm(apart, axis=1)
    if lengths.max() < APART:
        return None
    direction = apart[lengths.argmax()] / lengths.max()
    return np.asarray(direction * np.sign(direction[np.abs(direction).argmax()]))


SPLIT_SERIES = "Split it into one series each, or drop it: data.drop={SeriesInstanceUID: …}."


def _series(
    items: list[dict[str, str]], names: list[str], places: list[Place], faults: Faults
) -> tuple[list[dict[str, str]], list[str], dict[str, list[str]]]:
    """One item for each volume: series of one issuer, patient, study and series UID."""
    groups: dict[tuple[str, ...], list[int]] = {}
    owners: dict[str, tuple[str, ...]] = {}
    for i, item in enumerate(items):
        issuer, patient, study, uid = (item[field] for field in VOLUME)
        if not uid:
            faults.add(
                "the SeriesInstanceUID is empty: what belongs to one volume cannot be told",
                names[i],
                remedy="De-identify anew with UIDs replaced, not removed; or dicom.series=false for single images.",
            )
            continue
        if owners.setdefault(uid, (issuer, patient)) != (issuer, patient):
            faults.add(
                "one SeriesInstanceUID is shared by files of several patients",
                names[i],
                remedy="De-identify anew so that each series has a UID of its own; or drop these files.",
            )
        groups.setdefault((issuer, patient, study, uid), []).append(i)
    kept: list[dict[str, str]] = []
    kept_names: list[str] = []
    stacks: dict[str, list[str]] = {}
    for members in groups.values():
        order, fault = order_of([places[i] for i in members])
        if fault:
            faults.add(fault, f"{names[members[0]]} (and {len(members) - 1} more)", remedy=SPLIT_SERIES)
        ordered = [members[i] for i in order]
        first = items[ordered[0]]
        kept.append(first)
        kept_names.append(names[ordered[0]])
        stacks[first["file"]] = [items[i]["file"] for i in ordered]
    return kept, kept_names, stacks


def years(text: str) -> str:
    """A DICOM age (`045Y`, `018M`; PS3.5, AS) in whole years; other text as it is."""
    per_year = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}
    digits, unit = text[:-1], text[-1:]
    if unit not in per_year or not (digits.isascii() and digits.isdigit()) or len(digits) > 4:
        return text
    return str(int(int(digits) / per_year[unit]))
