"""Tables of text: CSV in whatever delimiter and encoding it is, both told and never guessed at the cost of an id.

A delimiter shows in the header, so it is found out. An encoding does not: the same bytes are `Müller` in one and
another name in the next, so what is not UTF-8 (or marked UTF-16) is refused with the encoding that it looks like.
"""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

from dptrain.data.faults import Faults
from dptrain.data.manifest import Manifest
from dptrain.data.packed import gunzip
from dptrain.errors import ConfigError, DataUnreadable
from dptrain.source import Unreadable

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def read_text(path: Path, faults: Faults, encoding: str = "", *, what: str = "manifest") -> str:
    """The file's text; lines in another encoding become faults, and reading goes on.

    Raises DataUnreadable for a file that cannot be read at all, or is a workbook.
    """
    try:
        raw = gunzip(path) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error, Unreadable) as error:
        why = error.cause if isinstance(error, Unreadable) else f"cannot be read ({type(error).__name__})"
        raise DataUnreadable(f"The {what} {path} {why}.") from None
    if raw.startswith(_WORKBOOKS):
        raise DataUnreadable(
            f"The {what} {path} is a workbook or an archive, not text.",
            remedy="Save it as CSV (UTF-8) in the spreadsheet, and name that file.",
        )
    marked = next((name for mark, name in _MARKS.items() if raw.startswith(mark)), "")
    if marked == "utf-16" and not encoding:
        faults.notes.append(f"the {what} is read as UTF-16")
    name = encoding or marked or "utf-8"
    try:
        return raw.decode(name)
    except UnicodeDecodeError:
        pass
    except LookupError:
        raise ConfigError(
            f"data.encoding={encoding} is no encoding.", remedy="Such as utf-8, cp1252, utf-16."
        ) from None
    remedy = _likely(raw)
    for number, line in enumerate(raw.split(b"\n"), start=1):
        try:
            line.decode(name)
        except UnicodeDecodeError:
            faults.add(f"not {name.upper()} text", f"line {number}", remedy=remedy)
    return raw.decode(name, errors="replace")


def _likely(raw: bytes) -> str:
    """The setting for the encoding that these bytes look like."""
    zeros = raw[:4096].count(0)
    if zeros > len(raw[:4096]) // 4:
        return f"It looks like UTF-16: data.encoding=utf-16-{'le' if raw[1:2] == bytes(1) else 'be'}"
    try:
        text = raw.decode("cp1252")
    except UnicodeDecodeError:
        return "Save it as UTF-8."
    letters = [letter for letter in text if letter > "\x7f"]
    if all(letter.isprintable() for letter in letters):
        return "It looks like Windows text: data.encoding=cp1252, or save it as UTF-8."
    return "Save it as UTF-8."


def read_table(
    path: Path,
    faults: Faults,
    *,
    what: str = "row",
    wanted: Sequence[str] = (),
    delimiter: str = "",
    encoding: str = "",
) -> Manifest:
    """A CSV file (gzip by its name) as text columns. Row 1 is the header, as spreadsheets count.

    Args:
        what: how its rows are called.
        wanted: names that are looked for in the header; the delimiter that finds most of them is taken.
        delimiter, encoding: as declared; empty to find out.
    """
    text = read_text(path, faults, encoding)
    if "\0" in text:
        faults.add("the table holds NUL characters: it is no text file")
        text = text.replace("\0", "")
    if not delimiter:
        delimiter = _delimiter_of(text, wanted)
        if delimiter != ",":
            faults.notes.append(f"{path.name} is separated by {DELIMITERS[delimiter]}")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header: list[str] = []
    rows: list[list[str]] = []
    names: list[str] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        for number, row in enumerate(reader, start=2):
            if not row:
                continue
            if len(row) != len(header):
                cause = f"another number of fields than the {len(header)} of the header"
                faults.add(cause, f"{what} {number} ({len(row)})", remedy="Is a delimiter inside a text unquoted?")
                row = (row + [""] * len(header))[: len(header)]
            rows.append(row)
            names.append(f"{what} {number}")
    except csv.Error:
        faults.add("no valid CSV", f"{what} {len(rows) + 2}")
    texts = list(zip(*rows)) if rows else [() for _ in header]
    columns: dict[str, list[str]] = {}
    for i, name in enumerate(header):
        if name in columns:
            faults.add(f"column '{name}' occurs twice" if name in wanted else "a column occurs twice in the header")
            continue
        columns[name] = [value.strip() for value in texts[i]]
    return Manifest(columns, names, path.parent)


def _delimiter_of(text: str, wanted: Sequence[str]) -> str:
    """The delimiter by which the first line holds most of the wanted names; commas where none does better."""
    first = text[: text.find("\n")] if "\n" in text else text
    names = set(wanted)

    def hits(delimiter: str) -> int:
        try:
            header = next(csv.reader([first.rstrip("\r")], delimiter=delimiter), [])
        except csv.Error:
            return 0
        return len(names & {name.strip() for name in header}) * 1000 + (len(header) > 1 and not names)

    return max(DELIMITERS, key=lambda delimiter: (hits(delimiter), delimiter == ","))
