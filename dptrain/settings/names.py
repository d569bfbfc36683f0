"""Which names settings have, and what to say of one that does not exist."""

from __future__ import annotations

import dataclasses
import typing

from dptrain.errors import ConfigError
from dptrain.settings.fields import Kind, origin_of
from dptrain.settings.run import Settings
from dptrain.terminal.words import suggest

GROUPS = ("data", "model", "privacy", "optimizer", "training", "audit", "ledger", "report", "recipe", "debug")
NETWORK_REMEDY = (
    "Write model.network._target_=…, then +model.network.NAME=… for each argument that is new and "
    "~model.network.NAME for each that the network does not take (dptrain check --help has an example)."
)


def kinds(kind: type = Settings, prefix: str = "") -> dict[str, Kind]:
    """Dotted name -> declared type of every setting, sections included."""
    named: dict[str, Kind] = {}
    for name, hint in typing.get_type_hints(kind).items():
        named[f"{prefix}{name}"] = hint
        if dataclasses.is_dataclass(hint):
            named |= kinds(typing.cast(type, hint), f"{prefix}{name}.")
    return named


def setting_names() -> list[str]:
    """Every dotted name that an override may set."""
    return sorted({*kinds(), *GROUPS})


def free_names() -> list[str]:
    """The settings whose entries have names of their own."""
    return [name for name, hint in kinds().items() if origin_of(hint) is dict]


def free_above(name: str) -> str | None:
    """The setting of free entries below which a dotted name lies."""
    return next((free for free in free_names() if name.startswith(f"{free}.")), None)


def unknown_setting(name: str) -> ConfigError:
    """What to say of a name that cannot be set so."""
    names = setting_names()
    if name == "model.network":
        return ConfigError("model.network is set one argument at a time.", remedy=NETWORK_REMEDY)
    if name == "model.rules":
        return ConfigError(
            "model.rules is set one layer at a time.",
            remedy="Write +model.rules.NAME=one-by-one for each layer or parameter.",
        )
    free = free_above(name)
    if free is not None:
        return ConfigError(f"'{name}' is not among the entries of {free}.", remedy=f"Write +{name}=… to add it.")
    if name in free_names():
        return ConfigError(f"{name} is set one entry at a time.", remedy=f"Write +{name}.NAME=… for each.")
    near = suggest(name, names)
    if near.startswith("Valid names"):
        parent = name.rpartition(".")[0]
        siblings = [one for one in names if one.startswith(f"{parent}.")] if parent else names
        near = suggest(name, siblings or names)
    if near.startswith("Valid names"):
        near = "docs/settings.md has all names."
    return ConfigError(f"There is no setting '{name}'.", remedy=near)
