"""From a manifest to a cohort: patients, their records, labels, groups, splits and fingerprints.

:func:`scan` reads every record once to check and hash it, and lets out nothing but faults and hashes. After
that, pixels leave a :class:`Cohort` only through :mod:`dptrain.data.loading`, which asks for a grant.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dptrain.data.faults import Faults
from dptrain.data.labels import groups_of, labels_of
from dptrain.data.manifest import Manifest
from dptrain.data.reading import load_manifest, wanted_columns
from dptrain.data.records import quiet_libraries
from dptrain.data.sources import DatasetSource, source_of
from dptrain.data.splits import check_splits, splits_of
from dptrain.data.units import Keys, Patient, owners_of, units_of
from dptrain.errors import ConfigError
from dptrain.identity import patient_text
from dptrain.settings import ColumnsConfig, DataConfig
from dptrain.settings.data import check_complete
from dptrain.source import Fault, Source
from dptrain.terminal.progress import progress
from dptrain.vocabulary import Format, Labels, Split, task_spec

FILES = (Format.CSV, Format.DECATHLON)  # a column names a file


@dataclass(frozen=True, slots=True, repr=False)
class Record:
    """One image, volume or signal: how people find its row, where it is, whose it is, its hash."""

    row: str
    image: str
    patient: int
    hash: bytes


@dataclass(repr=False)
class Cohort:
    """Patients and their records. Holds no pixels; printing it shows counts alone.

    Args:
        patients: in order of their keys, so that the order tells nothing of the manifest.
        records: R records; `Record.patient` is a position in `patients`.
        labels: int64 [R] (binary, multiclass), float32 [R, C] (multilabel), empty [R, 0] (segmentation: the
            label is an image and comes with the record).
        groups: column -> one text a record.
        source: where pixels come from. Only :mod:`dptrain.data.loading` asks it, under a grant.
        unread: what was not read though it is no fault -> how many (files of other kinds, cells without a value).
        notes: how the manifest was understood, in sentences.
        odd: positions of records that could not be read after the scan: they count as zero (restricted).
    """

    config: DataConfig
    patients: list[Patient]
    records: list[Record]
    labels: np.ndarray
    groups: dict[str, np.ndarray]
    source: Source
    unread: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    odd: set[int] = field(default_factory=set, init=False)
    _fingerprint: str | None = field(default=None, init=False)

    def __repr__(self) -> str:
        return f"Cohort({self.config.name}: {len(self.patients)} patients, {len(self.records)} records)"

    @property
    def fingerprint(self) -> str:
        """The ledger's fingerprint of who and what is in this cohort."""
        if self._fingerprint is None:
            from dptrain.ledger import fingerprint

            self._fingerprint = fingerprint(self.hashes())
        return self._fingerprint

    def hashes(self) -> dict[bytes, list[bytes]]:
        """Patient key -> hashes of the patient's records: what the ledger registers.

        Those merged into another are named without records, so that their budgets and withdrawals bind too.
        """
        hashes = {p.key: [self.records[i].hash for i in p.records] for p in self.patients}
        return hashes | {alias: [] for p in self.patients for alias in p.aliases}

    def split(self, name: str, *, excluded: Collection[bytes] = ()) -> list[int]:
        """Positions of the patients of a split, without those whose key is in `excluded`."""
        if name not in list(Split):
            raise ConfigError(f"'{name}' is no split.", remedy=f"Splits: {', '.join(Split)}.")
        return [i for i, p in enumerate(self.patients) if p.split == name and not p.excluded(excluded)]

    def records_of(self, patients: Sequence[int]) -> list[int]:
        """Positions of all records of these patients, in order."""
        return [record for i in patients for record in self.patients[i].records]


def scan(config: DataConfig, keys: Keys, *, workers: int | None = None) -> Cohort:
    """Read, check and hash every record that the settings name.

    Args:
        keys: turns patient ids and pixels into keyed hashes; ids are not kept.
        workers: threads that read; None for up to four.

    Returns: the cohort, without pixels.

    Raises:
        ConfigError: settings that contradict each other.
        DataUnreadable: every fault of manifest and records at once, each cause with its rows.
    """
    faults = Faults()
    with quiet_libraries():
        manifest = load_manifest(config, faults)
        if not manifest.rows:
            faults.add("no rows are left after data.keep and data.drop")
        if any(name not in manifest.columns for name in wanted_columns(config)):
            _check_files(config, manifest, faults)
            faults.refuse()
        _repeated_files(config, manifest, faults)
        source = source_of(config, manifest, faults)
        return cohort_of(config, manifest, source, keys, faults, workers=workers)


def cohort_of(
    config: DataConfig,
    manifest: Manifest,
    source: Source,
    keys: Keys,
    faults: Faults,
    *,
    workers: int | None = None,
) -> Cohort:
    """The cohort of rows and the source of their pixels. Raises DataUnreadable with everything in `faults`."""
    owners = owners_of(config, manifest, keys, faults)
    labels = labels_of(config, manifest, faults)
    groups = groups_of(config, manifest, faults)
    hashes = _hash_all(source, keys, manifest, workers, faults)
    rows, aliases = units_of(config, manifest, owners, hashes, faults)
    splits = splits_of(config, manifest, keys, rows, faults)
    check_splits(config, set(splits.values()), faults)
    faults.refuse()
    of_record = [-1] * len(manifest)
    patients = []
    for position, key in enumerate(sorted(rows)):
        patients.append(Patient(key, tuple(rows[key]), splits[key], tuple(sorted(aliases.get(key, ())))))
        for i in rows[key]:
            of_record[i] = position
    images = manifest.columns.get(config.columns.image, manifest.rows)
    records = [
        Record(row, image, of_record[i], hashes[i] or b"")
        for i, (row, image) in enumerate(zip(manifest.rows, images))
    ]
    return Cohort(config, patients, records, labels, groups, source, faults.unread, faults.notes)


def _repeated_files(config: DataConfig, manifest: Manifest, faults: Faults) -> None:
    if config.format not in FILES:
        return
    first: dict[str, str] = {}
    column = config.columns.image
    for row, text in zip(manifest.rows, manifest.columns[column]):
        if text and first.setdefault(os.path.normpath(text), row) != row:
            faults.add(
                f"the same file in column '{column}' as an earlier row",
                f"{row} (as {first[os.path.normpath(text)]})",
            )


def _check_files(config: DataConfig, manifest: Manifest, faults: Faults) -> None:
    """Where columns are missing, at least say which of the files are."""
    for row, text in zip(manifest.rows, manifest.columns.get(config.columns.image, [])):
        if config.format in FILES and not (text and (manifest.folder / text).is_file()):
            faults.add(f"the file in column '{config.columns.image}' does not exist", row)


def _hash_all(
    source: Source, keys: Keys, manifest: Manifest, workers: int | None, faults: Faults
) -> list[bytes | None]:
    """The hash of every record; faults are added in the order of the rows."""
    threads = threads_for(source) if workers is None else workers
    hashes: list[bytes | None] = [None] * len(manifest)

    def one(i: int) -> tuple[bytes | None, list[Fault]]:
        pixels, wrong = source.check(i)
        return None if pixels is None else keys.record_hash(pixels), wrong

    with progress(len(manifest), "Checking records") as shown:
        for i, (digest, wrong) in enumerate(mapped(one, len(manifest), threads)):
            hashes[i] = digest
            if wrong:
                faults.extend(manifest.rows[i], wrong)
            shown.advance()
    return hashes


def threads_for(source: Source) -> int:
    """How many threads read this source."""
    return min(4, os.cpu_count() or 1) if source.parallel else 1


def mapped(work: Callable[[int], Any], number: int, threads: int) -> Iterator[Any]:
    """Results of work(0) … work(number − 1) in order, over threads where they pay."""
    if threads <= 1 or number < 64:
        yield from map(work, range(number))
        return
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, number, 1024):
            yield from pool.map(work, range(start, min(number, start + 1024)))


def cohort_from_dataset(
    dataset: Sequence[Mapping[str, Any]],
    *,
    keys: Keys,
    issuer: str,
    task: str,
    image: str = "image",
    label: str = "label",
    patient: str = "patient_id",
    split: str | None = None,
    groups: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    name: str = "cohort",
    unit: str = "patient",
    augment: Sequence[Any] = (),
) -> Cohort:
    """A cohort over a person's own (MONAI) dataset, whose items are ready after deterministic transforms.

    Args:
        dataset: items with `image` [C, …] (all of one shape), `label` (a class number; 0/1 texts or numbers
            [C] for multilabel; an image [1, …] for segmentation), a patient id, and perhaps split and groups.
        classes: names of the classes; needed for all tasks but `binary`.
        augment: random MONAI dictionary transforms over the keys `image` and `label`.

    Raises:
        DataUnreadable: every fault at once, each with its item's number.
    """
    kind = task_spec(task).labels
    named = list(classes) if classes else ["negative", "positive"]
    first = np.asarray(dataset[0][image])
    config = DataConfig(
        name=name,
        issuer=issuer,
        unit=unit,
        task=task,
        classes=named,
        image_shape=list(first.shape),
        augment=list(augment),
        columns=ColumnsConfig(
            label=list(named) if kind is Labels.FINDINGS else ["label"],
            groups=list(groups),
            split="split" if split is not None else None,
        ),
    )
    check_complete(config)
    source = DatasetSource(dataset, image, label, config)
    faults = Faults()
    ids = [patient_text(_scalar(item.get(patient))) for item in dataset]
    splits = ["" if split is None else str(item.get(split, "")) for item in dataset]
    texts: dict[str, list[str]] = {column: [] for column in (*config.columns.label, *groups)}
    for item in dataset:
        for group in groups:
            texts[group].append(str(item.get(group, "") or ""))
        if kind is Labels.FINDINGS:
            for column, value in zip(config.columns.label, np.asarray(item[label]).reshape(-1)):
                texts[column].append(str(_whole(value)))
        elif kind is Labels.CLASS:
            value = _whole(item[label])
            named_class = value is not None and 0 <= value < len(named)
            texts["label"].append(named[value or 0] if named_class else "outside the classes")
    texts |= {"patient_id": ids, "split": splits}
    manifest = Manifest(texts, [f"item {i}" for i in range(len(dataset))], Path())
    return cohort_of(config, manifest, source, keys, faults, workers=1)


def _scalar(value: object) -> object:
    """A Python number or text of what a dataset holds (a tensor of one number, a NumPy scalar)."""
    return value.item() if hasattr(value, "item") and getattr(value, "size", 1) != 0 else value


def _whole(label: object) -> int | None:
    """The class number that a label is; None for one that is none."""
    try:
        number = float(np.asarray(label))
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None
