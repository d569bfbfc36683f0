"""DICOM pixels as the numbers that they mean, and where they lie.

Honoured: rescale and modality LUT (shared or of each frame), MONOCHROME1 (signed too), palettes, RGB and YBR, planar
configuration, bits stored, compression where a decoder is installed, frames, positions. What else changes the meaning
of the numbers is refused; docs/data.md has the table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dptrain.data.dicom import Place, normal_of, numbers, order_of
from dptrain.data.packed import check_size
from dptrain.source import Unreadable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PHOTOMETRIC = (
    "MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422",
    "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT",
)  # fmt: skip
ALIKE = ("SamplesPerPixel", "PhotometricInterpretation", "BitsStored", "PixelRepresentation")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_dicom(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """One file: [C, rows, columns], or [C, frames, rows, columns], and an affine where the header places it.

    The affine of a single image is [4, 4] with its pixel spacing in the first two places (rows, columns); that of
    frames is in mm, RAS+, over (frame, row, column).
    """
    dataset = _dataset(path)
    pixels = _meaning(dataset)
    frames = _frames(dataset)
    if len(frames) < 2:
        spacing = numbers(dataset.get("PixelSpacing"), 2)
        affine = None if spacing is None else np.diag([spacing[0], spacing[1], 1.0, 1.0])
        return pixels, affine
    places = [_place_of_frame(dataset, frame) for frame in frames]
    if any(place.position is None for place in places):
        return pixels, None
    order, fault = order_of(places)
    if fault:
        raise Unreadable(fault.replace("a series", "a file of several frames"))
    return pixels[:, order], _affine([places[i] for i in order], _spacing(dataset, frames[0]))


def read_series(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray | None]:
    """The slices of a volume, in order: [C, slices, rows, columns], and its affine where the headers place it."""
    datasets = [_dataset(path) for path in paths]
    for name in ALIKE:
        if len({str(dataset.get(name)) for dataset in datasets}) > 1:
            raise Unreadable("is a series whose slices differ in how they are to be read", detail=name)
    spacings = [numbers(dataset.get("PixelSpacing"), 2) for dataset in datasets]
    if any(one is None for one in spacings):
        spacing = None
    else:
        spacing = spacings[0]
        if np.ptp(np.stack([one for one in spacings if one is not None]), axis=0).max() > 1e-3:
            raise Unreadable("is a series whose slices differ in pixel spacing")
    slices = [_meaning(dataset) for dataset in datasets]
    if len({part.shape for part in slices}) > 1:
        raise Unreadable("is a series of slices that differ in size")
    if slices[0].ndim != 3:
        raise Unreadable("is a series of files with several frames", remedy="Set data.dicom.series=false.")
    return np.stack(slices, axis=1), _affine([Place(dataset) for dataset in datasets], spacing)


def _dataset(path: Path) -> Dataset:
    import pydicom

    dataset = pydicom.dcmread(path)
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise Unreadable(
            "holds no picture (a plan, a report or a waveform)", remedy="Leave it out with data.drop or data.keep."
        )
    count = int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0)
    count *= int(dataset.get("NumberOfFrames") or 1) * int(dataset.get("SamplesPerPixel") or 1)
    check_size(path.stat().st_size, count * max(1, int(dataset.get("BitsAllocated") or 8) // 8))
    photometric = dataset.get("PhotometricInterpretation")
    if photometric not in PHOTOMETRIC:
        raise Unreadable("has a photometric interpretation that is not read")
    if dataset.get("PresentationLUTShape") == "INVERSE" and photometric != "MONOCHROME1":
        raise Unreadable("is to be shown inverted (PresentationLUTShape)", remedy="Export it as MONOCHROME1.")
    if any(tag >> 24 == 0x60 and tag & 0xFFFF == 0x0102 and int(dataset[tag].value or 0) for tag in dataset._dict):
        raise Unreadable("holds a drawing in unused bits of its pixels (an embedded overlay)")
    return dataset


def _meaning(dataset: Dataset) -> np.ndarray:
    """The numbers [C, …] that the stored ones mean."""
    from pydicom.pixels import apply_color_lut

    try:
        pixels = dataset.pixel_array
    except (NotImplementedError, RuntimeError, AttributeError):
        raise _undecoded(dataset) from None
    photometric = dataset.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        return np.ascontiguousarray(np.moveaxis(apply_color_lut(pixels, dataset)[..., :3], -1, 0))
    if int(dataset.get("SamplesPerPixel", 1)) > 1:
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
    if photometric == "MONOCHROME1":
        pixels = _turned(pixels, dataset)
    return _rescaled(pixels, dataset)[None]


def _turned(pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Light for dark: the largest number that can be stored plus the smallest, less each (PS3.3, C.7.6.3.1.2)."""
    if pixels.dtype.kind == "f":
        raise Unreadable("holds inverted floating-point pixels", remedy="Export it as MONOCHROME2.")
    bits = int(dataset.BitsStored)
    ends = -1 if int(dataset.PixelRepresentation) else 2**bits - 1
    return (ends - pixels.astype(np.int64)).astype(np.int32 if bits < 31 else np.int64)


def _rescaled(pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Modality LUT or rescale, of the whole file or of each frame (PS3.3, C.11.1 and C.7.6.16.2.9)."""
    from pydicom.pixels import apply_rescale

    stated = [_in_frame(dataset, frame, "PixelValueTransformationSequence") for frame in _frames(dataset)]
    frames = [frame for frame in stated if frame is not None]
    if not frames:
        return np.asarray(apply_rescale(pixels, dataset))
    if len(frames) < len(stated):
        raise Unreadable("states a rescale for some of its frames only")
    slopes = np.array([float(frame.RescaleSlope) for frame in frames])
    intercepts = np.array([float(frame.RescaleIntercept) for frame in frames])
    if len(frames) == 1 or pixels.ndim == 2:
        slopes, intercepts = slopes[0], intercepts[0]
    else:
        slopes, intercepts = slopes[:, None, None], intercepts[:, None, None]
    return np.asarray(pixels * slopes + intercepts)


def _frames(dataset: Dataset) -> list[Dataset]:
    """The functional groups of each frame; empty where a file has none."""
    return list(dataset.get("PerFrameFunctionalGroupsSequence") or [])


def _in_frame(dataset: Dataset, frame: Dataset, name: str) -> Dataset | None:
    """A macro of a frame, or that which all frames share."""
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])
    for group in (frame, *shared):
        macro: list[Dataset] = list(group.get(name) or [])
        if macro:
            return macro[0]
    return None


def _place_of_frame(dataset: Dataset, frame: Dataset) -> Place:
    position = _in_frame(dataset, frame, "PlanePositionSequence")
    orientation = _in_frame(dataset, frame, "PlaneOrientationSequence")
    place = Place({})
    place.position = None if position is None else numbers(position.get("ImagePositionPatient"), 3)
    place.orientation = None if orientation is None else numbers(orientation.get("ImageOrientationPatient"), 6)
    return place


def _spacing(dataset: Dataset, frame: Dataset) -> np.ndarray | None:
    measures = _in_frame(dataset, frame, "PixelMeasuresSequence")
    return None if measures is None else numbers(measures.get("PixelSpacing"), 2)


def _affine(places: Sequence[Place], spacing: np.ndarray | None) -> np.ndarray | None:
    """mm, RAS+, of (slice, row, column) for ordered slices (PS3.3, C.7.6.2.1.1); None where something is missing."""
    first, last = places[0], places[-1]
    if spacing is None or first.position is None or last.position is None or first.orientation is None:
        return None
    normal = normal_of(first.orientation)
    if normal is None:
        return None
    step = (last.position - first.position) / (len(places) - 1) if len(places) > 1 else normal
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = first.orientation[3:] * spacing[0]
    affine[:3, 2] = first.orientation[:3] * spacing[1]
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine


def _undecoded(dataset: Dataset) -> Unreadable:
    """Why pixels could not be decoded, with the packages that pydicom names for their compression."""
    from pydicom.pixels import get_decoder

    syntax = getattr(dataset.file_meta, "TransferSyntaxUID", None)
    if syntax is None or not syntax.is_compressed:
        return Unreadable("cannot be read: damaged, truncated or no image")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return Unreadable(f"is compressed ({syntax.name}), which is not read", remedy="Export it uncompressed.")
    if decoder.is_available:
        return Unreadable("cannot be read: damaged, truncated or no image")
    wanted = next((text for text in decoder.missing_dependencies if "pylibjpeg" in text), "")
    packages = list(dict.fromkeys(re.findall(r"pylibjpeg(?:-\w+)?(?=[>=<])", wanted)))
    return Unreadable(
        f"is compressed ({syntax.name}) and no decoder for that is installed",
        remedy=f"pip install {' '.join(packages)}" if packages else "Export it uncompressed.",
    )
