"""From a manifest to a cohort: patients, their records, labels, groups, splits and fingerprints.

:func:`scan` reads every record once to check and hash it, and lets out nothing but faults and hashes. After
that, pixels leave a :class:`Cohort` only through :mod:`dptrain.data.loading`, which asks for a grant.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dptrain.data import tables
from dptrain.data.manifest import Manifest, load_manifest, raise_faults, wanted_columns
from dptrain.data.records import Unreadable, channel_first, quiet_libraries, read_image
from dptrain.errors import ConfigError
from dptrain.settings import ColumnsConfig, DataConfig, SplitConfig
from dptrain.settings.data import check_complete, shape_of
from dptrain.terminal.progress import progress
from dptrain.vocabulary import Format, Labels, Split, task_spec

UNKNOWN = "unknown"


class Keys(Protocol):
    """What the scan needs of :class:`dptrain.ledger.Keys`."""

    def patient_key(self, issuer: str, patient_id: str) -> bytes:
        """32 bytes that stand for a patient at this site."""

    def record_hash(self, array: np.ndarray) -> bytes:
        """32 bytes that recognise the same pixels."""


@dataclass(frozen=True, slots=True, repr=False)
class Patient:
    """One unit of privacy: its key, its records (positions in `Cohort.records`) and its split.

    aliases: keys of other patients whose pixels are the same and who were merged into this one.
    """

    key: bytes
    records: tuple[int, ...]
    split: str
    aliases: tuple[bytes, ...] = ()

    def excluded(self, keys: Collection[bytes]) -> bool:
        """Whether this unit, or anyone merged into it, is among `keys`."""
        return self.key in keys or any(alias in keys for alias in self.aliases)


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
    """

    config: DataConfig
    patients: list[Patient]
    records: list[Record]
    labels: np.ndarray
    groups: dict[str, np.ndarray]
    source: Source
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
        DataUnreadable: every fault of manifest and records at once, each with its row.
    """
    with quiet_libraries():
        return _scan(config, keys, workers)


def _scan(config: DataConfig, keys: Keys, workers: int | None) -> Cohort:
    faults: list[str] = []
    manifest = load_manifest(config, faults)
    if not manifest.rows:
        faults.append("no rows are left after data.keep and data.drop")
    if any(name not in manifest.columns for name in wanted_columns(config)):
        _check_files(config, manifest, faults)
        raise_faults(faults)
    owners = _owners(config, manifest, keys, faults)
    labels = _labels(config, manifest, faults)
    groups = _groups(config, manifest)
    _repeated_files(config, manifest, faults)
    source = source_of(config, manifest)
    hashes = _hash_all(source, keys, manifest, workers, faults)
    patients, of_record = _units(config, manifest, keys, owners, hashes, faults)
    _check_splits(config, patients, faults)
    raise_faults(faults)
    images = manifest.columns.get(config.columns.image, manifest.rows)
    records = [
        Record(row, image, of_record[i], hashes[i] or b"")
        for i, (row, image) in enumerate(zip(manifest.rows, images))
    ]
    return Cohort(config, patients, records, labels, groups, source)


# ---------------------------------------------------------------- who


def _owners(config: DataConfig, manifest: Manifest, keys: Keys, faults: list[str]) -> list[bytes | None]:
    """The patient key of every row; None where the row does not say whose it is."""
    ids = manifest.columns[config.columns.patient]
    issuers = [config.issuer] * len(manifest)
    if config.columns.issuer is not None:
        issuers = [text or config.issuer for text in manifest.columns[config.columns.issuer]]
    known: dict[tuple[str, str], bytes] = {}
    owners: list[bytes | None] = []
    for row, issuer, patient in zip(manifest.rows, issuers, ids):
        if not patient.strip():
            faults.append(f"{row}: no patient id in column '{config.columns.patient}'")
            owners.append(None)
        elif not issuer.strip():
            faults.append(f"{row}: no issuer of the patient id in column '{config.columns.issuer}'")
            owners.append(None)
        else:
            pair = (issuer, patient)
            if pair not in known:
                known[pair] = keys.patient_key(issuer, patient)
            owners.append(known[pair])
    return owners


def _units(
    config: DataConfig,
    manifest: Manifest,
    keys: Keys,
    owners: Sequence[bytes | None],
    hashes: Sequence[bytes | None],
    faults: list[str],
) -> tuple[list[Patient], list[int]]:
    """Patients in order of their keys, and the position of each row's patient."""
    parent: dict[bytes, bytes] = {owner: owner for owner in owners if owner is not None}

    def root(key: bytes) -> bytes:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    first: dict[bytes, int] = {}
    for i, (owner, digest) in enumerate(zip(owners, hashes)):
        if owner is None or digest is None:
            continue
        before = owners[first.setdefault(digest, i)]
        assert before is not None
        if before != owner and config.same_pixels == "merge":
            low, high = sorted((root(before), root(owner)))
            parent[high] = low
        elif before != owner:
            faults.append(
                f"{manifest.rows[i]}: the same pixels as {manifest.rows[first[digest]]}, of another patient"
            )
    rows: dict[bytes, list[int]] = {}
    aliases: dict[bytes, list[bytes]] = {}
    for i, owner in enumerate(owners):
        if owner is not None:
            rows.setdefault(root(owner), []).append(i)
    for key in parent:
        if root(key) != key:
            aliases.setdefault(root(key), []).append(key)
    splits = _splits(config, manifest, keys, rows, faults)
    of_record = [-1] * len(manifest)
    patients = []
    for position, key in enumerate(sorted(rows)):
        patients.append(Patient(key, tuple(rows[key]), splits[key], tuple(sorted(aliases.get(key, ())))))
        for i in rows[key]:
            of_record[i] = position
    return patients, of_record


def _splits(
    config: DataConfig, manifest: Manifest, keys: Keys, rows: Mapping[bytes, Sequence[int]], faults: list[str]
) -> dict[bytes, str]:
    """The split of every patient: from the column, or by keyed hash of the patient's key or group."""
    if config.columns.split is None:
        together = _together(config, manifest, keys, rows, faults)
        return {key: keyed_split(together.get(key, key), config.split) for key in rows}
    texts = manifest.columns[config.columns.split]
    values = config.split.values
    for row, text in zip(manifest.rows, texts):
        if text not in values:
            allowed = ", ".join(values)
            faults.append(f"{row}: unknown split in column '{config.columns.split}': allowed are {allowed}")
    splits = {}
    for key, members in rows.items():
        named = [(values[texts[i]], i) for i in members if texts[i] in values]
        split = named[0][0] if named else Split.TRAIN
        faults.extend(
            f"{manifest.rows[i]}: its patient is in split '{split}' by another row and in '{other}' by this one"
            for other, i in named
            if other != split
        )
        if split == Split.TRAIN and keyed_share(key, f"{config.split.salt}/calibration") < config.split.calibration:
            split = Split.CALIBRATION
        splits[key] = split
    return splits


def _together(
    config: DataConfig, manifest: Manifest, keys: Keys, rows: Mapping[bytes, Sequence[int]], faults: list[str]
) -> dict[bytes, bytes]:
    """For each patient, the keyed hash of what `split.by` keeps together."""
    if config.split.by is None:
        return {}
    texts = manifest.columns[config.split.by]
    found = {}
    for key, members in rows.items():
        first = texts[members[0]]
        for i in members:
            if not texts[i]:
                faults.append(f"{manifest.rows[i]}: nothing in column '{config.split.by}', which splits the patients")
            elif texts[i] != first and first:
                faults.append(
                    f"{manifest.rows[i]}: column '{config.split.by}', which splits the patients, contradicts "
                    f"{manifest.rows[members[0]]} of the same patient"
                )
        if first:
            found[key] = keys.patient_key(f"split by {config.split.by}", first)
    return found


def keyed_share(key: bytes, salt: str) -> float:
    """A number in [0, 1) that follows from the patient's keyed hash and the salt alone."""
    return int.from_bytes(hashlib.sha256(salt.encode() + b"\0" + key).digest()[:8], "big") / 2**64


def keyed_split(key: bytes, split: SplitConfig) -> str:
    """The split of a patient; it never moves when other patients join or leave."""
    share = keyed_share(key, split.salt)
    if share < split.test:
        return Split.TEST
    if share < split.test + split.validation:
        return Split.VALIDATION
    if keyed_share(key, f"{split.salt}/calibration") < split.calibration:
        return Split.CALIBRATION
    return Split.TRAIN


def _check_splits(config: DataConfig, patients: Sequence[Patient], faults: list[str]) -> None:
    wanted = {Split.TRAIN}
    if config.columns.split is None:
        wanted |= {name for name in (Split.VALIDATION, Split.TEST) if getattr(config.split, name) > 0}
    else:
        wanted |= {Split.TEST}
    if config.split.calibration > 0:
        wanted.add(Split.CALIBRATION)
    empty = wanted - {patient.split for patient in patients}
    faults.extend(f"the split '{name}' has no patients" for name in Split if name in empty)


# ---------------------------------------------------------------- what


def _labels(config: DataConfig, manifest: Manifest, faults: list[str]) -> np.ndarray:
    kind = task_spec(config.task).labels
    if kind is Labels.MASK:
        return np.zeros((len(manifest), 0), dtype=np.int64)
    multilabel = kind is Labels.FINDINGS
    classes = ["0", "1"] if multilabel else list(config.classes)
    number = {text: classes.index(name) for text, name in config.label_values.items()}
    number = number or {name: i for i, name in enumerate(classes)}
    columns = []
    for name in config.columns.label:
        column = np.zeros(len(manifest), dtype=np.int64)
        for i, text in enumerate(manifest.columns[name]):
            if text in number:
                column[i] = number[text]
            elif not text:
                faults.append(f"{manifest.rows[i]}: no label in column '{name}'")
            else:
                faults.append(
                    f"{manifest.rows[i]}: unknown label in column '{name}': allowed are {', '.join(number)}"
                )
        columns.append(column)
    return np.stack(columns, axis=1).astype(np.float32) if multilabel else columns[0]


def _groups(config: DataConfig, manifest: Manifest) -> dict[str, np.ndarray]:
    groups = {}
    missing = set(config.table.missing) | {""}
    for name in config.columns.groups:
        texts = manifest.columns[name]
        if name in config.columns.bins:
            texts = _binned(texts, [float(edge) for edge in config.columns.bins[name]])
        groups[name] = np.array([UNKNOWN if text in missing else text for text in texts], dtype=object)
    return groups


def _binned(texts: Sequence[str], edges: Sequence[float]) -> list[str]:
    names = [
        f"below {edges[0]:g}",
        *(f"{low:g} to below {high:g}" for low, high in itertools.pairwise(edges)),
        f"{edges[-1]:g} and above",
    ]
    numbers = tables.numbers_of(texts)
    slots = np.searchsorted(np.asarray(edges), numbers, side="right")
    return [UNKNOWN if np.isnan(number) else names[slot] for number, slot in zip(numbers, slots)]


def _repeated_files(config: DataConfig, manifest: Manifest, faults: list[str]) -> None:
    if config.format not in (Format.CSV, Format.DECATHLON):
        return
    first: dict[str, str] = {}
    for row, text in zip(manifest.rows, manifest.columns[config.columns.image]):
        if text and first.setdefault(text, row) != row:
            faults.append(f"{row}: names the same file as {first[text]} in column '{config.columns.image}'")


def _check_files(config: DataConfig, manifest: Manifest, faults: list[str]) -> None:
    """Where columns are missing, at least say which of the files are."""
    for row, text in zip(manifest.rows, manifest.columns.get(config.columns.image, [])):
        if config.format in (Format.CSV, Format.DECATHLON) and not (text and (manifest.folder / text).is_file()):
            faults.append(f"{row}: the file in column '{config.columns.image}' does not exist")


# ---------------------------------------------------------------- pixels


class Source(Protocol):
    """Where the records of a cohort come from. `parallel`: whether threads read faster (files do)."""

    parallel: bool

    def check(self, i: int) -> tuple[np.ndarray | None, list[str]]:
        """What is hashed of record i (None where it cannot be read), and what is wrong with it."""

    def item(self, i: int) -> dict[str, Any]:
        """Record i after the deterministic transforms: image, and label where that is an image; plain tensors."""

    def batch(self, indices: Sequence[int]) -> Any | None:
        """Many images at once, float32 [n, …], or None where they are read one by one."""


def source_of(config: DataConfig, manifest: Manifest) -> Source:
    """The source that fits the manifest's format."""
    if config.format == Format.TABLE:
        return TableSource(config, manifest)
    return ImageSource(config, manifest)


class TableSource:
    """Rows of a table, encoded by declared ranges and vocabularies; a record's hash is that of its whole row."""

    parallel = False

    def __init__(self, config: DataConfig, manifest: Manifest) -> None:
        self.features = tables.encode(manifest, config.table)
        self.rows = tables.row_bytes(manifest, list(manifest.columns))

    def check(self, i: int) -> tuple[np.ndarray | None, list[str]]:
        return self.rows[i], []

    def item(self, i: int) -> dict[str, Any]:
        import torch

        return {"image": torch.from_numpy(self.features[i].copy())}

    def batch(self, indices: Sequence[int]) -> Any:
        import torch

        return torch.from_numpy(self.features[np.asarray(indices, dtype=np.int64)])


class ImageSource:
    """Files, or rows of an array, through the deterministic transforms."""

    def __init__(self, config: DataConfig, manifest: Manifest) -> None:
        from dptrain.data import transforms

        self.transforms = transforms.build(config.transforms, random=False)
        self.by_shape = transforms.shape_only(self.transforms)
        self.seen: set[tuple[Any, ...]] = set()
        self.digests: dict[int, bytes] = {}
        self.shape = shape_of(config)
        self.folder = manifest.folder
        self.array = manifest.arrays.get(config.columns.image) if config.format == Format.NPZ else None
        self.parallel = self.array is None
        self.images = manifest.columns.get("file" if config.format == Format.DICOM else config.columns.image, [])
        self.stacks = {name: [manifest.folder / part for part in parts] for name, parts in manifest.stacks.items()}
        self.rows = manifest.rows
        self.index = list(range(len(manifest)))
        if self.array is not None:
            self.index = [int(row.removeprefix("row ")) for row in manifest.rows]
        self.label_images: Sequence[str] | None = None
        self.classes = len(config.classes)
        if task_spec(config.task).labels is Labels.MASK:
            self.label_images = manifest.columns[config.columns.label[0]]

    def raw(self, i: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Pixels [C, …] as stored, and the affine. Raises Unreadable."""
        if self.array is not None:
            return channel_first(self.array[self.index[i]], len(self.shape)), None
        if not self.images[i]:
            raise Unreadable("is not named")
        stack = self.stacks.get(self.images[i], ())
        files = self.images[i].split("\n")
        read = [read_image(self.folder / file, dims=len(self.shape), stack=stack) for file in files]
        if len(read) == 1:
            return read[0]
        if len({pixels.shape[1:] for pixels, _ in read}) > 1:
            raise Unreadable("is made of files that differ in size")
        return np.concatenate([pixels for pixels, _ in read]), read[0][1]

    def raw_label(self, i: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The label image [1, …]. Raises Unreadable."""
        assert self.label_images is not None
        if not self.label_images[i]:
            raise Unreadable("is not named")
        return read_image(self.folder / self.label_images[i], dims=len(self.shape))

    def check(self, i: int) -> tuple[np.ndarray | None, list[str]]:
        try:
            pixels, affine = self.raw(i)
        except Unreadable as error:
            return None, [f"the image {error}"]
        faults = []
        if self.array is None:
            self.digests[i] = _digest(pixels)
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            faults.append("the image holds values that are not finite")
        label, label_faults = self._checked_label(i, pixels)
        faults += label_faults
        known = (pixels.shape, pixels.dtype.str)
        if not faults and not (self.by_shape and known in self.seen):
            faults += self._checked_shape(pixels, affine, label)
            if not faults:
                self.seen.add(known)
        return pixels, faults

    def _checked_label(self, i: int, pixels: np.ndarray) -> tuple[np.ndarray | None, list[str]]:
        if self.label_images is None:
            return None, []
        try:
            label, _ = self.raw_label(i)
        except Unreadable as error:
            return None, [f"the label image {error}"]
        faults = []
        if label.shape[1:] != pixels.shape[1:] or len(label) != 1:
            faults.append(f"the label image has shape {list(label.shape)} where the image has {list(pixels.shape)}")
        if not np.isin(np.unique(label), np.arange(self.classes + 1)).all():
            faults.append(f"unknown label: the label image holds values other than 0 to {self.classes}")
        return label, faults

    def _checked_shape(self, pixels: np.ndarray, affine: np.ndarray | None, label: np.ndarray | None) -> list[str]:
        from dptrain.data.transforms import TransformFailed

        try:
            item = self._transformed(pixels, affine, label)
        except TransformFailed as error:
            return [f"the transform {error}; the image was {list(pixels.shape)}"]
        got, want = tuple(item["image"].shape), self.shape
        if got != want:
            return [f"the image has shape {list(got)} after the transforms, not {list(want)}{_channels(got, want)}"]
        if label is not None and tuple(item["label"].shape) != (1, *want[1:]):
            return [f"the label image has shape {list(item['label'].shape)} after the transforms"]
        return []

    def _transformed(self, pixels: np.ndarray, affine: np.ndarray | None, label: np.ndarray | None) -> dict[str, Any]:
        from dptrain.data import transforms

        item = {"image": _tensor(pixels, affine)}
        if label is not None:
            item["label"] = _tensor(label, affine)
        views = transforms.apply(self.transforms, item)
        if len(views) != 1:
            raise ConfigError(
                "data.transforms makes several crops of one record.",
                remedy="Move multi-crop transforms to data.augment: crops are views of their patient.",
            )
        result = {"image": transforms.plain(views[0]["image"]).float()}
        if label is not None:
            result["label"] = transforms.plain(views[0]["label"]).long()
        return result

    def item(self, i: int) -> dict[str, Any]:
        pixels, affine = self.raw(i)
        if i in self.digests and self.digests[i] != _digest(pixels):
            raise Unreadable("is not the one that was checked")
        label = None if self.label_images is None else self.raw_label(i)[0]
        return self._transformed(pixels, affine, label)

    def batch(self, indices: Sequence[int]) -> None:
        return None


def _digest(pixels: np.ndarray) -> bytes:
    """Tells within this process whether a file still holds the pixels that were registered."""
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()


def _tensor(pixels: np.ndarray, affine: np.ndarray | None) -> Any:
    """A float32 tensor of its own memory; a MetaTensor where an affine belongs to it."""
    import torch

    tensor = torch.from_numpy(np.array(pixels, dtype=np.float32, order="C"))
    if affine is None:
        return tensor
    from monai.data import MetaTensor

    return MetaTensor(tensor, affine=torch.from_numpy(affine))


def _channels(got: Sequence[int], want: Sequence[int]) -> str:
    if len(got) == len(want) and got[0] != want[0] and tuple(got[1:]) == tuple(want[1:]):
        return f" ({got[0]} channels instead of {want[0]})"
    return ""


def _hash_all(
    source: Source, keys: Keys, manifest: Manifest, workers: int | None, faults: list[str]
) -> list[bytes | None]:
    """The hash of every record; faults are added in the order of the rows."""
    threads = threads_for(source) if workers is None else workers
    hashes: list[bytes | None] = [None] * len(manifest)

    def one(i: int) -> tuple[bytes | None, list[str]]:
        pixels, found = source.check(i)
        return None if pixels is None else keys.record_hash(pixels), found

    with progress(len(manifest), "Checking records") as shown:
        for i, (digest, found) in enumerate(mapped(one, len(manifest), threads)):
            hashes[i] = digest
            faults.extend(f"{manifest.rows[i]}: {fault}" for fault in found)
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


# ---------------------------------------------------------------- library use


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
    named = list(classes) if classes else ["negative", "positive"]
    kind = task_spec(task).labels
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
    faults: list[str] = []
    texts: dict[str, list[str]] = {name: [] for name in ("patient_id", "split", *config.columns.label, *groups)}
    for item in dataset:
        texts["patient_id"].append(str(item.get(patient, "") or "").strip())
        texts["split"].append("" if split is None else str(item.get(split, "")))
        for group in groups:
            texts[group].append(str(item.get(group, "") or ""))
        if kind is Labels.FINDINGS:
            for column, value in zip(config.columns.label, np.asarray(item[label]).reshape(-1)):
                texts[column].append(str(_whole(value)))
        elif kind is Labels.CLASS:
            value = _whole(item[label])
            known = value is not None and 0 <= value < len(named)
            texts["label"].append(named[value or 0] if known else "outside the classes")
    manifest = Manifest(texts, [f"item {i}" for i in range(len(dataset))], Path())
    owners = _owners(config, manifest, keys, faults)
    labels = _labels(config, manifest, faults)
    hashes = _hash_all(source, keys, manifest, 1, faults)
    patients, of_record = _units(config, manifest, keys, owners, hashes, faults)
    _check_splits(config, patients, faults)
    raise_faults(faults)
    records = [Record(row, row, of_record[i], hashes[i] or b"") for i, row in enumerate(manifest.rows)]
    return Cohort(config, patients, records, labels, _groups(config, manifest), source)


def _whole(label: Any) -> int | None:
    """The class number that a label is; None for one that is none."""
    try:
        return int(np.asarray(label))
    except (TypeError, ValueError):
        return None


class DatasetSource:
    """Items of a dataset in memory or on disk, as they are."""

    parallel = False

    def __init__(self, dataset: Sequence[Mapping[str, Any]], image: str, label: str, config: DataConfig) -> None:
        self.dataset, self.image, self.label = dataset, image, label
        self.shape = shape_of(config)
        self.segmentation = task_spec(config.task).labels is Labels.MASK

    def check(self, i: int) -> tuple[np.ndarray | None, list[str]]:
        pixels = np.asarray(self.dataset[i][self.image])
        if pixels.shape != self.shape:
            return pixels, [f"the image has shape {list(pixels.shape)}, not {list(self.shape)}"]
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            return pixels, ["the image holds values that are not finite"]
        return pixels, []

    def item(self, i: int) -> dict[str, Any]:
        from dptrain.data.transforms import plain

        item = self.dataset[i]
        result = {"image": plain(item[self.image]).float()}
        if self.segmentation:
            result["label"] = plain(item[self.label]).long()
        return result

    def batch(self, indices: Sequence[int]) -> None:
        return None
