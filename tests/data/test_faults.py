"""Every planted fault is reported, all at once, with its row, and without ids, labels or pixels."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dptrain.data import read_manifest, scan
from dptrain.errors import ConfigError, DataUnreadable
from dptrain.settings import ColumnsConfig, NpzConfig
from tests.data import made
from tests.data.shared import FakeKeys


def faults_of(config) -> list[str]:
    with pytest.raises(DataUnreadable) as caught:
        scan(config, FakeKeys())
    assert caught.value.exit_code == 5
    assert "secret" not in str(caught.value)  # ids and file names of made.rows hold that word
    return caught.value.faults


def test_a_sound_manifest_has_no_faults(tmp_path):
    made.write(tmp_path, made.rows())
    cohort = scan(made.settings(tmp_path), FakeKeys())
    assert (len(cohort.patients), len(cohort.records)) == (8, 16)
    assert [len(cohort.split(name)) for name in ("train", "calibration", "validation", "test")] == [6, 0, 1, 1]
    assert set(cohort.groups["age"]) == {"below 18", "18 to below 65", "65 and above"}
    assert cohort.labels.dtype == np.int64
    assert "secret" not in repr(cohort) + repr(cohort.patients[0]) + repr(cohort.records[0])


def test_every_fault_is_reported_at_once_with_its_row(tmp_path):
    rows = made.rows()
    made.write(tmp_path, rows)
    (tmp_path / rows[0]["file"]).unlink()  # row 2
    whole = (tmp_path / rows[1]["file"]).read_bytes()
    (tmp_path / rows[1]["file"]).write_bytes(whole[: len(whole) // 2])  # row 3
    rows[2]["patient_id"] = " "  # row 4
    Image.fromarray(made.picture(5)).save(tmp_path / rows[9]["file"])  # row 11 = pixels of row 7
    rows[3]["label"] = "secret finding"  # row 5
    rows[4]["label"] = ""  # row 6
    Image.fromarray(made.picture(77, (9, 6))).save(tmp_path / rows[6]["file"])  # row 8
    Image.fromarray(made.picture(78, (8, 6, 3))).save(tmp_path / rows[7]["file"])  # row 9
    rows[8]["split"] = "secret split"  # row 10
    rows[10]["file"] = ""  # row 12
    rows[13]["split"] = "test"  # row 15: patient 6 validates by row 14
    rows[14]["split"] = rows[15]["split"] = "validation"  # nobody tests but patient 6, who validates
    made.write(tmp_path, rows, images=False)
    found = faults_of(made.settings(tmp_path))
    for expected in (
        "row 2: the image does not exist",
        "row 3: the image cannot be read: damaged, truncated or no image",
        "row 4: no patient id in column 'patient_id'",
        "row 5: unknown label in column 'label': allowed are 0, 1",
        "row 6: no label in column 'label'",
        "row 8 ([1, 9, 6]): the image has another shape after the transforms than [1, 8, 6]",
        "row 9 ([3, 8, 6]): the image has another number of channels after the transforms than [1, 8, 6]",
        "row 10: unknown split in column 'split': allowed are train, calibration, validation, val, test",
        "row 11 (as row 7): the same pixels under two patients",
        "row 12: the image is not named",
        "row 15: its patient is in split 'validation' by another row and in 'test' by this one",
        "the split 'test' has no patients",
    ):
        assert expected in found, (expected, found)
    assert len(found) == 12


def test_a_truncated_jpeg_and_a_text_file_are_unreadable(tmp_path):
    rows = made.rows()
    for row in rows:
        row["file"] = row["file"].replace(".png", ".jpg")
    made.write(tmp_path, rows, shape=(64, 64))
    path = tmp_path / rows[0]["file"]
    path.write_bytes(path.read_bytes()[:-400])
    (tmp_path / rows[1]["file"]).write_text("no picture")
    (tmp_path / rows[2]["file"]).write_bytes(b"")
    found = faults_of(made.settings(tmp_path, image_shape=[1, 64, 64]))
    assert found == ["row 2, row 3, row 4: the image cannot be read: damaged, truncated or no image"]


def test_text_that_is_not_utf8_is_named_by_line_and_the_rest_is_still_checked(tmp_path):
    rows = made.rows()
    made.write(tmp_path, rows)
    (tmp_path / rows[4]["file"]).unlink()
    path = tmp_path / "manifest.csv"
    lines = path.read_bytes().split(b"\n")
    lines[3] = lines[3].replace(b"secret1", b"secr\xe9t1", 1)
    path.write_bytes(b"\n".join(lines))
    found = faults_of(made.settings(tmp_path))
    assert "line 4: not UTF-8 text" in found
    assert "row 4, row 6: the image does not exist" in found  # row 4 names its file by a lost letter


def test_a_byte_order_mark_is_no_fault(tmp_path):
    made.write(tmp_path, made.rows())
    path = tmp_path / "manifest.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(scan(made.settings(tmp_path), FakeKeys()).records) == 16


def test_missing_columns_name_the_nearest(tmp_path):
    made.write(tmp_path, made.rows())
    columns = {"columns.patient": "pateint_id", "columns.groups": ["sex", "weight in kilograms"]}
    config = made.changed(made.settings(tmp_path), columns)
    found = faults_of(config)
    assert found[0] == "column 'pateint_id' is missing: did you mean patient_id?"
    assert found[1].startswith("column 'weight in kilograms' is missing: there are file, patient_id")


def test_rows_of_the_wrong_length_and_columns_twice(tmp_path):
    made.write(tmp_path, made.rows())
    path = tmp_path / "manifest.csv"
    lines = path.read_text().splitlines()
    lines[0] = lines[0].replace("sex,age", "sex,sex")
    lines[4] += ",one,more"
    path.write_text("\n".join(lines))
    config = made.changed(made.settings(tmp_path), {"columns.groups": []})
    found = faults_of(config)
    assert "a column occurs twice in the header" in found
    assert "row 5 (8): another number of fields than the 6 of the header" in found


def test_a_row_twice_is_a_fault(tmp_path):
    rows = made.rows()
    made.write(tmp_path, [*rows, rows[3]])
    same = "row 18 (as row 5): the same file in column 'file' as an earlier row"
    assert faults_of(made.settings(tmp_path)) == [same]


def test_patients_who_share_pixels_can_be_merged_into_one_unit(tmp_path):
    rows = made.rows()
    made.write(tmp_path, rows)
    Image.fromarray(made.picture(0)).save(tmp_path / rows[4]["file"])  # patient 2 shows an image of patient 0
    config = made.settings(tmp_path, same_pixels="merge")
    cohort = scan(config, FakeKeys())
    assert len(cohort.patients) == 7
    (merged,) = [patient for patient in cohort.patients if patient.aliases]
    assert len(merged.records) == 4
    keys = FakeKeys()
    both = {keys.patient_key("clinic", "secret0"), keys.patient_key("clinic", "secret2")}
    assert {merged.key, *merged.aliases} == both
    assert all(merged.excluded({key}) for key in both)  # leaving out either leaves out the unit


def test_merged_patients_of_two_splits_are_a_fault(tmp_path):
    rows = made.rows()
    made.write(tmp_path, rows)
    Image.fromarray(made.picture(0)).save(tmp_path / rows[15]["file"])
    found = faults_of(made.settings(tmp_path, same_pixels="merge"))
    assert any("its patient is in split 'train' by another row and in 'test' by this one" in fault for fault in found)


def test_values_that_are_not_finite(tmp_path):
    rows = made.rows(6, 1)
    for row in rows:
        row["file"] = row["file"].replace(".png", ".npy")
    made.write(tmp_path, rows, images=False)
    (tmp_path / "images").mkdir()
    for seed, row in enumerate(rows):
        pixels = made.picture(seed).astype(np.float32)
        if seed == 2:
            pixels[0, 0] = np.nan
        np.save(tmp_path / row["file"], pixels)
    assert faults_of(made.settings(tmp_path)) == ["row 4: the image holds values that are not finite"]


def test_a_transform_that_fails_shows_no_pixels(tmp_path):
    made.write(tmp_path, made.rows(6, 1))
    squeeze = {"_target_": "monai.transforms.SqueezeDimd", "keys": ["image"], "dim": 1}
    (found,) = faults_of(made.settings(tmp_path, transforms=[squeeze]))
    rows = ", ".join(f"row {i} (the image was [1, 8, 6])" for i in range(2, 7))
    assert found == f"{rows} and 1 more (6 in all): the transform SqueezeDimd failed (ValueError)"


def test_nothing_left_after_filters(tmp_path):
    made.write(tmp_path, made.rows())
    found = faults_of(made.settings(tmp_path, keep={"sex": "X"}))
    assert "no rows are left after data.keep and data.drop" in found


def test_missing_folder_manifest_and_broken_files(tmp_path):
    made.write(tmp_path, made.rows())
    with pytest.raises(DataUnreadable, match="data folder does not exist"):
        read_manifest(made.settings(tmp_path / "nowhere"))
    with pytest.raises(DataUnreadable) as caught:
        read_manifest(made.settings(tmp_path, manifest="manifst.csv"))
    assert "Did you mean manifest.csv?" in str(caught.value)
    (tmp_path / "list.json").write_text("{")
    with pytest.raises(DataUnreadable, match="no valid JSON"):
        read_manifest(made.settings(tmp_path, manifest="list.json", format="decathlon"))
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(DataUnreadable, match="archive"):
        read_manifest(made.settings(tmp_path, manifest="a.npz", format="npz"))
    (tmp_path / "t.csv.gz").write_bytes(b"\x1f\x8b\x08 truncated")
    with pytest.raises(DataUnreadable, match="cannot be read"):
        read_manifest(made.settings(tmp_path, manifest="t.csv.gz"))


def test_pickles_are_never_loaded(tmp_path):
    rows = made.rows(6, 1)
    made.write(tmp_path, rows)
    rows[0]["file"] = "images/evil.npy"
    made.write(tmp_path, rows, images=False)
    np.save(tmp_path / "images/evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert any(fault.startswith("row 2: the image cannot be read") for fault in faults_of(made.settings(tmp_path)))
    np.savez(tmp_path / "a.npz", image=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataUnreadable, match="archive"):
        read_manifest(made.settings(tmp_path, manifest="a.npz", format="npz"))


def test_decathlon_and_npz_faults_name_their_rows(tmp_path):
    items = [{"image": "a.npy", "label": "0", "patient_id": "secret"}, "a path alone"]
    (tmp_path / "list.json").write_text(json.dumps({"training": items}))
    config = made.settings(tmp_path, manifest="list.json", format="decathlon", columns=ColumnsConfig(image="image"))
    found = faults_of(config)
    assert "training item 2: no object with image, label and patient" in found
    assert "training item 1: the image does not exist" in found
    np.savez(
        tmp_path / "a.npz",
        image=np.zeros((3, 4), np.uint8),
        who=np.array([0, 1, 9]),
        names=np.array(["secret a", "secret b"]),
        label=np.array([0, 1, 2]),
    )
    config = made.settings(
        tmp_path,
        manifest="a.npz",
        format="npz",
        image_shape=[1, 4],
        columns=ColumnsConfig(image="image", patient="who"),
        npz=NpzConfig(lookup={"who": "names"}),
    )
    found = faults_of(config)
    assert "row 2: 'who' points outside 'names'" in found
    assert "row 2: unknown label in column 'label': allowed are 0, 1" in found
    assert "row 1 (as row 0): the same pixels under two patients" in found


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"issuer": "  "}, "issuer is empty"),
        ({"unit": " "}, "unit is empty"),
        ({"format": "cvs"}, "csv"),
        ({"task": "multilabel"}, "2 classes but 1 label"),
        ({"classes": ["a"]}, "two classes"),
        ({"task": "multiclass", "classes": ["a"]}, "two classes"),
        ({"label_values": {"0": "nagative"}}, "negative"),
        ({"image_shape": []}, "no shape"),
        ({"split.train": 0.9}, "sum to 1"),
        ({"split.values": {"a": "tst"}}, "test"),
        ({"split.calibration": 1}, "below 1"),
        ({"format": "table"}, "names no columns"),
        ({"format": "table", "table.numeric": {"a": [2, 1]}}, "must rise"),
        ({"units_per_person": 0}, "at least 1"),
        ({"same_pixels": "keep"}, "merge"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path, change, text):
    made.write(tmp_path, made.rows())
    with pytest.raises(ConfigError, match=text):
        scan(made.changed(made.settings(tmp_path), change), FakeKeys())


def test_importing_the_floor_is_light():
    code = "import sys, dptrain.data; sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
