"""The network of a run in its parts: built, given its starting weights, made fit for private training."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dptrain.errors import ConfigError
from dptrain.ledger import WeightsSource
from dptrain.models.build import build
from dptrain.models.private import make_private
from dptrain.models.split import split_frozen
from dptrain.models.ways import NOT_TRIED, Way
from dptrain.models.weights import ModelStore
from dptrain.records import RunFolder
from dptrain.settings import Settings
from dptrain.targets import locate
from dptrain.terminal.words import suggest


@dataclass
class Network:
    """The network whole, and in its parts, which share its parameters.

    frozen gives features without gradients, or is None; trainable goes from there (or from the image) to the
    output. weights_kind is random, package, public or ledger. rules: names of trainable parameters of the whole,
    each with the way that model.rules chose for it. way: whether patients may run together, once the check has tried.
    """

    whole: nn.Module
    frozen: nn.Module | None
    trainable: nn.Module
    changes: list[Any]
    weights: WeightsSource | None
    weights_kind: str
    weights_note: str
    rules: dict[str, str] = field(default_factory=dict)
    way: Way = NOT_TRIED

    def names(self, part: nn.Module) -> dict[str, str]:
        """Name of a parameter in a part of the network -> its name in the whole."""
        called: dict[int, str] = {}
        for name, parameter in self.whole.named_parameters(remove_duplicate=False):
            called.setdefault(id(parameter), name)
        inside = part.named_parameters(remove_duplicate=False)
        return {name: called[id(parameter)] for name, parameter in inside if id(parameter) in called}


def device_of(name: str) -> torch.device:
    """auto: CUDA where there is one. Raises ConfigError for cuda without a GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.device=cuda, but torch sees no GPU.", remedy="Use training.device=cpu or auto.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def build_network(settings: Settings) -> Network:
    """Build, load starting weights, make fit for private training, and split off what stays frozen."""
    _no_hidden_weights(settings.model.network)
    torch.manual_seed(settings.training.seed)
    network = build(settings.model)
    _made_by_chance(settings, network)
    brought = {str(sha): part for part in network.modules() if (sha := getattr(part, "weights_sha256", None))}
    if len(brought) > 1 or (brought and settings.model.weights is not None):
        raise ConfigError(
            "the network brings weights from more than one place.", remedy="Start from one declared file."
        )
    source: WeightsSource | None = None
    kind, note = "random", "random weights"
    if settings.model.weights is not None:
        source, note = _starting_weights(network, Path(settings.model.weights))
        kind = "ledger" if source.run else "public"
    elif brought:
        sha, part = next(iter(brought.items()))
        source = WeightsSource(sha256=sha)
        kind, note = "package", str(getattr(part, "weights_note", "weights of an installed package"))
    network, changes = make_private(network, batchnorm=settings.model.batchnorm)  # type: ignore[arg-type]
    frozen, trainable = split_frozen(network, train=settings.model.train)  # type: ignore[arg-type]
    rules = _rules(network, settings.model.rules)
    return Network(network, frozen, trainable, changes, source, kind, note, rules)


def _rules(network: nn.Module, rules: Mapping[str, str]) -> dict[str, str]:
    """model.rules by trainable parameter. Raises ConfigError for a name that the network or its training has not."""
    chosen: dict[str, str] = {}
    every = list(network.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    for name, parameter in every:
        first.setdefault(id(parameter), name)
    for name, rule in rules.items():
        inside = [(full, p) for full, p in every if f"{full}.".startswith(f"{name}.")]
        if not inside:
            owners = {full.rpartition(".")[0] for full, p in every if p.requires_grad} - {""}
            near = suggest(name, sorted({*owners, *first.values()}))
            if near.startswith("Valid names"):
                near = f"Some of its layers: {', '.join(sorted(owners)[:8])}." if owners else ""
            raise ConfigError(f"model.rules.{name}: the network has no such layer or parameter.", remedy=near)
        trained = {first[id(p)]: rule for _, p in inside if p.requires_grad}
        if not trained:
            raise ConfigError(
                f"model.rules.{name}: nothing of it is trained, so there is no gradient to form.",
                remedy=f"Leave it out (~model.rules.{name}), or train it (model.train=all).",
            )
        chosen |= trained
    return chosen


_WEIGHTS = re.compile(r"pretrained|weights|checkpoint|state_dict|_(path|dir|file)$")


def _no_hidden_weights(node: Any) -> None:
    """Refuse arguments by which a network would load weights that the ledger never sees.

    docs/guarantee.md, contract 10.

    Our own networks declare what they bring; all others start at random or from model.weights.
    """
    if isinstance(node, list | tuple):
        for item in node:
            _no_hidden_weights(item)
    if not isinstance(node, dict):
        return
    ours = str(node.get("_target_", "")).startswith("dptrain.models.")
    for name, value in ({} if ours else _defaults(node)).items():
        if value and _WEIGHTS.search(name):
            raise ConfigError(
                f"model.network: '{name}' is {value!r} unless it is set, and loads weights that nobody declared.",
                remedy=f"Set +model.network.{name}=false, and name a file in model.weights=…, "
                "after `dptrain ledger weights`.",
            )
    for name, value in node.items():
        if not ours and value and _WEIGHTS.search(str(name)):
            raise ConfigError(
                f"model.network: '{name}' would load weights that nobody declared.",
                remedy="Leave it out and name the file in model.weights=…, after `dptrain ledger weights`.",
            )
        _no_hidden_weights(value)


def _defaults(node: Mapping[str, object]) -> dict[str, object]:
    """Arguments of the target of a node that it leaves at their defaults, by name."""
    if "_target_" not in node:
        return {}
    try:
        parameters = inspect.signature(locate(str(node["_target_"]))).parameters.values()
    except (ConfigError, TypeError, ValueError):  # said where it is built
        return {}
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in node}


def _made_by_chance(settings: Settings, network: nn.Module) -> None:
    """Refuse weights that are the same whatever the seed: they came from a file that the ledger never saw.

    Left out are values that no chance makes either: constants, and parameters that are not trained.
    """
    if any(hasattr(part, "weights_sha256") for part in network.modules()):
        return
    torch.manual_seed(settings.training.seed + 1)
    other = dict(build(settings.model).named_parameters())
    torch.manual_seed(settings.training.seed)
    build(settings.model)  # leaves torch's random numbers where one build leaves them
    for name, parameter in network.named_parameters():
        twin = other.get(name)
        if not parameter.requires_grad or parameter.dim() < 2 or twin is None or twin.shape != parameter.shape:
            continue
        if torch.equal(parameter, twin) and len(parameter.unique()) > 2:
            raise ConfigError(
                f"model.network: {name} starts with the same values whatever the seed: they come from a file that "
                "nobody declared, or from a formula.",
                remedy="Name the file in model.weights=… (`dptrain ledger weights`), or freeze what a formula makes.",
            )


def _starting_weights(network: nn.Module, path: Path) -> tuple[WeightsSource, str]:
    """Load a declared file, or the model of a run folder, into the network."""
    if path.is_dir():
        run = RunFolder(path)
        identity = str(run.read().id)
        sha = ModelStore(run.weights).start(network)
        return WeightsSource(sha256=sha, run=identity), f"model of run {identity}"
    sha = ModelStore(path).start(network)
    return WeightsSource(sha256=sha), f"file {path.name}"
