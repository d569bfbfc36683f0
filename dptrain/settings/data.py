"""What a cohort's data looks like, as plain settings. Nothing here may be computed from the private data.

Light on purpose: no torch, no MONAI. :func:`check` refuses settings that contradict each other.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dptrain.errors import ConfigError
from dptrain.terminal.words import suggest
from dptrain.vocabulary import Format, Labels, Split, Task, task_spec

ANY = "*"


@dataclass
class ColumnsConfig:
    """Which column of the manifest holds what (for NPZ: which array; for DICOM: which header field).

    patient: the unit of privacy. image: the file of a record, relative to the cohort's folder (for NPZ: the
    array whose rows are the records; for tables unused). label: one column; several for `multilabel`; the
    column of the label image for `segmentation`. split: fixed split of the row; null for a keyed hash.
    groups: columns by which results are reported. bins: column -> rising edges, for numeric groups (age:
    [18, 65] gives "below 18", "18 to below 65", "65 and above"). issuer: a column that names who issued the
    patient id, where rows come from several hospitals; else `data.issuer` holds for all rows.
    """

    patient: str = "patient_id"
    image: str = "file"
    label: list[str] = field(default_factory=lambda: ["label"])
    split: str | None = None
    groups: list[str] = field(default_factory=list)
    bins: dict[str, list[Any]] = field(default_factory=dict)
    issuer: str | None = None


@dataclass
class SplitConfig:
    """Who trains and who tests, per patient (or per group of patients), never by record.

    values: text in `columns.split` -> train, calibration, validation or test. Without such a column: the
    shares, by keyed hash of the patient (a patient's split never moves when others join or leave).
    calibration: share of the training patients set aside for temperature and conformal sets, by keyed hash,
    also where the split comes from a column. by: a column of which all patients with one text stay together
    (a family, a scanner, a site); null for each patient alone. salt: another text gives another split.
    """

    values: dict[str, str] = field(
        default_factory=lambda: {
            "train": "train",
            "calibration": "calibration",
            "validation": "validation",
            "val": "validation",
            "test": "test",
        }
    )
    train: float = 0.7
    validation: float = 0.15
    test: float = 0.15
    calibration: float = 0.0
    by: str | None = None
    salt: str = "split-1"


@dataclass
class TableConfig:
    """How a row of a table becomes a vector; ranges and vocabularies are public declarations.

    numeric: column -> [low, high]; clipped, then scaled to -1…1; a missing value becomes 0.
    categorical: column -> known values; one slot each and one more for anything else.
    binned: column -> rising edges; one slot for each interval (numbers below the first edge share its slot)
    and one more for text that is no number. missing: texts that mean "no value".
    """

    numeric: dict[str, list[Any]] = field(default_factory=dict)
    categorical: dict[str, list[Any]] = field(default_factory=dict)
    binned: dict[str, list[Any]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=lambda: ["", "?"])


@dataclass
class NpzConfig:
    """Further arrays and tables of an NPZ archive.

    lookup: array of whole numbers -> array of the names that they stand for (patient_index: patient_ids).
    table: a CSV with one or more rows a patient that holds group columns; table_patient: its id column.
    """

    lookup: dict[str, str] = field(default_factory=dict)
    table: str | None = None
    table_patient: str = "patient_id"


@dataclass
class DicomConfig:
    """A folder of DICOM files. labels: a CSV with the label columns; labels_on: the header field that joins it.

    The header gives the columns PatientID, IssuerOfPatientID, PatientSex, PatientAge (years), ViewPosition,
    Modality, StudyInstanceUID, SeriesInstanceUID, SOPInstanceUID, AccessionNumber, and `file`.
    series: true makes one volume of each series (slices in order of their position), else each file is a
    record.
    """

    labels: str | None = None
    labels_on: str = "SOPInstanceUID"
    series: bool = False


@dataclass
class DataConfig:
    """A cohort: where its records are, whose they are, what they show, and how they are prepared.

    Args:
        name: the cohort's name in the ledger.
        root, folder: the cohort lies in root/folder. `~` and environment variables are not expanded.
        manifest: the CSV, JSON, NPZ or table below that folder (unused for `dicom`).
        format: csv, decathlon, dicom, npz or table.
        issuer: who issued the patient ids (a hospital, a registry, a data set); never empty.
        unit: what one unit of privacy is, in one word for reports.
        units_per_person: how many units one person may have (volumes of a patient that cannot be paired):
            reports add the epsilon of so many units together.
        task, classes: binary and multiclass: class names in order; multilabel: one name a label column;
            segmentation: the names of the structures 1…C (0 is background).
        label_values: text in the label column -> class name; empty: the texts are the class names.
            For multilabel: text -> "0" or "1".
        keep, drop: column -> text; only rows that have it, or no row that has it ("*": any text at all).
        image_shape: [C, …] after the deterministic transforms; for tables left empty.
        transforms: deterministic MONAI dictionary transforms (`_target_: monai.transforms.…d`), run once.
        augment: random ones, run for each view of a record; multi-crop transforms are views as well.
        same_pixels: refuse, or merge the patients who share them into one unit (transitively: the unit is the
            group of all who are linked).
        sections: of a Decathlon JSON; empty for all.
        source, licence, cautions: carried into the ledger and the report.
    """

    name: str = "cohort"
    root: str = "."
    folder: str = ""
    manifest: str = "manifest.csv"
    format: str = "csv"
    issuer: str = ""
    unit: str = "patient"
    units_per_person: int = 1
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    task: str = "binary"
    classes: list[str] = field(default_factory=lambda: ["negative", "positive"])
    label_values: dict[str, str] = field(default_factory=dict)
    keep: dict[str, str] = field(default_factory=dict)
    drop: dict[str, str] = field(default_factory=dict)
    image_shape: list[int] = field(default_factory=list)
    transforms: list[Any] = field(default_factory=list)
    augment: list[Any] = field(default_factory=list)
    same_pixels: str = "refuse"
    sections: list[str] = field(default_factory=list)
    table: TableConfig = field(default_factory=TableConfig)
    npz: NpzConfig = field(default_factory=NpzConfig)
    dicom: DicomConfig = field(default_factory=DicomConfig)
    source: str = ""
    licence: str = ""
    cautions: list[str] = field(default_factory=list)


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
    for name, value, allowed in (
        ("data.format", config.format, tuple(Format)),
        ("data.task", config.task, tuple(Task)),
        ("data.same_pixels", config.same_pixels, ("refuse", "merge")),
    ):
        if value not in allowed:
            raise ConfigError(f"{name}={value} is unknown.", remedy=suggest(str(value), list(allowed)))
    if not config.issuer.strip() and config.columns.issuer is None:
        raise ConfigError(
            "data.issuer is empty: patient ids mean nothing without the one who issued them.",
            remedy="Name the hospital, registry or data set, e.g. data.issuer='clinic.example radiology'.",
        )
    _check_labels(config)
    _check_split(config.split)
    if not config.unit.strip():
        raise ConfigError("data.unit is empty.", remedy="Say who is protected, e.g. data.unit=patient.")
    if config.units_per_person < 1:
        raise ConfigError(f"data.units_per_person={config.units_per_person} must be at least 1.")
    if config.format == Format.TABLE:
        _check_table(config)
    elif not config.image_shape or any(size < 1 for size in config.image_shape):
        raise ConfigError(
            f"data.image_shape={list(config.image_shape)} is no shape.",
            remedy="Give the shape after the deterministic transforms, channels first, e.g. [1,224,224].",
        )
    for column, edges in config.columns.bins.items():
        _rising(f"data.columns.bins.{column}", edges)


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
        allowed = classes
    if spec.one_logit and len(classes) != 2:
        raise ConfigError(f"data.task={config.task} takes two classes, not {len(classes)}.")
    if spec.labels is Labels.CLASS and len(classes) < 2:
        raise ConfigError(f"data.task={config.task} takes two classes or more.")
    for text, name in config.label_values.items():
        if name not in allowed:
            raise ConfigError(f"data.label_values.{text}={name} is no class.", remedy=suggest(name, allowed))


def _check_split(split: SplitConfig) -> None:
    for text, name in split.values.items():
        if name not in list(Split):
            raise ConfigError(f"data.split.values.{text}={name} is unknown.", remedy=suggest(name, list(Split)))
    shares = (split.train, split.validation, split.test)
    if any(not 0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-9 or split.train == 0:
        raise ConfigError(
            f"data.split: train {split.train:g}, validation {split.validation:g} and test {split.test:g} must be "
            "shares that sum to 1, with some patients to train on."
        )
    if not 0 <= split.calibration < 1:
        raise ConfigError(f"data.split.calibration={split.calibration:g} must be at least 0 and below 1.")


def _check_table(config: DataConfig) -> None:
    table = config.table
    if features_of(table) == 0:
        raise ConfigError(
            "data.table names no columns to learn from.",
            remedy="Declare data.table.numeric, categorical or binned; ranges and vocabularies are public.",
        )
    for column, bounds in table.numeric.items():
        if len(bounds) != 2:
            raise ConfigError(f"data.table.numeric.{column}={bounds} must be [low, high].")
        _rising(f"data.table.numeric.{column}", bounds)
    for column, edges in table.binned.items():
        if len(edges) < 2:
            raise ConfigError(f"data.table.binned.{column}={edges} needs at least two edges.")
        _rising(f"data.table.binned.{column}", edges)


def _rising(name: str, values: list[Any]) -> None:
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        raise ConfigError(f"{name}={list(values)} must be numbers.")
    if any(not low < high for low, high in itertools.pairwise(values)):
        raise ConfigError(f"{name}={list(values)} must rise.")
