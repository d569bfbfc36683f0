"""Whose each row is: patient keys, ids that look alike, and patients who share pixels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dptrain.data.faults import Faults
from dptrain.data.manifest import Manifest
from dptrain.identity import alike, near, oddity, patient_text
from dptrain.settings import DataConfig

APART = "Write each patient's id in one way, or declare data.near_ids=different if they are different people."
EACH = "Give each patient an id of their own, or declare data.near_ids=different if these are ids."


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


def owners_of(config: DataConfig, manifest: Manifest, keys: Keys, faults: Faults) -> list[bytes | None]:
    """The patient key of every row; None where the row does not say whose it is.

    Ids that name nobody, or look like another one of the same issuer, are faults unless they are declared different.
    """
    ids = manifest.columns[config.columns.patient]
    issuers = [config.issuer] * len(manifest)
    if config.columns.issuer is not None:
        issuers = [text or config.issuer for text in manifest.columns[config.columns.issuer]]
    seen: dict[tuple[str, str], bytes | None] = {}
    first: dict[tuple[str, str], str] = {}
    owners: list[bytes | None] = []
    for row, issuer, patient in zip(manifest.rows, issuers, ids):
        pair = (issuer, patient)
        if pair in seen:
            key = seen[pair]
            if key is None:
                _nobody(config, row, issuer, patient, faults)
            owners.append(key)
            continue
        key = None
        if not _nobody(config, row, issuer, patient, faults):
            key = keys.patient_key(issuer, patient_text(patient))
        seen[pair] = key
        first[pair] = row
        owners.append(key)
    _look_alikes(config, [pair for pair, key in seen.items() if key is not None], first, faults)
    return owners


def _nobody(config: DataConfig, row: str, issuer: str, patient: str, faults: Faults) -> bool:
    """Whether a row does not say whose it is, with the fault."""
    if not patient.strip():
        faults.add(f"no patient id in column '{config.columns.patient}'", row)
        return True
    if not issuer.strip():
        faults.add(f"no issuer of the patient id in column '{config.columns.issuer}'", row)
        return True
    odd = oddity(patient)
    if odd is not None and config.near_ids == "refuse":
        faults.add(odd, row, remedy=EACH)
        return True
    if config.columns.issuer is not None and oddity(issuer) is not None:
        faults.add(f"the issuer in column '{config.columns.issuer}' names nobody", row)
        return True
    return False


def _look_alikes(
    config: DataConfig, pairs: Sequence[tuple[str, str]], first: dict[tuple[str, str], str], faults: Faults
) -> None:
    forms: dict[tuple[str, str], tuple[str, str]] = {}
    for issuer, patient in pairs:
        form = (issuer, near(patient))
        other = forms.setdefault(form, (issuer, patient))
        if other[1] == patient:
            continue
        same = patient_text(other[1]) == patient_text(patient)
        if config.near_ids == "refuse" or same:
            row = f"{first[(issuer, patient)]} (as {first[other]})"
            faults.add(alike(other[1], patient), row, remedy=APART)


def units_of(
    config: DataConfig,
    manifest: Manifest,
    owners: Sequence[bytes | None],
    hashes: Sequence[bytes | None],
    faults: Faults,
) -> tuple[dict[bytes, list[int]], dict[bytes, list[bytes]]]:
    """Rows of each unit, and the keys of those who were merged into it because they share pixels."""
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
            faults.add(
                "the same pixels under two patients",
                f"{manifest.rows[i]} (as {manifest.rows[first[digest]]})",
                remedy="Drop the copies, or make the patients one unit: data.same_pixels=merge.",
            )
    rows: dict[bytes, list[int]] = {}
    aliases: dict[bytes, list[bytes]] = {}
    for i, owner in enumerate(owners):
        if owner is not None:
            rows.setdefault(root(owner), []).append(i)
    for key in parent:
        if root(key) != key:
            aliases.setdefault(root(key), []).append(key)
    return rows, aliases
