"""`name=value` words of a command that needs no Hydra: typed, and no unknown name is ever accepted."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from dptrain.errors import ConfigError

Words: TypeAlias = Mapping[str, Any]  # a command's own words, each as it was parsed


@dataclass(frozen=True)
class Word:
    """One `name=value` word of a command.

    Args:
        parse: text -> value; raises ValueError for text it does not take.
        help: one line for `--help`.
        default: the value where the word is absent; `...` where the word is required.
    """

    parse: Callable[[str], object]
    help: str
    default: object = ...


@dataclass(frozen=True)
class OneOf:
    """A value out of a few. Called with a text; raises ValueError for one that is none of them."""

    values: tuple[str, ...]

    def __call__(self, text: str) -> str:
        if text not in self.values:
            raise ValueError(f"it must be {' or '.join(self.values)}")
        return text


def yes_or_no(text: str) -> bool:
    """A flag: yes, no, true or false. Raises ValueError for anything else."""
    if text.lower() not in ("yes", "no", "true", "false"):
        raise ValueError("yes or no")
    return text.lower() in ("yes", "true")


def suggest(name: str, valid: Sequence[str]) -> str:
    """'Did you mean a, b?' with the nearest valid names, or all of them where none is near."""
    near = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"Valid names: {', '.join(sorted(valid))}."


def parse_words(words: Sequence[str], spec: Mapping[str, Word]) -> Words:
    """Parse `name=value` words against their specification.

    Returns a value for each name in `spec`. Raises ConfigError (exit code 2) for a word without `=`, an
    unknown or repeated name, a value that does not parse, or a required name that is missing.
    """
    values: dict[str, object] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"'{word}' is not of the form name=value.", remedy=suggest(word, list(spec)))
        if name not in spec:
            raise ConfigError(f"There is no setting '{name}' here.", remedy=suggest(name, list(spec)))
        if name in values:
            raise ConfigError(f"'{name}' is given twice.", remedy="Give it once.")
        if not text.strip() and spec[name].default is ...:
            raise ConfigError(f"{name}= is empty.", remedy=f"Give {name}=…: {spec[name].help}")
        try:
            values[name] = spec[name].parse(text)
        except ValueError as error:
            kinds: dict[object, str] = {int: "it must be a whole number", float: "it must be a number"}
            why = kinds.get(spec[name].parse, str(error))
            raise ConfigError(
                f"{name}={text} is not accepted: {why.rstrip('.')}.", remedy=f"{name}: {spec[name].help}"
            ) from None
    for name, word_spec in spec.items():
        if name not in values:
            if word_spec.default is ...:
                raise ConfigError(f"'{name}' is missing.", remedy=f"Give {name}=…: {word_spec.help}")
            values[name] = word_spec.default
    return values
