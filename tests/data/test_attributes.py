"""The table of attributes in docs/data.md is what the readers do: a file here for each row, a row for each file."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, RLELossless

from dptrain.data.records import read_image
from dptrain.source import Unreadable
from tests.data import made
from tests.data.dicom_made import write_dicom

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
HONOURED, REFUSED, STORED = "honoured", "refused", "as stored"
GREY = made.picture(1)
DEEP = GREY.astype(np.uint16) * 16
# (format, attribute) -> (what is done, a function that writes the file and returns the numbers that are right)
CASES: dict[tuple[str, str], tuple[str, Callable[[Path], Any]]] = {}


def case(kind: str, attribute: str, done: str) -> Callable[[Any], Any]:
    def note(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
        CASES[(kind, attribute)] = (done, function)
        return function

    return note


@case("PNG, JPEG", "EXIF orientation", HONOURED)
def _(folder: Path) -> Any:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(GREY).save(folder / "a.png", exif=exif)
    return GREY[::-1].T[None]


@case("PNG", "palette", HONOURED)
def _(folder: Path) -> Any:
    image = Image.fromarray(GREY % 3, mode="P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(folder / "a.png")
    return np.stack([(GREY % 3 == 1) * 255, (GREY % 3 == 2) * 255, GREY * 0])


@case("PNG", "one bit", HONOURED)
def _(folder: Path) -> Any:
    Image.fromarray(GREY > 99).save(folder / "a.png")
    return (GREY > 99)[None] * 255


@case("PNG, TIFF", "16 bits, grey", HONOURED)
def _(folder: Path) -> Any:
    Image.fromarray(DEEP).save(folder / "a.png")
    return DEEP[None]


@case("PNG, TIFF", "16 bits a colour", REFUSED)
def _(folder: Path) -> Any:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + np.arange(18, dtype=">u2").tobytes() for _ in range(8))
    head = struct.pack(">IIBBBBB", 6, 8, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (folder / "a.png").write_bytes(png)


@case("PNG", "transparency of a colour", REFUSED)
def _(folder: Path) -> Any:
    Image.fromarray(GREY).save(folder / "a.png", transparency=3)


@case("PNG, TIFF", "alpha channel", STORED)
def _(folder: Path) -> Any:
    pixels = made.picture(2, (8, 6, 4))
    Image.fromarray(pixels, mode="RGBA").save(folder / "a.png")
    return np.moveaxis(pixels, -1, 0)


@case("JPEG, TIFF", "CMYK and other colour spaces", REFUSED)
def _(folder: Path) -> Any:
    Image.fromarray(made.picture(2, (8, 6, 4)), mode="CMYK").save(folder / "a.jpg")


@case("TIFF, PNG", "several pages or frames", REFUSED)
def _(folder: Path) -> Any:
    pages = [Image.fromarray(made.picture(i)) for i in range(3)]
    pages[0].save(folder / "a.tif", save_all=True, append_images=pages[1:])


@case("TIFF", "inverted grey (white is zero), 8 bits", HONOURED)
def _(folder: Path) -> Any:
    _inverted_tiff(folder / "a.tif", GREY)
    return 255 - GREY[None]


def _inverted_tiff(path: Path, pixels: np.ndarray) -> None:
    """A TIFF whose tag 262 (PhotometricInterpretation) says that white is zero."""
    Image.fromarray(pixels).save(path)
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack("<HHI", 262, 3, 1))
    content[at + 8 : at + 10] = struct.pack("<H", 0)
    path.write_bytes(content)


@case("TIFF", "inverted grey, other depths", REFUSED)
def _(folder: Path) -> Any:
    _inverted_tiff(folder / "a.tif", DEEP)


@case("PNG, TIFF", "gamma, colour profile", STORED)
def _(folder: Path) -> Any:
    Image.fromarray(GREY).save(folder / "a.png", icc_profile=b"a profile")
    return GREY[None]


@case("NIfTI", "slope and intercept", HONOURED)
def _(folder: Path) -> Any:
    volume = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    volume.header.set_slope_inter(0.5, -10)
    nibabel.save(volume, folder / "a.nii.gz")
    return np.asarray(nibabel.Nifti1Image.from_filename(folder / "a.nii.gz").dataobj)[None]


@case("NIfTI", "a fourth axis", HONOURED)
def _(folder: Path) -> Any:
    array = np.arange(48, dtype=np.float32).reshape(2, 3, 4, 2)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / "a.nii.gz")
    return np.moveaxis(array, -1, 0)


@case("NIfTI", "a fifth axis", REFUSED)
def _(folder: Path) -> Any:
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4, 1, 2), np.float32), np.eye(4)), folder / "a.nii.gz")


@case("NIfTI", "units other than mm", REFUSED)
def _(folder: Path) -> Any:
    volume = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.float32), np.eye(4))
    volume.header.set_xyzt_units("micron")
    nibabel.save(volume, folder / "a.nii.gz")


@case("NIfTI", "RGB and complex numbers", REFUSED)
def _(folder: Path) -> Any:
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4), np.complex64), np.eye(4)), folder / "a.nii.gz")


@case("DICOM", "rescale slope and intercept", HONOURED)
def _(folder: Path) -> Any:
    write_dicom(folder / "a.dcm", DEEP, RescaleSlope=2, RescaleIntercept=-1000)
    return DEEP[None] * 2.0 - 1000


@case("DICOM", "rescale of each frame", HONOURED)
def _(folder: Path) -> Any:
    frames = np.stack([DEEP, DEEP, DEEP])
    write_dicom(folder / "a.dcm", frames, PerFrameFunctionalGroupsSequence=Sequence(map(_frame, range(3))))
    return np.stack([DEEP * (k + 1.0) - k for k in range(3)])[None]


def _frame(number: int) -> Dataset:
    value, frame = Dataset(), Dataset()
    value.RescaleSlope, value.RescaleIntercept, value.RescaleType = number + 1, -number, "US"
    frame.PixelValueTransformationSequence = Sequence([value])
    return frame


@case("DICOM", "MONOCHROME1, unsigned", HONOURED)
def _(folder: Path) -> Any:
    write_dicom(folder / "a.dcm", DEEP, bits=12, PhotometricInterpretation="MONOCHROME1")
    return 4095 - DEEP[None].astype(int)


@case("DICOM", "MONOCHROME1, signed", HONOURED)
def _(folder: Path) -> Any:
    signed = DEEP.astype(np.int16) - 2048
    write_dicom(folder / "a.dcm", signed, bits=12, PhotometricInterpretation="MONOCHROME1")
    return -1 - signed[None]


@case("DICOM", "PALETTE COLOR", HONOURED)
def _(folder: Path) -> Any:
    table = np.arange(256, dtype=np.uint16) * 257
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for number, colour in enumerate(("Red", "Green", "Blue")):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = np.roll(table, number).tobytes()
    write_dicom(folder / "a.dcm", GREY, **tags)
    return np.stack([np.roll(table, number)[GREY] for number in range(3)])


@case("DICOM", "RGB", HONOURED)
def _(folder: Path) -> Any:
    pixels = made.picture(3, (8, 6, 3))
    write_dicom(folder / "a.dcm", pixels, PhotometricInterpretation="RGB")
    return np.moveaxis(pixels, -1, 0)


@case("DICOM", "PresentationLUTShape INVERSE of MONOCHROME2", REFUSED)
def _(folder: Path) -> Any:
    write_dicom(folder / "a.dcm", DEEP, PresentationLUTShape="INVERSE")


@case("DICOM", "overlay in unused bits", REFUSED)
def _(folder: Path) -> Any:
    write_dicom(folder / "a.dcm", DEEP, bits=12)
    data = pydicom.dcmread(folder / "a.dcm")
    data.add_new(0x60000102, "US", 12)
    data.save_as(folder / "a.dcm")


@case("DICOM", "window, padding value, overlay planes", STORED)
def _(folder: Path) -> Any:
    write_dicom(folder / "a.dcm", DEEP, WindowCenter=40, WindowWidth=400, PixelPaddingValue=0)
    return DEEP[None]


@case("DICOM", "no pixels (plan, report, waveform)", REFUSED)
def _(folder: Path) -> Any:
    write_dicom(folder / "a.dcm", None, PatientID="A")


@case("DICOM", "compression without a decoder", REFUSED)
def _(folder: Path) -> Any:
    write_dicom(folder / "a.dcm", DEEP)
    from pydicom.encaps import encapsulate

    data = pydicom.dcmread(folder / "a.dcm")
    data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    data.PixelData = encapsulate([b"\xff\xd8 no jpeg \xff\xd9"])
    data["PixelData"].is_undefined_length = True
    data.save_as(folder / "a.dcm")


@case("NumPy", "pickled objects", REFUSED)
def _(folder: Path) -> Any:
    np.save(folder / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


@case("NumPy", "complex numbers", REFUSED)
def _(folder: Path) -> Any:
    np.save(folder / "a.npy", np.zeros((8, 6), np.complex64))


@pytest.mark.parametrize("key", CASES, ids=": ".join)
def test_what_a_reader_does_with_an_attribute(tmp_path: Path, key: tuple[str, str]) -> None:
    done, write = CASES[key]
    expected = write(tmp_path)
    (path,) = tmp_path.iterdir()
    if done == REFUSED:
        with pytest.raises(Unreadable) as caught:
            read_image(path, dims=3)
        assert str(path) not in f"{caught.value.cause}{caught.value.remedy}"
        return
    pixels, _ = read_image(path, dims=4 if expected.ndim == 4 and "DICOM" in key[0] else 3)
    assert np.array_equal(np.asarray(pixels, dtype=float), np.asarray(expected, dtype=float))


def test_the_table_in_the_docs_is_this_one() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| (honoured|refused|as stored)[^|]*\|", PAGE.read_text(), re.M)
    told = {(kind.strip(), attribute.strip()): done for kind, attribute, done in rows}
    assert told == {key: done for key, (done, _) in CASES.items()}


def test_pages_of_a_tiff_are_slices_of_a_volume(tmp_path: Path) -> None:
    pages = [made.picture(i) for i in range(3)]
    images = [Image.fromarray(page) for page in pages]
    images[0].save(tmp_path / "a.tif", save_all=True, append_images=images[1:])
    assert np.array_equal(read_image(tmp_path / "a.tif", dims=4)[0], np.stack(pages)[None])


def test_rgb_slices_keep_their_three_channels(tmp_path: Path) -> None:
    slices = [made.picture(i, (8, 6, 3)) for i in range(2)]
    paths = [tmp_path / f"{i}.dcm" for i in range(2)]
    for i, path in enumerate(paths):
        write_dicom(path, slices[i], PhotometricInterpretation="RGB", ImagePositionPatient=[0, 0, i])
    pixels, _ = read_image(paths[0], dims=4, stack=paths)
    assert np.array_equal(pixels, np.stack([np.moveaxis(one, -1, 0) for one in slices], axis=1))


@pytest.mark.parametrize(
    ("syntax", "package"),
    [(JPEGLosslessSV1, "pylibjpeg-libjpeg"), (JPEG2000Lossless, "pylibjpeg-openjpeg"), (RLELossless, "")],
)
def test_a_missing_decoder_is_named_by_the_packages_that_decode(tmp_path: Path, syntax: Any, package: str) -> None:
    """The remedy "install pylibjpeg" did not help: each compression has a plugin of its own."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    write_dicom(tmp_path / "a.dcm", DEEP)
    data = pydicom.dcmread(tmp_path / "a.dcm")
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate([b"\xff\xd8 nothing \xff\xd9"])
    data["PixelData"].is_undefined_length = True
    data.save_as(tmp_path / "a.dcm")
    with pytest.raises(Unreadable) as caught:
        read_image(tmp_path / "a.dcm", dims=3)
    if get_decoder(syntax).is_available:
        assert caught.value.cause == "cannot be read: damaged, truncated or no image"
    else:
        assert caught.value.remedy == f"pip install pylibjpeg {package}"
