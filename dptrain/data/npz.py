"""NPZ archives: arrays whose rows are records, beside arrays that say whose they are."""

from __future__ import annotations

import difflib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dptrain.data.delimited import read_table
from dptrain.data.faults import Faults
from dptrain.data.manifest import Manifest, cell_text, join
from dptrain.data.packed import check_size
from dptrain.data.paths import inside
from dptrain.errors import DataUnreadable
from dptrain.identity import patient_text
from dptrain.settings import DataConfig
from dptrain.source import Unreadable


def read_npz_manifest(config: DataConfig, path: Path, faults: Faults) -> Manifest:
    """Rows of the image array, with the one-dimensional arrays of the same length as columns."""
    arrays = read_npz(path)
    image = config.columns.image
    if image not in arrays:
        near = difflib.get_close_matches(image, list(arrays), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it holds {len(arrays)} others."
        raise DataUnreadable(f"The archive has no array '{image}' (data.columns.image): {hint}")
    if arrays[image].ndim == 0:
        raise DataUnreadable(f"The array '{image}' (data.columns.image) has no rows.")
    length = len(arrays[image])
    columns: dict[str, list[str]] = {}
    for name, array in arrays.items():
        if name == image or array.ndim != 1 or len(array) != length or array.dtype.kind not in "biufSUM":
            continue
        if name in config.npz.lookup:
            columns[name] = _looked_up(array, config.npz.lookup[name], name, arrays, faults)
        else:
            columns[name] = texts_of(array, name, faults)
    patients = arrays.get(config.columns.patient)
    if patients is not None and patients.dtype.kind == "f":
        _exact(patients, config.columns.patient, faults)
    manifest = Manifest(columns, [f"row {i}" for i in range(length)], path.parent, arrays, list(range(length)))
    if config.npz.table is not None:
        file = inside(path.parent, config.npz.table, outside=config.outside == "allowed")
        if file is None or not file.is_file():
            raise DataUnreadable("The table of data.npz.table does not exist in the cohort's folder.")
        key = config.npz.table_patient
        table = read_table(file, faults, what="table row", wanted=[key], encoding=config.encoding)
        if key in table.columns:
            table.columns[key] = [patient_text(text) for text in table.columns[key]]
        groups = [name for name in config.columns.groups if name not in columns]
        if config.columns.patient in columns:
            columns[config.columns.patient] = [patient_text(text) for text in columns[config.columns.patient]]
        join(manifest, config.columns.patient, table, key, groups, faults)
    return manifest


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an NPZ archive; pickled objects are refused, and so is what would unpack to far too much."""
    try:
        with zipfile.ZipFile(path) as archive:
            check_size(path.stat().st_size, sum(member.file_size for member in archive.infolist()))
        with np.load(path, allow_pickle=False) as loaded:
            return {name: loaded[name] for name in loaded.files}
    except Unreadable as error:
        raise DataUnreadable(f"The archive {path} {error.cause} ({error.detail}).", remedy=error.remedy) from None
    except Exception as error:  # numpy and zipfile raise many kinds for damaged files
        raise DataUnreadable(
            f"The archive {path} cannot be read ({type(error).__name__}).",
            remedy="It must be an .npz of plain arrays (no pickled objects), written whole.",
        ) from None


def texts_of(array: np.ndarray, name: str, faults: Faults) -> list[str]:
    """Values as manifest text, without loss: truth values become 0 and 1, whole numbers lose their point."""
    if array.dtype.kind == "S":
        texts = []
        for i, value in enumerate(array.tolist()):
            try:
                texts.append(value.decode("utf-8"))
            except UnicodeDecodeError:
                faults.add(f"array '{name}' holds bytes that are not UTF-8 text", f"row {i}")
                texts.append("")
        return texts
    if array.dtype.kind == "f" and array.dtype.itemsize < 8:  # the shortest text of the narrower type
        return [cell_text(float(str(value))) for value in array]
    return [cell_text(value) for value in array.tolist()]


def _exact(ids: np.ndarray, name: str, faults: Faults) -> None:
    """Fault for ids that are too large for their floating-point type to tell apart."""
    limit = 2.0 ** (np.finfo(ids.dtype).nmant + 1)
    for i in np.flatnonzero(np.abs(ids) >= limit).tolist():
        faults.add(
            f"array '{name}' holds patient ids that are too large for {ids.dtype}: several people may share a number",
            f"row {i}",
            remedy=f"Store '{name}' as whole numbers (int64) or as text.",
        )


def _looked_up(
    array: np.ndarray, target: str, name: str, arrays: Mapping[str, np.ndarray], faults: Faults
) -> list[str]:
    if target not in arrays or arrays[target].ndim != 1 or array.dtype.kind not in "iu":
        faults.add(f"array '{name}' cannot be looked up in '{target}': whole numbers and a list of names needed")
        return [""] * len(array)
    names = texts_of(arrays[target], target, faults)
    outside = (array < 0) | (array >= len(names))
    for i in np.flatnonzero(outside).tolist():
        faults.add(f"'{name}' points outside '{target}'", f"row {i}")
    return ["" if bad else names[value] for value, bad in zip(array.tolist(), outside.tolist())]
