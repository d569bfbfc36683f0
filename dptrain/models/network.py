"""The network of a run in its parts: built, given its starting weights, made fit for private training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from dptrain.errors import ConfigError
from dptrain.ledger import WeightsSource
from dptrain.models.build import build
from dptrain.models.private import Change, make_private
from dptrain.models.split import split_frozen
from dptrain.models.ways import NOT_TRIED, Way
from dptrain.models.weights import ModelStore
from dptrain.records import RunFolder
from dptrain.settings import ModelConfig, Settings
from dptrain.targets import arguments_of
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
    changes: list[Change]
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
    _not_from_a_file(network, settings.model, settings.training.seed)
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


CONSTANTS = 16  # different values that a fixed initialisation may have
_WEIGHTS = re.compile(r"pretrained|weights|checkpoint|state_dict|_(path|dir|file)$")


def _no_hidden_weights(node: object) -> None:
    """Refuse arguments by which a network would load weights that the ledger never sees, defaults included.

    docs/guarantee.md, contract 10.

    Our own networks declare what they bring; all others start at random or from model.weights.
    """
    if isinstance(node, list | tuple):
        for item in node:
            _no_hidden_weights(item)
    if not isinstance(node, Mapping):
        return
    target = str(node.get("_target_", ""))
    ours = target.startswith("dptrain.models.")
    arguments = arguments_of(node) if target else dict(node)
    for name, value in arguments.items():
        if not ours and value and _WEIGHTS.search(str(name)):
            where = f"'{name}'" if name in node else f"'{name}', which {target.rpartition('.')[2]} sets by itself,"
            raise ConfigError(
                f"model.network: {where} would load weights that nobody declared.",
                remedy=f"Set +model.network.{name}=false; a file goes into model.weights=…, after "
                "`dptrain ledger weights`.",
            )
        _no_hidden_weights(value)


def _not_from_a_file(network: nn.Module, config: ModelConfig, seed: int) -> None:
    """Build the network again with another seed: what is trained and comes out the same was read from somewhere.

    Constants (a bias of zeros) are the same too; so are buffers and frozen tables. Parts that declare their weights
    (`weights_sha256`) are passed over.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        other = dict(build(config).named_parameters())
    declared = {
        id(parameter)
        for part in network.modules()
        if getattr(part, "weights_sha256", None)
        for parameter in part.parameters()
    }
    for name, parameter in network.named_parameters():
        twin = other.get(name)
        if twin is None or id(parameter) in declared or not parameter.requires_grad:
            continue
        if isinstance(parameter, nn.parameter.UninitializedParameter) or parameter.shape != twin.shape:
            continue
        if torch.equal(parameter, twin) and len(torch.unique(parameter.detach().flatten()[:4096])) > CONSTANTS:
            raise ConfigError(
                f"model.network: '{name}' starts with the same values whatever the seed: they come from a file that "
                "nobody declared.",
                remedy="Build it without them, and name the file in model.weights=…, after `dptrain ledger weights`.",
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
