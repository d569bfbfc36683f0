"""Chains of fully connected layers and activations: the closed form of one layer, layer by layer."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

from dptrain.audit.reference.linear import prefixed
from dptrain.audit.reference.material import Material, Tick
from dptrain.audit.reference.stack import Drawn, Draws, Stack, drawn, factors, pairs, segments


class _InputGram:
    """Inner products (plus one for a bias) of the inputs of one patient, taken once: they never change."""

    def __init__(self, x: Tensor, owner: Tensor, patients: int, bias: bool) -> None:
        counts = torch.bincount(owner, minlength=patients)
        starts = torch.cumsum(counts, 0) - counts
        blocks = torch.cumsum(counts**2, 0) - counts**2
        self.local = torch.arange(owner.numel(), device=owner.device) - starts[owner]
        self.base = blocks[owner] + self.local * counts[owner]
        self.table = torch.zeros(int((counts**2).sum()), device=owner.device)
        first, second = pairs(owner)
        for i, j in zip(first.split(65536), second.split(65536), strict=True):
            self.table[self.base[i] + self.local[j]] = (x[i] * x[j]).sum(1) + float(bias)

    def of(self, first: Tensor, second: Tensor) -> Tensor:
        """For positions of pairs; the first must not come after the second."""
        return self.table[self.base[first] + self.local[second]]


Below: TypeAlias = tuple[str, bool, Tensor]  # a Linear's name, whether it has a bias, what it was given [M, W, …]


def train_dense(
    material: Material,
    stack: Stack,
    draws: Draws,
    layers: list[tuple[str, nn.Module]],
    device: torch.device,
    tick: Tick,
) -> None:
    """Gram norms layer by layer on the rows drawn: Σ_{r,s} a_r a_s (δ_r·δ_s)(h_r·h_s + 1), for every Linear."""
    plan = material.plan
    inputs, labels = material.inputs.to(device).float(), material.labels.to(device)
    inputs = inputs.flatten(1) if isinstance(layers[0][1], nn.Flatten) else inputs
    gram = None
    entry = next(layer for _, layer in layers if not isinstance(layer, nn.Flatten))
    if isinstance(entry, nn.Linear):
        gram = _InputGram(inputs[draws.rows], draws.owner, material.patients, entry.bias is not None)
    for _ in range(plan.steps):
        rows = drawn(draws)
        models, width = rows.index.shape
        weights = stack.by_name()
        with torch.enable_grad():
            output, kept, linear = _forward(layers, weights, inputs[rows.index])
            flat = labels[rows.index.reshape(-1)]
            losses = material.loss(output.reshape(models * width, -1), flat).reshape(models, width)
            deltas = torch.autograd.grad((losses * (rows.owner >= 0)).sum(), kept)
        with torch.no_grad():
            deltas = tuple(delta * rows.weight[:, :, None] for delta in deltas)
            segment = segments(rows.owner)
            square = _squared_norms(rows, segment, linear, deltas, gram)
            factor = torch.gather(factors(square, plan.max_grad_norm), 1, segment)
            sums: dict[str, Tensor] = {}
            for (name, bias, below), delta in zip(linear, deltas, strict=True):
                clipped = torch.nan_to_num(delta) * factor[:, :, None]
                sums[prefixed(name, "weight")] = torch.bmm(clipped.transpose(1, 2), below)
                if bias:
                    sums[prefixed(name, "bias")] = clipped.sum(1)
            stack.release([sums[name] for name in stack.names], draws)
        tick(models)


def _forward(
    layers: list[tuple[str, nn.Module]], weights: dict[str, Tensor], hidden: Tensor
) -> tuple[Tensor, list[Tensor], list[Below]]:
    """The outputs of all models [M, W, …], what each Linear gave, and what lay below it."""
    kept: list[Tensor] = []
    linear: list[Below] = []
    for name, layer in layers:
        if isinstance(layer, nn.Linear):
            linear.append((name, layer.bias is not None, hidden.detach()))
            hidden = torch.bmm(hidden, weights[prefixed(name, "weight")].detach().transpose(1, 2))
            if layer.bias is not None:
                hidden = hidden + weights[prefixed(name, "bias")].detach()[:, None]
            if not kept:
                hidden.requires_grad_(True)
            kept.append(hidden)
        elif not isinstance(layer, nn.Flatten):
            hidden = layer(hidden)
    return hidden, kept, linear


def _squared_norms(
    rows: Drawn, segment: Tensor, linear: list[Below], deltas: tuple[Tensor, ...], gram: _InputGram | None
) -> Tensor:
    """Squared norms of the patients' gradients [M, W], by the segments that their drawn rows form."""
    models, width = rows.index.shape
    device = rows.index.device
    square = torch.zeros(models, width, device=device)
    offset = 0
    while offset < width:
        model, column = torch.nonzero(
            (rows.owner[:, offset:] == rows.owner[:, : width - offset]) & (rows.owner[:, offset:] >= 0),
            as_tuple=True,
        )
        if model.numel() == 0:
            break
        one, two = (model, column), (model, column + offset)
        value = torch.zeros(model.numel(), device=device)
        for number, ((_, bias, below), delta) in enumerate(zip(linear, deltas, strict=True)):
            if number == 0 and gram is not None:
                inner = gram.of(rows.position[one], rows.position[two])
            else:
                inner = (below[one] * below[two]).sum(1) + float(bias)
            value += (delta[one] * delta[two]).sum(1) * inner
        square.index_put_((model, segment[model, column]), value * (1 if offset == 0 else 2), accumulate=True)
        offset += 1
    return square
