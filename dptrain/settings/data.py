"""What a cohort's data looks like, as plain settings. Nothing here may be computed from the private data."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dptrain.errors import ConfigError
from dptrain.settings.fields import at_least, one_of, section, setting
from dptrain.terminal.words import suggest
from dptrain.vocabulary import Format, Labels, Split, Task, task_spec

ANY = "*"
BACKGROUND = "background"
Number = int | float


@dataclass(frozen=True)
class ColumnsConfig:
    """Which column of the manifest holds what (for NPZ: which array; for DICOM: which header field)."""

    patient: str = setting("patient_id", "the unit of privacy")
    image: str = setting("file", "file of a record below the cohort's folder (NPZ: the array; tables: unused)")
    label: list[str] = setting(["label"], "one column; several for multilabel; of the label image for segmentation")
    split: str | None = setting(None, "fixed split of the row; null for a keyed hash of the patient")
    groups: list[str] = setting([], "columns by which results are reported")
    bins: dict[str, list[Number]] = setting({}, 'column -> rising edges; [18, 65]: "below 18", "18 to below 65", …')
    issuer: str | None = setting(None, "column that names who issued the id, where rows come from several hospitals")

    def __post_init__(self) -> None:
        for column, edges in self.bins.items():
            _rising(f"data.columns.bins.{column}", edges)


@dataclass(frozen=True)
class SplitConfig:
    """Who trains and who tests, per patient (or per group of patients), never by record.

    Without a column of splits patients are shared out by keyed hash: a patient's split never moves when others
    join or leave.
    """

    values: dict[str, str] = setting(
        {
            "train": "train",
            "calibration": "calibration",
            "validation": "validation",
            "val": "validation",
            "test": "test",
        },
        "text in `columns.split` -> train, calibration, validation or test",
    )
    train: float = setting(0.7, "share of the patients that train, where no column says it")
    validation: float = setting(0.15, "share of the patients that validate")
    test: float = setting(0.15, "share of the patients that test")
    calibration: float = setting(0.0, "share of the training patients set aside for temperature and conformal sets")
    by: str | None = setting(None, "column of which all patients with one text stay together (a family, a site)")
    salt: str = setting("split-1", "another text gives another split")

    def __post_init__(self) -> None:
        for text, name in self.values.items():
            one_of(f"data.split.values.{text}", name, list(Split))
        shares = (self.train, self.validation, self.test)
        if any(not 0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-9 or self.train == 0:
            raise ConfigError(
                f"data.split: train {self.train:g}, validation {self.validation:g} and test {self.test:g} must be "
                "shares that sum to 1, with some patients to train on.",
                remedy="For instance data.split.train=0.7 data.split.validation=0.15 data.split.test=0.15.",
            )
        if not 0 <= self.calibration < 1:
            raise ConfigError(f"data.split.calibration={self.calibration:g} must be at least 0 and below 1.")


@dataclass(frozen=True)
class TableConfig:
    """How a row of a table becomes a vector; ranges and vocabularies are public declarations."""

    numeric: dict[str, list[Number]] = setting({}, "column -> [low, high]: clipped, scaled to -1…1; missing is 0")
    categorical: dict[str, list[str]] = setting({}, "column -> values; a slot each and one for anything else")
    binned: dict[str, list[Number]] = setting({}, "column -> rising edges; a slot an interval, one for no number")
    missing: list[str] = setting(["", "?"], 'texts that mean "no value"')

    def __post_init__(self) -> None:
        for column, bounds in self.numeric.items():
            if len(bounds) != 2:
                raise ConfigError(f"data.table.numeric.{column}={bounds} must be [low, high].")
            _rising(f"data.table.numeric.{column}", bounds)
        for column, edges in self.binned.items():
            if len(edges) < 2:
                raise ConfigError(f"data.table.binned.{column}={edges} needs at least two edges.")
            _rising(f"data.table.binned.{column}", edges)


@dataclass(frozen=True)
class NpzConfig:
    """Further arrays and tables of an NPZ archive."""

    lookup: dict[str, str] = setting({}, "array of whole numbers -> array of the names that they stand for")
    table: str | None = setting(None, "a CSV with one or more rows a patient that holds group columns")
    table_patient: str = setting("patient_id", "the id column of that table")


@dataclass(frozen=True)
class DicomConfig:
    """A folder of DICOM files.

    The header gives the columns PatientID, IssuerOfPatientID, PatientSex, PatientAge (years), ViewPosition,
    StudyDate, Modality (also called patient_id, issuer, sex, age, view, study_date, modality), StudyInstanceUID,
    SeriesInstanceUID, SOPInstanceUID, AccessionNumber, and `file`.
    """

    labels: str | None = setting(None, "a CSV with the label columns")
    labels_on: str = setting("SOPInstanceUID", "the header field that joins it")
    series: bool = setting(False, "one volume of each series of one patient and study; else a record a file")


@dataclass(frozen=True)
class DataConfig:
    """A cohort: where its records are, whose they are, what they show, and how they are prepared.

    Each value is checked by itself; :func:`check` says whether a cohort can be made of them.
    """

    name: str = setting("cohort", "the cohort's name in the ledger")
    root: str = setting(".", "where cohorts lie; where no word says it DPTRAIN_DATA, else ./data")
    folder: str = setting("", "the cohort lies in root/folder")
    manifest: str = setting("manifest.csv", "the CSV, JSON, NPZ or table below that folder (unused for dicom)")
    format: str = setting("csv", "csv, decathlon, dicom, npz or table")
    issuer: str = setting("", "who issued the patient ids (a hospital, a registry, a data set); never empty")
    unit: str = setting("patient", "what one unit of privacy is, in one word for reports")
    units_per_person: int = setting(1, "units that one person may have; reports add the epsilon of so many together")
    columns: ColumnsConfig = section(ColumnsConfig)
    split: SplitConfig = section(SplitConfig)
    task: str = setting("binary", "binary, multiclass, multilabel or segmentation")
    classes: list[str] = setting(["negative", "positive"], "names in order; segmentation: of the structures 1…C")
    label_values: dict[str, str] = setting({}, 'text or mask value -> class (multilabel: -> "0" or "1")')
    keep: dict[str, str] = setting({}, 'column -> text; only rows that have it are read ("*": any text at all)')
    drop: dict[str, str] = setting({}, "column -> text; no row that has it is read")
    image_shape: list[int] = setting([], "[C, …] after the deterministic transforms; for tables left empty")
    transforms: list[Any] = setting([], "deterministic MONAI dictionary transforms (_target_: …d), run once")
    augment: list[Any] = setting([], "random ones, for each view of a record; multi-crops are views as well")
    same_pixels: str = setting("refuse", "refuse, or merge the patients who share them into one unit")
    near_ids: str = setting("refuse", "refuse ids that look alike (5 and 0005) or name nobody (NA), or: different")
    outside: str = setting("refuse", "refuse files outside of the cohort's folder, or: allowed")
    delimiter: str = setting("", "of CSV files; empty to find out")
    encoding: str = setting("", "of CSV and JSON files (utf-8, cp1252); empty for UTF-8")
    decimal: str = setting(".", "the decimal point of numbers in tables: '.' or ','")
    sections: list[str] = setting([], "of a Decathlon JSON; empty for all")
    table: TableConfig = section(TableConfig)
    npz: NpzConfig = section(NpzConfig)
    dicom: DicomConfig = section(DicomConfig)
    source: str = setting("", "where the data come from, for the ledger and the report")
    licence: str = setting("", "their licence, for the ledger and the report")
    cautions: list[str] = setting([], "what a reader must know, for the ledger and the report")

    def __post_init__(self) -> None:
        one_of("data.format", self.format, list(Format))
        one_of("data.task", self.task, list(Task))
        one_of("data.same_pixels", self.same_pixels, ("refuse", "merge"))
        one_of("data.near_ids", self.near_ids, ("refuse", "different"))
        one_of("data.outside", self.outside, ("refuse", "allowed"))
        one_of("data.delimiter", self.delimiter, ("", ",", ";", "\t", "|"))
        one_of("data.decimal", self.decimal, (".", ","))
        if not self.unit.strip():
            raise ConfigError("data.unit is empty.", remedy="Say who is protected, e.g. data.unit=patient.")
        at_least("data.units_per_person", self.units_per_person, 1)
        if any(size < 1 for size in self.image_shape):
            raise _no_shape(self.image_shape)


def folder_of(config: DataConfig) -> Path:
    """The cohort's folder."""
    return Path(config.root) / config.folder


def features_of(table: TableConfig) -> int:
    """Length of the vector that a row of a table becomes."""
    return (
        len(table.numeric)
        + sum(len(values) + 1 for values in table.categorical.values())
        + sum(len(edges) + 1 for edges in table.binned.values())
    )


def shape_of(config: DataConfig) -> tuple[int, ...]:
    """Shape of one record after the deterministic transforms: [C, …], or [F] for tables."""
    return (features_of(config.table),) if config.format == Format.TABLE else tuple(config.image_shape)


def check(config: DataConfig) -> None:
    """Refuse settings that contradict each other. Raises ConfigError with what is allowed."""
    if not config.issuer.strip() and config.columns.issuer is None:
        raise ConfigError(
            "data.issuer is empty: patient ids mean nothing without the one who issued them.",
            remedy="Name the hospital, registry or data set, e.g. data.issuer='clinic.example radiology'.",
        )
    _check_labels(config)
    if config.format != Format.TABLE and not config.image_shape:
        raise _no_shape(config.image_shape)


def check_complete(config: DataConfig) -> None:
    """Refuse settings with which no record can be read. Raises ConfigError with what is missing."""
    check(config)
    if config.format == Format.TABLE and features_of(config.table) == 0:
        raise ConfigError(
            "data.table names no columns to learn from.",
            remedy="Declare data.table.numeric, categorical or binned; ranges and vocabularies are public.",
        )


def _no_shape(shape: list[int]) -> ConfigError:
    return ConfigError(
        f"data.image_shape={list(shape)} is no shape.",
        remedy="Give the shape after the deterministic transforms, channels first, e.g. [1,224,224].",
    )


def _check_labels(config: DataConfig) -> None:
    labels, classes = config.columns.label, config.classes
    if not labels or not classes or len(set(classes)) != len(classes):
        raise ConfigError("data.columns.label and data.classes need at least one name each, all different.")
    spec = task_spec(config.task)
    if spec.labels is Labels.FINDINGS:
        if len(labels) != len(classes):
            raise ConfigError(
                f"data.task=multilabel has {len(classes)} classes but {len(labels)} label columns.",
                remedy="Name one label column for each class, in the same order.",
            )
        allowed = ["0", "1"]
    else:
        if len(labels) != 1:
            raise ConfigError(f"data.task={config.task} takes one label column, not {len(labels)}.")
        allowed = [BACKGROUND, *classes] if spec.labels is Labels.MASK else classes
    if spec.one_logit and len(classes) != 2:
        raise ConfigError(f"data.task={config.task} takes two classes, not {len(classes)}.")
    if spec.labels is Labels.CLASS and len(classes) < 2:
        raise ConfigError(f"data.task={config.task} takes two classes or more.")
    for text, name in config.label_values.items():
        if spec.labels is Labels.MASK and not _is_number(text):
            raise ConfigError(
                f"data.label_values.{text}={name}: a label image holds numbers.",
                remedy=f"Name the number, e.g. data.label_values={{'255': {name}}}.",
            )
        if name not in allowed:
            raise ConfigError(f"data.label_values.{text}={name} is no class.", remedy=suggest(name, allowed))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _rising(name: str, values: list[Number]) -> None:
    if any(not low < high for low, high in itertools.pairwise(values)):
        raise ConfigError(f"{name}={list(values)} must rise.")
