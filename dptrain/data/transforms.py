"""MONAI transforms from configuration: a deterministic part, run once, and a random part, run for each view.

A configuration may name the dictionary transforms listed here, over the keys `image` and (segmentation) `label`, with
plain arguments: none of them reads or writes a file, calls a function by name, or looks at more than its own record.
What they raise is not passed on: MONAI's messages hold pixel values and file names.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dptrain.errors import CheckRefused, ConfigError
from dptrain.source import Item
from dptrain.terminal.words import suggest

if TYPE_CHECKING:
    from monai.transforms import MapTransform
    from torch import Tensor

PREFIX = "monai.transforms."
KEYS = ("image", "label")
# Their output shape follows from their input shape alone: one look for each input shape is enough.
SHAPE_ONLY = (
    "ScaleIntensity", "ScaleIntensityRange", "ScaleIntensityRangePercentiles", "NormalizeIntensity",
    "ShiftIntensity", "ThresholdIntensity", "AdjustContrast", "GaussianSmooth", "MedianSmooth", "Resize",
    "ResizeWithPadOrCrop", "SpatialPad", "BorderPad", "DivisiblePad", "CenterSpatialCrop", "SpatialCrop",
    "EnsureType", "EnsureChannelFirst", "CastToType", "Transpose", "RepeatChannel", "Flip", "Rotate90",
    "AsDiscrete", "SqueezeDim",
)  # fmt: skip
DETERMINISTIC = (
    *SHAPE_ONLY, "AddCoordinateChannels", "Affine", "CenterScaleCrop", "ClipIntensityPercentiles", "CropForeground",
    "FillHoles", "ForegroundMask", "GaussianSharpen", "GibbsNoise", "GridDistortion", "HistogramNormalize",
    "Identity", "KSpaceSpikeNoise", "KeepLargestConnectedComponent", "LabelFilter", "LabelToMask", "MapLabelValue",
    "MaskIntensity", "Orientation", "RemoveRepeatedChannel", "RemoveSmallObjects", "ResampleToMatch", "Rotate",
    "SavitzkyGolaySmooth", "SignalFillEmpty", "SobelGradients", "Spacing", "SpatialResample", "StdShiftIntensity",
    "ToTensor", "Zoom",
)  # fmt: skip
RANDOM = (
    "Rand2DElastic", "Rand3DElastic", "RandAdjustContrast", "RandAffine", "RandAxisFlip", "RandBiasField",
    "RandCoarseDropout", "RandCoarseShuffle", "RandCropByLabelClasses", "RandCropByPosNegLabel", "RandFlip",
    "RandGaussianNoise", "RandGaussianSharpen", "RandGaussianSmooth", "RandGibbsNoise", "RandGridDistortion",
    "RandHistogramShift", "RandKSpaceSpikeNoise", "RandRicianNoise", "RandRotate", "RandRotate90", "RandScaleCrop",
    "RandScaleIntensity", "RandScaleIntensityFixedMean", "RandShiftIntensity", "RandSimulateLowResolution",
    "RandSmoothDeform", "RandSmoothFieldAdjustContrast", "RandSmoothFieldAdjustIntensity", "RandSpatialCrop",
    "RandSpatialCropSamples", "RandStdShiftIntensity", "RandWeightedCrop", "RandZoom",
)  # fmt: skip
ALLOWED = frozenset(f"{name}d" for name in (*DETERMINISTIC, *RANDOM))
# They ask the affine where voxels lie.
GEOMETRIC = ("Spacingd", "Orientationd", "SpatialResampled", "ResampleToMatchd")
_WORD = re.compile(r"[\w.+ -]{0,60}")
_MIXING = re.compile(
    r"^(rand)?(mix_?up|cut_?mix|cut_?out|mixer|sample_?pairing|manifold_?mixup|copy_?paste|mosaic)d?(ict)?$", re.I
)


def mixes(name: str) -> bool:
    """Whether a transform of this name works on several patients' records at once."""
    return _MIXING.match(name) is not None


class TransformFailed(Exception):
    """A transform failed on a record; the message names transform and kind of error only."""


def build(nodes: Sequence[object], *, random: bool) -> list[MapTransform]:
    """The transforms that `_target_` nodes (or ready objects) describe.

    Args:
        random: whether random ones are allowed (`data.augment`) or refused (`data.transforms`).

    Raises:
        ConfigError: a target outside `monai.transforms`, an array transform, wrong arguments, or a random
            transform among the deterministic ones.
        CheckRefused: a transform that is not on the list of this module: it could read or write files, call other
            code, or mix the records of a batch.
    """
    if not nodes:
        return []
    return [_build_one(node, random) for node in nodes]


def _build_one(node: object, random: bool) -> MapTransform:
    from monai.transforms import MapTransform, Randomizable

    if isinstance(node, Mapping):
        transform, name = _instantiate(dict(node))
    else:
        transform, name = node, type(node).__name__
        _refuse_unlisted(name, type(node).__mro__)
    if not isinstance(transform, MapTransform):
        raise ConfigError(
            f"{name} is no dictionary transform of MONAI.",
            remedy=f"Use its dictionary version, e.g. monai.transforms.{name}d with keys: [image].",
        )
    if isinstance(transform, Randomizable) and not random:
        raise ConfigError(
            f"{name} is random, but data.transforms runs once and is cached.", remedy="Move it to data.augment."
        )
    return transform


def _refuse_unlisted(name: str, kinds: Sequence[type] = ()) -> None:
    """Raise CheckRefused for a transform of MONAI that is not on the list; own classes in Python are not MONAI's."""
    if any(mixes(kind) for kind in (name, *(kind.__name__ for kind in kinds))):
        raise CheckRefused(
            f"{name} works on whole batches and mixes records of several patients.",
            remedy="Remove it; more views of one patient (privacy.views) regularise without mixing.",
        )
    named = [kind.__name__ for kind in kinds if kind.__module__.startswith("monai.transforms.")] or [name]
    if name in ALLOWED or (kinds and not kinds[0].__module__.startswith("monai.")):
        return
    if named[0] in ALLOWED:
        return
    raise CheckRefused(
        f"{name} is not on the list of transforms that a cohort may use: each of those looks at one record alone "
        "and reads or writes nothing else.",
        remedy=_instead(name),
    )


def _instead(name: str) -> str:
    if name.startswith("LoadImage"):
        return "Remove it: records arrive read, as [C, …]."
    if name.startswith(("Save", "Write", "DataStats")):
        return "Remove it: pixels are written to no file and no log."
    return f"Remove it. {suggest(name, sorted(ALLOWED))}"


def _instantiate(node: dict[str, object]) -> tuple[object, str]:
    target = str(node.pop("_target_", ""))
    name = target.removeprefix(PREFIX)
    if not target.startswith(PREFIX) or "." in name:
        raise ConfigError(
            f"_target_ '{target}' is not on the list of what a cohort may call.",
            remedy=f"Name a dictionary transform of MONAI: {PREFIX}<Name>d.",
        )
    kind = getattr(importlib.import_module("monai.transforms"), name, None)
    if not isinstance(kind, type):
        near = suggest(name, sorted(ALLOWED))
        raise ConfigError(f"MONAI has no transform '{name}'.", remedy=near)
    if f"{name}d" in ALLOWED:
        raise ConfigError(
            f"{name} is no dictionary transform of MONAI.",
            remedy=f"Use its dictionary version: monai.transforms.{name}d with keys: [image].",
        )
    _refuse_unlisted(name)
    for argument, value in node.items():
        _check_argument(name, argument, value)
    try:
        return kind(**node), name
    except Exception as error:
        raise ConfigError(f"{name} does not take these arguments: {error}.") from None


def _check_argument(name: str, argument: str, value: object) -> None:
    """Raise ConfigError for an argument that is more than numbers and plain words, or a key that no record has."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            raise ConfigError(f"{name}.{argument} would call something: only numbers and words are allowed there.")
        for inner, part in value.items():
            _check_argument(name, str(inner), part)
    elif isinstance(value, list | tuple):
        for part in value:
            _check_argument(name, argument, part)
    elif isinstance(value, str):
        if (argument == "keys" or argument.endswith("_key")) and value not in KEYS:
            raise ConfigError(f"{name}.{argument}={value}: a record has image, and label for segmentation.")
        if not _WORD.fullmatch(value):
            raise ConfigError(f"{name}.{argument} holds a text that is no plain word.")
    elif value is not None and not isinstance(value, bool | int | float):
        raise ConfigError(f"{name}.{argument} is a {type(value).__name__}: only numbers and words are allowed.")


def shape_only(transforms: Sequence[MapTransform]) -> bool:
    """Whether the output's shape follows from the input's shape for all of them."""
    return all(type(transform).__name__.removesuffix("d") in SHAPE_ONLY for transform in transforms)


def geometric(transforms: Sequence[MapTransform]) -> list[str]:
    """Names of those that go by the affine."""
    return [name for transform in transforms if (name := type(transform).__name__) in GEOMETRIC]


def crops(transforms: Sequence[MapTransform]) -> int:
    """How many views the multi-crop transforms among them make of one (product of `num_samples`)."""
    number = 1
    for transform in transforms:
        cropper = getattr(transform, "cropper", None)
        number *= int(getattr(transform, "num_samples", None) or getattr(cropper, "num_samples", None) or 1)
    return number


def seed_freshly(transforms: Sequence[MapTransform]) -> None:
    """Give every random transform a state of its own from `os.urandom`; augmentation is never replayed."""
    from monai.transforms import Randomizable

    for transform in transforms:
        if isinstance(transform, Randomizable):
            words = np.frombuffer(os.urandom(64), dtype=np.uint32)
            transform.set_random_state(state=np.random.RandomState(words))


def apply_one(transform: MapTransform, views: Sequence[Item]) -> list[Item]:
    """The views that one transform makes of some. Raises TransformFailed without the library's words."""
    following: list[Item] = []
    for view in views:
        try:
            result = transform(view)
        except Exception as error:
            raise TransformFailed(f"{type(transform).__name__} failed ({type(error).__name__})") from None
        following += result if isinstance(result, list) else [result]
    return following


def apply(transforms: Sequence[MapTransform], item: Item) -> list[Item]:
    """The views that the transforms make of one record: one, or several where a transform crops repeatedly.

    The item's tensors may be changed in place: pass copies of what must stay.
    """
    views = [item]
    for transform in transforms:
        views = apply_one(transform, views)
    return views


def plain(value: object) -> Tensor:
    """A plain contiguous float32 or int64 tensor; MONAI's metadata (file names!) stays behind.

    Floating types become float32, whole numbers stay whole (int64).
    """
    import torch

    tensor = value.as_tensor() if hasattr(value, "as_tensor") else torch.as_tensor(value)
    return tensor.to(torch.float32 if tensor.is_floating_point() else torch.int64).contiguous()
