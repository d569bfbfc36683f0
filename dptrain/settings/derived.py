"""Arguments of a network that follow from its data: said once, in `data`, and looked up for the network."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dptrain.errors import ConfigError
from dptrain.settings.data import DataConfig, shape_of
from dptrain.terminal.words import suggest
from dptrain.vocabulary import task_spec

PREFIX = "data."


def facts_of(data: DataConfig) -> dict[str, int]:
    """What a network's arguments may stand for: `data.outputs`, `data.channels`, `data.features`, `data.dims`."""
    shape = shape_of(data)
    return {
        "data.outputs": task_spec(data.task).outputs(len(data.classes)),
        "data.channels": shape[0],
        "data.features": math.prod(shape),
        "data.dims": len(shape) - 1,
    }


def derived(network: Mapping[str, object], data: DataConfig) -> dict[str, object]:
    """The network's configuration with numbers in place of `data.outputs` and the like; what was set stays.

    Raises ConfigError for a name that starts with `data.` and stands for nothing.
    """
    facts = facts_of(data)

    def filled(value: object, name: str) -> object:
        if isinstance(value, Mapping):
            return {key: filled(inner, f"{name}.{key}") for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [filled(inner, f"{name}[{at}]") for at, inner in enumerate(value)]
        if not isinstance(value, str) or not value.startswith(PREFIX):
            return value
        if value not in facts:
            raise ConfigError(
                f"{name}={value}: this is nothing that a network can be told of its data.",
                remedy=suggest(value, list(facts)),
            )
        return facts[value]

    filled_in = filled(network, "model.network")
    assert isinstance(filled_in, dict)
    return filled_in
