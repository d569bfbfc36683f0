"""What images a model was trained to see, as its public configuration says, and how far a new one is from that.

Nothing here was computed from patients: range, spacing and modality are those that `data.transforms` and `data.keep`
declare. What is not declared is not compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dptrain.data import dicom
from dptrain.plain import Json
from dptrain.settings import DataConfig
from dptrain.settings.data import shape_of
from dptrain.vocabulary import Format

STRANGE = 0.05  # share of values outside of the trained range from which an image is flagged
FOREIGN = 0.5  # … and refused
NARROW = 0.1  # share of the trained range that an image spans at least: less, and it is of another scale


@dataclass(frozen=True)
class Expected:
    """The contract of inputs.

    Attributes:
        shape: of a record after the transforms, channels first.
        range: (low, high) of the numbers in a file, where the transforms scale by a declared one.
        scaled: what they become.
        spacing: millimetres between voxels after resampling, where the transforms resample.
        modality: of DICOM files, where the cohort keeps one only.
    """

    shape: tuple[int, ...]
    range: tuple[float, float] | None = None
    scaled: tuple[float, float] | None = None
    spacing: tuple[float, ...] | None = None
    modality: str | None = None

    @classmethod
    def of(cls, config: DataConfig) -> Expected:
        """What a cohort's public settings say."""
        values = _transform(config, "ScaleIntensityRange")
        resampled = _transform(config, "Spacing")
        spacing = resampled.get("pixdim")
        modality = config.keep.get("Modality") or config.keep.get("modality")
        return cls(
            shape_of(config),
            _pair(values, "a_min", "a_max"),
            _pair(values, "b_min", "b_max"),
            tuple(float(size) for size in spacing) if isinstance(spacing, list | tuple) else None,
            modality if config.format == Format.DICOM and modality != "*" else None,
        )

    def to_json(self) -> dict[str, object]:
        """For the bundle's metadata."""
        return {
            "channels": self.shape[0],
            "value_range": None if self.range is None else list(self.range),
            "spacing": None if self.spacing is None else list(self.spacing),
            "modality": self.modality,
        }


@dataclass(frozen=True)
class Doubt:
    """Why an image is not like those of the training; refused: its prediction would mean nothing."""

    why: str
    refused: bool = False


def doubts(expected: Expected, path: Path, pixels: np.ndarray, affine: np.ndarray | None) -> list[Doubt]:
    """What speaks against a new image, as it lies in its file: pixels [C, …] and its affine, if it has one."""
    reasons = []
    if len(pixels) != expected.shape[0]:
        reasons.append(Doubt(f"has {len(pixels)} channels; the model takes {expected.shape[0]}", refused=True))
    if expected.range is not None:
        reasons += _range_doubts(expected.range, pixels)
    if expected.spacing is not None and affine is None:
        reasons.append(Doubt("states no spacing; the model was trained on images that were resampled by theirs"))
    if expected.modality is not None and (modality := _modality(path)) not in (None, expected.modality):
        reasons.append(
            Doubt(f"is of modality {modality}; the model was trained on {expected.modality}", refused=True)
        )
    return reasons


def _range_doubts(limits: tuple[float, float], pixels: np.ndarray) -> list[Doubt]:
    low, high = limits
    values = pixels.astype(np.float64)
    least, most = float(values.min()), float(values.max())
    outside = float(((values < low) | (values > high)).mean())
    trained = f"the model was trained on {low:g} to {high:g}"
    if outside > STRANGE:
        why = f"{outside:.0%} of its values lie outside of the range ({least:g} to {most:g}; {trained})"
        return [Doubt(why, refused=outside > FOREIGN)]
    if most - least < NARROW * (high - low):
        why = f"its values span {least:g} to {most:g}; {trained}: it seems to be of another scale"
        return [Doubt(why, refused=True)]
    return []


def _modality(path: Path) -> str | None:
    """The modality that a DICOM file states; None for what is none."""
    if not dicom.is_dicom(path):
        return None
    import pydicom

    return str(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality"]).get("Modality", "")) or None


def _transform(config: DataConfig, name: str) -> Json:
    """The arguments of the first transform of that name that changes the image."""
    for node in config.transforms:
        target = str(node.get("_target_", "")) if isinstance(node, Mapping) else ""
        if target.rpartition(".")[2].removesuffix("d") == name and "image" in node.get("keys", ()):
            return dict(node)
    return {}


def _pair(node: Json, low: str, high: str) -> tuple[float, float] | None:
    values = node.get(low), node.get(high)
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        return None
    return float(values[0]), float(values[1])  # type: ignore[arg-type]
