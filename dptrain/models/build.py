"""Networks from a configuration: only names on the allow-list are ever called."""

from __future__ import annotations

from typing import Any

from torch import nn

from dptrain.errors import ConfigError
from dptrain.settings.names import NETWORK_REMEDY
from dptrain.targets import instantiate


def build(model: Any) -> nn.Module:
    """The network that a model configuration names.

    Args:
        model: `ModelConfig`, or its `network` alone: a mapping with `_target_` and arguments.

    Raises:
        ConfigError: nothing named, a name outside the allow-list, arguments that do not fit, or a target
            that is no network.
    """
    node = model if isinstance(model, dict) else getattr(model, "network", model)
    if not isinstance(node, dict):
        try:
            node = dict(node)
        except (TypeError, ValueError):
            node = {}
    if "_target_" not in node:
        raise ConfigError(
            "the model configuration names no network.",
            remedy="Choose one, e.g. model=small_cnn, or set model.network._target_=monai.networks.nets.resnet18.",
        )
    network = instantiate(node, NETWORK_REMEDY)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{node['_target_']} is no network.", remedy="Name a torch module or what builds one.")
    return network
