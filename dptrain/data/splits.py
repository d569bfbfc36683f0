"""Who trains and who tests: per patient, from a column or by keyed hash, never by record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from dptrain.data.faults import Faults
from dptrain.data.manifest import Manifest
from dptrain.data.units import Keys
from dptrain.settings import DataConfig, SplitConfig
from dptrain.vocabulary import Split


def splits_of(
    config: DataConfig, manifest: Manifest, keys: Keys, rows: Mapping[bytes, Sequence[int]], faults: Faults
) -> dict[bytes, str]:
    """The split of every patient: from the column, or by keyed hash of the patient's key or group."""
    if config.columns.split is None:
        together = _together(config, manifest, keys, rows, faults)
        return {key: keyed_split(together.get(key, key), config.split) for key in rows}
    texts = manifest.columns[config.columns.split]
    values = config.split.values
    for row, text in zip(manifest.rows, texts):
        if text not in values:
            cause = f"unknown split in column '{config.columns.split}': allowed are {', '.join(values)}"
            faults.add(cause, row, remedy="Name its words: data.split.values={WORD: train, …}.")
    splits = {}
    for key, members in rows.items():
        named = [(values[texts[i]], i) for i in members if texts[i] in values]
        split = named[0][0] if named else Split.TRAIN
        for other, i in named:
            if other != split:
                cause = f"its patient is in split '{split}' by another row and in '{other}' by this one"
                faults.add(cause, manifest.rows[i])
        if split == Split.TRAIN and keyed_share(key, f"{config.split.salt}/calibration") < config.split.calibration:
            split = Split.CALIBRATION
        splits[key] = split
    return splits


def _together(
    config: DataConfig, manifest: Manifest, keys: Keys, rows: Mapping[bytes, Sequence[int]], faults: Faults
) -> dict[bytes, bytes]:
    """For each patient, the keyed hash of what `split.by` keeps together."""
    column = config.split.by
    if column is None:
        return {}
    texts = manifest.columns[column]
    together = {}
    for key, members in rows.items():
        first = texts[members[0]]
        for i in members:
            if not texts[i]:
                faults.add(f"nothing in column '{column}', which splits the patients", manifest.rows[i])
            elif texts[i] != first and first:
                faults.add(
                    f"column '{column}', which splits the patients, contradicts another row of the same patient",
                    f"{manifest.rows[i]} (as {manifest.rows[members[0]]})",
                )
        if first:
            together[key] = keys.patient_key(f"split by {column}", first)
    return together


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


def check_splits(config: DataConfig, used: set[str], faults: Faults) -> None:
    """Faults for splits that the settings want and nobody is in."""
    wanted: set[str] = {Split.TRAIN}
    if config.columns.split is None:
        wanted |= {name for name in (Split.VALIDATION, Split.TEST) if getattr(config.split, name) > 0}
    else:
        wanted |= {Split.TEST}
    if config.split.calibration > 0:
        wanted.add(Split.CALIBRATION)
    for name in Split:
        if name in wanted - used:
            faults.add(f"the split '{name}' has no patients")
