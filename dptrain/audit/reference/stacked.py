"""Any other small network with torch.func: vmap over models of vmap over records of grad."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from dptrain.audit.reference.material import Material, Tick
from dptrain.audit.reference.stack import Draws, Stack, drawn, factors, segments, shared
from dptrain.models.preflight import first_line

STACK_BYTES = 256 << 20


def unstackable(material: Material) -> str:
    """Why torch.func cannot run a network that is neither linear nor dense, in a line; empty where it can."""
    module = copy.deepcopy(material.module).cpu()
    weights = {name: torch.stack([p.detach()] * 2) for name, p in module.named_parameters() if p.requires_grad}
    rows = torch.zeros(2, 2, dtype=torch.long)  # two models, two records
    x, y = material.inputs.cpu()[rows].float(), material.labels.cpu()[rows]
    try:
        record_gradients(material, module.train())(weights, x, y)
        with torch.no_grad():
            vmap(lambda some: functional_call(module.eval(), (some, shared(module)), (x[0],)))(weights)
    except (RuntimeError, TypeError, ValueError) as error:
        return first_line(error) or type(error).__name__
    return ""


def record_gradients(material: Material, module: nn.Module) -> Callable[..., dict[str, Tensor]]:
    """(weights [M, …], inputs [M, b, …], labels [M, b, …]) -> gradient of each record, [M, b, …]."""
    fixed = shared(module)

    def one(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = material.loss(functional_call(module, (weights, fixed), (x[None],)), y[None])[0]
        return loss

    return vmap(vmap(grad(one), in_dims=(None, 0, 0)), in_dims=(0, 0, 0))


def train_stacked(material: Material, stack: Stack, draws: Draws, device: torch.device, tick: Tick) -> None:
    """torch.func: gradients of single records, summed within patients, clipped, summed over patients."""
    plan = material.plan
    inputs, labels = material.inputs.to(device), material.labels.to(device)
    gradients = record_gradients(material, copy.deepcopy(material.module).to(device).train())
    size = sum(p[0].numel() for p in stack.weights)
    for _ in range(plan.steps):
        rows = drawn(draws)
        models, width = rows.index.shape
        weights = {name: value.detach() for name, value in stack.by_name().items()}
        segment = segments(rows.owner)
        sums = {name: torch.zeros_like(value) for name, value in weights.items()}
        together = max(1, STACK_BYTES // (4 * size * width))
        for begin in range(0, models, together):
            some = slice(begin, begin + together)
            index, scale = rows.index[some], rows.weight[some]
            each = gradients({n: v[some] for n, v in weights.items()}, inputs[index].float(), labels[index])
            number = segment[some]
            patients = int(number.max()) + 1
            square = torch.zeros(index.shape[0], patients, device=device)
            grouped: dict[str, Tensor] = {}
            for name, value in each.items():
                flat = value.detach().flatten(2) * scale[:, :, None]
                target = torch.zeros(index.shape[0], patients, flat.shape[2], device=device)
                target.scatter_add_(1, number[:, :, None].expand_as(flat), flat)
                square += (target**2).sum(2)
                grouped[name] = target
            factor = factors(square, plan.max_grad_norm)
            for name, target in grouped.items():
                total = torch.einsum("mp,mpd->md", factor, torch.nan_to_num(target))
                sums[name][some] = total.reshape(sums[name][some].shape)
        stack.release([sums[name] for name in stack.names], draws)
        tick(models)
