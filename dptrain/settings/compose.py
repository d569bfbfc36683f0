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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from dptrain.settings.data import DataConfig, check
from dptrain.settings.derived import derived
from dptrain.settings.explain import friendly_errors
from dptrain.settings.kept import values_of
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


def for_hydra(words: Sequence[str], *, sweep: bool = False) -> Composition:
    """Check the words of a command, and store what Hydra needs so that chosen groups win over the recipe.

    Raises:
        ConfigError: a word that cannot be read, or a name that does not exist.
    """
    overrides = read_overrides(words, sweep=sweep)
    named = {name for item in overrides if item.key_or_group == "recipe" for name in choices(item)}
    chosen = [
        item.key_or_group
        for item in overrides
        if item.key_or_group in GROUPS and item.key_or_group not in LAYERS and item.package is None
    ]
    replaced = [group for group in chosen if group in WHOLE]
    store = ConfigStore.instance()
    store.store(name="schema", node=plain(Settings(data=DataConfig(root=os.environ.get("DPTRAIN_DATA") or "data"))))
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
        primary = OmegaConf.load(shipped("conf") / f"{CONFIG_NAME}.yaml")
        assert isinstance(primary, DictConfig)
        defaults = OmegaConf.to_container(primary.defaults)
        assert isinstance(defaults, list)
        store.store(name=CHOSEN_NAME, node={**primary, "defaults": chosen_last(defaults, chosen)})
    extra = []
    if not any(word.startswith("hydra.searchpath") for word in words):
        extra.append(f"hydra.searchpath=[{','.join(on_path)}]")
    return Composition(CHOSEN_NAME if chosen else CONFIG_NAME, extra)


def _store_recipe(folder: Path, without: Sequence[str]) -> None:
    """Put a recipe, and the groups that its folder brings, where Hydra finds them, but for what it says of some."""
    for file in sorted(folder.glob("*/*.yaml")):
        node = OmegaConf.load(file)
        if not isinstance(node, DictConfig):
            continue
        group = file.parent.name
        if group == "recipe":
            node = OmegaConf.masked_copy(node, [str(key) for key in node if key not in without])
        package = "_global_" if group == "recipe" else None
        ConfigStore.instance().store(group=group, name=file.stem, node=node, package=package)


def chosen_last(defaults: Sequence[object], chosen: Sequence[str]) -> list[object]:
    """The defaults list of a primary configuration with the chosen groups after the recipe."""

    def group(entry: object) -> str:
        return str(next(iter(entry))) if isinstance(entry, Mapping) else ""

    ordered: list[object] = []
    for entry in defaults:
        if group(entry) not in chosen:
            ordered.append(entry)
        if group(entry) == "recipe":
            ordered += [other for other in defaults if group(other) in chosen]
    return ordered


def compose(words: Sequence[str]) -> DictConfig:
    """The composed DictConfig of `conf/train.yaml`, its groups, the recipe and the overrides.

    Raises:
        ConfigError: a name or value that does not exist, with the nearest ones that do.
    """
    refuse_flags(words)
    with friendly_errors(words):
        asked = for_hydra(words)
        with initialize_config_dir(str(shipped("conf").resolve()), version_base="1.3"):
            return hydra_compose(asked.config_name, overrides=[*words, *asked.extra])


def load(overrides: Sequence[str]) -> Settings:
    """Typed settings for `name=value` overrides, recipes included. Raises ConfigError as :func:`settings_of` does."""
    return settings_of(compose(overrides))


def settings_of(config: object) -> Settings:
    """The typed settings of a DictConfig that Hydra composed for a run, with what the network takes from its data.

    Raises:
        ConfigError: an unknown name, a value of the wrong kind or range, or settings of which no cohort can be made.
    """
    settings = build(Settings, values_of(config))
    check(settings.data)
    network = derived(settings.model.network, settings.data)
    return replace(settings, model=replace(settings.model, network=network))


def choices(override: Override) -> list[str]:
    """The texts that a word gives: one, or those of a sweep."""
    if override.is_sweep_override():
        return [str(text) for text in override.sweep_string_iterator()]
    return [str(override.get_value_element_as_str())]
