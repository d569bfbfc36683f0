"""Frozen dataclasses that are JSON objects: `from_json`, `to_json` and a JSON schema, all from the declared types.

A field's type says how it is read: `float | None`, `int | None`, `str | None`, `bool | None` are a value or not
known; `tuple[str, ...]` is a list; another :class:`Record` is an object; `tuple[Row, ...]` and `dict[str, Row]` are
tables. `Annotated` adds what the type cannot say: :data:`Share`, :data:`NEEDED`, :data:`LATE`, :class:`Keys`.

Reading never raises. Whatever has the wrong type is not known, whatever is not declared is not read, and a
:class:`Reader` notes the faults of single fields (rows of tables are read without a word).
"""

from __future__ import annotations

import dataclasses
import math
import types
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from dptrain.plain import Json

LONGEST_TEXT = 600
NEEDED = "needed"  # its absence is a fault
LATE = "late"  # left out of the file while it is not known
IN_0_1 = "in [0, 1]"
Share = Annotated[float, IN_0_1]
Path = tuple[str, ...]

Value = Any  # whatever a field may hold
Hint = Any  # a type, as annotations have it


@dataclass(frozen=True)
class After:
    """Who may read a field: everybody, once one of these items is released; no item: everybody, always."""

    items: tuple[str, ...] = ()


PUBLIC = After()
RESTRICTED = "restricted"  # nobody but the controller, whatever is released
T = TypeVar("T")
Public = Annotated[T, PUBLIC]


@dataclass(frozen=True)
class Keys:
    """Which keys of a free table may leave the house; `allowed` is asked for each."""

    allowed: Callable[[str], bool]


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def share(value: object) -> float | None:
    """A probability, or None; rounding errors past 0 and 1 are cut."""
    result = number(value)
    return None if result is None or not -1e-9 <= result <= 1 + 1e-9 else min(1.0, max(0.0, result))


def clean(text: str) -> str:
    """Text as text: control characters and marks that turn the direction of writing are shown by their code,
    lone surrogates replaced, and what is longer than 600 characters is cut."""
    shown = []
    for character in text[: LONGEST_TEXT + 1]:
        category = unicodedata.category(character)
        if character in "\n\t":
            shown.append(" ")
        elif category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            shown.append(f"⟨U+{ord(character):04X}⟩")
        else:
            shown.append(character)
    if len(text) > LONGEST_TEXT:
        shown[LONGEST_TEXT:] = ["…"]
    return "".join(shown)


@dataclass
class Reader:
    """How one file is read: with suspicion (every text cleaned, empty ones not known) or, `verbatim`, as this program
    wrote it. `faults` collects the dotted names of fields whose value does not belong there."""

    verbatim: bool = False
    faults: list[str] = field(default_factory=list)

    def text(self, value: object) -> str:
        """The value as text."""
        return str(value) if self.verbatim else clean(str(value))

    def fault(self, path: Path | None) -> None:
        """Note a field; None: inside a table, whose rows are read without a word."""
        if path is not None:
            self.faults.append(".".join(path))


def _inner(path: Path | None, name: str) -> Path | None:
    return None if path is None else (*path, name)


@dataclass(frozen=True)
class Entry:
    """A declared field. kind: its type without `Annotated` and None."""

    name: str
    kind: Hint
    optional: bool
    marks: tuple[object, ...]
    default: Value


_ENTRIES: dict[type[Record], tuple[Entry, ...]] = {}


def entries(cls: type[Record]) -> tuple[Entry, ...]:
    """The declared fields of a record, in the order of the file."""
    if cls not in _ENTRIES:
        hints = get_type_hints(cls, include_extras=True)
        declared = []
        for one in dataclasses.fields(cls):  # type: ignore[arg-type]
            default = None if one.default is dataclasses.MISSING else one.default
            declared.append(Entry(one.name, *_taken_apart(hints[one.name]), default))
        _ENTRIES[cls] = tuple(declared)
    return _ENTRIES[cls]


def _taken_apart(hint: Hint) -> tuple[Hint, bool, tuple[object, ...]]:
    """(type, may it be None, marks) of an annotation."""
    marks: tuple[object, ...] = ()
    optional = False
    while True:
        origin: object = get_origin(hint)
        if origin is Annotated:
            hint, *more = get_args(hint)
            marks += tuple(more)
        elif origin in (Union, types.UnionType):
            rest = [one for one in get_args(hint) if one is not types.NoneType]
            assert len(rest) == 1, f"{hint}: one type, or None"
            hint, optional = rest[0], True
        else:
            return hint, optional, marks


class Record:
    """A JSON object. Subclasses are frozen, keyword-only dataclasses."""

    SCHEMA: ClassVar[str | None] = None

    @classmethod
    def from_json(cls, value: object, reader: Reader | None = None, path: Path | None = ()) -> Self | None:
        """Read an object; unknown keys are left aside, absent ones are not known. See :class:`Reader`."""
        values: Mapping[str, object] = value if isinstance(value, dict) else {}
        how = reader or Reader(verbatim=True)
        return cls(**{one.name: _decode(one, values.get(one.name), how, path) for one in entries(cls)})._settled(
            how, path
        )

    @classmethod
    def holds(cls, value: object) -> bool:
        """Whether a value that may be absent is there to be read."""
        return isinstance(value, dict) and bool(value)

    @classmethod
    def of(cls, value: object) -> Self:
        """Read what this program made itself; nothing is cleaned, nothing noted."""
        record = cls.from_json(value)
        assert record is not None
        return record

    def _settled(self, reader: Reader, path: Path | None) -> Self | None:
        """What the types cannot say, after the fields are read; None: this is no such object."""
        return self

    @classmethod
    def own_schema(cls, definitions: Json) -> Json:
        """The JSON schema of this object; those of records inside go to `definitions`."""
        return _schema_of(cls, definitions)

    def to_json(self) -> Json:
        """Plain values for JSON, in the order of the file."""
        values = {}
        for one in entries(type(self)):
            value = getattr(self, one.name)
            if not (LATE in one.marks and (value is None or value == {} or value == ())):
                values[one.name] = _encode(value)
        return values


def _encode(value: Value) -> Value:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, tuple | list):
        return [_encode(inner) for inner in value]
    if isinstance(value, dict):
        return {key: _encode(inner) for key, inner in value.items()}
    return value


def _decode(one: Entry, value: object, reader: Reader, path: Path | None) -> Value:
    """One field's value; its fault is noted where there is one."""
    here = _inner(path, one.name)
    if isinstance(one.kind, type) and issubclass(one.kind, Record):
        if one.optional and not one.kind.holds(value):
            return None
        return one.kind.from_json(value, reader, here)
    if one.kind is str:
        return _text(one, value, reader, here)
    if one.kind is bool:
        return value if isinstance(value, bool) else None if one.optional else bool(one.default)
    if one.kind in (int, float):
        result = share(value) if IN_0_1 in one.marks else number(value)
        if result is None and (NEEDED in one.marks or value is not None):
            reader.fault(here)
        return round(result) if result is not None and one.kind is int else result
    if one.optional and value is None:
        return None
    return _table(one.kind, value, reader)


def _text(one: Entry, value: object, reader: Reader, path: Path | None) -> str | None:
    if not one.optional:
        return reader.text(value or one.default or "")
    if isinstance(value, str) and (value or reader.verbatim):
        return reader.text(value)
    if NEEDED in one.marks or (value is not None and not isinstance(value, str)):
        reader.fault(path)
    return None


def _table(kind: Hint, value: object, reader: Reader) -> Value:
    """Lists and free tables; what is inside is read without a word."""
    if kind is Any:
        return value
    origin: object = get_origin(kind)
    arguments = get_args(kind)
    if origin is dict:
        table = value if isinstance(value, dict) else {}
        rows = {reader.text(key): _cell(arguments[1], inner, reader) for key, inner in table.items()}
        return {key: inner for key, inner in rows.items() if inner is not None or arguments[1] is Any}
    assert origin is tuple, f"{kind}: not a type that JSON has"
    values = value if isinstance(value, list | tuple) else ()
    if arguments[1:] == (Ellipsis,):
        rows_ = (_cell(arguments[0], inner, reader, row=True) for inner in values)
        return tuple(row for row in rows_ if row is not None)
    cells = tuple(_cell(hint, inner, reader) for hint, inner in zip(arguments, values))
    return cells if len(values) == len(arguments) == len(cells) and None not in cells else None


def _cell(hint: Hint, value: object, reader: Reader, *, row: bool = False) -> Value:
    """An element of a list (`row`) or of a free table; None: it is left out."""
    kind, _, marks = _taken_apart(hint)
    if isinstance(kind, type) and issubclass(kind, Record):
        is_one = isinstance(value, dict) or (not row and kind.holds(value))
        return kind.from_json(value, reader, None) if is_one else None
    if kind is str:
        return None if value is None and row else reader.text(value)
    if kind in (int, float):
        result = share(value) if IN_0_1 in marks else number(value)
        return round(result) if result is not None and kind is int else result
    return _table(kind, value, reader)


R = TypeVar("R", bound=Record)


def disclosed(record: R, released: frozenset[str]) -> R:
    """The record with what may be read by everybody, after the release of these items; the rest is not known.

    A field that declares nothing is restricted; of a table with :class:`Keys`, only those are shown.
    """
    values = {
        one.name: _disclosed(getattr(record, one.name), one.marks, released)
        if any(isinstance(mark, After) and (not mark.items or released & {*mark.items}) for mark in one.marks)
        else _nothing(one)
        for one in entries(type(record))
    }
    return type(record)(**values)


def _disclosed(value: Value, marks: tuple[object, ...], released: frozenset[str]) -> Value:
    if isinstance(value, Record):
        return disclosed(value, released)
    if isinstance(value, tuple):
        return tuple(_disclosed(inner, (), released) for inner in value)
    if isinstance(value, dict):
        keys = [mark for mark in marks if isinstance(mark, Keys)]
        return {
            name: _disclosed(inner, (), released)
            for name, inner in value.items()
            if all(mark.allowed(name) for mark in keys)
        }
    return value


def _nothing(one: Entry) -> Value:
    """What stands in the place of a field that is not disclosed."""
    if one.optional:
        return None
    if isinstance(one.kind, type):
        return one.kind.of({}) if issubclass(one.kind, Record) else one.kind()
    table: Hint = get_origin(one.kind)
    return {} if table is dict else ()


def json_schema(cls: type[Record], *, title: str) -> Json:
    """The JSON schema of what :meth:`Record.to_json` of this version writes."""
    definitions: Json = {}
    body = cls.own_schema(definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": cls.SCHEMA,
        "title": title,
        **body,
        "$defs": dict(sorted(definitions.items())),
    }


def _schema_of(cls: type[Record], definitions: Json) -> Json:
    properties = {}
    for one in entries(cls):
        plain = _type_schema(one.kind, one.marks, definitions)
        if one.name == "schema":
            plain = {"const": cls.SCHEMA}
        elif one.optional:
            plain = {"anyOf": [plain, {"type": "null"}]} if "$ref" in plain else _or_null(plain)
        properties[one.name] = plain
    needed = [one.name for one in entries(cls) if LATE not in one.marks]
    about = {"description": " ".join(cls.__doc__.split())} if cls.__doc__ and "(*" not in cls.__doc__ else {}
    return {
        "type": "object",
        **about,
        "properties": properties,
        "required": needed,
        "additionalProperties": False,
    }


def _or_null(plain: Json) -> Json:
    return {**plain, "type": [plain["type"], "null"]} if "type" in plain else plain


def _type_schema(hint: Hint, outer: tuple[object, ...], definitions: Json) -> Json:
    kind, optional, inner = _taken_apart(hint)
    marks = outer + inner
    if isinstance(kind, type) and issubclass(kind, Record):
        name = kind.__name__
        if name not in definitions:
            definitions[name] = {}  # a place, should the type hold itself
            definitions[name] = kind.own_schema(definitions)
        return {"$ref": f"#/$defs/{name}"}
    limits = {"minimum": 0, "maximum": 1} if IN_0_1 in marks else {}
    names = {str: "string", bool: "boolean", int: "integer", float: "number"}
    if kind in names:
        plain: Json = {"type": names[kind], **limits}
        return _or_null(plain) if optional else plain
    if kind is Any:
        return {}
    origin: object = get_origin(kind)
    arguments = get_args(kind)
    if origin is dict:
        rows = _type_schema(arguments[1], (), definitions)
        return {"type": "object", **({"additionalProperties": rows} if rows else {})}
    if arguments[1:] == (Ellipsis,):
        return {"type": "array", "items": _type_schema(arguments[0], (), definitions)}
    pair = [_type_schema(inner, (), definitions) for inner in arguments]
    return {"type": "array", "prefixItems": pair, "minItems": len(pair), "maxItems": len(pair)}
