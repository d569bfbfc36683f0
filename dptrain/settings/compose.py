"""Typed settings from Hydra groups, recipes and overrides; unknown names never pass.

`conf/` holds a group for each noun (data, model, privacy, optimizer, training, audit, ledger, report) and
`recipes/<task>/recipe/<task>.yaml` overrides what differs. Both are found in a checkout and in an installed
wheel alike; further recipes are found below `./recipes` and the folders named in `DPTRAIN_RECIPES`.

What was chosen on the command line wins over the recipe, for groups as for single settings: `data=…` and
`model=…` take the place of all that the recipe says of data or model, of any other group the recipe keeps what
the chosen option does not say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dptrain.errors import ConfigError
from dptrain.settings.data import check
from dptrain.settings.explain import friendly_errors
from dptrain.settings.names import GROUPS
from dptrain.settings.overrides import read_overrides, refuse_flags
from dptrain.settings.places import recipe_file, recipe_folders
from dptrain.settings.run import Settings
from dptrain.settings.typed import build, plain
from dptrain.shipped import shipped

CONFIG_NAME, CHOSEN_NAME = "train", "train-chosen"
LAYERS = ("recipe", "debug")  # groups that set others
WHOLE = ("data", "model")  # groups of which a mixture of two would be neither


@dataclass(frozen=True)
class Composition:
    """What Hydra is asked for: the name of the primary configuration, and the words that are added."""

    config_name: str
    extra: list[str]


def prepare(words: Sequence[str], *, sweep: bool = False) -> Composition:
    """Check the words of a command, and store what Hydra needs so that chosen groups win over the recipe.

    Raises:
        ConfigError: a word that cannot be read, or a name that does not exist.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    overrides = read_overrides(words, sweep=sweep)
    named = {name for item in overrides if item.key_or_group == "recipe" for name in choices(item)}
    chosen = [
        item.key_or_group
        for item in overrides
        if item.key_or_group in GROUPS and item.key_or_group not in LAYERS and item.package is None
    ]
    replaced = [group for group in chosen if group in WHOLE]
    store = ConfigStore.instance()
    store.store(name="schema", node=plain(Settings()))
    on_path = []
    for name, folder in recipe_folders().items():
        for file in folder.glob("*/*.yaml"):  # of an earlier call; Hydra would take it for this file's schema
            store.repo.get(file.parent.name, {}).pop(file.name, None)
        if name in named:
            recipe_file(name, folder)
        if name in named and replaced:
            _store_recipe(folder, replaced)
        else:
            on_path.append(f"'file://{folder}'")
    if chosen:
        primary = OmegaConf.to_container(OmegaConf.load(shipped("conf") / f"{CONFIG_NAME}.yaml"))
        store.store(name=CHOSEN_NAME, node=chosen_last(primary, chosen))
    extra = []
    if not any(word.startswith("hydra.searchpath") for word in words):
        extra.append(f"hydra.searchpath=[{','.join(on_path)}]")
    return Composition(CHOSEN_NAME if chosen else CONFIG_NAME, extra)


def _store_recipe(folder: Path, without: Sequence[str]) -> None:
    """Put a recipe, and the groups that its folder brings, where Hydra finds them, but for what it says of some."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import DictConfig, OmegaConf

    for file in sorted(folder.glob("*/*.yaml")):
        node = OmegaConf.load(file)
        if not isinstance(node, DictConfig):
            continue
        group = file.parent.name
        if group == "recipe":
            node = OmegaConf.masked_copy(node, [str(key) for key in node if key not in without])
        package = "_global_" if group == "recipe" else None
        ConfigStore.instance().store(group=group, name=file.stem, node=node, package=package)


def chosen_last(primary: Any, chosen: Sequence[str]) -> Any:
    """A primary configuration in whose list of defaults the chosen groups come after the recipe."""
    entries = list(primary["defaults"])
    moved = [entry for entry in entries if isinstance(entry, dict) and next(iter(entry)) in chosen]
    rest = [entry for entry in entries if entry not in moved]
    after = next(at for at, entry in enumerate(rest) if isinstance(entry, dict) and "recipe" in entry) + 1
    return {**primary, "defaults": [*rest[:after], *moved, *rest[after:]]}


def compose(words: Sequence[str]) -> Any:
    """The composed DictConfig of `conf/train.yaml`, its groups, the recipe and the overrides.

    Raises:
        ConfigError: a name or value that does not exist, with the nearest ones that do.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    refuse_flags(words)
    with friendly_errors(words):
        asked = prepare(words)
        with initialize_config_dir(str(shipped("conf").resolve()), version_base="1.3"):
            return hydra_compose(asked.config_name, overrides=[*words, *asked.extra])


def load(overrides: Sequence[str]) -> Settings:
    """Typed settings for `name=value` overrides, recipes included. Raises ConfigError as :func:`settings_of` does."""
    return settings_of(compose(overrides))


def settings_of(config: Any) -> Settings:
    """The typed settings of a DictConfig that Hydra composed for a run.

    Raises:
        ConfigError: an unknown name, a value of the wrong kind or range, or settings of which no cohort can be made.
    """
    values = _values(config)
    if isinstance(values.get("data"), Mapping) and values["data"].get("root") is None:
        values["data"] = {**values["data"], "root": os.environ.get("DPTRAIN_DATA") or "data"}
    settings = build(Settings, values)
    check(settings.data)
    return settings


def changed(settings: Settings, words: Sequence[str]) -> Settings:
    """Settings with some `name=value` words changed. Raises ConfigError for a name or value that does not exist."""
    from omegaconf import OmegaConf

    with friendly_errors(words):
        return build(Settings, _values(OmegaConf.merge(plain(settings), OmegaConf.from_dotlist(list(words)))))


def from_yaml(path: Path) -> Settings:
    """The settings that a run folder's `config.yaml` holds. Raises ConfigError for what no such file holds."""
    from omegaconf import OmegaConf

    with friendly_errors():
        values = _values(OmegaConf.load(path))
    if isinstance(values.get("privacy"), dict):
        values["privacy"].pop("unit", None)  # runs of earlier versions named the unit here as well as in data.unit
    return build(Settings, values)


def to_yaml(settings: Settings) -> str:
    """YAML that :func:`from_yaml` reads back to equal settings, but for a database's password, which stays out."""
    from omegaconf import OmegaConf

    return without_password(OmegaConf.to_yaml(OmegaConf.create(plain(settings))))


def without_password(text: str) -> str:
    """Text that may be shown: database URLs in it lose their password (PGPASSWORD or ~/.pgpass can hold it)."""
    text = re.sub(r"(\w://[^\s:/@]*):[^\s/@]*@", r"\1@", text)
    return re.sub(r"([?&]password=)[^\s&'\"]*", r"\1", text)


def choices(override: Any) -> list[str]:
    """The texts that a word gives: one, or those of a sweep."""
    if override.is_sweep_override():
        return [str(text) for text in override.sweep_string_iterator()]
    return [str(override.get_value_element_as_str())]


def _values(config: Any) -> dict[str, Any]:
    """Plain values of a configuration, which may refer to its own settings and to nothing else."""
    from omegaconf import DictConfig, OmegaConf

    if not isinstance(config, DictConfig):
        raise ConfigError("this is no configuration of a run.", remedy="It is a mapping: name, data, model, ….")
    with friendly_errors():
        for name, text in _texts(OmegaConf.to_container(config, resolve=False)):
            if "${" in re.sub(OWN, "", text):
                raise ConfigError(
                    f"{name}={text} reads from outside of the settings.",
                    remedy="Write the value itself; ${its.name} of another setting is all that may stand there.",
                )
        values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


# ${name} and ${data.image_shape[1]}: no resolver (${oc.env:…}), nothing nested, and not escaped
OWN = r"(?<!\\)\$\{\.*[A-Za-z_]\w*(\.\w+|\[\w+\])*\}"


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested mappings and lists, with its name; names count as texts too."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield name, str(key)
            yield from _texts(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for at, item in enumerate(value):
            yield from _texts(item, f"{name}[{at}]")
    elif isinstance(value, str):
        yield name, value
