"""MONAI transforms from configuration: a deterministic part, run once, and a random part, run for each view.

Only dictionary transforms of `monai.transforms` are built, over the keys `image` and (segmentation) `label`.
What they raise is not passed on: MONAI's messages hold pixel values and file names.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dptrain.errors import CheckRefused, ConfigError

PREFIX = "monai.transforms."
# Their output shape follows from their input shape alone: one look for each input shape is enough.
SHAPE_ONLY = (
    "ScaleIntensity", "ScaleIntensityRange", "ScaleIntensityRangePercentiles", "NormalizeIntensity",
    "ShiftIntensity", "ThresholdIntensity", "AdjustContrast", "GaussianSmooth", "MedianSmooth", "Resize",
    "ResizeWithPadOrCrop", "SpatialPad", "BorderPad", "DivisiblePad", "CenterSpatialCrop", "SpatialCrop",
    "EnsureType", "EnsureChannelFirst", "CastToType", "Transpose", "RepeatChannel", "Flip", "Rotate90",
    "AsDiscrete", "SqueezeDim",
)  # fmt: skip


_MIXING = re.compile(
    r"^(rand)?(mix_?up|cut_?mix|cut_?out|mixer|sample_?pairing|manifold_?mixup|copy_?paste|mosaic)d?(ict)?$", re.I
)


def mixes(name: str) -> bool:
    """Whether a transform of this name works on several patients' records at once."""
    return _MIXING.match(name) is not None


class TransformFailed(Exception):
    """A transform failed on a record; the message names transform and kind of error only."""


def build(nodes: Sequence[Any], *, random: bool) -> list[Any]:
    """The transforms that `_target_` nodes (or ready objects) describe.

    Args:
        random: whether random ones are allowed (`data.augment`) or refused (`data.transforms`).

    Raises:
        ConfigError: a target outside `monai.transforms`, an array transform, wrong arguments, or a random
            transform among the deterministic ones.
        CheckRefused: a transform that mixes the records of a batch, or that reads files itself.
    """
    if not nodes:
        return []
    return [_build_one(node, random) for node in nodes]


def _build_one(node: Any, random: bool) -> Any:
    from monai.transforms import MapTransform, Randomizable

    transform, target = _instantiate(dict(node)) if isinstance(node, Mapping) else (node, type(node).__name__)
    name = target.rpartition(".")[2]
    if any(mixes(kind) for kind in (name, *(parent.__name__ for parent in type(transform).__mro__))):
        raise CheckRefused(
            f"{name} works on whole batches and mixes records of several patients.",
            remedy="Remove it; more views of one patient (privacy.views) regularise without mixing.",
        )
    if not isinstance(transform, MapTransform):
        raise ConfigError(
            f"{name} is no dictionary transform of MONAI.",
            remedy=f"Use its dictionary version, e.g. monai.transforms.{name}d with keys: [image].",
        )
    if name.startswith("LoadImage"):
        raise CheckRefused(
            f"{name} would read files past the checks of the manifest.",
            remedy="Remove it: records arrive read, as [C, ...].",
        )
    if name.startswith(("SaveImage", "WriteFile", "DataStats")):
        raise CheckRefused(f"{name} would write pixels to files or logs.", remedy="Remove it.")
    if isinstance(transform, Randomizable) and not random:
        raise ConfigError(
            f"{name} is random, but data.transforms runs once and is cached.", remedy="Move it to data.augment."
        )
    return transform


def _instantiate(node: dict[str, Any]) -> tuple[Any, str]:
    target = str(node.pop("_target_", ""))
    name = target.removeprefix(PREFIX)
    if not target.startswith(PREFIX) or "." in name:
        raise ConfigError(
            f"_target_ '{target}' is not on the list of what a cohort may call.",
            remedy=f"Name a dictionary transform of MONAI: {PREFIX}<Name>d.",
        )
    found = getattr(importlib.import_module("monai.transforms"), name, None)
    if not isinstance(found, type):
        raise ConfigError(f"MONAI has no transform '{name}'.", remedy="See the list of monai.transforms.")
    try:
        return found(**node), target
    except Exception as error:
        raise ConfigError(f"{name} does not take these arguments: {error}.") from None


def shape_only(transforms: Sequence[Any]) -> bool:
    """Whether the output's shape follows from the input's shape for all of them."""
    return all(type(transform).__name__.removesuffix("d") in SHAPE_ONLY for transform in transforms)


def crops(transforms: Sequence[Any]) -> int:
    """How many views the multi-crop transforms among them make of one (product of `num_samples`)."""
    number = 1
    for transform in transforms:
        cropper = getattr(transform, "cropper", None)
        number *= int(getattr(transform, "num_samples", None) or getattr(cropper, "num_samples", None) or 1)
    return number


def seed_freshly(transforms: Sequence[Any]) -> None:
    """Give every random transform a state of its own from `os.urandom`; augmentation is never replayed."""
    from monai.transforms import Randomizable

    for transform in transforms:
        if isinstance(transform, Randomizable):
            words = np.frombuffer(os.urandom(64), dtype=np.uint32)
            transform.set_random_state(state=np.random.RandomState(words))


def apply(transforms: Sequence[Any], item: dict[str, Any]) -> list[dict[str, Any]]:
    """The views that the transforms make of one record: one, or several where a transform crops repeatedly.

    The item's tensors may be changed in place: pass copies of what must stay.
    """
    views = [item]
    for transform in transforms:
        following: list[dict[str, Any]] = []
        for view in views:
            try:
                result = transform(view)
            except Exception as error:
                raise TransformFailed(f"{type(transform).__name__} failed ({type(error).__name__})") from None
            following += result if isinstance(result, list) else [result]
        views = following
    return views


def plain(value: Any) -> Any:
    """A plain contiguous float32 or int64 tensor; MONAI's metadata (file names!) stays behind.

    Floating types become float32, whole numbers stay whole (int64).
    """
    import torch

    tensor = value.as_tensor() if hasattr(value, "as_tensor") else torch.as_tensor(value)
    return tensor.to(torch.float32 if tensor.is_floating_point() else torch.int64).contiguous()
