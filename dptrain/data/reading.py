"""From settings to a manifest: the reader for the format, the columns that are needed, the rows that are kept."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from dptrain.data.decathlon import read_decathlon
from dptrain.data.delimited import read_table
from dptrain.data.dicom import read_dicom_folder
from dptrain.data.faults import Faults
from dptrain.data.manifest import Manifest
from dptrain.data.npz import read_npz_manifest
from dptrain.data.paths import inside
from dptrain.data.records import quiet_libraries
from dptrain.errors import DataUnreadable
from dptrain.settings import DataConfig
from dptrain.settings.data import ANY, check_complete, folder_of
from dptrain.vocabulary import Format


def read_manifest(config: DataConfig) -> Manifest:
    """The manifest's rows that the settings keep.

    Raises:
        ConfigError: settings that contradict each other.
        DataUnreadable: every fault of the manifest itself, with its rows; pixels are not looked at here.
    """
    faults = Faults()
    with quiet_libraries():
        manifest = load_manifest(config, faults)
    faults.refuse()
    return manifest


def load_manifest(config: DataConfig, faults: Faults) -> Manifest:
    """As :func:`read_manifest`, adding to `faults` and going on wherever that is possible."""
    check_complete(config)
    folder = folder_of(config)
    if not folder.is_dir():
        raise DataUnreadable(
            f"The data folder does not exist: {folder}",
            remedy="Set data.root (and data.folder) to where the data lies.",
        )
    if config.format == Format.DICOM:
        manifest = read_dicom_folder(config, folder, faults)
    else:
        readers: dict[str, Callable[[DataConfig, Path, Faults], Manifest]] = {
            Format.DECATHLON: read_decathlon,
            Format.NPZ: read_npz_manifest,
        }
        manifest = readers.get(config.format, _read_csv)(config, _manifest_file(config, folder), faults)
        manifest.folder = folder
    if not manifest.rows:
        faults.add("the manifest has no rows")
        return manifest
    _missing_columns(config, manifest, faults)
    kept = _filtered(config, manifest)
    faults.pass_over("rows that data.keep and data.drop leave out", len(manifest) - len(kept))
    return kept


def _manifest_file(config: DataConfig, folder: Path) -> Path:
    path = inside(folder, config.manifest, outside=config.outside == "allowed")
    if path is None:
        raise DataUnreadable(
            "The manifest lies outside of the cohort's folder.",
            remedy="Move it there, or declare data.outside=allowed.",
        )
    if path.is_file():
        return path
    entries = [entry.name for entry in path.parent.iterdir() if entry.is_file()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, entries)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise DataUnreadable(f"The manifest does not exist: {path}", remedy=f"Set data.manifest.{hint}")


def _read_csv(config: DataConfig, path: Path, faults: Faults) -> Manifest:
    wanted = wanted_columns(config)
    return read_table(path, faults, wanted=wanted, delimiter=config.delimiter, encoding=config.encoding)


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


def _missing_columns(config: DataConfig, manifest: Manifest, faults: Faults) -> None:
    """Faults for columns that are not there; names of columns are shown only where the header is one."""
    wanted = wanted_columns(config)
    missing = [name for name in wanted if name not in manifest.columns]
    names = list(manifest.columns)
    if missing and len(missing) == len(wanted):  # the first row may be a patient's
        faults.add(
            f"none of the columns {', '.join(missing)} is there: has the file a header row?",
            remedy="Write the names of the columns into the first row, or set data.columns to the names it has.",
        )
        return
    for name in missing:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names[:40])}"
        faults.add(f"column '{name}' is missing: {hint}")


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
