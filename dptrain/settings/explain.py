"""What Hydra and OmegaConf refuse, from the typed attributes of their errors, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    KeyValidationError,
    OmegaConfBaseException,
)
from yaml import MarkedYAMLError, YAMLError

from dptrain.errors import ConfigError
from dptrain.settings.names import unknown_setting
from dptrain.settings.overrides import unreadable
from dptrain.terminal.words import suggest


@contextmanager
def friendly_errors(words: Sequence[str] = ()) -> Iterator[None]:
    """Turn the errors of Hydra, OmegaConf and YAML into a ConfigError (`words`: what was composed)."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise explain(error, words) from None


def explain(error: BaseException, words: Sequence[str] = ()) -> ConfigError:
    """An error of Hydra, OmegaConf or YAML in plain words, with the nearest valid names."""
    if isinstance(error, OverrideParseException):
        return unreadable([error.override], 0)
    if isinstance(error, MissingConfigException):
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        options = sorted(error.options or [])
        return ConfigError(f"There is no {group}={name}.", remedy=suggest(name, options) if options else None)
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: "
        return ConfigError(
            f"{place}this is not YAML.",
            remedy="Indent with spaces, write a space after each colon, and put texts with : # or { into quotes.",
        )
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    if isinstance(cause, OmegaConfBaseException):
        return _of_node(cause)
    changed = [word for word in words if word[:1] in ("+", "~")]
    if changed:
        return ConfigError(
            f"the configuration does not take {' '.join(changed)}.",
            remedy="+ adds an entry that is not yet there, ++ adds or changes one, ~ takes one away that is there.",
        )
    return ConfigError(
        f"the words cannot be put together: {' '.join(words)}." if words else "the configuration cannot be composed.",
        remedy="Leave one out at a time to see which; docs/settings.md has all groups and names.",
    )


def _of_node(error: OmegaConfBaseException) -> ConfigError:
    """What is wrong with one setting: its name does not exist, it refers to nothing, or its value does not fit."""
    name = error.full_key or str(error.key or "")
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        return unknown_setting(name)
    if isinstance(error, InterpolationResolutionError):
        node = error.child_node
        value = "" if node is None else f" {node._value()}"
        return ConfigError(
            f"{name}{value} refers to a setting that is not there.", remedy="Write the value itself, or ${its.name}."
        )
    if isinstance(error, KeyValidationError):
        return ConfigError(f"{name}: the name {error.key} must be a text.", remedy=f'Write "{error.key}": ….')
    return ConfigError(
        f"{name or 'a setting'} does not take this value.", remedy="docs/settings.md says what each setting takes."
    )
