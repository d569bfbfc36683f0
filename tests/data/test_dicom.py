"""DICOM: whose files make one volume, in which order, where it lies, and what was not read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydicom.uid import generate_uid

from dptrain.data import load_records, scan
from dptrain.errors import DataUnreadable
from dptrain.settings import ColumnsConfig, DataConfig, DicomConfig
from tests.data import made
from tests.data.dicom_made import series, write_dicom
from tests.data.shared import FakeGrant, FakeKeys
from tests.data.test_identity import ALL_TRAIN

AXIAL, SAGITTAL, CORONAL = [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1]


def config_of(folder: Path, on: str = "SeriesInstanceUID", **changes: Any) -> DataConfig:
    return made.changed(
        DataConfig(
            root=str(folder),
            format="dicom",
            issuer="clinic",
            columns=ColumnsConfig(),
            split=ALL_TRAIN,
            label_values={"0": "negative", "1": "positive"},
            dicom=DicomConfig(labels="labels.csv", labels_on=on, series=True),
            image_shape=[1, 5, 4, 4],
        ),
        changes,
    )


def labels(folder: Path, names: Sequence[str], on: str = "SeriesInstanceUID") -> None:
    lines = [f"{on},label", *(f"{name},{i % 2}" for i, name in enumerate(names))]
    (folder / "labels.csv").write_text("\n".join(lines))


def refused(config: DataConfig) -> str:
    with pytest.raises(DataUnreadable) as caught:
        scan(config, FakeKeys())
    assert "secret" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("uid", ["shared", ""])
def test_a_series_of_two_people_is_a_fault(tmp_path: Path, uid: str) -> None:
    """De-identifiers leave one UID for all, or none: four people were one record of the first."""
    uid = uid and generate_uid()
    for number, patient in enumerate(["secretA", "secretB", "secretC"]):
        place = [(0, 0, 3.0 * k) for k in range(5)]
        series(tmp_path / f"p{number}", patient, place, range(5), SeriesInstanceUID=uid)
    labels(tmp_path, ["secretA", "secretB", "secretC"], on="PatientID")
    text = refused(config_of(tmp_path, on="PatientID"))
    assert ("shared by files of several patients" if uid else "SeriesInstanceUID is empty") in text
    single = made.changed(config_of(tmp_path, on="PatientID"), {"dicom.series": False, "image_shape": [1, 4, 4]})
    with pytest.raises(DataUnreadable, match="same pixels under two patients"):  # as single files they are three
        scan(single, FakeKeys())


def test_two_studies_of_a_person_are_two_volumes_of_one_patient(tmp_path: Path) -> None:
    uid = generate_uid()
    for study in range(2):
        place = [(0, 0, 3.0 * k) for k in range(5)]
        series(tmp_path / f"s{study}", "A", place, range(10 * study, 10 * study + 5), SeriesInstanceUID=uid)
    labels(tmp_path, ["A"], on="PatientID")
    cohort = scan(config_of(tmp_path, on="PatientID"), FakeKeys())
    assert (len(cohort.patients), len(cohort.records)) == (1, 2)


@pytest.mark.parametrize(("orientation", "axis"), [(AXIAL, 2), (SAGITTAL, 0), (CORONAL, 1)])
def test_slices_are_ordered_along_the_normal_of_their_planes(tmp_path: Path, orientation: Any, axis: int) -> None:
    place = [tuple(3.0 * k if i == axis else 0.0 for i in range(3)) for k in range(5)]
    uid = series(tmp_path / "a", "A", place, [1, 2, 3, 4, 5], ImageOrientationPatient=orientation)
    labels(tmp_path, [uid])
    cohort = scan(config_of(tmp_path), FakeKeys())
    order = load_records(cohort, [0], FakeGrant())[0, 0, :, 0, 0].tolist()
    assert order in ([1, 2, 3, 4, 5], [5, 4, 3, 2, 1])


def test_an_oblique_series_and_one_without_orientation_are_ordered_too(tmp_path: Path) -> None:
    normal = np.cross([0.6, 0.8, 0], [0, 0, -1])
    tilted = [tuple(7 + 2.5 * k * normal) for k in range(5)]
    uids = [
        series(tmp_path / "a", "A", tilted, [1, 2, 3, 4, 5], ImageOrientationPatient=[0.6, 0.8, 0, 0, 0, -1]),
        series(tmp_path / "b", "B", [(3.0 * k, 0, 0) for k in range(5)], [11, 12, 13, 14, 15]),
    ]
    labels(tmp_path, uids)
    cohort = scan(config_of(tmp_path), FakeKeys())
    volumes = load_records(cohort, range(2), FakeGrant())[:, 0, :, 0, 0]
    assert set(volumes.diff(dim=1).abs().unique().tolist()) == {1.0}


@pytest.mark.parametrize(
    ("positions", "tags", "text"),
    [
        ([(0, 0, 3.0 * (k % 3)) for k in range(6)], {}, "several images at one position"),
        ([(0, 0, 3.0 * k) for k in (0, 1, 2, 4, 5)], {}, "unevenly spaced"),
        ([None] * 5, {}, "neither positions nor different instance numbers"),
        ([(0, 0, 0)] * 5, {"ImageOrientationPatient": None}, "several images at one position"),
    ],
)
def test_series_that_are_no_volume_are_faults(tmp_path: Path, positions: Any, tags: Any, text: str) -> None:
    tags = {"ImageOrientationPatient": AXIAL} | tags
    if tags["ImageOrientationPatient"] is None:
        tags = {}
    uid = series(tmp_path / "a", "secret", positions, range(len(positions)), **tags)
    labels(tmp_path, [uid])
    said = refused(config_of(tmp_path, image_shape=[1, len(positions), 4, 4]))
    assert text in said
    assert "file 1 (and" in said


def test_a_localizer_among_the_slices_is_a_fault(tmp_path: Path) -> None:
    uid = series(tmp_path / "a", "A", [(0, 0, 3.0 * k) for k in range(4)], range(4), ImageOrientationPatient=AXIAL)
    write_dicom(
        tmp_path / "a" / "scout.dcm",
        np.full((4, 4), 9, np.uint16),
        PatientID="A",
        SeriesInstanceUID=uid,
        StudyInstanceUID="1.2.3",
        ImagePositionPatient=[0, 0, 0],
        ImageOrientationPatient=SAGITTAL,
    )
    labels(tmp_path, [uid])
    refused(config_of(tmp_path))  # another study makes it a volume of its own, of another shape


def test_a_volume_knows_its_spacing_and_orientation(tmp_path: Path) -> None:
    """Five slices of 3 mm with pixels of half a millimetre are 15 × 2 × 2 voxels of 1 mm, not 5 × 4 × 4."""
    place = [(0, 0, 3.0 * k) for k in range(5)]
    tags = {"ImageOrientationPatient": AXIAL, "PixelSpacing": [0.5, 0.5], "SliceThickness": 3}
    uid = series(tmp_path / "a", "A", place, [1, 2, 3, 4, 5], **tags)
    labels(tmp_path, [uid])
    spacing = {"_target_": "monai.transforms.Spacingd", "keys": ["image"], "pixdim": [1.0, 1.0, 1.0]}
    with pytest.raises(DataUnreadable) as caught:
        scan(config_of(tmp_path, transforms=[spacing]), FakeKeys())
    assert "[1, 13, 2, 2]" in str(caught.value)
    config = config_of(tmp_path, transforms=[spacing], image_shape=[1, 13, 2, 2])
    values = load_records(scan(config, FakeKeys()), [0], FakeGrant())[0, 0, :, 0, 0]
    assert torch.allclose(values, torch.linspace(1, 5, 13), atol=1e-4)
    turned = {"_target_": "monai.transforms.Orientationd", "keys": ["image"], "axcodes": "LAS"}
    config = config_of(tmp_path, transforms=[turned], image_shape=[1, 4, 4, 5])
    assert load_records(scan(config, FakeKeys()), [0], FakeGrant())[0, 0, 0, 0].tolist() == [1, 2, 3, 4, 5]


def test_transforms_that_go_by_place_are_refused_where_nothing_says_the_place(tmp_path: Path) -> None:
    uid = series(tmp_path / "a", "secret", [(0, 0, 3.0 * k) for k in range(5)], range(5))
    labels(tmp_path, [uid])
    spacing = {"_target_": "monai.transforms.Spacingd", "keys": ["image"], "pixdim": [1.0, 1.0, 1.0]}
    assert "Spacingd needs to know where the voxels lie" in refused(config_of(tmp_path, transforms=[spacing]))


@pytest.mark.parametrize("name", ["{uid}", "MR.{uid}", "{uid}.img", "{uid}.dcm", "IM0001-{number}"])
def test_files_are_known_by_their_preamble_not_their_name(tmp_path: Path, name: str) -> None:
    uids = [generate_uid() for _ in range(6)]
    for number, uid in enumerate(uids):
        file = tmp_path / name.format(uid=uid, number=number)
        write_dicom(file, np.full((4, 4), number + 1, np.uint16), PatientID=f"P{number}", SOPInstanceUID=uid)
    labels(tmp_path, uids, on="SOPInstanceUID")
    config = made.changed(config_of(tmp_path, on="SOPInstanceUID"), {"dicom.series": False, "image_shape": [1, 4, 4]})
    assert len(scan(config, FakeKeys()).records) == 6


def test_what_was_not_read_is_counted(tmp_path: Path) -> None:
    for number in range(3):
        write_dicom(
            tmp_path / f"{number}.dcm",
            np.full((4, 4), number + 1, np.uint16),
            PatientID=f"P{number}",
            AccessionNumber=f"A{number}",
            PatientSex="F",
            PatientAge="045Y",
            StudyDate="20200102",
        )
    write_dicom(tmp_path / "report.dcm", None, PatientID="P9")
    (tmp_path / "notes.txt").write_text("no image")
    labels(tmp_path, ["A0", "A1", "A2", "A7"], on="AccessionNumber")
    config = made.changed(
        config_of(tmp_path, on="AccessionNumber"),
        {
            "dicom.series": False,
            "image_shape": [1, 4, 4],
            "columns.groups": ["sex", "age", "study_date"],
            "columns.bins": {"age": [40, 60]},
        },
    )
    cohort = scan(config, FakeKeys())
    assert cohort.unread == {
        "files that are no DICOM": 1,
        "DICOM files without an image (directories, reports, plans, waveforms)": 1,
        "rows of the joined table that belong to no record": 1,
    }
    assert set(cohort.groups["age"]) == {"40 to below 60"}
    assert set(cohort.groups["study_date"]) == {"20200102"}
