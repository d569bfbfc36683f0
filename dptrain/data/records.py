"""Reading one record: a file, or a row of an array, as [C, …] in the order in which it looks.

PNG and JPEG come as [C, rows, columns] (MONAI's own reader gives them transposed), NIfTI as [C, x, y, z],
DICOM as [1, rows, columns] or [1, frames, rows, columns]. Messages of the libraries underneath are never
passed on: they may hold file names, ids or pixel values.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

PIL_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


class Unreadable(Exception):
    """A record cannot be read; the message is safe to show."""


LIBRARIES = ("PIL", "pydicom", "nibabel", "nibabel.global", "monai")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hear no warnings and logs of the libraries that read: they hold file names, header values and ids."""
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [logger.disabled for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.disabled = True
        try:
            yield
        finally:
            for logger, disabled in zip(loggers, before):
                logger.disabled = disabled


def read_image(path: Path, *, dims: int, stack: Sequence[Path] = ()) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels [C, …] as stored, and the affine [4, 4] where the format has one.

    Args:
        dims: length of the shape that is wanted; tells a `.npy` with channels from one without.
        stack: the DICOM files of one volume, in order; `path` is then not looked at.

    Raises:
        Unreadable: missing, damaged, truncated, of an unknown kind, or empty.
    """
    if not path.is_file():
        raise Unreadable("does not exist")
    try:
        pixels, affine = _read(path, dims, stack)
    except Unreadable:
        raise
    except Exception:
        raise Unreadable("cannot be read: damaged, truncated or no image") from None
    if pixels.dtype.kind not in "biuf":
        raise Unreadable("holds no numbers")
    if pixels.size == 0:
        raise Unreadable("is empty")
    return pixels, affine


def _read(path: Path, dims: int, stack: Sequence[Path]) -> tuple[np.ndarray, np.ndarray | None]:
    name = path.name.lower()
    if stack:
        slices = [_dicom(part) for part in stack]
        if len({part.shape for part in slices}) > 1:
            raise Unreadable("is a series of slices that differ in size")
        return np.stack([part[0] for part in slices])[None], None
    if name.endswith(PIL_SUFFIXES):
        return _picture(path), None
    if name.endswith((".nii", ".nii.gz")):
        return _nifti(path)
    if name.endswith(".npy"):
        return channel_first(np.load(path, allow_pickle=False), dims), None
    if name.endswith((".dcm", ".dicom", ".ima")) or "." not in name:
        return _dicom(path), None
    raise Unreadable("is of a kind that is not known: PNG, JPEG, BMP, TIFF, DICOM, NIfTI or .npy")


def channel_first(array: np.ndarray, dims: int) -> np.ndarray:
    """[…] without channels becomes [1, …]."""
    return array[None] if array.ndim == dims - 1 else array


def _picture(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        if image.mode in ("P", "1"):
            array = np.asarray(image.convert("RGB" if image.mode == "P" else "L"))
        else:
            array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(np.moveaxis(array, -1, 0))


def _nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import nibabel

    volume = nibabel.load(path)
    array = np.asarray(volume.dataobj)  # type: ignore[attr-defined]
    channels = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
    return np.ascontiguousarray(channels), np.asarray(volume.affine, dtype=np.float64)  # type: ignore[attr-defined]


def _dicom(path: Path) -> np.ndarray:
    import pydicom
    from pydicom.pixels import apply_rescale

    dataset = pydicom.dcmread(path)
    try:
        pixels = dataset.pixel_array
    except (NotImplementedError, RuntimeError, AttributeError):
        raise Unreadable("holds compressed DICOM pixels that cannot be decoded: install pylibjpeg") from None
    if int(dataset.get("SamplesPerPixel", 1)) > 1:
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        pixels = (2 ** int(dataset.BitsStored) - 1 - pixels.astype(np.int32)).astype(np.int32)
    return np.asarray(apply_rescale(pixels, dataset))[None]
