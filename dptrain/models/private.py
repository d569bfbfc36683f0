"""Layers that would mix patients, replaced or frozen, with a line for each change.

BatchNorm in training mode computes a patient's activations from everybody in the batch and writes their
average into its buffers without noise: both break differential privacy. It is replaced by GroupNorm, which
looks at one record alone (Wu & He 2018, arXiv 1803.08494), or frozen with the statistics that it was
trained with elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from dptrain.errors import CheckRefused, ConfigError

BatchNormChoice = Literal["replace", "freeze", "refuse"]

#: Upper bound of groups, and channels that a group holds at least where the layer has as many. With fewer,
#: a group on a 1x1 map would normalise a single value to zero.
MAX_GROUPS = 32
MIN_CHANNELS = 4

#: Set on a BatchNorm whose weights were loaded without running statistics; such a layer cannot be frozen.
NO_STATISTICS = "_dptrain_no_statistics"


@dataclass(frozen=True)
class Change:
    """One module that was changed: where it sits, what it was, what it is now, and why."""

    name: str
    before: str
    after: str
    why: str

    def __str__(self) -> str:
        return f"{self.name or 'network'}: {self.before} -> {self.after} ({self.why})"


class FrozenBatchNorm(nn.Module):
    """BatchNorm with fixed statistics and fixed affine weights: y = (x - mean) / sqrt(var + eps) · w + b.

    Everything is a buffer: nothing is trained, and `train()` has nothing to switch. Input and output
    [N, C, …]. Names of the buffers are those of BatchNorm, so that its weights load.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    @classmethod
    def of(cls, layer: _BatchNorm) -> FrozenBatchNorm:
        """The frozen copy of a BatchNorm layer that has running statistics."""
        if layer.running_mean is None or layer.running_var is None:
            raise ConfigError("a BatchNorm without running statistics cannot be frozen.", remedy="Replace it.")
        frozen = cls(layer.num_features, layer.eps)
        with torch.no_grad():
            frozen.running_mean = layer.running_mean.detach().clone()
            frozen.running_var = layer.running_var.detach().clone()
            like = frozen.running_mean
            frozen.weight = layer.weight.detach().clone() if layer.affine else torch.ones_like(like)
            frozen.bias = layer.bias.detach().clone() if layer.affine else torch.zeros_like(like)
        return frozen

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps:g}"


def group_count(channels: int) -> int:
    """Groups of the GroupNorm that replaces a BatchNorm over this many channels.

    The largest divisor of `channels` that is at most 32 and leaves at least 4 channels a group (one group
    where there are fewer than 8).
    """
    return max(g for g in range(1, MAX_GROUPS + 1) if channels % g == 0 and (g == 1 or channels // g >= MIN_CHANNELS))


def group_norm(layer: _BatchNorm) -> nn.GroupNorm:
    """GroupNorm with the affine weights, type and device of a BatchNorm layer."""
    norm = nn.GroupNorm(group_count(layer.num_features), layer.num_features, eps=layer.eps, affine=layer.affine)
    if layer.affine:
        norm = norm.to(device=layer.weight.device, dtype=layer.weight.dtype)
        with torch.no_grad():
            norm.weight.copy_(layer.weight)
            norm.bias.copy_(layer.bias)
        norm.weight.requires_grad_(layer.weight.requires_grad)
        norm.bias.requires_grad_(layer.bias.requires_grad)
    norm.train(layer.training)
    return norm


def make_private(model: nn.Module, *, batchnorm: BatchNormChoice = "replace") -> tuple[nn.Module, list[Change]]:
    """Make a network fit for private training; everything else, in-place operations too, stays as it is.

    Args:
        model: any network; changed in place (and returned, since the network itself may be a BatchNorm).
        batchnorm: `replace` by GroupNorm, keeping the affine weights; `freeze` with the statistics that it
            holds (for pretrained networks: `train()` cannot switch them on again); `refuse`.

    Returns:
        The network, and what was changed. A layer that is registered twice stays one layer.

    Raises:
        CheckRefused: BatchNorm with `refuse`, or with `freeze` where its statistics are missing.
        ConfigError: another word than these three.
    """
    if batchnorm not in ("replace", "freeze", "refuse"):
        raise ConfigError(f"batchnorm={batchnorm} is unknown: replace, freeze or refuse.")
    changes: list[Change] = []
    done: dict[int, nn.Module] = {}

    def fit(module: nn.Module, name: str) -> nn.Module:
        fitted = done.get(id(module))
        if fitted is not None:
            return fitted
        new: nn.Module = module
        if isinstance(module, _BatchNorm):
            new = _fit_batchnorm(module, name, batchnorm, changes)
        elif isinstance(module, _InstanceNorm) and module.track_running_stats:
            new = _without_statistics(module, name, changes)
        else:
            for key, child in list(module.named_children()):
                replaced = fit(child, f"{name}.{key}" if name else key)
                if replaced is not child:
                    setattr(module, key, replaced)
            for key, second in list(module._modules.items()):  # a child under a second name
                if second is not None and id(second) in done:
                    module._modules[key] = done[id(second)]
        done[id(module)] = new
        keep.append(module)
        return new

    keep: list[nn.Module] = []  # ids stay unique while the old modules live
    return fit(model, ""), changes


def _fit_batchnorm(layer: _BatchNorm, name: str, choice: str, changes: list[Change]) -> nn.Module:
    before = f"{type(layer).__name__}({layer.num_features})"
    if choice == "refuse":
        raise CheckRefused(
            f"'{name or 'network'}' is {before}: in training mode it makes a patient's result depend on the others.",
            remedy="Set model.batchnorm=replace (GroupNorm) or, for pretrained networks, model.batchnorm=freeze.",
        )
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        raise CheckRefused(f"'{name}' is not yet initialised.", remedy="Run one made-up batch through the network.")
    if choice == "freeze":
        if getattr(layer, NO_STATISTICS, False) or layer.running_mean is None:
            raise CheckRefused(
                f"'{name}' is {before} without running statistics: it cannot be frozen.",
                remedy="Set model.batchnorm=replace, or load weights that hold running_mean and running_var.",
            )
        assert layer.running_var is not None
        fresh = bool((layer.running_mean == 0).all()) and bool((layer.running_var == 1).all())
        why = "statistics are its initial ones: a scale and a shift" if fresh else "statistics fixed as loaded"
        changes.append(Change(name, before, "FrozenBatchNorm", why))
        return FrozenBatchNorm.of(layer)
    norm = group_norm(layer)
    kept = "affine weights kept" if layer.affine else "no affine weights"
    changes.append(Change(name, before, f"GroupNorm({norm.num_groups} groups)", f"no patient sees another; {kept}"))
    return norm


def _without_statistics(layer: _InstanceNorm, name: str, changes: list[Change]) -> nn.Module:
    norm = type(layer)(layer.num_features, eps=layer.eps, affine=layer.affine, track_running_stats=False)
    if layer.affine:
        norm = norm.to(device=layer.weight.device, dtype=layer.weight.dtype)
        with torch.no_grad():
            norm.weight.copy_(layer.weight)
            norm.bias.copy_(layer.bias)
    norm.train(layer.training)
    before = f"{type(layer).__name__}({layer.num_features}, track_running_stats=True)"
    changes.append(Change(name, before, type(norm).__name__, "running statistics would keep patients' averages"))
    return norm
