"""A whole stack at once, by the fastest exact way for its module."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from dptrain.audit.reference.dense import train_dense
from dptrain.audit.reference.linear import chain, prefixed, single, train_linear
from dptrain.audit.reference.material import Material, Tick, score_outputs
from dptrain.audit.reference.stack import Draws, Stack, shared
from dptrain.audit.reference.stacked import train_stacked, unstackable
from dptrain.audit.scores import Array
from dptrain.errors import ConfigError
from dptrain.plan import Plan

STACKED_PARAMETERS = 300_000  # above it one model alone fills the caches: nothing is gained by stacking


def way_of(module: nn.Module, plan: Plan, augmented: bool = False) -> str:
    """The fastest exact way for this module."""
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    if augmented or plan.views > 1:
        return "engine"
    layers = chain(module)
    if layers is not None:
        return "linear" if single(layers) is not None else "dense"
    mixing = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    if trainable > STACKED_PARAMETERS or any(isinstance(part, mixing) for part in module.modules()):
        return "engine"
    return "stacked"


def score(material: Material, final: dict[str, Tensor], device: torch.device) -> Array:
    """Scores [M, R] of every record under every model of a stack."""
    module = copy.deepcopy(material.module).to(device).eval()
    fixed = shared(module)
    layers = chain(material.module)
    only = None if layers is None else single(layers)
    models = next(iter(final.values())).shape[0]
    parts: list[Array] = []
    step = max(1, min(4096, int(2e7 / (models * max(1, material.inputs[0].numel())))))
    if only is not None:
        step = 4096
    with torch.no_grad():
        for start in range(0, len(material.inputs), step):
            x = material.inputs[start : start + step].to(device).float()
            y = material.labels[start : start + step].to(device)
            if only is not None:
                weight = final[prefixed(only[0], "weight")]
                outputs = torch.einsum("rd,mcd->mrc", x.flatten(1), weight)
                if only[1].bias is not None:
                    outputs = outputs + final[prefixed(only[0], "bias")][:, None]
            else:
                outputs = vmap(lambda w, x=x: functional_call(module, (w, fixed), (x,)))(final)
            parts.append(score_outputs(outputs, y, material.task, material.loss))
    return np.concatenate(parts, axis=1)


def train_together(
    material: Material, member: np.ndarray, *, device: str | torch.device = "cpu", tick: Tick = lambda _: None
) -> Array:
    """Train a stack of models and score every record under each.

    Args:
        member: bool [M, P]. tick: called with the number of models after each step of all of them.

    Returns:
        scores [M, R].

    Raises:
        ConfigError: a module that cannot be stacked (take the engine).
    """
    device = torch.device(device)
    way = way_of(material.module, material.plan, bool(material.augment))
    why = unstackable(material) if way == "stacked" else ""
    if way == "engine" or why:
        raise ConfigError(
            f"This network cannot be trained as a stack{': ' + why if why else ''}.",
            remedy="Set audit.trainer=engine.",
        )
    stack = Stack(material, [material.start() for _ in range(len(member))], device)
    draws = Draws(material, torch.from_numpy(np.ascontiguousarray(member)), device)
    layers = chain(material.module)
    if way == "linear" and layers is not None and material.plan.sample_rate * float(member.mean()) < 0.02:
        way = "dense"  # so few take part in a step that gathering them costs less than multiplying all
    if way == "linear" and layers is not None:
        layer = single(layers)
        assert layer is not None
        train_linear(material, stack, draws, layer, device, tick)
    elif way == "dense" and layers is not None:
        train_dense(material, stack, draws, layers, device, tick)
    else:
        train_stacked(material, stack, draws, device, tick)
    return score(material, stack.final(), device)
