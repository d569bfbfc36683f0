"""The public data sets scan without a fault, with the numbers that their pages state."""

from __future__ import annotations

import csv

import pytest
import torch

from dptrain.data import load_tensors, scan
from dptrain.samples.fetch import KERMANY_FOLDER
from tests.data import shared
from tests.data.made import changed
from tests.data.shared import FakeGrant, FakeKeys

pytestmark = pytest.mark.shared_data
EVERYONE_TRAINS = {"columns.split": None, "split.train": 1.0, "split.validation": 0.0, "split.test": 0.0}


def sizes(cohort):
    return {name: len(cohort.split(name)) for name in ("train", "validation", "test")}


def test_kermany(shared_data):
    cohort = scan(shared.kermany(shared_data), FakeKeys())
    assert (len(cohort.patients), len(cohort.records)) == (3117, 5824)  # 32 copies are dropped
    assert sizes(cohort) == {"train": 2215, "validation": 472, "test": 430}
    assert max(len(patient.records) for patient in cohort.patients) == 31
    images, labels = load_tensors(cohort, range(3), FakeGrant())
    assert images.shape == (3, 1, 224, 224)
    assert 0 <= images.min() < images.max() <= 1
    assert labels.dtype == torch.int64


def test_kermany_finds_the_copies_that_are_not_flagged(shared_data, tmp_path):
    rows = list(csv.DictReader((shared_data / KERMANY_FOLDER / "manifest.csv").open(encoding="utf-8")))
    copies = {row["duplicate_of"] for row in rows if row["duplicate_of"]}
    few = [row for row in rows if row["duplicate_of"] or row["file"] in copies]
    for row in few:
        row["split"] = "train" if row is not few[-1] else "test"
    changes = {"root": str(tmp_path), "folder": "", "drop": {}, "columns.patient": "patient_id", "outside": "allowed"}
    config = changed(shared.kermany(shared_data), {**changes, "same_pixels": "merge", **EVERYONE_TRAINS})
    (tmp_path / "manifest.csv").write_text(
        "\n".join([",".join(few[0]), *(",".join(row.values()) for row in few)]), encoding="utf-8"
    )
    (tmp_path / "images").symlink_to(shared_data / KERMANY_FOLDER / "images")
    cohort = scan(config, FakeKeys())
    assert sum(len(patient.aliases) for patient in cohort.patients) == 1  # one pair of ids shares its pixels


@pytest.mark.parametrize(("source", "size", "patients"), [("kcr_64", 64, 264), ("talo_1024", 224, 682)])
def test_nih(shared_data, source, size, patients):
    cohort = scan(shared.nih(shared_data, source, size), FakeKeys())
    assert (len(cohort.patients), len(cohort.records)) == (patients, 1000)
    assert cohort.labels.shape == (1000, 14)
    assert set(cohort.groups) == {"sex", "age", "view"}
    assert set(cohort.groups["view"]) == {"AP", "PA"}


def test_hippocampus(shared_data):
    config = changed(shared.hippocampus(shared_data), {"keep": {"split": "test"}, **EVERYONE_TRAINS})
    cohort = scan(config, FakeKeys())
    assert len(cohort.records) == 32
    images, labels = load_tensors(cohort, range(4), FakeGrant())
    assert images.shape == labels.shape == (4, 1, 48, 64, 48)
    assert labels.unique().tolist() == [0, 1, 2]
    assert images.abs().max() < 100  # each volume by its own mean and deviation


def test_ecg(shared_data):
    config = changed(shared.ecg(shared_data), {"keep": {"y": "V"}})
    cohort = scan(config, FakeKeys())
    assert len(cohort.records) == 7_235
    assert set(cohort.groups["sex"]) == {"F", "M"}
    assert load_tensors(cohort, range(5), FakeGrant())[0].shape == (5, 1, 84)


@pytest.mark.slow
def test_ecg_whole(shared_data):
    cohort = scan(shared.ecg(shared_data), FakeKeys())
    assert (len(cohort.patients), len(cohort.records)) == (47, 109_452)
    assert torch.bincount(torch.from_numpy(cohort.labels)).tolist() == [90_594, 2_781, 7_235, 802, 8_040]


@pytest.mark.slow
def test_readmission(shared_data):
    cohort = scan(shared.readmission(shared_data), FakeKeys())
    assert (len(cohort.patients), len(cohort.records)) == (71_518, 101_766)
    assert round(float(cohort.labels.mean()), 3) == 0.112
    assert cohort.split("calibration")
    images, _ = load_tensors(cohort, cohort.records_of(cohort.split("train")), FakeGrant())
    assert images.abs().max() <= 1
