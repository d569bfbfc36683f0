"""Sources of records: files and arrays through the deterministic transforms, rows of tables, datasets in Python."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dptrain.data import tables, transforms
from dptrain.data.faults import Faults
from dptrain.data.label_images import labels_changed, placed_apart, whole_label
from dptrain.data.labels import as_classes, image_values
from dptrain.data.manifest import Manifest
from dptrain.data.paths import inside
from dptrain.data.records import channel_first, read_image
from dptrain.data.transforms import TransformFailed, plain
from dptrain.errors import ConfigError
from dptrain.settings import DataConfig
from dptrain.settings.data import shape_of
from dptrain.source import Fault, Item, Sample, Source, Unreadable
from dptrain.vocabulary import Format, Labels, task_spec

if TYPE_CHECKING:
    from torch import Tensor

OUTSIDE = Unreadable("lies outside of the cohort's folder", remedy="Move it there, or declare data.outside=allowed.")


def source_of(config: DataConfig, manifest: Manifest, faults: Faults) -> Source:
    """The source that fits the manifest's format."""
    if config.format == Format.TABLE:
        return TableSource(config, manifest, faults)
    return ImageSource(config, manifest)


class TableSource:
    """Rows of a table, encoded by declared ranges and vocabularies; a record's hash is that of its whole row."""

    parallel = False

    def __init__(self, config: DataConfig, manifest: Manifest, faults: Faults) -> None:
        self.features = tables.encode(manifest, config.table, config.decimal, faults)
        self.rows = tables.row_bytes(manifest, list(manifest.columns))

    def check(self, i: int) -> tuple[np.ndarray | None, list[Fault]]:
        return self.rows[i], []

    def item(self, i: int) -> Sample:
        import torch

        return Sample(torch.from_numpy(self.features[i].copy()))

    def present(self) -> bool:
        return True

    def batch(self, indices: Sequence[int]) -> Tensor:
        import torch

        return torch.from_numpy(self.features[np.asarray(indices, dtype=np.int64)])


class ImageSource:
    """Files, or rows of an array, through the deterministic transforms."""

    def __init__(self, config: DataConfig, manifest: Manifest) -> None:
        self.transforms = transforms.build(config.transforms, random=False)
        self.by_shape = transforms.shape_only(self.transforms)
        self.geometric = transforms.geometric(self.transforms)
        self.seen: set[tuple[tuple[int, ...], str]] = set()
        self.digests: dict[int, bytes] = {}
        self.shape = shape_of(config)
        self.folder = manifest.folder
        self.outside = config.outside == "allowed"
        self.array = manifest.arrays.get(config.columns.image) if config.format == Format.NPZ else None
        self.index = manifest.index
        self.parallel = self.array is None
        self.images = manifest.columns.get("file" if config.format == Format.DICOM else config.columns.image, [])
        self.stacks = {name: [manifest.folder / part for part in parts] for name, parts in manifest.stacks.items()}
        self.label_images: Sequence[str] | None = None
        self.classes = len(config.classes)
        self.label_values = image_values(config)
        if task_spec(config.task).labels is Labels.MASK:
            self.label_images = manifest.columns[config.columns.label[0]]

    def _file(self, name: str) -> Path:
        if not name:
            raise Unreadable("is not named")
        path = inside(self.folder, name, outside=self.outside)
        if path is None:
            raise OUTSIDE
        return path

    def raw(self, i: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Pixels [C, …] as stored, and the affine. Raises Unreadable."""
        if self.array is not None:
            return channel_first(self.array[self.index[i]], len(self.shape)), None
        name = self.images[i]
        if "\n" not in name:
            return read_image(self._file(name), dims=len(self.shape), stack=self.stacks.get(name, ()))
        read = [read_image(self._file(part), dims=len(self.shape)) for part in name.split("\n")]
        if len({pixels.shape[1:] for pixels, _ in read}) > 1:
            raise Unreadable("is made of files that differ in size")
        return np.concatenate([pixels for pixels, _ in read]), read[0][1]

    def raw_label(self, i: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The label image [1, …] by class number where the settings name its values. Raises Unreadable."""
        assert self.label_images is not None
        label, affine = read_image(self._file(self.label_images[i]), dims=len(self.shape), label=True)
        if len(label) != 1:
            raise Unreadable("has several channels", detail=f"{len(label)}", remedy="Write one number a voxel.")
        if label.dtype.kind == "f" and not np.isfinite(label).all():
            raise Unreadable("holds values that are not finite")
        if self.label_values is not None:
            named = as_classes(label, self.label_values)
            if named is None:
                raise Unreadable("holds values that data.label_values does not name", remedy="Name each of them.")
            label = named
        return label, affine

    def check(self, i: int) -> tuple[np.ndarray | None, list[Fault]]:
        try:
            pixels, affine = self.raw(i)
        except Unreadable as error:
            return None, [Fault(f"the image {error.cause}", error.detail, error.remedy)]
        faults = []
        if self.array is None:
            self.digests[i] = _digest(pixels)
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            faults.append(Fault("the image holds values that are not finite"))
        if self.geometric and affine is None:
            faults.append(_placeless(self.geometric[0]))
        if faults:
            return pixels, faults
        if self.label_images is not None:
            return pixels, self._checked_pair(i, pixels, affine)
        kind = (pixels.shape, pixels.dtype.str)
        if not (self.by_shape and kind in self.seen):
            faults = self._checked_shape(pixels, affine)
            if not faults:
                self.seen.add(kind)
        return pixels, faults

    def _checked_shape(self, pixels: np.ndarray, affine: np.ndarray | None) -> list[Fault]:
        try:
            image = self._views({"image": placed_tensor(pixels, affine)})["image"]
        except TransformFailed as error:
            return [Fault(f"the transform {error}", f"the image was {list(pixels.shape)}")]
        return self._wrong_shape(image)

    def _wrong_shape(self, image: Tensor) -> list[Fault]:
        got, want = tuple(image.shape), self.shape
        if got == want:
            return []
        channels = len(got) == len(want) and got[0] != want[0] and got[1:] == want[1:]
        what = "number of channels" if channels else "shape"
        return [Fault(f"the image has another {what} after the transforms than {list(want)}", str(list(got)))]

    def _checked_pair(self, i: int, pixels: np.ndarray, affine: np.ndarray | None) -> list[Fault]:
        """Image and label through the transforms: shapes, places, and labels that were there before."""
        try:
            item = self._pair(i, pixels, affine)
        except Unreadable as error:
            return [Fault(f"the label image {error.cause}", error.detail, error.remedy)]
        try:
            view = self._views(dict(item))
        except TransformFailed as error:
            return [Fault(f"the transform {error}", f"the image was {list(pixels.shape)}")]
        image, label = view["image"], view["label"]
        faults = self._wrong_shape(image)
        if not faults and label.shape != (1, *self.shape[1:]):
            faults.append(Fault("the label image has another shape than the image", str(list(label.shape))))
        if not faults and placed_apart(image, label):
            faults.append(
                Fault(
                    "the label image lies elsewhere than the image",
                    remedy="Bring both to one grid: {_target_: monai.transforms.ResampleToMatchd, keys: [label], "
                    "key_dst: image, mode: nearest}",
                )
            )
        try:
            made = set(whole_label(label, self.classes).unique().tolist())
        except TransformFailed:
            made = {-1}
        if not made <= {0, *item["label"].unique().tolist()}:
            changed = labels_changed(self.transforms, self._pair(i, pixels, affine))
            if changed is not None:
                return [*faults, changed]
        if made == {-1}:
            faults.append(
                Fault(
                    f"unknown label: the label image holds values other than 0 to {self.classes}",
                    remedy="Name each value: data.label_values={'VALUE': CLASS, …}.",
                )
            )
        return faults

    def _pair(self, i: int, pixels: np.ndarray, affine: np.ndarray | None) -> Item:
        """Image and label as tensors, each with its own affine. Raises Unreadable where they cannot be a pair."""
        label, own = self.raw_label(i)
        if affine is None or own is None:
            if label.shape[1:] != pixels.shape[1:]:
                raise Unreadable("has another shape than the image", detail=f"{list(label.shape)}")
            own = affine
        return {"image": placed_tensor(pixels, affine), "label": placed_tensor(label, own)}

    def _views(self, item: Item) -> Item:
        """The one view that the deterministic transforms make, MONAI's metadata included."""
        views = transforms.apply(self.transforms, item)
        if len(views) != 1:
            raise ConfigError(
                "data.transforms makes several crops of one record.",
                remedy="Move multi-crop transforms to data.augment: crops are views of their patient.",
            )
        return views[0]

    def present(self) -> bool:
        return self.array is not None or self.folder.is_dir()

    def item(self, i: int) -> Sample:
        pixels, affine = self.raw(i)
        if i in self.digests and self.digests[i] != _digest(pixels):
            raise Unreadable("is not the one that was checked")
        if self.label_images is None:
            view = self._views({"image": placed_tensor(pixels, affine)})
            return Sample(plain(view["image"]).float())
        view = self._views(self._pair(i, pixels, affine))
        return Sample(plain(view["image"]).float(), whole_label(view["label"], self.classes))

    def batch(self, indices: Sequence[int]) -> None:
        return None


def _placeless(name: str) -> Fault:
    return Fault(
        f"{name} needs to know where the voxels lie, and the image does not say so",
        remedy="Use Resized, which goes by the number of voxels, or files with spacing and orientation.",
    )


def _digest(pixels: np.ndarray) -> bytes:
    """Tells within this process whether a file still holds the pixels that were registered."""
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()


def placed_tensor(pixels: np.ndarray, affine: np.ndarray | None) -> Tensor:
    """A float32 tensor of its own memory; a MetaTensor where an affine belongs to it."""
    import torch

    tensor = torch.from_numpy(np.array(pixels, dtype=np.float32, order="C"))
    if affine is None:
        return tensor
    from monai.data import MetaTensor

    placed: Tensor = MetaTensor(tensor, affine=torch.from_numpy(affine.copy()))
    return placed


class DatasetSource:
    """Items of a dataset in memory or on disk, as they are."""

    parallel = False

    def __init__(self, dataset: Sequence[Mapping[str, Any]], image: str, label: str, config: DataConfig) -> None:
        self.dataset, self.image, self.label = dataset, image, label
        self.shape = shape_of(config)
        self.classes = len(config.classes)
        self.segmentation = task_spec(config.task).labels is Labels.MASK

    def check(self, i: int) -> tuple[np.ndarray | None, list[Fault]]:
        item = self.dataset[i]
        pixels = np.asarray(item[self.image])
        if pixels.shape != self.shape:
            return pixels, [Fault(f"the image has another shape than {list(self.shape)}", str(list(pixels.shape)))]
        if pixels.dtype.kind not in "biuf":
            return None, [Fault("the image holds no numbers")]
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            return pixels, [Fault("the image holds values that are not finite")]
        if self.segmentation:
            try:
                label = whole_label(item[self.label], self.classes)
            except (TransformFailed, KeyError, TypeError, ValueError):
                return pixels, [Fault(f"unknown label: the label image holds values other than 0 to {self.classes}")]
            if tuple(label.shape) != (1, *self.shape[1:]):
                return pixels, [Fault("the label image has another shape than the image", str(list(label.shape)))]
        return pixels, []

    def present(self) -> bool:
        return True

    def item(self, i: int) -> Sample:
        item = self.dataset[i]
        label = whole_label(item[self.label], self.classes) if self.segmentation else None
        return Sample(plain(item[self.image]).float(), label)

    def batch(self, indices: Sequence[int]) -> None:
        return None
