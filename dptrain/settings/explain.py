"""What Hydra and OmegaConf refuse, in plain words with the nearest valid names."""

from __future__ import annotations

import re
from typing import Any

from dptrain.errors import ConfigError
from dptrain.settings.places import recipe_folders
from dptrain.settings.run import Settings
from dptrain.shipped import shipped
from dptrain.terminal.words import suggest


class friendly_errors:  # noqa: N801 - a context manager, used like a function
    """Turn Hydra's and OmegaConf's errors into a ConfigError that names the nearest valid names."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None or isinstance(error, ConfigError):
            return
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        if isinstance(error, HydraException | OmegaConfBaseException):
            raise explain(error) from None


def explain(error: BaseException) -> ConfigError:
    """A Hydra or OmegaConf error in plain words, with the nearest valid names."""
    cause = error.__cause__
    texts = [str(error), str(cause) if cause is not None else ""]
    full = "\n".join(texts)
    unknown = re.search(r"Could not (?:override|append to config\. ?.*?) ?'([^']+)'", full)
    if unknown is None:
        unknown = re.search(r"Key '([^']+)' (?:is )?not in", full)
    if unknown is not None:
        key = unknown.group(1)
        names = setting_names()
        if key == "model.network":
            return ConfigError("model.network is set one argument at a time.", remedy=NETWORK_REMEDY)
        if key == "model.rules":
            return ConfigError(
                "model.rules is set one layer at a time.",
                remedy="Write +model.rules.NAME=one-by-one for each layer or parameter.",
            )
        free = next((name for name in FREE if key.startswith(f"{name}.")), None)
        if free is not None:
            return ConfigError(f"'{key}' is not among the entries of {free}.", remedy=f"Write +{key}=… to add it.")
        if key in FREE:
            return ConfigError(f"{key} is set one entry at a time.", remedy=f"Write +{key}.NAME=… for each.")
        near = suggest(key, names)
        if near.startswith("Valid names"):
            parent = key.rpartition(".")[0]
            siblings = [name for name in names if name.startswith(f"{parent}.")] if parent else names
            near = suggest(key, siblings or names)
        if near.startswith("Valid names"):
            near = "See `dptrain train --cfg job` for all names."
        return ConfigError(f"There is no setting '{key}'.", remedy=near)
    option = re.search(r"Could not find '([^']+)/([^'/]+)'", full)
    if option is not None:
        group, name = option.group(1), option.group(2)
        choices = sorted(recipe_folders()) if group == "recipe" else _options(group)
        return ConfigError(f"There is no {group}={name}.", remedy=suggest(name, choices) if choices else None)
    group_missing = re.search(r"Could not override '([^']+)'\. No match in the defaults list", full)
    if group_missing is not None:
        name = group_missing.group(1)
        return ConfigError(f"There is no group '{name}'.", remedy=suggest(name, GROUPS))
    bare = re.search(r"Error parsing override '([^=\n]*?)'", full)
    if bare is not None:
        word = bare.group(1)
        if word in recipe_folders():
            near = f"Did you mean recipe={word}?"
        else:
            near = f"Write {word}=…." if word in setting_names() else suggest(word, setting_names())
        return ConfigError(f"'{word}' is not of the form name=value.", remedy=near)
    wrong = re.search(r"Value '(.*?)'.* (?:converted to|is not a valid) '?(\w+)", full)
    place = re.search(r"Error merging override '?([\w.]+)|full_key: ([\w.]+)", full)
    if wrong is not None and place is not None and wrong.group(2).lower() in KINDS:
        name, value = place.group(1) or place.group(2), wrong.group(1)
        what = KINDS[wrong.group(2).lower()]
        default = _default(name)
        said = f"{name}={value} is not {what}." if value else f"{name}= is empty; it takes {what}."
        usual = "" if default is None else f", for instance {name}={default}"
        return ConfigError(said, remedy=f"Give {what}{usual}.")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key_line = next((line for line in lines if line.startswith("full_key:")), "")
    message = lines[0] if lines else type(error).__name__
    if cause is not None and str(cause).strip():
        message = f"{message.rstrip('.')}: {str(cause).strip().splitlines()[0]}"
    if key_line:
        message = f"{key_line.removeprefix('full_key:').strip()}: {message}"
    return ConfigError(message.rstrip(".") + ".", remedy="See `dptrain train --cfg job` for names and values.")


NETWORK_REMEDY = (
    "Write model.network._target_=…, then +model.network.NAME=… for each argument that is new and "
    "~model.network.NAME for each that the network does not take (dptrain check --help has an example)."
)
KINDS = {"float": "a number", "integer": "a whole number", "bool": "true or false"}
FREE = (
    "model.network",
    "model.rules",
    "data.label_values",
    "data.keep",
    "data.drop",
    "data.columns.bins",
    "data.split.values",
    "data.table.numeric",
    "data.table.categorical",
    "data.table.binned",
    "data.npz.lookup",
)
GROUPS = ("data", "model", "privacy", "optimizer", "training", "audit", "ledger", "report", "recipe", "debug")


def _options(group: str) -> list[str]:
    return sorted(file.stem for file in (shipped("conf") / group).glob("*.yaml"))


def _default(name: str) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.select(OmegaConf.structured(Settings), name)


def setting_names() -> list[str]:
    """Every dotted name that an override may set."""
    from omegaconf import DictConfig, OmegaConf

    def walk(node: Any, prefix: str) -> list[str]:
        names: list[str] = []
        for key in node:
            name = f"{prefix}{key}"
            names.append(name)
            child = node._get_node(key)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
                names += walk(child, f"{name}.")
        return names

    return sorted({*walk(OmegaConf.structured(Settings), ""), *GROUPS})
