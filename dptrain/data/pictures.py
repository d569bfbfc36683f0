"""PNG, JPEG, BMP and TIFF as they look: [C, rows, columns], or [C, pages, rows, columns] for a TIFF of several pages.

What changes the meaning of the numbers is honoured or refused (docs/data.md has the table): palettes, orientation,
16 bits a colour, transparency, pages, inverted grey.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dptrain.source import Unreadable

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "MPO")
MODES = ("L", "RGB", "P", "1", "I;16", "I;16B", "I;16L", "I", "F", "RGBA", "LA")
_ORIENTATION, _PHOTOMETRIC = 0x0112, 262
_MAY_BE_TURNED = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


def read_picture(path: Path, *, dims: int, label: bool = False) -> np.ndarray:
    """Pixels of a picture as stored, in the order in which they look.

    Args:
        dims: length of the shape that is wanted: 4 takes the pages of a TIFF as slices.
        label: a label image: the numbers of a palette, not its colours.
    """
    from PIL import Image

    with Image.open(path, formats=FORMATS) as image:
        pages = getattr(image, "n_frames", 1)
        if pages == 1:
            return _page(image, label)
        if dims != 4 or image.format != "TIFF":
            raise Unreadable(
                "holds several pages, of which one would be read",
                detail=f"{pages} pages",
                remedy="Write each page into a file of its own, or a TIFF for a shape [C, pages, rows, columns].",
            )
        slices = []
        for number in range(pages):
            image.seek(number)
            slices.append(_page(image, label))
        if len({part.shape for part in slices}) > 1:
            raise Unreadable("holds pages that differ in size")
        return np.stack(slices, axis=1)


def _page(image: Image.Image, label: bool) -> np.ndarray:
    mode = image.mode
    if mode not in MODES:
        raise Unreadable("is in a colour space that is not read", detail=mode, remedy="Save it as greyscale or RGB.")
    tiles = getattr(image, "tile", None)
    raw = str(tiles[0][3]) if tiles else ""
    if ";16" in raw and not mode.startswith("I"):
        raise Unreadable(
            "has 16 bits a colour, of which eight would be read",
            remedy="Save it as 16-bit greyscale, as 8-bit RGB, or as .npy.",
        )
    info = image.info
    if "transparency" in info:
        raise Unreadable("has a transparent colour, which is not read", remedy="Save it without transparency.")
    tags = getattr(image, "tag_v2", None)
    if tags is not None and tags.get(_PHOTOMETRIC) == 0 and mode not in ("L", "1"):
        raise Unreadable("is stored inverted (white is zero)", remedy="Save it with black as zero.")
    image.load()
    if tags is not None or any(name in info for name in _MAY_BE_TURNED):
        image = _upright(image)
    if mode == "P" and not label:
        image = image.convert("RGB")
    elif mode == "1":
        image = image.convert("L")
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(np.moveaxis(array, -1, 0))


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says (Exif 3.0, tag 0x0112)."""
    from PIL import ImageOps

    if image.getexif().get(_ORIENTATION, 1) in (0, 1):
        return image
    return ImageOps.exif_transpose(image)
