"""Labels stay labels through transforms: whole, in range, none that was not there, in the place of their image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml
from PIL import Image

from dptrain.data import PatientLoader, cohort_from_dataset, load_tensors, scan
from dptrain.data.label_images import try_pipeline
from dptrain.errors import ConfigError, DataUnreadable
from dptrain.settings import ColumnsConfig, DataConfig
from tests.data import made
from tests.data.shared import FakeGrant, FakeKeys
from tests.data.test_identity import ALL_TRAIN
from tests.data.test_sampling import plan

BOTH = ["image", "label"]
SHAPE = (20, 18, 16)


def node(name: str, keys: list[str] | None = None, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"monai.transforms.{name}", "keys": keys or BOTH, **arguments}


def structures(values: tuple[int, ...] = (1, 2), shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    label = np.zeros(shape, np.uint8)
    label[4:10, 4:12, 4:12] = values[-1]
    if len(values) > 1:
        label[12:18, 6:12, 2:8] = values[0]
    return label


def volumes(folder: Path, label: Any, *, label_affine: Any = None, affine: Any = None, **changes: Any) -> DataConfig:
    folder.mkdir(exist_ok=True)
    affine = np.eye(4) if affine is None else affine
    rows = ["file,patient_id,label"]
    for i in range(2):
        image = np.random.default_rng(i).normal(size=label.shape).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / f"i{i}.nii.gz")
        other = affine if label_affine is None else label_affine
        nibabel.save(nibabel.Nifti1Image(label, other), folder / f"l{i}.nii.gz")
        rows.append(f"i{i}.nii.gz,p{i},l{i}.nii.gz")
    (folder / "manifest.csv").write_text("\n".join(rows))
    config = DataConfig(
        root=str(folder),
        issuer="clinic",
        columns=ColumnsConfig(),
        split=ALL_TRAIN,
        task="segmentation",
        classes=["a", "b"],
        image_shape=[1, *SHAPE],
    )
    return made.changed(config, changes)


def refused(config: DataConfig) -> str:
    with pytest.raises(DataUnreadable) as caught:
        scan(config, FakeKeys())
    return str(caught.value)


INTERPOLATED = [
    [node("Resized", spatial_size=[10, 9, 8])],
    [node("Resized", spatial_size=[10, 9, 8], mode="trilinear")],
    [node("Spacingd", pixdim=[1.25, 1.25, 1.25])],
    [node("Zoomd", zoom=0.7)],
    [node("Rotated", angle=[0.3, 0.0, 0.0])],
]


@pytest.mark.parametrize("transforms", INTERPOLATED, ids=str)
def test_interpolated_labels_are_refused_and_the_remedy_helps(tmp_path: Path, transforms: list[Any]) -> None:
    """Between 0 and 2 lies 1: another structure. The remedy is pasted as it stands."""
    label = np.roll(structures((2,)), 1, axis=0)
    end = node("ResizeWithPadOrCropd", spatial_size=list(SHAPE))
    config = volumes(tmp_path, label, transforms=[*transforms, end])
    text = refused(config)
    name = transforms[0]["_target_"].rpartition(".")[2]
    assert f"the transform {name} makes labels that" in text
    line = next(line.strip() for line in text.splitlines() if line.strip().startswith(f"{name}: mode"))
    mended = {**transforms[0], **yaml.safe_load(line.partition(": ")[2])}
    cohort = scan(made.changed(config, {"transforms": [mended, end]}), FakeKeys())
    assert set(load_tensors(cohort, [0], FakeGrant())[1].unique().tolist()) == {0, 2}


def test_an_intensity_transform_over_the_label_is_refused_by_name(tmp_path: Path) -> None:
    for name in ("NormalizeIntensityd", "ScaleIntensityd"):
        text = refused(volumes(tmp_path / name, structures((2,)), transforms=[node(name)]))
        assert f"the transform {name} makes labels" in text
        assert f"{name}: keys: [image]" in text


@pytest.mark.parametrize(
    ("augment", "name"),
    [
        (node("RandAffined", prob=0.2, rotate_range=[0.5, 0.5, 0.5]), "RandAffined"),
        (node("RandZoomd", prob=0.2, min_zoom=0.7, max_zoom=0.9), "RandZoomd"),
        (node("RandGaussianNoised", prob=0.2), "RandGaussianNoised"),
        (node("Rand3DElasticd", sigma_range=[1, 2], magnitude_range=[50, 100], prob=0.2), "Rand3DElasticd"),
    ],
    ids=str,
)
def test_augmentation_that_changes_labels_is_seen_on_made_up_data(tmp_path: Path, augment: Any, name: str) -> None:
    config = volumes(tmp_path, structures((2,)), augment=[augment])
    ((setting, fault),) = try_pipeline(config)
    assert setting == "data.augment"
    assert fault.cause.startswith(f"the transform {name} makes labels")
    key, _, value = fault.remedy.partition(": ")
    mended = {**augment, **yaml.safe_load(value)}
    if key == name:
        assert try_pipeline(made.changed(config, {"augment": [mended]})) == []


def test_sound_pipelines_pass_on_made_up_data(tmp_path: Path) -> None:
    nearest = {"mode": ["bilinear", "nearest"]}
    config = volumes(
        tmp_path,
        structures(),
        transforms=[node("Spacingd", pixdim=[1, 1, 1], **nearest), node("NormalizeIntensityd", ["image"])],
        augment=[node("RandFlipd", prob=0.5), node("RandAffined", prob=0.5, rotate_range=[0.5], **nearest)],
    )
    assert try_pipeline(config) == []


def test_labels_that_a_view_spoils_count_as_zero_after_the_charge(tmp_path: Path) -> None:
    config = volumes(tmp_path, structures((2,)), augment=[node("RandZoomd", prob=1.0, min_zoom=0.7, max_zoom=0.9)])
    cohort = scan(config, FakeKeys())
    p = plan(public_size=2, expected_batch_size=2, delta=1e-5, steps=1, max_records_per_patient=1)
    (chunk,) = next(iter(PatientLoader(cohort, p, FakeGrant()))).chunks()
    assert chunk.patients == 2
    assert bool(chunk.image.isnan().all())
    assert set(chunk.label.unique().tolist()) == {0}
    assert cohort.odd == {0, 1}


def test_a_label_keeps_its_own_place(tmp_path: Path) -> None:
    """Stored mirrored, with the affine that says so: brought to one orientation it fits its image again."""
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    mirrored = structures()[::-1].copy()
    config = volumes(tmp_path / "a", mirrored, label_affine=flip, transforms=[node("Orientationd", axcodes="RAS")])
    label = load_tensors(scan(config, FakeKeys()), [0], FakeGrant())[1][0, 0].numpy()
    assert np.array_equal(label, structures())
    assert "lies elsewhere" in refused(volumes(tmp_path / "b", mirrored, label_affine=flip))
    far = np.eye(4)
    far[0, 3] = 50
    text = refused(volumes(tmp_path / "c", structures(), label_affine=far))
    assert "the label image lies elsewhere than the image" in text
    remedy = yaml.safe_load(text[text.index("{_target_") : text.index("}") + 1])
    half = np.eye(4)
    half[0, 3] = 0.5
    mended = volumes(tmp_path / "d", structures(), label_affine=half, transforms=[remedy])
    assert set(load_tensors(scan(mended, FakeKeys()), [0], FakeGrant())[1].unique().tolist()) == {0, 1, 2}


def test_masks_of_0_and_255_and_of_0_1_4_by_name(tmp_path: Path) -> None:
    mask = (structures() > 0).astype(np.uint8) * 255
    plain = volumes(tmp_path / "a", mask, classes=["lesion"])
    assert "data.label_values=" in refused(plain)
    config = made.changed(plain, {"label_values": {"255": "lesion"}})
    assert set(load_tensors(scan(config, FakeKeys()), [0], FakeGrant())[1].unique().tolist()) == {0, 1}
    brats = np.where(structures() == 2, 4, structures()).astype(np.uint8)
    both: tuple[dict[str, Any], ...] = (
        {"label_values": {"1": "a", "4": "b"}},
        {"transforms": [node("MapLabelValued", ["label"], orig_labels=[0, 1, 4], target_labels=[0, 1, 2])]},
    )
    for number, changes in enumerate(both):
        config = volumes(tmp_path / f"b{number}", brats, **changes)
        label = load_tensors(scan(config, FakeKeys()), [0], FakeGrant())[1][0, 0].numpy()
        assert np.array_equal(label, structures())
    whole = volumes(tmp_path / "c", brats, classes=["tumour"], label_values={"1": "tumour", "4": "tumour"})
    assert set(load_tensors(scan(whole, FakeKeys()), [0], FakeGrant())[1].unique().tolist()) == {0, 1}
    assert "does not name" in refused(made.changed(whole, {"label_values": {"1": "tumour"}}))
    with pytest.raises(ConfigError, match="holds numbers"):
        scan(made.changed(whole, {"label_values": {"lesion": "tumour"}}), FakeKeys())


def test_a_png_mask_with_a_palette_gives_its_numbers(tmp_path: Path) -> None:
    for i in range(2):
        Image.fromarray(made.picture(i)).save(tmp_path / f"i{i}.png")
        mask = Image.fromarray(made.picture(9 + i) % 3, mode="P")
        mask.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        mask.save(tmp_path / f"m{i}.png")
    (tmp_path / "manifest.csv").write_text("file,patient_id,label\ni0.png,a,m0.png\ni1.png,b,m1.png\n")
    config = DataConfig(
        root=str(tmp_path),
        issuer="clinic",
        split=ALL_TRAIN,
        task="segmentation",
        classes=["a", "b"],
        image_shape=[1, 8, 6],
    )
    cohort = scan(config, FakeKeys())
    row = [record.row for record in cohort.records].index("row 2")
    assert np.array_equal(load_tensors(cohort, [row], FakeGrant())[1][0, 0].numpy(), made.picture(9) % 3)


@pytest.mark.parametrize(
    "label", [None, "absent", np.full((1, *SHAPE), 7), np.full((1, *SHAPE), 0.5), np.zeros((1, 3))], ids=range(5)
)
def test_labels_of_a_dataset_in_python_are_looked_at_too(label: Any) -> None:
    items = [
        {"image": np.full((1, *SHAPE), float(i), np.float32), "label": structures()[None], "patient_id": f"p{i}"}
        for i in range(2)
    ]
    options: dict[str, Any] = {"keys": FakeKeys(), "issuer": "clinic", "task": "segmentation", "classes": ["a", "b"]}
    if label is None:
        del items[1]["label"]
    else:
        items[1]["label"] = label
    with pytest.raises(DataUnreadable) as caught:
        cohort_from_dataset(items, **options)
    assert any(fault.startswith("item 1") for fault in caught.value.faults)
