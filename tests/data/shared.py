"""Settings for the shared public data sets, as the recipes describe them, and stand-ins for keys and grants."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path
from typing import Any

import numpy as np

from dptrain.errors import LedgerRefused
from dptrain.settings import ColumnsConfig, DataConfig, NpzConfig, SplitConfig, TableConfig

SECRET = b"a secret for tests only"


class FakeKeys:
    """Keyed hashes as the ledger's keys make them, without files."""

    def patient_key(self, issuer: str, patient_id: str) -> bytes:
        return hmac.digest(SECRET, f"{len(issuer)}:{issuer}:{patient_id}".encode(), "sha256")

    def record_hash(self, array: np.ndarray) -> bytes:
        head = f"{array.shape}{array.dtype.str}".encode()
        return hmac.digest(SECRET, head + np.ascontiguousarray(array).tobytes(), hashlib.sha256)


class AnyData(str):
    """A fingerprint that equals all others, so that a fake grant is for whatever data a test makes."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


class FakeGrant:
    """A grant that is open for `committed` steps."""

    run, cohort, fingerprint = "fake", "fake", AnyData()

    def __init__(self, plan: Any = None, *, committed: int = 10**9, excluded: frozenset[bytes] = frozenset()) -> None:
        self.plan, self.committed, self.excluded, self.open = plan, committed, excluded, True
        self.purpose = "audit" if plan is None else "train"
        self.process = os.getpid()
        self.asked: list[int | None] = []

    def require(self, step: int | None = None, *, purpose: str | None = None, cohort: str | None = None) -> None:
        del purpose, cohort
        self.asked.append(step)
        if not self.open or (step is not None and step >= self.committed):
            raise LedgerRefused("The grant does not cover this.")


def kermany(root: Path) -> DataConfig:
    return DataConfig(
        name="kermany",
        root=str(root),
        folder="kermany_paediatric_cxr_224",
        issuer="Kermany 2018",
        columns=ColumnsConfig(patient="patient_group", image="file", label=["label"], split="split"),
        classes=["normal", "pneumonia"],
        label_values={"0": "normal", "1": "pneumonia"},
        drop={"duplicate_of": "*"},
        image_shape=[1, 224, 224],
        transforms=[
            {
                "_target_": "monai.transforms.ScaleIntensityRanged",
                "keys": ["image"],
                "a_min": 0,
                "a_max": 255,
                "b_min": 0,
                "b_max": 1,
            }
        ],
    )


NIH = [
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
]


def nih(root: Path, source: str = "kcr_64", size: int = 64) -> DataConfig:
    return DataConfig(
        name="nih",
        root=str(root),
        folder="nih_chestxray14_subset",
        issuer="NIH Clinical Center",
        columns=ColumnsConfig(
            patient="patient_id",
            image="file",
            label=list(NIH),
            split="split",
            groups=["sex", "age", "view"],
            bins={"age": [18, 40, 60]},
        ),
        task="multilabel",
        classes=list(NIH),
        keep={"source_set": source},
        image_shape=[1, size, size],
    )


def hippocampus(root: Path) -> DataConfig:
    return DataConfig(
        name="hippocampus",
        root=str(root),
        folder="msd_hippocampus",
        issuer="MSD Task04",
        unit="volume",
        units_per_person=2,
        columns=ColumnsConfig(patient="volume_id", image="image", label=["label"], split="split"),
        task="segmentation",
        classes=["anterior", "posterior"],
        image_shape=[1, 48, 64, 48],
        transforms=[
            {"_target_": "monai.transforms.NormalizeIntensityd", "keys": ["image"]},
            {
                "_target_": "monai.transforms.ResizeWithPadOrCropd",
                "keys": ["image", "label"],
                "spatial_size": [48, 64, 48],
            },
        ],
    )


def ecg(root: Path) -> DataConfig:
    return DataConfig(
        name="ecg",
        root=str(root),
        folder="ecg_mitbih_beats",
        manifest="beats.npz",
        format="npz",
        issuer="MIT-BIH",
        columns=ColumnsConfig(patient="patient_index", image="x_uV", label=["y"], groups=["sex", "age"]),
        npz=NpzConfig(lookup={"patient_index": "patient_ids", "y": "classes"}, table="manifest.csv"),
        task="multiclass",
        classes=["N", "S", "V", "F", "Q"],
        image_shape=[1, 84],
        transforms=[{"_target_": "monai.transforms.NormalizeIntensityd", "keys": ["image"]}],
    )


def readmission(root: Path) -> DataConfig:
    return DataConfig(
        name="readmission",
        root=str(root),
        folder="tabular",
        manifest="diabetes130_encounters.csv.gz",
        format="table",
        issuer="Diabetes 130",
        columns=ColumnsConfig(patient="patient_nbr", label=["readmitted"], groups=["race", "gender", "age"]),
        classes=["later or never", "within 30 days"],
        label_values={"NO": "later or never", ">30": "later or never", "<30": "within 30 days"},
        split=SplitConfig(calibration=0.1),
        table=TableConfig(
            numeric={"time_in_hospital": [1, 14], "num_medications": [1, 60], "num_lab_procedures": [1, 120]},
            categorical={"gender": ["Female", "Male"], "insulin": ["No", "Down", "Steady", "Up"]},
            binned={"number_inpatient": [0, 1, 2, 3, 5], "diag_1": [1, 140, 240, 250, 251, 280, 390, 460, 520, 580]},
        ),
    )
