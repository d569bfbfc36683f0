"""Typed settings from Hydra groups, recipes and overrides; unknown names never pass.

`conf/` holds a group for each noun (data, model, privacy, optimizer, training, audit, ledger, report) and
`recipes/<task>/recipe/<task>.yaml` overrides what differs. Both are found in a checkout and in an installed
wheel alike; further recipes are found below `./recipes` and the folders named in `DPTRAIN_RECIPES`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dptrain.errors import ConfigError
from dptrain.settings.explain import friendly_errors
from dptrain.settings.places import recipe_folders
from dptrain.settings.run import Settings
from dptrain.shipped import shipped
from dptrain.terminal.words import suggest

CONFIG_NAME = "train"


def search_path_override() -> str:
    """The Hydra override that makes every recipe known."""
    folders = ",".join(f"'file://{folder}'" for folder in recipe_folders().values())
    return f"hydra.searchpath=[{folders}]"


def _register_schema() -> None:
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Settings)


def compose(overrides: Sequence[str]) -> Any:
    """The composed DictConfig of `conf/train.yaml`, its groups, the recipe and the overrides.

    Raises:
        ConfigError: a name or value that does not exist, with the nearest ones that do.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    _register_schema()
    words = list(overrides)
    refuse_flags(words)
    if not any(word.startswith("hydra.searchpath") for word in words):
        words.append(search_path_override())
    with friendly_errors(), initialize_config_dir(str(shipped("conf").resolve()), version_base="1.3"):
        return hydra_compose(CONFIG_NAME, overrides=words)


def refuse_flags(words: Sequence[str], known: Sequence[str] = ()) -> None:
    """ConfigError for a word that looks like an option and is none of `known`."""
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("-") and name not in known:
            near = suggest(name, known) if known else "Settings are words of the form name=value; see --help."
            raise ConfigError(f"There is no option '{name}' here.", remedy=near)


def load(overrides: Sequence[str]) -> Settings:
    """Typed settings for `name=value` overrides, recipes included."""
    return settings_of(compose(overrides))


def settings_of(config: Any) -> Settings:
    """The typed settings of a composed DictConfig. Raises ConfigError for a value of the wrong kind or range."""
    from omegaconf import OmegaConf

    with friendly_errors():
        # merged once more into the schema, so that a name added with '+' does not slip in
        values = OmegaConf.to_container(config, resolve=True)
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), values))
    if not isinstance(settings, Settings):
        raise ConfigError(
            "the configuration does not begin with the schema.", remedy="Keep conf/train.yaml's defaults."
        )
    return settings


def from_yaml(path: Path) -> Settings:
    """The settings that a run folder's `config.yaml` holds."""
    from omegaconf import DictConfig, OmegaConf

    with friendly_errors():
        kept = OmegaConf.load(path)
        if isinstance(kept, DictConfig) and isinstance(kept.get("privacy"), DictConfig):
            kept.privacy.pop("unit", None)  # runs of earlier versions named the unit here as well as in data.unit
        return settings_of(OmegaConf.merge(OmegaConf.structured(Settings), kept))


def to_yaml(settings: Settings) -> str:
    """YAML that :func:`from_yaml` reads back to equal settings, but for a database's password, which stays out."""
    from omegaconf import OmegaConf

    return without_password(OmegaConf.to_yaml(OmegaConf.structured(settings)))


def without_password(text: str) -> str:
    """Text that may be shown: database URLs in it lose their password (PGPASSWORD or ~/.pgpass can hold it)."""
    text = re.sub(r"(\w://[^\s:/@]*):[^\s/@]*@", r"\1@", text)
    return re.sub(r"([?&]password=)[^\s&'\"]*", r"\1", text)
