"""Fetch the public original of the chest X-ray recipe, check it against its published checksum, prepare it.

The publisher (Mendeley Data) states each file's SHA-256 and size in its public file list; that list is read
over TLS first, the archive afterwards, and nothing is used whose checksum differs. A checksum of one's own
can be pinned instead. The checksum tells a damaged or exchanged archive from the published one; it cannot
tell an exchanged publication.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path

from dptrain.errors import DataUnreadable, DptrainError
from dptrain.files import file_sha256
from dptrain.plain import Json
from dptrain.settings import ColumnsConfig, DataConfig
from dptrain.terminal.progress import progress

KERMANY_FOLDER = "kermany_paediatric_cxr_224"
KERMANY_FILE = "ChestXRay2017.zip"
KERMANY_URL = (
    "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
    "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded"
)
KERMANY_LIST = "https://data.mendeley.com/public-api/datasets/rscbjbr9sj/files?folder_id=root&version=2"
KERMANY_SOURCE = (
    "Kermany, Zhang, Goldbaum (2018): Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for "
    "Classification. Mendeley Data, V2, doi:10.17632/rscbjbr9sj.2"
)
KERMANY_CAUTIONS = (
    "Files name patients by number; one number may join two children (bacteria and virus are numbered apart). "
    "Removing one of two joined children changes a unit rather than removing it: up to 2C, not C.",
    "Children of one to five years, one hospital; labels by readers of that hospital; aspect ratio not kept.",
)
AGENT = {"User-Agent": "Mozilla/5.0 (compatible; dptrain)"}
LARGEST_IMAGE = 64 << 20
KERMANY_FIELDS = (
    "file",
    "patient_id",
    "patient_group",
    "label",
    "class_name",
    "subtype",
    "sex",
    "age",
    "view",
    "kaggle_split",
    "duplicate_of",
    "split",
    "licence",
)


class FetchFailed(DptrainError):
    """The public original could not be fetched; the message says why and what to do."""

    exit_code = DataUnreadable.exit_code


@dataclass(frozen=True)
class Published:
    """What the publisher says of a file."""

    url: str
    sha256: str
    size: int | None


def published(url: str, listing: str | None, name: str, sha256: str | None, *, timeout: float = 20.0) -> Published:
    """The file's address and checksum, from the publisher's list, a pinned checksum, or both.

    Raises FetchFailed where no checksum is to be had (none is ever made up) or where the two differ.
    """
    entry: Json = {}
    trouble = "no list of checksums is named"
    if listing is not None:
        try:
            with _open(listing, timeout) as answer:
                files = json.loads(answer.read(4 << 20))
            entry = next(item["content_details"] for item in files if item.get("filename") == name)
        except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
            trouble = f"the publisher's list of checksums could not be read ({type(error).__name__})"
    stated = str(entry.get("sha256_hash") or "").lower()
    if sha256 is not None:
        if stated and stated != sha256.lower():
            raise FetchFailed(
                f"The publisher states another SHA-256 for {name} than the one you pinned.",
                remedy="Find out which is right before you use the file.",
            )
        stated = sha256.lower()
    if not re.fullmatch(r"[0-9a-f]{64}", stated):
        raise FetchFailed(
            f"{name} cannot be checked: {trouble}.",
            remedy="State its SHA-256 yourself (sha256=...), or fetch the file by hand and set data.root.",
        )
    size = entry.get("size")
    return Published(str(entry.get("download_url") or url), stated, int(size) if size else None)


def _open(url: str, timeout: float, start: int = 0) -> HTTPResponse:
    headers = {**AGENT, **({"Range": f"bytes={start}-"} if start else {})}
    if not url.startswith(("https://", "http://127.0.0.1:")):
        raise FetchFailed("Only https addresses are fetched.", remedy=f"Not {url.split(':')[0]}.")
    answer: HTTPResponse = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    return answer


def fetch(file: Published, path: Path, *, tries: int = 5, timeout: float = 30.0, pause: float = 2.0) -> Path:
    """Fetch `file` to `path`: resumed where it broke off, checked, and renamed only when it is whole.

    Raises FetchFailed: no connection, a full disk, or a checksum that differs (the part is then deleted).
    """
    if path.is_file() and file_sha256(path) == file.sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    for attempt in range(tries):
        try:
            _fetch_on(file, part, timeout)
            break
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is longer than the file: begin again
                part.unlink(missing_ok=True)
            elif 400 <= error.code < 500:
                raise FetchFailed(f"The server refuses the file (HTTP {error.code}).", remedy=_BY_HAND) from None
            trouble = f"HTTP {error.code}"
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            trouble = type(getattr(error, "reason", error)).__name__
        except OSError as error:
            raise FetchFailed(
                f"{part} cannot be written ({error.strerror}).", remedy="Make room, then repeat."
            ) from None
        if attempt + 1 == tries:
            raise FetchFailed(
                f"The connection failed {tries} times ({trouble}).",
                remedy="Repeat the command: it goes on where it broke off. " + _BY_HAND,
            )
        time.sleep(pause * 2**attempt)
    if file_sha256(part) != file.sha256:
        part.unlink()
        raise FetchFailed(
            f"{path.name} does not have the published SHA-256 {file.sha256}: it is damaged or not that file.",
            remedy="Repeat the command; if that does not help, fetch it by hand and compare.",
        )
    os.replace(part, path)
    return path


_BY_HAND = "Or fetch it by hand, and set data.root to where it lies."


def _fetch_on(file: Published, part: Path, timeout: float) -> None:
    """Append to the part what is missing of it."""
    start = part.stat().st_size if part.is_file() else 0
    if file.size is not None and start == file.size:
        return
    with _open(file.url, timeout, start) as answer:
        resumed = answer.status == 206
        length = answer.headers.get("Content-Length")
        done = start if resumed else 0
        total = file.size or (done + int(length) if length else None)
        with (
            part.open("ab" if resumed else "wb") as out,
            progress(total, "Fetching the public original", unit="bytes") as shown,
        ):
            shown.advance(done)
            while chunk := answer.read(1 << 18):
                out.write(chunk)
                done += len(chunk)
                shown.advance(len(chunk))
        if total is not None and done < total:
            raise ConnectionError("the connection ended early")


def download(
    folder: Path,
    *,
    url: str = KERMANY_URL,
    listing: str | None = KERMANY_LIST,
    sha256: str | None = None,
    size: int = 224,
    timeout: float = 30.0,
    pause: float = 2.0,
) -> DataConfig:
    """The Kermany chest X-rays in `folder`: fetched, checked and prepared, or found there ready.

    Args:
        folder: becomes folder/kermany_paediatric_cxr_224 with images/ and manifest.csv; the archive stays in
            folder/ChestXRay2017.zip and may be deleted.
        sha256: pins the archive's checksum; None takes the publisher's.
        size: side of the prepared grey images, in pixels.

    Raises FetchFailed, DataUnreadable: with what to do.
    """
    folder = Path(folder)
    ready = folder / KERMANY_FOLDER
    if not (ready / "manifest.csv").is_file():
        file = published(url, listing, KERMANY_FILE, sha256, timeout=timeout)
        unpack(fetch(file, folder / KERMANY_FILE, timeout=timeout, pause=pause), ready, size=size)
    return kermany_config(folder, size)


def kermany_config(root: Path, size: int = 224) -> DataConfig:
    """Settings of the prepared Kermany cohort below `root`; the unit of privacy is `patient_group`."""
    return DataConfig(
        name="kermany-chest-xray",
        root=str(root),
        folder=KERMANY_FOLDER,
        issuer="Kermany 2018, Guangzhou Women and Children's Medical Center",  # as in the recipe: part of every key
        columns=ColumnsConfig(patient="patient_group", split="split", groups=["subtype"]),
        classes=["normal", "pneumonia"],
        label_values={"0": "normal", "1": "pneumonia"},
        drop={"duplicate_of": "*"},
        image_shape=[1, size, size],
        transforms=[
            {
                "_target_": "monai.transforms.ScaleIntensityRanged",
                "keys": ["image"],
                "a_min": 0,
                "a_max": 255,
                "b_min": 0,
                "b_max": 1,
            }
        ],
        source=KERMANY_SOURCE,
        licence="CC BY 4.0",
        cautions=list(KERMANY_CAUTIONS),
    )


def unpack(archive: Path, ready: Path, *, size: int = 224) -> None:
    """Turn the archive (chest_xray/{train,test}/{NORMAL,PNEUMONIA}/*.jpeg) into images/ and manifest.csv.

    Nothing is unpacked by the names in the archive: each picture is decoded in memory and written under a
    name that is made here. The result appears whole or not at all. Raises DataUnreadable.
    """
    part = ready.with_name(ready.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "images").mkdir(parents=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            rows = _images(opened, part, size)
    except (zipfile.BadZipFile, EOFError) as error:
        raise DataUnreadable(f"{archive} is no whole zip archive ({type(error).__name__}).") from None
    if not rows:
        raise DataUnreadable(
            f"{archive} holds no pictures where they are expected.",
            remedy="The layout is chest_xray/train/NORMAL/*.jpeg and so on.",
        )
    _mark_duplicates(rows, part)
    with (part / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, KERMANY_FIELDS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    shutil.rmtree(ready, ignore_errors=True)
    os.replace(part, ready)


ENTRY = re.compile(r"(?:^|/)(train|test|val)/(NORMAL|PNEUMONIA)/([^/]+)\.jpe?g$", re.IGNORECASE)


def _images(opened: zipfile.ZipFile, part: Path, size: int) -> list[dict[str, str]]:
    from PIL import Image

    entries = []
    for entry in opened.infolist():
        match = ENTRY.search(entry.filename)
        if match and not entry.filename.startswith("__MACOSX") and not match.group(3).startswith("."):
            entries.append((match.group(3), match.group(1).lower(), match.group(2).upper(), entry))
    entries.sort(key=lambda item: item[:3])
    rows: list[dict[str, str]] = []
    taken: set[str] = set()
    with progress(len(entries), "Preparing images") as shown:
        for number, (stem, split, kind, entry) in enumerate(entries):
            name = re.sub(r"[^A-Za-z0-9_-]", "_", stem)
            if name in taken:
                name = f"{name}_{number}"
            taken.add(name)
            if entry.file_size > LARGEST_IMAGE:
                raise DataUnreadable(f"picture {number + 1} of the archive is larger than any radiograph.")
            try:
                with opened.open(entry) as raw, Image.open(raw) as image:
                    image.draft("L", (2 * size, 2 * size))
                    grey = image.convert("L").resize((size, size), Image.Resampling.LANCZOS)
            except (OSError, ValueError, SyntaxError, zipfile.BadZipFile):
                raise DataUnreadable(f"picture {number + 1} of the archive is damaged.") from None
            grey.save(part / "images" / f"{name}.jpeg", quality=95)
            rows.append(_row(stem, f"images/{name}.jpeg", split, kind))
            shown.advance()
    return rows


def _row(stem: str, file: str, split: str, kind: str) -> dict[str, str]:
    patient, group, subtype = who(stem, kind)
    return {
        "file": file,
        "patient_id": patient,
        "patient_group": group,
        "label": "1" if kind == "PNEUMONIA" else "0",
        "class_name": kind.lower(),
        "subtype": subtype,
        "view": "AP",
        "kaggle_split": split,
        "licence": "CC BY 4.0",
    }


def who(stem: str, kind: str) -> tuple[str, str, str]:
    """Patient id, patient group and subtype from a file's name.

    `person1372_bacteria_3502` -> person1372_bacteria, person1372, bacteria: the number alone is the group,
    since it is unknown whether the two series number the same children. `NORMAL2-IM-0095-0001` ->
    NORMAL2-IM-0095 twice, normal. Other names stand for themselves.
    """
    person = re.match(r"(person\d+)_(bacteria|virus)(?:_|$)", stem)
    if person:
        return f"{person.group(1)}_{person.group(2)}", person.group(1), person.group(2)
    normal = re.match(r"((?:NORMAL2-)?IM-\d+)", stem)
    name = normal.group(1) if normal else stem
    return name, name, "normal" if kind == "NORMAL" else "unknown"


def _mark_duplicates(rows: list[dict[str, str]], part: Path) -> None:
    """Note exact copies, give them their original's group, and split by SHA-256 of the group, 70/15/15."""
    first: dict[str, dict[str, str]] = {}
    for row in rows:
        original = first.setdefault(file_sha256(part / row["file"]), row)
        if original is not row:
            row["duplicate_of"], row["patient_group"] = original["file"], original["patient_group"]
    for row in rows:
        share = int.from_bytes(hashlib.sha256(row["patient_group"].encode()).digest()[:8], "big") / 2**64
        row["split"] = "train" if share < 0.7 else "val" if share < 0.85 else "test"
