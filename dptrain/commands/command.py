"""One declaration a command: its name, its words, its examples, and where its function lies."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from dptrain.errors import ConfigError
from dptrain.settings.names import GROUPS
from dptrain.terminal.words import Word, Words, parse_words


class Takes(Enum):
    """What a command takes besides its own words."""

    WORDS = "words"  # nothing
    SETTINGS = "settings"  # settings of a run: `recipe=…`, `privacy.…=…`; a misspelt word of its own is still seen
    HYDRA = "hydra"  # all that Hydra takes, its options included: every word that is not the command's own


@dataclass(frozen=True)
class Call:
    """A command as it was typed: its own words with their values, the settings as they stand, and its flags."""

    words: Words
    settings: tuple[str, ...] = ()
    flags: frozenset[str] = frozenset()

    @property
    def as_json(self) -> bool:
        """Whether a program reads the answer."""
        return "--json" in self.flags


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        name: as it is typed, e.g. `train` or `ledger show`.
        line: what it does, in one line of the list of commands.
        run: `module:function` of its function (Call -> exit code), imported when the command runs; empty for the
            head of a family, which only lists its members.
        about: what it does, in a few sentences.
        words: its own `name=value` words.
        takes: what it takes besides them.
        bare: the word that a value without `name=` stands for.
        flags: `--flag` -> what it does.
        examples: lines that can be typed.
        notes: what else help says, below the examples.
        codes: exit codes that this command adds to 0, 1 and 2.
        sections: of the settings, those that help lists (docs/settings.md has all).
    """

    name: str
    line: str
    run: str
    about: str = ""
    words: Mapping[str, Word] = field(default_factory=dict)
    takes: Takes = Takes.WORDS
    bare: str | None = None
    flags: Mapping[str, str] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    notes: str = ""
    codes: tuple[int, ...] = ()
    sections: tuple[str, ...] = ()

    def load(self) -> Callable[[Call], int]:
        """Its function. The first import of torch happens here, where the command needs it."""
        module, _, function = self.run.partition(":")
        loaded: Callable[[Call], int] = getattr(importlib.import_module(module), function)
        return loaded

    def read(self, argv: Sequence[str]) -> Call:
        """Sort what was typed. Raises ConfigError for a word that this command does not take."""
        own: list[str] = []
        settings: list[str] = []
        flags: list[str] = []
        for word in argv:
            if self.takes is Takes.HYDRA:
                (own if word.partition("=")[0] in self.words else settings).append(word)
            elif word.startswith("--") or word in self.flags:
                flags.append(word)
            elif self.takes is Takes.SETTINGS and self._is_setting(word):
                settings.append(word)
            elif self.bare is not None and ("=" not in word or Path(word).is_dir()):
                own.append(f"{self.bare}={word}")
            else:
                own.append(word)
        for flag in flags:
            if flag not in self.flags:
                raise ConfigError(
                    f"'{self.name}' takes no option '{flag}'.",
                    remedy=f"It takes {' and '.join([*self.flags, '--help'])}.",
                )
        return Call(parse_words(own, self.words), tuple(settings), frozenset(flags))

    def _is_setting(self, word: str) -> bool:
        name = word.partition("=")[0].lstrip("+~")
        if name.startswith("ledger.") and any(own.startswith("ledger.") for own in self.words):
            return False
        return name in (*GROUPS, "name") or "." in name
