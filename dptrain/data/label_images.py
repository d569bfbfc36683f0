"""Label images through transforms: whole numbers 0…C that were there before, or a fault that names the transform.

Interpolation invents labels: between 0 and 2 it makes 1, which is another structure. So labels are looked at after
the deterministic transforms of every record, and after the random ones of a made-up record before anything is paid.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dptrain.data import transforms as pipeline
from dptrain.data.transforms import TransformFailed
from dptrain.settings import DataConfig
from dptrain.settings.data import shape_of
from dptrain.source import Fault, Item
from dptrain.vocabulary import Labels, task_spec

if TYPE_CHECKING:
    from monai.transforms import MapTransform
    from torch import Tensor

RELABEL = ("MapLabelValued", "LabelToMaskd", "AsDiscreted", "ForegroundMaskd")  # new values are what they are for
SAMPLED = ("Resized", "Zoomd", "RandZoomd")  # by torch.nn.functional.interpolate, which takes no bilinear volumes
PLACED_APART = 0.1  # voxels


def whole_label(label: Tensor, classes: int) -> Tensor:
    """A label image as int64 [1, …]. Raises TransformFailed where it holds anything but whole numbers 0…C."""
    tensor = pipeline.plain(label)
    numbers = tensor.long()
    if not bool((numbers == tensor).all()):  # NaN is equal to nothing
        raise TransformFailed("made labels that are no whole numbers")
    if tensor.numel() and not (int(numbers.min()) >= 0 and int(numbers.max()) <= classes):
        raise TransformFailed("made labels that no class has")
    return numbers


def labels_changed(transforms: Sequence[MapTransform], item: Item) -> Fault | None:
    """Run the transforms one by one and name the first that makes labels which were not there; None where none does.

    Args:
        item: image and label, both float tensors [C, …]; they may be changed in place.
    """
    views = [item]
    before = _values(item["label"])
    for transform in transforms:
        views = pipeline.apply_one(transform, views)
        name = type(transform).__name__
        after = np.unique(np.concatenate([_values(view["label"]) for view in views]))
        if not np.isfinite(after).all() or not (after == np.round(after)).all():
            return _changed(transform, name, "makes labels that are no whole numbers", item)
        if name not in RELABEL and not np.isin(after, np.append(before, 0)).all():
            return _changed(transform, name, "makes labels that were not there", item)
        before = after
    return None


def _values(label: Tensor) -> np.ndarray:
    return np.unique(np.asarray(label, dtype=np.float64))


def _changed(transform: MapTransform, name: str, what: str, item: Item) -> Fault:
    keys = [str(key) for key in transform.keys]
    smooth = "area" if name in SAMPLED and item["image"].ndim == 4 else "bilinear"
    modes = ", ".join("nearest" if key == "label" else smooth for key in keys)
    if hasattr(transform, "mode") or "mode" in type(transform).__init__.__code__.co_varnames:
        remedy = f"{name}: mode: [{modes}]" if len(keys) > 1 else f"{name}: mode: nearest"
    else:
        remedy = f"{name}: keys: [{', '.join(key for key in keys if key != 'label') or 'image'}]"
    return Fault(f"the transform {name} {what}", remedy=remedy)


def placed_apart(image: Tensor, label: Tensor) -> bool:
    """Whether image and label lie in different places: a corner of one is more than a tenth of a voxel off."""
    affines = [getattr(value, "affine", None) for value in (image, label)]
    if affines[0] is None or affines[1] is None:
        return False
    one, other = (np.asarray(affine, dtype=np.float64) for affine in affines)
    if one.shape != other.shape:
        return True
    dims = len(one) - 1
    sizes = np.array([*image.shape[1 : 1 + dims], *[1] * dims][:dims], dtype=np.float64) - 1
    corners = np.stack(np.meshgrid(*[[0.0, size] for size in sizes]), axis=-1).reshape(-1, dims)
    off = np.linalg.norm((corners @ (one - other)[:dims, :dims].T) + (one - other)[:dims, dims], axis=1)
    voxel = np.linalg.norm(one[:dims, :dims], axis=0).min()
    return bool(off.max() > PLACED_APART * voxel)


def try_pipeline(config: DataConfig) -> list[tuple[str, Fault]]:
    """What transforms and augmentation do to the labels of a made-up record: (setting, fault), none for other tasks.

    The record holds background and the last structure alone, so that anything interpolated shows. Transforms that
    cannot run on a record of that size are passed over: their own record will show it.
    """
    if task_spec(config.task).labels is not Labels.MASK:
        return []
    faults = []
    shape = shape_of(config)
    raw = (shape[0], *(size + size // 4 + 1 for size in shape[1:]))
    for setting, nodes, random, size in (
        ("data.transforms", config.transforms, False, raw),
        ("data.augment", config.augment, True, shape),
    ):
        built = copy.deepcopy(pipeline.build(nodes, random=random))
        for transform in built:
            if hasattr(transform, "prob"):
                transform.prob = 1.0
        try:
            fault = labels_changed(built, made_up(size, len(config.classes)))
        except TransformFailed:
            continue
        if fault is not None:
            faults.append((setting, fault))
    return faults


def made_up(shape: Sequence[int], classes: int) -> Item:
    """An image of noise and a label image that holds 0 and the last class, as MONAI's tensors with an affine."""
    import torch
    from monai.data import MetaTensor

    generator = torch.Generator().manual_seed(0)
    spatial = tuple(shape[1:])
    affine = np.diag([0.9, 1.1, 1.3, 1.0])
    label = torch.zeros((1, *spatial))
    inner = label[0]
    for axis, size in enumerate(spatial):
        inner = inner.narrow(axis, size // 4, size - 2 * (size // 4))
    inner.fill_(float(classes))
    image = torch.rand(tuple(shape), generator=generator)
    return {
        "image": MetaTensor(image, affine=torch.from_numpy(affine)),
        "label": MetaTensor(label, affine=torch.from_numpy(affine.copy())),
    }
