"""Whether the gradients that the engine finds are the patients' own: tried on made-up data, before any charge.

Nothing here may see patients' rows: what it finds is a refusal, and a refusal tells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dptrain.engine.bounds import product_error
from dptrain.engine.layout import Layout
from dptrain.engine.sums import squared_norms, weighted_sums
from dptrain.engine.tape import Source, Tape


def tells(tape: Tape, layout: Layout) -> bool:
    """Whether this chunk can tell anything: not where a gradient is not finite, or none is there at all."""
    squared = squared_norms(tape, layout)
    return bool((squared > 0).any()) and bool(torch.isfinite(squared).all())


def not_own_rows(
    tape: Tape, layout: Layout, losses: Tensor, weights: Tensor, sources: Sequence[Source], token: Tensor
) -> list[Source]:
    """Sources whose weighted sum of patients' gradients is not plain autograd's for that weighted sum of losses.

    Each patient has a fresh random weight, so that no row can stand in for another patient's.
    """
    chosen = layout.shares
    tape.mode = "verify"
    seed = weights * chosen[layout.patient].to(weights.dtype)
    torch.autograd.grad(losses, [token], seed, allow_unused=True, retain_graph=True)
    tape.mode = "off"
    truth: dict[Source, Tensor] = {}
    for source, weighted in tape.truth.items():
        if source.is_root:
            truth[source] = truth[source] + weighted if source in truth else weighted
            continue
        plain = [root.plain for root in source.roots]
        parts = torch.autograd.grad(
            source.plain, plain, weighted.to(source.plain.dtype), retain_graph=True, allow_unused=True
        )
        for root, part in zip(source.roots, parts, strict=True):
            if part is not None:
                truth[root] = truth[root] + part if root in truth else part
    scale = float((chosen.square() * squared_norms(tape, layout)).sum().sqrt())
    sums = weighted_sums(tape, layout, chosen, sources)
    wrong = []
    for source in sources:
        if source in truth:
            ours, expected = sums[source.name], truth[source]
            gap = float((ours - expected).norm())
            if not gap <= 1e-3 * max(float(expected.norm()), float(ours.norm())) + 1e-5 * scale:
                wrong.append(source)
    return wrong


def not_own_norms(tape: Tape, layout: Layout) -> list[Source]:
    """Sources whose norm, found without the gradient, is not the formed one's: the first and the last patient."""
    present = torch.nonzero(layout.counts[: layout.real] > 0).flatten()
    wrong = []
    for source, kept in tape.deferred.items():
        error = kept.norm_error(layout)
        for i in present[[0, -1]].tolist():
            truth = float(kept.formed_alone(layout, i).square().sum())
            room = 1e-3 * truth + float(error[i]) + product_error(64, kept.squared.dtype) * float(kept.absolute[i])
            if not abs(float(kept.squared[i]) - truth) <= room:
                wrong.append(source)
                break
    return wrong
