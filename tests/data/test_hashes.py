"""A record's hash follows its values, whatever file and number type hold them."""

from __future__ import annotations

import hashlib
import hmac
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from dptrain.data.records import read_image
from dptrain.ledger import Keys
from tests.data import made
from tests.data.dicom_made import write_dicom

VALUES = made.picture(3)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.create(tmp_path_factory.mktemp("site") / "keys", "a long enough passphrase")


def grey(folder: Path, suffix: str, pixels: np.ndarray, **options: Any) -> np.ndarray:
    Image.fromarray(pixels).save(folder / f"a{suffix}", **options)
    return read_image(folder / f"a{suffix}", dims=3)[0]


def test_twelve_lossless_encodings_of_one_picture_have_one_hash(keys: Keys, tmp_path: Path) -> None:
    wide = VALUES.astype(np.uint16)
    written = [
        grey(tmp_path, ".png", VALUES),
        grey(tmp_path, ".bmp", VALUES),
        grey(tmp_path, ".tif", VALUES),
        grey(tmp_path, ".tiff", VALUES, compression="tiff_lzw"),
        grey(tmp_path, "16.png", wide),
        grey(tmp_path, "f.tif", VALUES.astype(np.float32)),
    ]
    for name, array in (("u1", VALUES), ("i2", VALUES.astype(np.int16)), ("f8", VALUES.astype(np.float64))):
        np.save(tmp_path / f"{name}.npy", array)
        written.append(read_image(tmp_path / f"{name}.npy", dims=3)[0])
    write_dicom(tmp_path / "a.dcm", VALUES.astype(np.uint16), bits=12)
    write_dicom(tmp_path / "b.dcm", wide + 1024, RescaleSlope=1, RescaleIntercept=-1024)
    write_dicom(tmp_path / "c.dcm", 4095 - wide, bits=12, PhotometricInterpretation="MONOCHROME1")
    written += [read_image(tmp_path / f"{name}.dcm", dims=3)[0] for name in "abc"]
    assert len(written) == 12
    assert len({keys.record_hash(pixels) for pixels in written}) == 1


def test_volumes_in_nifti_of_several_types(keys: Keys, tmp_path: Path) -> None:
    array = np.arange(-60, 60).reshape(4, 5, 6)
    hashes = set()
    for kind in (np.int16, np.int32, np.float32, np.float64):
        nibabel.save(nibabel.Nifti1Image(array.astype(kind), np.eye(4)), tmp_path / "a.nii.gz")
        hashes.add(keys.record_hash(read_image(tmp_path / "a.nii.gz", dims=4)[0]))
    assert len(hashes) == 1


def test_different_values_and_shapes_have_different_hashes(keys: Keys) -> None:
    arrays = [
        VALUES,
        VALUES.T,
        VALUES[None],
        VALUES.astype(int) + 1,
        VALUES.astype(int) - 300,
        VALUES / 3,
        VALUES / np.float32(3),
        VALUES.astype(np.int64) << 40,
        -VALUES.astype(int),
        VALUES.astype(float) + 0.5,
        VALUES.reshape(-1)[:0],
        VALUES + 1j,
    ]
    assert len({keys.record_hash(array) for array in arrays}) == len(arrays)
    assert keys.record_hash(np.array([0.5, -0.0])) == keys.record_hash(np.array([0.5, 0.0]))
    assert keys.record_hash(np.array([np.nan, 1.0])) != keys.record_hash(np.array([0.0, 1.0]))
    assert keys.record_hash(VALUES / np.float32(3)) == keys.record_hash((VALUES / np.float32(3)).astype(float))


@pytest.mark.parametrize("kind", ["<u1", "<u2", "<i2", "<f4", "<f8"])
def test_records_hashed_before_are_recognised_where_their_type_was_the_narrowest(keys: Keys, kind: str) -> None:
    """What the ledger of an earlier version holds: HMAC over shape, stored type and values."""
    array = {
        "<u1": VALUES,
        "<u2": VALUES.astype("<u2") + 256,
        "<i2": VALUES.astype("<i2") - 300,
        "<f4": (VALUES / 7).astype("<f4"),
        "<f8": VALUES / 7,
    }[kind]
    shape = struct.pack(f"<{array.ndim}q", *array.shape)
    before = hmac.new(keys._secrets[0], b"dptrain.record\0", hashlib.sha256)
    for part in (shape, array.dtype.str[1:].encode()):
        before.update(struct.pack("<Q", len(part)) + part)
    before.update(array.tobytes())
    assert keys.record_hash(array) == before.digest()
