"""Split a network into a frozen part, whose results can be cached, and the part that is trained."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import nn

from dptrain.errors import ConfigError
from dptrain.models.nets import BodyAndHead, FirstOutput

Train = Literal["head", "last_blocks", "all"]

#: Where the networks of MONAI keep their last layer, applied to the features and followed by nothing.
HEADS = {
    "ResNet": ("fc",),
    "DenseNet": ("class_layers.out",),
    "EfficientNet": ("_fc",),
    "SENet": ("last_linear",),
    "ViT": ("classification_head",),
}


def head_name(model: nn.Module) -> str | None:
    """Dotted name of the last layer, for networks whose last step it is; None where that is not known."""
    if isinstance(model, BodyAndHead):
        return "head"
    if isinstance(model, FirstOutput):
        inner = head_name(model.network)
        return inner and f"network.{inner}"
    for kind in type(model).__mro__:
        for name in HEADS.get(kind.__name__, ()) if kind.__module__.startswith("monai.networks.") else ():
            try:
                layer = model.get_submodule(name)
            except AttributeError:
                continue
            if list(layer.parameters()):
                return name
    if isinstance(model, nn.Sequential) and len(model) > 1 and list(model[-1].parameters()):
        return str(len(model) - 1)
    return None


def _with(module: nn.Module, path: list[str], new: nn.Module) -> nn.Module:
    """The module with one inner module exchanged; all others, and all parameters, are shared."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    child = module._modules[path[0]]
    assert child is not None
    twin._modules[path[0]] = new if len(path) == 1 else _with(child, path[1:], new)
    return twin


def _freeze(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


class Frozen(nn.Module):
    """A part that is never trained: no gradients, always in evaluation mode, whatever `train()` says.

    Images run with channels last, which is a quarter faster on CPUs; results come in the usual layout.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = _freeze(part)
        for parameter in self.part.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Frozen:
        del mode
        return super().train(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            if x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            features = self.part(x)
        if not isinstance(features, torch.Tensor):
            raise ConfigError(
                "the network gives several outputs, so its features are not one tensor.",
                remedy="Wrap it: dptrain.models.first_output takes the first.",
            )
        return features.contiguous()


def split_frozen(model: nn.Module, train: Train = "all") -> tuple[nn.Module | None, nn.Module]:
    """(frozen part or None, part to train); the second applied to the first's result is the whole network.

    Both share their parameters with `model`, so `model.state_dict()` holds the trained weights under the
    network's own names. A frozen part is the same at every step: its results can be computed once for each
    record (they are personal data like the images; docs/guarantee.md, contract 10).

    Args:
        model: the network; parameters outside the trained part lose `requires_grad`.
        train: `head`, the last layer; `last_blocks`, the last stages too; `all`. Where a network cannot be
            cut in two (a U-Net), what is not trained is frozen in place and the first result is None.

    Raises:
        ConfigError: another word, or a network whose last layer is not known.
    """
    if train not in ("head", "last_blocks", "all"):
        raise ConfigError(f"train={train} is unknown: head, last_blocks or all.")
    if train == "all":
        return None, model
    if isinstance(model, BodyAndHead):
        cut = len(model.body) if train == "head" else max(len(model.body) - model.last_blocks, 0)
        if cut == 0 or (train == "last_blocks" and not any(True for _ in model.body[:cut].parameters())):
            return None, model
        frozen = Frozen(model.body[:cut])
        if train == "head":
            return frozen, model.head
        return frozen, nn.Sequential(*list(model.body)[cut:], model.head)
    name = head_name(model)
    if train == "head":
        if name is None:
            raise ConfigError(
                f"{type(model).__name__} has no known last layer, so train=head cannot be done.",
                remedy="Use model.train=all or last_blocks, or a network with a classification head.",
            )
        head = model.get_submodule(name)
        frozen = Frozen(_with(model, name.split("."), nn.Identity()))
        for parameter in head.parameters():
            parameter.requires_grad_(True)
        return frozen, head
    return None, _last_blocks(model, name)


def _last_blocks(model: nn.Module, head: str | None) -> nn.Module:
    """Freeze all but the head and the last module before it that holds parameters, in place."""
    owners = [name for name, module in _blocks(model) if any(True for _ in module.parameters())]
    trained = [name for name in owners if name != head][-1:]
    keep = {*trained, *([head] if head else [])}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(name.startswith(f"{block}.") for block in keep))
    return model


def _blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules in order, down to the children of sequences: the units that `last_blocks` counts."""
    blocks: list[tuple[str, nn.Module]] = []

    def walk(module: nn.Module, prefix: str) -> None:
        for key, child in module.named_children():
            name = f"{prefix}{key}"
            if isinstance(child, nn.Sequential | nn.ModuleList) and len(child):
                walk(child, f"{name}.")
            else:
                blocks.append((name, child))

    walk(model, "")
    return blocks
