"""How a setting is declared: its default and one line of help; and the checks that several settings share."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar, get_origin

from dptrain.errors import ConfigError
from dptrain.terminal.words import suggest

T = TypeVar("T")
Kind: TypeAlias = Any  # a type as a hint writes it: a class, list[str], str | None
HELP, DOTTED = "help", "dotted"


def origin_of(kind: Kind) -> object:
    """`list` of `list[str]`, a union of `str | None`, None of a class."""
    return get_origin(kind)


def setting(default: T, help: str, *, dotted: bool = False) -> T:
    """A field of a settings class.

    Args:
        default: its value where nothing else is said; lists and mappings are copied for each object.
        help: one line for `--help` and for docs/settings.md.
        dotted: the names in this mapping may be nested at their dots, as overrides write them.
    """
    metadata = {HELP: help, DOTTED: dotted}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(kind: type[T], **changes: object) -> T:
    """A field that holds a settings class of its own."""
    return dataclasses.field(default_factory=lambda: kind(**changes))


def one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises ConfigError with the nearest allowed values."""
    if value not in allowed:
        raise ConfigError(f"{name}={value} is unknown.", remedy=suggest(str(value), list(allowed)))


def at_least(name: str, value: float | None, low: float, *, above: bool = False) -> None:
    """Raises ConfigError for a number below `low` (or at it, with `above`), or no number; None passes."""
    if value is not None and (math.isnan(value) or (value <= low if above else value < low)):
        raise ConfigError(f"{name}={value} must be {'above' if above else 'at least'} {low:g}.")


def finite(name: str, value: float | None) -> None:
    """Raises ConfigError for infinity and NaN; None passes."""
    if value is not None and not math.isfinite(value):
        raise ConfigError(f"{name}={value} must be finite.")


def between(name: str, value: float, low: float, high: float) -> None:
    """Raises ConfigError for a number that is not strictly between `low` and `high`."""
    if not low < value < high:
        raise ConfigError(f"{name}={value:g} must lie between {low:g} and {high:g}.")
