"""One new image through a cohort's deterministic transforms: for inference, where no grant is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dptrain.data import transforms
from dptrain.data.expected import Doubt, Expected, doubts
from dptrain.data.records import read_image
from dptrain.data.sources import placed_tensor
from dptrain.errors import DataUnreadable
from dptrain.settings import DataConfig
from dptrain.settings.data import shape_of
from dptrain.source import Unreadable

if TYPE_CHECKING:
    from torch import Tensor


def load_image(config: DataConfig, path: Path) -> Tensor:
    """The image of a file as the network wants it: float32 [C, …].

    The image is nobody's training data: nothing is charged, and no ledger is asked.
    Raises DataUnreadable for a file that cannot be read, has another shape after the transforms, or is unlike what
    the model was trained on (:func:`dptrain.data.expected.doubts`).
    """
    image, reasons = look(config, path)
    if image is None:
        raise DataUnreadable(f"the image {'; '.join(reason.why for reason in reasons if reason.refused)}.")
    return image


def look(config: DataConfig, path: Path) -> tuple[Tensor | None, list[Doubt]]:
    """The image of a file as the network wants it, and what speaks against it; None where it would mean nothing.

    Raises DataUnreadable for a file that cannot be read or has another shape after the transforms.
    """
    wanted = shape_of(config)
    try:
        pixels, affine = read_image(path, dims=len(wanted))
    except Unreadable as error:
        raise DataUnreadable(f"the image {error.cause}.", remedy=error.remedy or None) from None
    reasons = doubts(Expected.of(config), path, pixels, affine)
    if any(reason.refused for reason in reasons):
        return None, reasons
    item = {"image": placed_tensor(pixels, affine)}
    ready = transforms.build([_image_only(node) for node in config.transforms], random=False)
    image: Tensor = transforms.plain(transforms.apply(ready, item)[0]["image"]).float()
    if tuple(image.shape) != wanted:
        raise DataUnreadable(f"the image has shape {list(image.shape)} after the transforms, not {list(wanted)}.")
    return image, reasons


def _image_only(node: object) -> object:
    """A transform of image and label, for the image alone (a new image has no label)."""
    if not isinstance(node, dict) or "label" not in node.get("keys", ()):
        return node
    kept = dict(node)
    places = [i for i, key in enumerate(node["keys"]) if key == "image"]
    for name, value in node.items():
        if isinstance(value, list) and len(value) == len(node["keys"]):
            kept[name] = [value[i] for i in places]
    return kept
