"""Reading one record: a file, or a row of an array, as [C, …] in the order in which it looks.

PNG and JPEG come as [C, rows, columns] (MONAI's own reader gives them transposed), NIfTI as [C, x, y, z],
DICOM as [C, rows, columns] or [C, slices, rows, columns]. Messages of the libraries underneath are never
passed on: they may hold file names, ids or pixel values.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dptrain.data import dicom, pictures
from dptrain.data.dicom_pixels import read_dicom, read_series
from dptrain.data.nifti import read_nifti
from dptrain.data.pictures import read_picture
from dptrain.source import Unreadable

LIBRARIES = ("PIL", "pydicom", "nibabel", "nibabel.global", "monai")
KINDS = "PNG, JPEG, BMP, TIFF, DICOM, NIfTI or .npy"


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


def read_image(
    path: Path, *, dims: int, stack: Sequence[Path] = (), label: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels [C, …] as the numbers that they mean, and the affine [4, 4] where the format has one.

    Args:
        dims: length of the shape that is wanted; tells a `.npy` with channels from one without.
        stack: the DICOM files of one volume, in order; `path` is then not looked at.
        label: a label image (the numbers of a palette, not its colours).

    Raises:
        Unreadable: missing, damaged, truncated, of an unknown kind, empty, or of a meaning that is not read.
    """
    try:
        pixels, affine = _read(path, dims, stack, label)
    except Unreadable:
        raise
    except FileNotFoundError:
        raise Unreadable("does not exist", remedy=_slashes(path)) from None
    except IsADirectoryError:
        raise Unreadable("is a folder") from None
    except Exception:
        raise Unreadable("cannot be read: damaged, truncated or no image") from None
    if pixels.dtype.kind not in "biuf":
        raise Unreadable("holds no numbers")
    if pixels.size == 0:
        raise Unreadable("is empty")
    return pixels, affine


def _slashes(path: Path) -> str:
    return "Write folders with / in place of \\." if "\\" in path.name else ""


def _read(path: Path, dims: int, stack: Sequence[Path], label: bool) -> tuple[np.ndarray, np.ndarray | None]:
    if stack:
        return read_series(stack)
    name = path.name.lower()
    if name.endswith(pictures.SUFFIXES):
        return read_picture(path, dims=dims, label=label), None
    if name.endswith((".nii", ".nii.gz")):
        return read_nifti(path)
    if name.endswith(".npy"):
        return channel_first(np.load(path, allow_pickle=False), dims), None
    with path.open("rb"):  # what is missing is said to be missing, not of an unknown kind
        pass
    if name.endswith(dicom.SUFFIXES) or dicom.is_dicom(path):
        return read_dicom(path)
    raise Unreadable(f"is of a kind that is not known: {KINDS}")


def channel_first(array: np.ndarray, dims: int) -> np.ndarray:
    """[…] without channels becomes [1, …]."""
    return array[None] if array.ndim == dims - 1 else array
