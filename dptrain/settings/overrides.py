"""The words of a command as Hydra reads them: refused in words that help, before anything is composed."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from dptrain.errors import ConfigError
from dptrain.settings.fields import origin_of
from dptrain.settings.names import GROUPS, free_above, kinds, setting_names, unknown_setting
from dptrain.settings.places import recipe_folders
from dptrain.terminal.words import suggest


def read_overrides(words: Sequence[str], *, sweep: bool = False) -> list[Override]:
    """What each word sets; flags (words that begin with a dash) are left out.

    Raises:
        ConfigError: a word that cannot be read, with what to paste instead; a name that does not exist; a group
            given twice; several values where no sweep was asked for.
    """
    overrides: list[Override] = []
    for at, word in enumerate(words):
        if word.startswith("-"):
            continue
        override = _parsed(word)
        if override is None:
            raise unreadable(words, at)
        _check_name(override)
        key = override.key_or_group
        if key in GROUPS and any(key == other.key_or_group for other in overrides):
            raise ConfigError(f"{key} is given twice.", remedy=f"Give {key}=… once.")
        if override.is_sweep_override() and not sweep:
            raise _several(word)
        overrides.append(override)
    return overrides


def trials(words: Sequence[str]) -> list[tuple[str, ...]]:
    """The words of each trial of a sweep, the last word's values running fastest, as `train -m` would make them.

    Raises ConfigError as :func:`read_overrides` does, and for a sweep without an end (`interval(…)`).
    """
    each: list[list[str]] = []
    for override, word in zip(read_overrides(words, sweep=True), words, strict=True):
        if not override.is_sweep_override():
            each.append([word])
            continue
        if not override.is_discrete_sweep():
            raise ConfigError(f"{word} has no end of values.", remedy="Name them: 1,2,4 or range(1,5).")
        each.append([f"{override.get_key_element()}={text}" for text in override.sweep_string_iterator()])
    return list(itertools.product(*each))


def refuse_flags(words: Sequence[str], known: Sequence[str] = ()) -> None:
    """ConfigError for a word that looks like an option and is none of `known`."""
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("-") and name not in known:
            near = suggest(name, known) if known else "Settings are words of the form name=value; see --help."
            raise ConfigError(f"There is no option '{name}' here.", remedy=near)


def unreadable(words: Sequence[str], at: int) -> ConfigError:
    """What to write instead of a word that Hydra's grammar does not take."""
    word = words[at]
    name, equals, value = word.partition("=")
    if not equals:
        return _bare(words, at)
    written = _quoted(name, value)
    if _parsed(written) is None:
        return ConfigError(
            f"the name '{name}' cannot be written on the command line.",
            remedy="Write it into a recipe (docs/data.md shows one); a file takes any name in quotes.",
        )
    return ConfigError(
        f"{word}: this value needs quotes of its own (only plain letters, figures and -_./:\\% need none).",
        remedy=f"Write {for_shell(written)}",
    )


def for_shell(word: str) -> str:
    """A word in quotes, ready to paste into a shell."""
    if "!" in word:  # an interactive shell would look for an earlier command
        return shlex.quote(word)
    return '"' + re.sub(r'(["$`\\])', r"\\\1", word) + '"'


def _parsed(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_overrides([word])[0]
    except HydraException:
        return None


def _quoted(name: str, value: str) -> str:
    """The same word with its value, or each text of its list, in Hydra's quotes."""
    if _is_list(name) and not value.startswith("["):
        value = f"[{value}]"
    items = re.fullmatch(r"\[([^\[\]{}'\"]*)\]", value)
    if items is not None:
        return f"{name}=[{','.join(_in_quotes(item.strip()) for item in items.group(1).split(','))}]"
    return f"{name}={_in_quotes(value)}"


def _is_list(name: str) -> bool:
    return origin_of(kinds().get(name.lstrip("+"))) is list


def _in_quotes(text: str) -> str:
    escaped = re.sub(r"(\\*)'", lambda found: f"{found.group(1) * 2}\\'", text)
    return f"'{escaped}'"


def _bare(words: Sequence[str], at: int) -> ConfigError:
    """What to say of a word without `=`: a forgotten name, or the rest of a value with spaces."""
    word, names = words[at], setting_names()
    if word in recipe_folders():
        near = f"Did you mean recipe={word}?"
    elif word in names:
        near = f"Write {word}=…."
    elif at and kinds().get(words[at - 1].partition("=")[0]) in (str, str | None):
        rest = words[at:]
        end = next((i for i, other in enumerate(rest) if "=" in other or other[:1] in "-~"), len(rest))
        name, _, value = words[at - 1].partition("=")
        near = f"Write {for_shell(_quoted(name, ' '.join([value, *rest[:end]])))}"
    else:
        near = suggest(word, names)
    return ConfigError(f"'{word}' is not of the form name=value.", remedy=near)


def _several(word: str) -> ConfigError:
    name, _, value = word.partition("=")
    meant = "a list" if _is_list(name) else "one value with a comma in it"
    return ConfigError(
        f"{word} gives several values, which only a sweep takes (train and audit with -m).",
        remedy=f"For {meant} write {for_shell(_quoted(name, value))}",
    )


def _check_name(override: Override) -> None:
    """Refuse a name that no setting has; what Hydra itself has (hydra.…, hydra/launcher) is left to it."""
    key, every = override.key_or_group, kinds()
    if key.partition(".")[0].partition("/")[0] == "hydra" or override.package is not None:
        return
    if key in GROUPS or free_above(key) is not None:
        return
    kind = every.get(key)
    if kind is None:
        parent = every.get(key.rpartition(".")[0])
        if origin_of(parent) is not list:
            raise unknown_setting(key)
    elif origin_of(kind) is dict and override.type is OverrideType.CHANGE:
        raise unknown_setting(key)
    elif override.is_add():
        raise ConfigError(
            f"{key} exists already.", remedy=f"Write {(override.input_line or '').lstrip('+')} without +."
        )
    elif override.is_delete() and not dataclasses.is_dataclass(kind):
        raise ConfigError(f"{key} cannot be taken away.", remedy="Leave the word out; the default is used.")
