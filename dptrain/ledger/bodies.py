"""Typed bodies of entries: frozen values, read from canonical JSON with every field checked by its annotation.

A body says in one place what an entry of its kind holds. Fields made with :func:`sealed` go into the sealed part,
which only the steward sees; all others may be shown. A field without a default must be there; a field that the
body does not name is refused, since nobody knows what it means.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar, get_args, get_origin, get_type_hints

from dptrain.ledger.chain import Entry
from dptrain.ledger.state import State
from dptrain.plain import Json
from dptrain.plan import Plan

T = TypeVar("T")
Reader = Callable[[object], object]


@dataclass(frozen=True)
class Field:
    """Where a field stands, whether it must be there, and what reads it (TypeError for a value of another type)."""

    sealed: bool
    required: bool
    read: Reader


def sealed(**options: Any) -> Any:
    """A field of the sealed part."""
    return dataclasses.field(metadata={"sealed": True}, **options)


@dataclass(frozen=True, kw_only=True)
class Body:
    """What an entry of one kind says.

    KIND: its name in the chain. COUNTERSIGNED: the controller signs it too. FIELDS: :func:`fields_of` it.
    """

    KIND: ClassVar[str]
    COUNTERSIGNED: ClassVar[bool]
    FIELDS: ClassVar[Mapping[str, Field]]

    def apply(self, state: State, entry: Entry) -> None:
        """Change the state as this entry does. Raises for what cannot stand at this place."""
        raise NotImplementedError

    def tell(self, plan: Plan | None) -> str:
        """One line for people, from the public part and the plan of the entry's run."""
        raise NotImplementedError

    @classmethod
    def read(cls, facts: Mapping[str, Any], secrets: Mapping[str, Any]) -> Self:
        """From the two parts of an entry.

        Raises KeyError for a missing field, TypeError for one of another type, ValueError for an unknown one.
        """
        values: Json = {}
        unknown = {(False, name) for name in facts} | {(True, name) for name in secrets}
        for name, field in cls.FIELDS.items():
            source = secrets if field.sealed else facts
            if field.required or name in source:
                values[name] = field.read(source[name])
            unknown.discard((field.sealed, name))
        if unknown:
            raise ValueError("unknown field")
        return cls(**values)

    def shown(self) -> Json:
        """The part that may be shown, for JSON."""
        return {name: getattr(self, name) for name, field in self.FIELDS.items() if not field.sealed}

    def hidden(self) -> Json:
        """The sealed part, for JSON; what an entry does not hold (None) is left out."""
        values = {name: getattr(self, name) for name, field in self.FIELDS.items() if field.sealed}
        return {name: value for name, value in values.items() if value is not None}


def fields_of(body: type[Body]) -> dict[str, Field]:
    """Every field of a body by its name."""
    hints = get_type_hints(body)
    return {
        field.name: Field(
            sealed=field.metadata.get("sealed", False),
            required=field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
            read=_reader(hints[field.name]),
        )
        for field in dataclasses.fields(body)
    }


def _reader(hint: object) -> Reader:
    """What reads a JSON value as the annotated type. Raises TypeError for a value of another type."""
    kind, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return _as_it_is
    if hint is float:
        return _number
    if isinstance(hint, type) and kind is None:
        return functools.partial(_exactly, hint)
    if kind is types.UnionType and inner[1:] == (types.NoneType,):
        return functools.partial(_or_none, _reader(inner[0]))
    if kind is tuple and inner[1:] == (...,):
        return functools.partial(_each, _reader(inner[0]))
    if kind is list:
        return functools.partial(_listed, _reader(inner[0]))
    if kind is tuple:
        return functools.partial(_every, tuple(map(_reader, inner)))
    if kind is dict and inner[0] is str:
        return functools.partial(_named, _reader(inner[1]))
    raise TypeError(f"no entry holds a {hint}")


def _as_it_is(value: object) -> object:
    return value


def _exactly(kind: type[T], value: object) -> T:
    if type(value) is not kind:
        raise TypeError(kind.__name__)
    return value


def _number(value: object) -> float:
    return float(_exactly(int, value)) if type(value) is int else _exactly(float, value)


def _or_none(reader: Reader, value: object) -> object:
    return None if value is None else reader(value)


def _each(reader: Reader, value: object) -> tuple[object, ...]:
    return tuple(map(reader, _exactly(list, value)))


def _listed(reader: Reader, value: object) -> list[object]:
    return [*_each(reader, value)]


def _every(readers: tuple[Reader, ...], value: object) -> tuple[object, ...]:
    return tuple(reader(one) for reader, one in zip(readers, _exactly(list, value), strict=True))


def _named(reader: Reader, value: object) -> dict[str, object]:
    return {name: reader(one) for name, one in _exactly(dict, value).items()}
