"""Settings as they are kept in a run folder: YAML that refers to nothing outside of itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dptrain.errors import ConfigError
from dptrain.settings.explain import friendly_errors
from dptrain.settings.run import Settings
from dptrain.settings.typed import build, plain

# ${name} and ${data.image_shape[1]}: no resolver (${oc.env:…}), nothing nested, and not escaped
OWN = r"(?<!\\)\$\{\.*[A-Za-z_]\w*(\.\w+|\[\w+\])*\}"


def changed(settings: Settings, words: Sequence[str]) -> Settings:
    """Settings with some `name=value` words changed. Raises ConfigError for a name or value that does not exist."""
    with friendly_errors(words):
        return build(Settings, values_of(OmegaConf.merge(plain(settings), OmegaConf.from_dotlist(list(words)))))


def from_yaml(path: Path) -> Settings:
    """The settings that a run folder's `config.yaml` holds. Raises ConfigError for what no such file holds."""
    with friendly_errors():
        values = values_of(OmegaConf.load(path))
    privacy = values.get("privacy")
    if isinstance(privacy, dict):
        privacy.pop("unit", None)  # runs of earlier versions named the unit here as well as in data.unit
    return build(Settings, values)


def to_yaml(settings: Settings) -> str:
    """YAML that :func:`from_yaml` reads back to equal settings, but for a database's password, which stays out."""
    return without_password(OmegaConf.to_yaml(OmegaConf.create(plain(settings))))


def without_password(text: str) -> str:
    """Text that may be shown: database URLs in it lose their password (PGPASSWORD or ~/.pgpass can hold it)."""
    text = re.sub(r"(\w://[^\s:/@]*):[^\s/@]*@", r"\1@", text)
    return re.sub(r"([?&]password=)[^\s&'\"]*", r"\1", text)


def values_of(config: object) -> dict[str, object]:
    """Plain values of a configuration, which may refer to its own settings and to nothing else."""
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


def _texts(value: object, name: str = "") -> Iterator[tuple[str, str]]:
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
