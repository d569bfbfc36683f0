"""NIfTI volumes: [C, x, y, z] with slope and intercept applied, and the affine that the header states."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from dptrain.data.packed import check_size
from dptrain.source import Unreadable


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels [C, x, y, z] (the last axis of four is the channel) and the affine [4, 4] in mm, RAS+."""
    import nibabel

    volume = nibabel.load(path)
    header = volume.header
    shape = volume.shape  # type: ignore[attr-defined]
    if len(shape) > 4:
        raise Unreadable(
            "has more than four axes", detail=str(list(shape)), remedy="Write x, y, z and at most one axis more."
        )
    check_size(path.stat().st_size, math.prod(shape) * header.get_data_dtype().itemsize)  # type: ignore[attr-defined]
    unit = header.get_xyzt_units()[0]  # type: ignore[attr-defined]
    if unit not in ("mm", "unknown"):
        raise Unreadable("measures in another unit than millimetres", detail=str(unit), remedy="Write it in mm.")
    array = np.asarray(volume.dataobj)  # type: ignore[attr-defined]
    affine = np.asarray(volume.affine, dtype=np.float64)  # type: ignore[attr-defined]
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise Unreadable("has an affine that places nothing", remedy="Write a valid qform or sform.")
    channels = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
    return np.ascontiguousarray(channels), affine
