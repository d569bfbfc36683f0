"""Hostile manifests and files: mutated rows and headers, no traceback, no leak, no merged or lost person.

    python -m benchmarks.hostile_files rows=1000000 files=20000

A violation is an exception that is not this program's own, an output that holds a planted secret, a cohort whose
people are not exactly those of the manifest, or an array that is no array of numbers.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import hmac
import io
import random
import re
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks import _results
from dptrain.data import scan
from dptrain.data.records import quiet_libraries, read_image
from dptrain.errors import DptrainError
from dptrain.settings import ColumnsConfig, DataConfig, DicomConfig, SplitConfig, TableConfig
from dptrain.source import Unreadable
from dptrain.terminal.words import Word, parse_words

SECRET = "SECRET7391"
ROWS = 200  # of one manifest
HEADER = ["patient_id", "crp", "drug", "label", "split"]
COLUMNS = ["outcome", "cases", "violations", "first_violation"]


class Plain:
    """Keyed hashes without files."""

    def patient_key(self, issuer: str, patient_id: str) -> bytes:
        return hmac.digest(b"k", f"{len(issuer)}:{issuer}:{patient_id}".encode("utf-8", "surrogatepass"), "sha256")

    def record_hash(self, array: np.ndarray) -> bytes:
        head = f"{array.shape}{array.dtype.str}".encode()
        return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).digest()


# ---------------------------------------------------------------- rows


ODD = ["\x1b[2J", "\u200b", "\u202e", "\t", "\x00", '"', ",", ";", "\n", "é", "e\u0301", "²", "Ａ", "'", "=", "%s"]


def _letters(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice(ODD) + text[at:]


def _number(rng: random.Random, text: str) -> str:
    forms = [text + ".0", "0" + text, text + "e0", "+" + text, text + ",5", f"{rng.random() * 1e18:.0f}", "1E5"]
    return rng.choice(forms)


MUTATIONS: list[Callable[[random.Random, str], str]] = [
    _letters,
    _letters,
    _number,
    lambda rng, text: text.swapcase(),
    lambda rng, text: f"  {text} ",
    lambda rng, text: rng.choice(["nan", "NA", "None", "NULL", "ANONYMOUS", "", "-", "?", "<5", "12 mg/l"]),
    lambda rng, text: "../" * rng.randrange(1, 4) + text,
    lambda rng, text: text * rng.choice([2, 50]),
    lambda rng, text: rng.choice(["0", "1", "train", "test"]),
]


def _manifest(rng: random.Random, first: int) -> list[list[str]]:
    """Rows of sound people, some of them mutated; ids are numbers in every other manifest."""
    numeric = rng.random() < 0.5
    rows = []
    for i in range(ROWS):
        person = first + i // 2
        name = str(7391000000 + person) if numeric else f"{SECRET}{person}"
        rows.append([name, str(i % 97), "AB"[i % 2], str(person % 2), "train" if person % 5 else "test"])
    for row in rng.sample(rows, rng.choice([0, 1, 1, 1, 2, 5, 60])):
        column = rng.choice([0, 0, *range(len(row))])
        row[column] = rng.choice(MUTATIONS)(rng, row[column])
    if rng.random() < 0.02:
        rng.choice(rows).append("one more")
    return rows


def _text(rng: random.Random, rows: list[list[str]]) -> bytes:
    out = io.StringIO(newline="")
    quoting: Literal[0, 1] = csv.QUOTE_ALL if rng.random() < 0.5 else csv.QUOTE_MINIMAL
    writer = csv.writer(out, delimiter=rng.choice(",,,;\t|"), quoting=quoting)
    writer.writerow(HEADER if rng.random() > 0.02 else rows[0])
    writer.writerows(rows)
    raw = out.getvalue().encode(rng.choice(["utf-8"] * 9 + ["utf-8-sig", "cp1252", "utf-16"]), "replace")
    if rng.random() < 0.02:
        raw = raw[: rng.randrange(len(raw))]
    return raw


def fuzz_rows(number: int, seed: int = 0) -> list[dict[str, Any]]:
    """At least so many rows of mutated tables through a whole registration."""
    rng, counts = random.Random(seed), _Counts()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config = DataConfig(
            root=str(folder),
            manifest="t.csv",
            format="table",
            issuer="clinic",
            columns=ColumnsConfig(split="split"),
            split=SplitConfig(),
            label_values={"0": "negative", "1": "positive"},
            table=TableConfig(numeric={"crp": [0, 100]}, categorical={"drug": ["A", "B"]}),
        )
        done = 0
        while done < number:
            (folder / "t.csv").write_bytes(_text(rng, _manifest(rng, done)))
            config = replace(config, near_ids=rng.choice(["refuse", "different"]))
            with counts.watching("row", ROWS) as say:
                cohort = scan(config, Plain())
                people = {_plain_id(text) for text in _ids(folder / "t.csv")}
                if len(cohort.patients) != len(people):
                    raise AssertionError(f"{len(people)} people became {len(cohort.patients)}")
                say(repr(cohort) + "".join(cohort.notes) + "".join(cohort.unread))
            done += ROWS
    return counts.rows("rows of manifests")


def _ids(path: Path) -> list[str]:
    """The ids of a table that was accepted, read without this program."""
    raw = path.read_bytes()
    text = raw.decode("utf-16") if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else raw.decode("utf-8-sig")
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t|", key=first.count)
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    return [row[0] for row in rows[1:] if row]


def _plain_id(text: str) -> str:
    text = unicodedata.normalize("NFC", text.strip())
    return text[: text.index(".")] if re.fullmatch(r"[+-]?\d+\.0+", text) else text


# ---------------------------------------------------------------- files


def _originals(folder: Path) -> dict[str, bytes]:
    """Sound files of each kind that hold the secret where a file can hold text."""
    import nibabel
    from PIL import Image, PngImagePlugin

    from tests.data.dicom_made import write_dicom

    pixels = np.arange(30, dtype=np.uint8).reshape(5, 6)
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", SECRET)
    Image.fromarray(pixels).save(folder / "a.png", pnginfo=info)
    Image.fromarray(pixels.astype(np.uint16)).save(folder / "b.png")
    volume = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    volume.header["descrip"] = SECRET.encode()
    nibabel.save(volume, folder / "a.nii")
    nibabel.save(volume, folder / "a.nii.gz")
    tags = {"PatientID": SECRET, "PatientName": SECRET, "RescaleSlope": 2, "RescaleIntercept": -9}
    write_dicom(folder / "a.dcm", pixels.astype(np.uint16), bits=12, **tags)
    write_dicom(folder / "b.dcm", np.stack([pixels] * 3), PatientID=SECRET, PhotometricInterpretation="MONOCHROME1")
    write_dicom(folder / "c.dcm", np.stack([pixels] * 3, -1), PatientID=SECRET, PhotometricInterpretation="RGB")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _mutated(rng: random.Random, content: bytes) -> bytes:
    raw = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(max(1, len(raw)))
        how = rng.randrange(6)
        if how == 0:
            raw[at : at + 1] = bytes([rng.randrange(256)])
        elif how == 1:
            raw[at : at + 1] = bytes([raw[at] ^ (1 << rng.randrange(8))]) if raw else b""
        elif how == 2:
            raw[at : at + rng.randrange(1, 9)] = b""
        elif how == 3:
            raw[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif how == 4:
            raw[at : at + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\x00\x00\x00\x80"])
        else:
            del raw[at:]
    return bytes(raw)


def fuzz_files(number: int, seed: int = 0) -> list[dict[str, Any]]:
    """So many mutated PNG, NIfTI and DICOM files through the readers."""
    rng, counts = random.Random(seed), _Counts()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        originals = _originals(folder)
        names = list(originals)
        for i in range(number):
            name = names[i % len(names)]
            path = folder / name
            path.write_bytes(_mutated(rng, originals[name]))
            with counts.watching(path.suffix.removeprefix(".") if path.suffix != ".gz" else "nii.gz", 1) as say:
                pixels, affine = read_image(path, dims=rng.choice([3, 4]))
                if pixels.dtype.kind not in "biuf" or pixels.size == 0:
                    raise AssertionError("no numbers")
                if affine is not None and affine.shape != (4, 4):
                    raise AssertionError("no affine")
                say("")
    return counts.rows("files")


def fuzz_series(number: int, seed: int = 0) -> list[dict[str, Any]]:
    """So many folders of DICOM series whose identifying fields are blank, shared or odd: no person is merged away."""
    from tests.data.dicom_made import write_dicom

    rng, counts = random.Random(seed), _Counts()
    for i in range(number):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            people: set[str] = set()
            sound = rng.random() < 0.5
            for k in range(6):
                names = [f"{SECRET}A", f"{SECRET}B", f"{SECRET}B "]
                patient = rng.choice(names if sound else [*names, f"{SECRET}a", "", "ANONYMOUS"])
                people.add(patient.strip())
                uid = f"1.2.{ord(patient.strip()[-1])}" if sound else rng.choice(["1.2.1", "1.2.2", "1.2.3", ""])
                tags: dict[str, Any] = {"PatientID": patient, "SeriesInstanceUID": uid}
                if sound or rng.random() < 0.8:
                    tags |= {"ImagePositionPatient": [0, 0, float(k)], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
                write_dicom(folder / f"{k}", np.full((4, 4), 7 * i + k, np.uint16), StudyInstanceUID="1.3", **tags)
            lines = ["PatientID,label", *(f'"{person}",{k % 2}' for k, person in enumerate(sorted(people)))]
            (folder / "l.csv").write_text("\n".join(lines))
            config = DataConfig(
                root=str(folder),
                format="dicom",
                issuer="clinic",
                split=SplitConfig(train=1.0, validation=0.0, test=0.0),
                label_values={"0": "negative", "1": "positive"},
                dicom=DicomConfig(labels="l.csv", labels_on="PatientID", series=rng.random() < 0.5),
                image_shape=[1, 4, 4],
                near_ids=rng.choice(["refuse", "different"]),
            )
            with counts.watching("series", 6) as say:
                cohort = scan(config, Plain())
                if len(cohort.patients) != len(people):
                    raise AssertionError(f"{len(people)} people became {len(cohort.patients)}")
                say(repr(cohort))
    return counts.rows("DICOM folders")


class _Counts:
    """Outcomes: accepted, refused, violated."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.violations: dict[str, list[str]] = {}

    @contextlib.contextmanager
    def watching(self, kind: str, number: int) -> Any:
        """Run the block; count what came of it. The block is given a function for what it would show."""
        heard = io.StringIO()
        shown: list[str] = []
        outcome = "accepted"
        try:
            with quiet_libraries(), contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
                yield shown.append
        except (DptrainError, Unreadable) as error:
            outcome = "refused"
            shown.append(f"{error}{getattr(error, 'detail', '')}{getattr(error, 'remedy', '')}")
        except Exception as error:  # everything else is a violation
            self.violations.setdefault(kind, []).append(f"{type(error).__name__}: {str(error)[:80]}")
        text = "".join(shown) + heard.getvalue()
        if SECRET in text or "\x1b" in text:
            self.violations.setdefault(kind, []).append("a secret or an escape sequence was shown")
        self.outcomes[kind, outcome] += number

    def rows(self, what: str) -> list[dict[str, Any]]:
        """One row a kind and outcome; violations stand with the first row of their kind."""
        rows = []
        for kind, outcome in sorted(self.outcomes):
            wrong = self.violations.pop(kind, [])
            rows.append(
                {
                    "what": what,
                    "kind": kind,
                    "outcome": outcome,
                    "cases": self.outcomes[kind, outcome],
                    "violations": len(wrong),
                    "first_violation": wrong[0] if wrong else "",
                }
            )
        return rows


def main(argv: Sequence[str]) -> int:
    """Count; returns 1 where anything was violated."""
    values = parse_words(
        argv,
        {
            "rows": Word(int, "rows of mutated manifests", 1_000_000),
            "files": Word(int, "mutated PNG, NIfTI and DICOM files", 20_000),
            "series": Word(int, "folders of odd DICOM series", 1_000),
            "seed": Word(int, "of the mutations", 0),
            "folder": Word(Path, "where the results go", _results.RESULTS),
        },
    )
    begun = time.monotonic()
    rows = fuzz_files(values["files"], values["seed"]) + fuzz_series(values["series"], values["seed"])
    rows += fuzz_rows(values["rows"], values["seed"])
    for row in rows:
        row.update(_results.stamp())
        print(row)
    _results.write(
        "hostile_files",
        rows,
        command=_results.command_of("hostile_files", argv),
        table_columns=["what", "kind", *COLUMNS],
        title="Hostile manifests and files",
        notes=f"{time.monotonic() - begun:,.0f} s in all. Made by `make test-hostile`.",
        folder=values["folder"],
    )
    return 1 if any(row["violations"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
