"""Plain values as typed settings: every value of the kind that its field declares, every name one that exists."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar, get_args

from dptrain.errors import ConfigError
from dptrain.settings.fields import DOTTED, Kind, one_of, origin_of
from dptrain.settings.names import unknown_setting

T = TypeVar("T")
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
KINDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", list: "a list"}
MISSING = "???"


def build(kind: type[T], values: object, where: str = "") -> T:
    """An object of the settings class `kind` from plain values; what is not given keeps its default.

    Args:
        where: the dotted name of this section, for messages.

    Raises:
        ConfigError: an unknown name, or a value of the wrong kind or range, with what is allowed.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'the configuration'} is no group of settings.", remedy=f"Write {where}.NAME=….")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Kind, kind))}
    given: dict[str, object] = {}
    for name, value in values.items():
        place = f"{where}.{name}" if where else str(name)
        if name not in fields:
            raise unknown_setting(place)
        if dataclasses.is_dataclass(hints[name]):
            given[name] = build(hints[name], value, place)
            continue
        if fields[name].metadata.get(DOTTED) and isinstance(value, Mapping):
            value = _dotted(value)
        given[name] = _value(hints[name], value, place, _default(fields[name]))
    return kind(**given)


def plain(value: object) -> Kind:
    """Settings as plain dictionaries, lists and values, in the order of their fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, StrEnum) else value


def _default(field: dataclasses.Field[object]) -> object:
    return None if field.default is dataclasses.MISSING else field.default


def _dotted(entries: Mapping[object, object], prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} and {"a.b": 1} alike as {"a.b": 1}: an override's dots nest, a file's need not."""
    flat: dict[str, object] = {}
    for key, value in entries.items():
        if isinstance(value, Mapping):
            flat.update(_dotted(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _value(kind: Kind, value: object, name: str, default: object) -> object:
    if kind is Any:
        return _complete(value, name)
    if value == MISSING:
        raise ConfigError(f"{name} is not set.", remedy=f"Write {name}=….")
    origin, arguments = origin_of(kind), get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if type(None) in arguments:
            rest = [argument for argument in arguments if argument is not type(None)]
            return None if value is None else _value(rest[0], value, name, default)
        if isinstance(value, int | float) and not isinstance(value, bool):  # a number, whole or not
            return value
        return _number(float, value, name, default)
    if origin is list:
        if not isinstance(value, list | tuple):
            raise _wrong(list, value, name, default)
        return [_value(arguments[0], item, f"{name}[{at}]", None) for at, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} takes names and values.", remedy=f"Write +{name}.NAME=… for each.")
        return {_key(key, name): _value(arguments[1], item, f"{name}.{key}", None) for key, item in value.items()}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        one_of(name, str(value), [member.value for member in kind])
        return kind(str(value))
    if kind is str:
        return _text(value, name, default)
    return _truth(value, name, default) if kind is bool else _number(kind, value, name, default)


def _complete(value: object, name: str) -> object:
    """A free value, in which nothing may be left open."""
    if isinstance(value, Mapping):
        return {_key(key, name): _complete(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_complete(item, f"{name}[{at}]") for at, item in enumerate(value)]
    if value == MISSING:
        raise ConfigError(f"{name} is not set.", remedy=f"Write {name}=….")
    return value


def _key(key: object, name: str) -> str:
    if isinstance(key, str):
        return key
    shown = str(key).lower() if isinstance(key, bool) else str(key)
    raise ConfigError(
        f"{name}: the name {shown} is {'true or false' if isinstance(key, bool) else 'a number'}, and must be a text"
        f"{BOOLEAN if isinstance(key, bool) else ''}.",
        remedy='Put it into quotes, e.g. {"no": …, "yes": …}.' if isinstance(key, bool) else f'Write "{shown}": ….',
    )


BOOLEAN = " (YAML reads yes, no, on, off, true and false without quotes as true or false)"


def _text(value: object, name: str, default: object) -> str:
    if isinstance(value, bool):
        raise ConfigError(
            f"{name} is {str(value).lower()}, and must be a text{BOOLEAN}.",
            remedy='Put it into quotes, e.g. "yes" or "no".',
        )
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise _wrong(str, value, name, default)


def _truth(value: object, name: str, default: object) -> bool:
    text = str(value).lower()
    if isinstance(value, bool | int | str) and text in (*TRUE, *FALSE):
        return text in TRUE
    raise _wrong(bool, value, name, default)


def _number(kind: Kind, value: object, name: str, default: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _wrong(kind, value, name, default)
    if kind is int and isinstance(value, float):
        raise _wrong(kind, value, name, default)
    text = value
    if isinstance(value, str) and value.lstrip("+-").lower() in (".inf", ".nan"):  # as YAML writes them
        text = value.replace(".", "", 1)
    try:
        return kind(text)
    except ValueError:
        raise _wrong(kind, value, name, default) from None


def _wrong(kind: Kind, value: object, name: str, default: object) -> ConfigError:
    what = KINDS[kind]
    usual = f", for instance {name}={str(default).lower() if isinstance(default, bool) else default}"
    said = f"{name}= is empty; it takes {what}." if value in ("", None) else f"{name}={value} is not {what}."
    return ConfigError(said, remedy=f"Give {what}{'' if default is None else usual}.")
