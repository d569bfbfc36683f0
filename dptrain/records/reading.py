"""Files that anybody may have touched: read in this one place, into records, with a list of what is wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from dptrain.records.shape import Public, Reader, Record

T = TypeVar("T", bound=Record)


@dataclass(frozen=True, kw_only=True)
class Fault(Record):
    """What of a run is missing. why: `absent`, `torn`, `schema` (another program's), or `field` with its name."""

    piece: Public[str]
    why: Public[str]
    detail: Public[str] = ""


@dataclass(frozen=True)
class Reading(Generic[T]):
    """A file's record; of one that cannot be read nothing is known (`readable` False)."""

    record: T
    readable: bool
    faults: tuple[Fault, ...]


def read_file(path: Path, kind: type[T], piece: str) -> Reading[T]:
    """A JSON file as a record; absent, torn or of an unknown schema, or faults in its fields, are listed.

    Every text is cleaned: see :func:`dptrain.records.shape.clean`.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return _unreadable(kind, piece, "absent")
    except (OSError, ValueError, RecursionError):
        return _unreadable(kind, piece, "torn")
    if not isinstance(values, dict) or values.get("schema") not in (kind.SCHEMA, None):
        return _unreadable(kind, piece, "schema")
    reader = Reader()
    record = kind.from_json(values, reader)
    assert record is not None
    return Reading(record, True, tuple(Fault(piece=piece, why="field", detail=name) for name in reader.faults))


def _unreadable(kind: type[T], piece: str, why: str) -> Reading[T]:
    return Reading(kind.of({}), False, (Fault(piece=piece, why=why),))
