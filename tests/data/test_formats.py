"""Every format becomes the same kind of cohort: CSV, Decathlon, DICOM, NIfTI, NumPy, NPZ, tables, own datasets."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from dptrain.data import PatientLoader, cohort_from_dataset, load_records, load_tensors, scan, tensors_of
from dptrain.data.tables import feature_names
from dptrain.errors import CheckRefused, ConfigError, DataUnreadable
from dptrain.settings import ColumnsConfig, DataConfig, DicomConfig, NpzConfig, SplitConfig, TableConfig
from tests.data import made
from tests.data.shared import FakeGrant, FakeKeys
from tests.data.test_sampling import plan

SIXTHS = SplitConfig(values={"training": "train", "validation": "validation", "test": "test"})


def test_png_and_jpeg_are_not_transposed_and_16_bit_is_kept(tmp_path):
    rows = made.rows(6, 1)
    made.write(tmp_path, rows)
    for row in rows:
        row["file"] = row["file"].replace(".png", ".tif")
    deep = [(made.picture(seed).astype(np.uint16) * 257) for seed in range(6)]
    made.write(tmp_path, rows, images=False)
    for row, pixels in zip(rows, deep):
        Image.fromarray(pixels).save(tmp_path / row["file"])
    cohort = scan(made.settings(tmp_path), FakeKeys())
    order = [int(record.row.removeprefix("row ")) - 2 for record in cohort.records]
    loaded = load_records(cohort, range(6), FakeGrant())
    assert type(loaded) is torch.Tensor
    assert loaded.shape == (6, 1, 8, 6)
    assert np.array_equal(loaded[:, 0].numpy(), np.stack([deep[i] for i in order]).astype(np.float32))


def test_colour_and_palette_images_have_three_channels(tmp_path):
    rows = made.rows(6, 1)
    made.write(tmp_path, rows, shape=(8, 6, 3))
    path = tmp_path / rows[0]["file"]
    Image.open(path).convert("P").save(path)
    cohort = scan(made.settings(tmp_path, image_shape=[3, 8, 6]), FakeKeys())
    assert load_records(cohort, [0], FakeGrant()).shape == (1, 3, 8, 6)


def volumes(folder: Path, number: int = 6) -> None:
    (folder / "v").mkdir(parents=True)
    random = np.random.default_rng(0)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    for i in range(number):
        shape = (6 + i, 7, 5)
        image = random.normal(size=shape).astype(np.float32) * 10**i
        label = random.integers(0, 3, shape).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / f"v/{i}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, affine), folder / f"v/{i}_label.nii.gz")
    splits = {"training": range(number - 2), "validation": [number - 2], "test": [number - 1]}
    items = {
        name: [
            {"image": f"v/{i}.nii.gz", "label": f"v/{i}_label.nii.gz", "patient_id": f"secret{i}", "age": 10 * i}
            for i in members
        ]
        for name, members in splits.items()
    }
    (folder / "dataset.json").write_text(json.dumps({"name": "made", "labels": {"0": "background"}, **items}))


def segmentation(folder: Path) -> DataConfig:
    return DataConfig(
        root=str(folder),
        manifest="dataset.json",
        format="decathlon",
        issuer="clinic",
        columns=ColumnsConfig(image="image", split="section", groups=["age"], bins={"age": [25]}),
        split=SIXTHS,
        task="segmentation",
        classes=["a", "b"],
        image_shape=[1, 8, 8, 8],
        transforms=[
            {"_target_": "monai.transforms.NormalizeIntensityd", "keys": ["image"]},
            {
                "_target_": "monai.transforms.ResizeWithPadOrCropd",
                "keys": ["image", "label"],
                "spatial_size": [8, 8, 8],
            },
        ],
    )


def test_decathlon_nifti_segmentation_with_multi_crop_views(tmp_path):
    volumes(tmp_path)
    augment = [
        {
            "_target_": "monai.transforms.RandCropByPosNegLabeld",
            "keys": ["image", "label"],
            "label_key": "label",
            "spatial_size": [4, 4, 4],
            "num_samples": 4,
        },
        {"_target_": "monai.transforms.RandFlipd", "keys": ["image", "label"], "prob": 0.5},
    ]
    config = replace(segmentation(tmp_path), augment=augment)
    cohort = scan(config, FakeKeys())
    images, labels = load_tensors(cohort, range(6), FakeGrant())
    assert images.shape == labels.shape == (6, 1, 8, 8, 8)
    assert labels.dtype == torch.int64
    assert labels.max() == 2
    p = plan(public_size=4, expected_batch_size=4, delta=1e-5, steps=2, views=2, max_records_per_patient=1)
    with pytest.raises(ConfigError, match="2 views × 4 crops = 8"):
        PatientLoader(cohort, p, FakeGrant(), chunk=7)
    loader = PatientLoader(cohort, p, FakeGrant(), chunk=16)
    steps = [list(logical.chunks()) for logical in loader]
    for chunks in steps:
        assert [chunk.patients for chunk in chunks] == [2, 2]
        for chunk in chunks:
            assert chunk.image.shape == chunk.label.shape == (16, 1, 4, 4, 4)
            assert chunk.patient.tolist() == [0] * 8 + [1] * 8  # crops are views of their patient
            assert type(chunk.image) is torch.Tensor
    assert not torch.equal(steps[0][0].image, steps[1][0].image)  # drawn afresh
    again = load_tensors(cohort, range(6), FakeGrant())[0]
    assert torch.equal(again, images)


def test_label_images_are_checked(tmp_path):
    volumes(tmp_path)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(np.full((6, 7, 5), 7, np.uint8), affine), tmp_path / "v/0_label.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3), np.uint8), affine), tmp_path / "v/1_label.nii.gz")
    (tmp_path / "v/2_label.nii.gz").unlink()
    whole = (tmp_path / "v/3.nii.gz").read_bytes()
    (tmp_path / "v/3.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataUnreadable) as caught:
        scan(segmentation(tmp_path), FakeKeys())
    assert caught.value.faults == [
        "training item 1: unknown label: the label image holds values other than 0 to 2",
        "training item 2: the label image lies elsewhere than the image",
        "training item 3: the label image does not exist",
        "training item 4: the image cannot be read: damaged, truncated or no image",
    ]


def test_spacing_sees_the_affine_of_a_nifti(tmp_path):
    volumes(tmp_path)
    config = segmentation(tmp_path)
    spacing = {"_target_": "monai.transforms.Spacingd", "keys": ["image", "label"], "pixdim": [1.0, 1.0, 1.0]}
    transforms = [{**spacing, "mode": ["bilinear", "nearest"]}, config.transforms[1]]
    config = replace(config, transforms=transforms, image_shape=[1, 8, 8, 8])
    cohort = scan(config, FakeKeys())
    assert torch.isfinite(load_records(cohort, [0], FakeGrant())).all()


def test_channels_in_several_files_are_joined(tmp_path):
    volumes(tmp_path)
    content = json.loads((tmp_path / "dataset.json").read_text())
    for section in ("training", "validation", "test"):
        for item in content[section]:
            item["image"] = [item["image"], item["image"]]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    config = replace(segmentation(tmp_path), image_shape=[2, 8, 8, 8])
    cohort = scan(config, FakeKeys())
    images = load_records(cohort, range(6), FakeGrant())
    assert images.shape == (6, 2, 8, 8, 8)
    content["test"][0]["image"][1] = content["training"][0]["image"][0]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataUnreadable, match="test item 1: the image is made of files that differ in size"):
        scan(config, FakeKeys())


def write_dicom(path: Path, pixels: np.ndarray, **tags) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"  # type: ignore[assignment]
    meta.MediaStorageSOPInstanceUID = tags.get("SOPInstanceUID", generate_uid())
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.Modality = "DX"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.BitsAllocated, data.BitsStored, data.HighBit = 1, 16, 12, 11
    data.PixelRepresentation = 0
    data.PhotometricInterpretation = "MONOCHROME2"
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = pixels.astype("<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def dicom_settings(folder: Path, **changes) -> DataConfig:
    config = DataConfig(
        root=str(folder),
        format="dicom",
        issuer="clinic",
        columns=ColumnsConfig(
            patient="PatientID",
            label=["label"],
            split="part",
            issuer="IssuerOfPatientID",
            groups=["PatientSex", "PatientAge", "ViewPosition"],
            bins={"PatientAge": [18]},
        ),
        dicom=DicomConfig(labels="labels.csv", labels_on="AccessionNumber"),
        label_values={"0": "negative", "1": "positive"},
        image_shape=[1, 8, 6],
    )
    return replace(config, **changes)


def dicom_folder(folder: Path, patients: int = 6) -> list[np.ndarray]:
    lines, pictures = ["AccessionNumber,label,part"], []
    for i in range(patients):
        pixels = made.picture(i).astype(np.uint16) * 16
        pictures.append(pixels)
        tags = {
            "PatientID": f"secret{i}",
            "IssuerOfPatientID": "Hospital B" if i == 0 else "",
            "PatientSex": "FM"[i % 2],
            "PatientAge": "018M" if i == 0 else f"{20 + i:03d}Y",
            "ViewPosition": "AP",
            "AccessionNumber": f"A{i}",
            "SeriesInstanceUID": generate_uid(),
        }
        if i == 1:
            tags["PhotometricInterpretation"] = "MONOCHROME1"
            pixels = 4095 - pixels
        if i == 2:
            tags |= {"RescaleSlope": 2, "RescaleIntercept": -1000}  # type: ignore[dict-item]
        write_dicom(folder / f"study{i}/image{'.dcm' if i else ''}", pixels, **tags)
        part = "test" if i == patients - 1 else "validation" if i == patients - 2 else "train"
        lines.append(f"A{i},{i % 2},{part}")
    (folder / "labels.csv").write_text("\n".join(lines))
    (folder / "notes.txt").write_text("not an image")
    return pictures


def test_a_dicom_folder_gives_patient_issuer_sex_age_and_view(tmp_path):
    pictures = dicom_folder(tmp_path)
    cohort = scan(dicom_settings(tmp_path), FakeKeys())
    keys = FakeKeys()
    expected = {keys.patient_key("Hospital B", "secret0")} | {
        keys.patient_key("clinic", f"secret{i}") for i in range(1, 6)
    }
    assert {patient.key for patient in cohort.patients} == expected
    position = {cohort.records[i].row: i for i in range(6)}
    of_file = [position[f"file {i + 1}"] for i in range(6)]
    assert [cohort.groups["PatientAge"][i] for i in of_file] == ["below 18"] + ["18 and above"] * 5
    assert [cohort.groups["PatientSex"][i] for i in of_file] == list("FMFMFM")
    assert set(cohort.groups["ViewPosition"]) == {"AP"}
    assert cohort.labels[of_file].tolist() == [0, 1, 0, 1, 0, 1]
    loaded = load_records(cohort, of_file, FakeGrant())[:, 0].numpy()
    assert np.array_equal(loaded[0], pictures[0])
    assert np.array_equal(loaded[1], pictures[1])  # MONOCHROME1 is turned round
    assert np.array_equal(loaded[2], pictures[2] * 2.0 - 1000)  # the modality's rescale


def test_a_dicom_folder_reports_unreadable_files_and_libraries_say_nothing(tmp_path, capfd, recwarn, caplog):
    dicom_folder(tmp_path)
    path = tmp_path / "study3/image.dcm"
    path.write_bytes(path.read_bytes()[:-20])
    (tmp_path / "study4/secret.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    with pytest.raises(DataUnreadable) as caught:
        scan(dicom_settings(tmp_path), FakeKeys())
    assert "secret" not in str(caught.value)
    assert any(fault.startswith("file 4: the image cannot be read") for fault in caught.value.faults)
    heard = [*capfd.readouterr(), *(str(warning.message) for warning in recwarn), caplog.text]
    assert not any("secret" in text for text in heard)


def test_dicom_files_in_a_csv_and_series_as_volumes(tmp_path):
    for series in range(6):
        for place in (2, 0, 1):  # files lie out of order
            write_dicom(
                tmp_path / f"p{series}/slice{(place * 2 + 1) % 3}.dcm",
                np.full((4, 4), 10 * series + place),
                PatientID=f"secret{series}",
                SeriesInstanceUID=f"1.2.{series}",
                SOPInstanceUID=f"1.2.{series}.{place}",
                ImagePositionPatient=[0, 0, 3 * place],
                AccessionNumber=f"A{series}",
            )
    lines = ["AccessionNumber,label"] + [f"A{i},{i % 2}" for i in range(6)]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    everyone = SplitConfig(train=1.0, validation=0.0, test=0.0)
    config = dicom_settings(tmp_path, image_shape=[1, 3, 4, 4], split=everyone)
    config = made.changed(config, {"dicom.series": True, "columns.split": None, "columns.groups": []})
    cohort = scan(config, FakeKeys())
    assert len(cohort.records) == 6
    volumes_read = load_records(cohort, range(6), FakeGrant())
    assert volumes_read.shape == (6, 1, 3, 4, 4)
    assert all((v[0, :, 0, 0].diff() == 1).all() for v in volumes_read)  # slices in order of their position


def test_numpy_files_with_and_without_channels(tmp_path):
    rows = made.rows(6, 1)
    for row in rows:
        row["file"] = row["file"].replace(".png", ".npy")
    made.write(tmp_path, rows, images=False)
    (tmp_path / "images").mkdir()
    for seed, row in enumerate(rows):
        pixels = made.picture(seed).astype(np.int16)
        np.save(tmp_path / row["file"], pixels[None] if seed % 2 else pixels)
    cohort = scan(made.settings(tmp_path), FakeKeys())
    assert load_records(cohort, range(6), FakeGrant()).shape == (6, 1, 8, 6)


def test_rows_of_an_npz_with_names_looked_up_and_groups_joined(tmp_path):
    random = np.random.default_rng(0)
    np.savez(
        tmp_path / "signals.npz",
        signal=random.integers(-999, 999, (30, 12), dtype=np.int16),
        who=np.arange(30) % 6,
        names=np.array([f"secret{i}" for i in range(6)]),
        y=np.arange(30) % 3,
        part=(np.arange(30) % 6) // 2,
        bad=np.arange(30) == 7,
    )
    lines = ["id,sex", *(f"secret{i},{'FM'[i % 2]}" for i in range(6)), "secret0,F"]
    (tmp_path / "people.csv").write_text("\n".join(lines))
    config = DataConfig(
        root=str(tmp_path),
        manifest="signals.npz",
        format="npz",
        issuer="clinic",
        columns=ColumnsConfig(patient="who", image="signal", label=["y"], split="part", groups=["sex"]),
        npz=NpzConfig(lookup={"who": "names"}, table="people.csv", table_patient="id"),
        split=SplitConfig(values={"0": "train", "1": "validation", "2": "test"}),
        drop={"bad": "1"},
        task="multiclass",
        classes=["0", "1", "2"],
        image_shape=[1, 12],
    )
    cohort = scan(config, FakeKeys())
    assert (len(cohort.patients), len(cohort.records)) == (6, 29)
    assert set(cohort.groups["sex"]) == {"F", "M"}
    row8 = next(i for i, record in enumerate(cohort.records) if record.row == "row 8")
    with np.load(tmp_path / "signals.npz") as archive:
        assert np.array_equal(load_records(cohort, [row8], FakeGrant())[0, 0].numpy(), archive["signal"][8])


def test_tables_are_encoded_by_declared_ranges_alone(tmp_path):
    text = "id,stay,drug,code,label\nsecret1,5,A,250.8,no\nsecret2,99,Z,V57,yes\n"
    text += "secret3,?,B,12,no\nsecret4,1,A,300,yes\n"
    with gzip.open(tmp_path / "t.csv.gz", "wt") as file:
        file.write(text)
    config = DataConfig(
        root=str(tmp_path),
        manifest="t.csv.gz",
        format="table",
        issuer="clinic",
        columns=ColumnsConfig(patient="id"),
        split=SplitConfig(train=1, validation=0, test=0),
        classes=["no", "yes"],
        table=TableConfig(
            numeric={"stay": [1, 9]}, categorical={"drug": ["A", "B"]}, binned={"code": [100, 250, 260]}
        ),
    )
    cohort = scan(config, FakeKeys())
    rows = [int(record.row.removeprefix("row ")) - 2 for record in cohort.records]
    features = load_records(cohort, range(4), FakeGrant())[[rows.index(i) for i in range(4)]]
    names = "stay drug=A drug=B drug=other code<250 code>=250 code>=260 code=other"
    assert feature_names(config.table) == names.split()
    assert features.tolist() == [
        [0, 1, 0, 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 0, 0, 0, 1],
        [0, 0, 1, 0, 1, 0, 0, 0],
        [-1, 1, 0, 0, 0, 0, 1, 0],
    ]
    fewer = text.splitlines()
    with gzip.open(tmp_path / "t.csv.gz", "wt") as file:
        file.write("\n".join(fewer[:-1]))
    alone = scan(config, FakeKeys())
    at = [alone.records[i].row for i in range(3)].index("row 2")
    assert torch.equal(load_records(alone, [at], FakeGrant())[0], features[0])  # one row says nothing of another
    data = tensors_of(cohort, "train", FakeGrant())
    p = plan(public_size=4, expected_batch_size=4, delta=1e-5, steps=1)
    (chunk,) = next(iter(PatientLoader(data, p, FakeGrant()))).chunks()
    assert chunk.image.shape == (4, 8)


def test_excluded_patients_come_back_as_zeros_and_are_not_read(tmp_path):
    made.write(tmp_path, made.rows(6, 2))
    cohort = scan(made.settings(tmp_path), FakeKeys())
    gone = cohort.patients[2]
    for record in gone.records:
        (tmp_path / cohort.records[record].image).unlink()
    grant = FakeGrant(excluded=frozenset({gone.key}))
    loaded = load_records(cohort, range(12), grant)
    for i, record in enumerate(loaded):
        assert bool((record == 0).all()) == (i in gone.records)
    assert 2 not in cohort.split(gone.split, excluded=grant.excluded)
    with pytest.raises(DataUnreadable) as caught:
        load_records(cohort, gone.records, FakeGrant())
    assert "secret" not in str(caught.value)


def test_a_keyed_hash_split_stays_when_a_patient_joins(tmp_path):
    config = made.settings(tmp_path, split=SplitConfig(train=0.5, validation=0.25, test=0.25, calibration=0.3))
    config = made.changed(config, {"columns.split": None})
    rows = made.rows(60, 1)
    made.write(tmp_path, rows, shape=(8, 6))
    before = {p.key: p.split for p in scan(config, FakeKeys()).patients}
    assert {"train", "calibration", "validation", "test"} == set(before.values())
    made.write(tmp_path, made.rows(61, 1))
    after = {p.key: p.split for p in scan(config, FakeKeys()).patients}
    assert len(after) == 61
    assert all(after[key] == split for key, split in before.items())
    config = made.changed(config, {"split.salt": "another"})
    assert {p.key: p.split for p in scan(config, FakeKeys()).patients} != after


def test_a_group_column_keeps_patients_together(tmp_path):
    rows = made.rows(60, 2)
    for row in rows:
        row["site"] = "abcdefghijklmnopqrst"[int(row["patient_id"].removeprefix("secret")) // 3]
    made.write(tmp_path, rows)
    config = made.settings(tmp_path, split=SplitConfig(train=0.6, validation=0.2, test=0.2, by="site"))
    config = made.changed(config, {"columns.split": None, "columns.groups": ["site"]})
    cohort = scan(config, FakeKeys())
    of_site: dict[str, set[str]] = {}
    for record, site in zip(cohort.records, cohort.groups["site"]):
        of_site.setdefault(site, set()).add(cohort.patients[record.patient].split)
    assert all(len(splits) == 1 for splits in of_site.values())
    rows[1]["site"], rows[3]["site"] = "z", ""
    made.write(tmp_path, rows, images=False)
    with pytest.raises(DataUnreadable) as caught:
        scan(config, FakeKeys())
    assert caught.value.faults == [
        "row 3 (as row 2): column 'site', which splits the patients, contradicts another row of the same patient",
        "row 5: nothing in column 'site', which splits the patients",
    ]


def test_pixels_that_changed_after_the_scan_are_refused(tmp_path):
    made.write(tmp_path, made.rows(6, 1))
    cohort = scan(made.settings(tmp_path), FakeKeys())
    Image.fromarray(made.picture(99)).save(tmp_path / cohort.records[0].image)
    with pytest.raises(DataUnreadable, match="changed since the scan"):
        load_records(cohort, [0], FakeGrant())
    load_records(cohort, [1], FakeGrant())


def test_the_hash_follows_pixels_not_files(tmp_path):
    rows = made.rows(6, 1)
    made.write(tmp_path, rows)
    before = scan(made.settings(tmp_path), FakeKeys()).hashes()
    for row in rows:
        path = tmp_path / row["file"]
        Image.open(path).save(path.with_suffix(".bmp"))  # lossless, another file
        row["file"] = str(Path(row["file"]).with_suffix(".bmp"))
    made.write(tmp_path, rows, images=False)
    assert scan(made.settings(tmp_path), FakeKeys()).hashes() == before


def test_own_datasets_need_no_manifest():
    items = [
        {"image": torch.randn(2, 5), "label": i % 2, "patient_id": f"secret{i // 2}", "sex": "FM"[i % 2]}
        for i in range(12)
    ]
    config: dict[str, Any] = {"keys": FakeKeys(), "issuer": "clinic", "task": "binary", "groups": ["sex"]}
    split = [{**item, "split": "test" if i > 9 else "train"} for i, item in enumerate(items)]
    cohort = cohort_from_dataset(split, split="split", **config)
    assert (len(cohort.patients), len(cohort.records)) == (6, 12)
    assert torch.equal(load_records(cohort, [3], FakeGrant())[0], items[3]["image"])  # type: ignore[arg-type]
    bad = [*split, {**split[0], "image": torch.zeros(2, 4), "patient_id": "", "label": 5}]
    with pytest.raises(DataUnreadable) as caught:
        cohort_from_dataset(bad, split="split", **config)
    assert [fault.split(": ")[0] for fault in caught.value.faults] == ["item 12", "item 12", "item 12 ([2, 4])"]
    for task, label in (("binary", "yes"), ("binary", None), ("multilabel", ["yes", 0])):
        odd = [{**item, "label": item["label"] if task == "binary" else [0, 1]} for item in items]
        odd[5]["label"] = label
        with pytest.raises(DataUnreadable) as caught:
            cohort_from_dataset(odd, **{**config, "task": task, "classes": ["a", "b"]})
        (fault,) = [fault for fault in caught.value.faults if fault.startswith("item")]
        assert "item 5: unknown label in column" in fault
        assert "yes" not in str(caught.value)


def test_the_cache_is_not_changed_by_random_transforms(tmp_path):
    made.write(tmp_path, made.rows(6, 1))
    noise = {"_target_": "monai.transforms.RandGaussianNoised", "keys": ["image"], "prob": 1.0, "std": 9.0}
    flip = {"_target_": "monai.transforms.RandCoarseDropoutd", "keys": ["image"], "prob": 1.0, "holes": 3}
    cohort = scan(made.settings(tmp_path, augment=[noise, {**flip, "spatial_size": [3, 3]}]), FakeKeys())
    p = plan(public_size=4, expected_batch_size=4, delta=1e-5, steps=4, views=3)
    loader = PatientLoader(cohort, p, FakeGrant())
    batches = [next(iter(logical.chunks())) for logical in loader]
    plain = load_records(cohort, range(6), FakeGrant())
    for index, item in loader._cache.items():
        assert torch.equal(item.image, plain[index])
    assert not torch.equal(batches[0].image[0], batches[0].image[1])  # views differ
    assert not torch.equal(batches[0].image, batches[1].image)
    loader.close()
    assert not loader._cache


def test_an_in_place_transform_changes_its_own_copy_only(tmp_path):
    from monai.transforms import MapTransform

    class Blacken(MapTransform):
        def __call__(self, data):
            data["image"].zero_()
            return data

    made.write(tmp_path, made.rows(6, 1))
    cohort = scan(made.settings(tmp_path), FakeKeys())
    p = plan(public_size=4, expected_batch_size=4, delta=1e-5, steps=1)
    loader = PatientLoader(cohort, p, FakeGrant(), augment=[Blacken(["image"])])
    (chunk,) = next(iter(loader)).chunks()
    assert (chunk.image == 0).all()
    assert all(item.image.any() for item in loader._cache.values())


def test_augmentation_is_never_replayed(tmp_path):
    made.write(tmp_path, made.rows(6, 1))
    noise = {"_target_": "monai.transforms.RandGaussianNoised", "keys": ["image"], "prob": 1.0}
    cohort = scan(made.settings(tmp_path, augment=[noise]), FakeKeys())
    p = plan(public_size=4, expected_batch_size=4, delta=1e-5, steps=1)
    first, second = (next(iter(next(iter(PatientLoader(cohort, p, FakeGrant()))).chunks())) for _ in range(2))
    assert not torch.equal(first.image, second.image)


@pytest.mark.parametrize(
    ("node", "error", "text"),
    [
        ({"_target_": "os.system", "command": "true"}, ConfigError, "not on the list"),
        ({"_target_": "monai.transforms.utils.os.system"}, ConfigError, "not on the list"),
        ({"_target_": "monai.transforms.ScaleIntensity"}, ConfigError, "ScaleIntensityd"),
        ({"_target_": "monai.transforms.NoSuchThingd", "keys": ["image"]}, ConfigError, "no transform"),
        ({"_target_": "monai.transforms.Flipd", "keyes": ["image"]}, ConfigError, "does not take"),
        ({"_target_": "monai.transforms.RandFlipd", "keys": ["image"]}, ConfigError, "is random"),
        ({"_target_": "monai.transforms.LoadImaged", "keys": ["image"]}, CheckRefused, "arrive read"),
        ({"_target_": "monai.transforms.DataStatsd", "keys": ["image"]}, CheckRefused, "no file and no log"),
        ({"_target_": "monai.transforms.SaveImaged", "keys": ["image"]}, CheckRefused, "no file and no log"),
        ({"_target_": "monai.transforms.MixUpd", "keys": ["image"], "batch_size": 4}, CheckRefused, "mixes records"),
    ],
)
def test_transforms_that_are_refused(tmp_path, node, error, text):
    made.write(tmp_path, made.rows(6, 1))
    with pytest.raises(error, match=text):
        scan(made.settings(tmp_path, transforms=[node]), FakeKeys())
