"""Small DICOM files, written by the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

SC = UID("1.2.840.10008.5.1.4.1.1.7")


def write_dicom(path: Path, pixels: np.ndarray | None, *, bits: int | None = None, **tags: Any) -> None:
    """A file of 8- or 16-bit pixels [rows, columns], [frames, …] or […, 3]; `bits` that are stored (default: all)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SC
    meta.MediaStorageSOPInstanceUID = tags.get("SOPInstanceUID", generate_uid())
    meta.TransferSyntaxUID = tags.pop("syntax", ExplicitVRLittleEndian)
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = SC, meta.MediaStorageSOPInstanceUID
    data.Modality = "CT"
    if pixels is not None:
        colour = "RGB" in str(tags.get("PhotometricInterpretation"))
        shape = pixels.shape[:-1] if colour else pixels.shape
        if len(shape) == 3:
            data.NumberOfFrames = shape[0]
        data.Rows, data.Columns = shape[-2:]
        data.SamplesPerPixel = 3 if colour else 1
        if colour:
            data.PlanarConfiguration = 0
        allocated = pixels.dtype.itemsize * 8
        data.BitsAllocated, data.BitsStored = allocated, bits or allocated
        data.HighBit = data.BitsStored - 1
        data.PixelRepresentation = int(pixels.dtype.kind == "i")
        data.PhotometricInterpretation = "MONOCHROME2"
        raw = pixels.tobytes()
        data.PixelData = raw + b"\0" * (len(raw) % 2)
        data["PixelData"].VR = "OW" if allocated > 8 else "OB"
    for name, value in tags.items():
        setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def series(folder: Path, patient: str, positions: Any, values: Any, **tags: Any) -> str:
    """Slices of 4×4 equal pixels at these positions; returns the series' UID."""
    uid = tags.pop("SeriesInstanceUID", generate_uid())
    study = tags.pop("StudyInstanceUID", generate_uid())
    for number, (position, value) in enumerate(zip(positions, values)):
        place: dict[str, Any] = {} if position is None else {"ImagePositionPatient": list(position)}
        name = f"IM{(number * 7 + 3) % 11:02d}.dcm"
        write_dicom(
            folder / name,
            np.full((4, 4), value, np.uint16),
            PatientID=patient,
            SeriesInstanceUID=uid,
            StudyInstanceUID=study,
            **place,
            **tags,
        )
    return str(uid)
