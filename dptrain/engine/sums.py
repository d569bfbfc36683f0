"""From one chunk's rows to the sum of its patients' clipped gradients: norms, factors, and who is added apart.

What is summed is what was measured. A patient's term is the gradient of the own rows, times a factor from its norm.
Most terms come out of one product of all rows of a layer, in float32. A patient whose rows may lose digits there, or
make the others lose theirs (large rows that cancel, factors near zero, values near the ends of float32), leaves that
product: the rows become zero, and the gradient is formed from them in float64, clipped, and added by itself. Each
decision follows from the patient's own rows alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dptrain.engine import bounds
from dptrain.engine.layout import Layout
from dptrain.engine.tape import Source, Tape, sum_dtype


@dataclass
class ClippedSum:
    """Σ over the patients of a chunk of their clipped gradients.

    Attributes:
        sums: parameter name -> sum, in the parameter's shape; float32 (float64 for float64 parameters).
        parameters: parameter name -> the parameter.
        patients: P, patients of the chunk.
        nonfinite: patients whose gradient was not finite and counted as zero (restricted: follows the data).
        norms: each patient's norm before clipping [P], inf or NaN as found (restricted).
        max_grad_norm: what the gradients were clipped to.
        apart: patients whose gradient was formed and added by itself (restricted).
        failed: patients whose rows no gradient could be found of, and who counted as zero (restricted).
    """

    sums: dict[str, Tensor]
    parameters: dict[str, nn.Parameter]
    patients: int
    nonfinite: int
    norms: Tensor
    max_grad_norm: float
    apart: int = 0
    failed: int = 0
    used: bool = field(default=False, repr=False)


def clipped(tape: Tape, layout: Layout, sources: Sequence[Source], max_grad_norm: float) -> ClippedSum:
    """The clipped sum of what the tape holds."""
    goal = max_grad_norm * (1 - bounds.MARGIN)
    measure(tape, layout, goal)
    squared = squared_norms(tape, layout)
    factors = clip_factors(squared, goal)
    leaving = leaves(tape, layout, factors, max_grad_norm) & torch.isfinite(squared)
    terms: dict[Source, Tensor] = {}
    if bool(leaving.any()):
        terms = add_apart(tape, layout, leaving, squared, factors, goal)
    finite = torch.isfinite(squared)
    factors = torch.where(finite, factors, 0.0)
    if layout.somebody is not None:
        factors = torch.where(layout.somebody, factors, 0.0)
    if not bool(finite.all()):
        silence(tape, layout, ~finite)
    sums = weighted_sums(tape, layout, factors, sources)
    for source, term in terms.items():
        sums[source.name] += term
    parameters = {source.name: source.plain for source in sources}
    real = slice(layout.real)
    return ClippedSum(
        sums=sums,
        parameters=parameters,  # type: ignore[arg-type]
        patients=layout.real,
        nonfinite=layout.real - int(finite[real].sum()),
        norms=squared[real].sqrt(),
        max_grad_norm=max_grad_norm,
        apart=int(leaving[real].sum()),
    )


def clip_factors(squared: Tensor, goal: float) -> Tensor:
    """min(1, goal/norm) [P] in float64, of squared norms [P]."""
    norms = squared.sqrt()
    return (goal / norms).clamp(max=1.0) if math.isfinite(goal) else torch.ones_like(norms)


def squared_norms(tape: Tape, layout: Layout) -> Tensor:
    """Squared norm of each patient's gradient [P], in float64."""
    total = torch.zeros(layout.patients, dtype=torch.float64, device=layout.device)
    for block in tape.blocks(layout):
        total += block.squared
    if tape.deferred:
        total += torch.stack([kept.squared for kept in tape.deferred.values()]).double().sum(0)
    return total


def measure(tape: Tape, layout: Layout, goal: float) -> None:
    """Take the norms again in float64 where float32's may be off by more than their share of η.

    What may be off is held against the clip or the whole norm, whichever is larger.
    """
    if not tape.deferred:
        return
    every = list(tape.deferred.values())
    error = torch.stack([kept.norm_error(layout) for kept in every]).sum(0)
    squared = torch.stack([kept.squared for kept in every])
    size = squared_norms(tape, layout).clamp_min(0)
    if math.isfinite(goal):
        size = size.clamp_min(goal * goal)
    sound = (error <= 2 * bounds.NORMS * size) & (squared >= 0).all(0) & torch.isfinite(size)
    doubtful = torch.nonzero(~sound).flatten()
    if len(doubtful):
        for kept in every:
            kept.measure_again(layout, doubtful)


def leaves(tape: Tape, layout: Layout, factors: Tensor, max_grad_norm: float) -> Tensor:
    """Which patients [P] may not take part in the float32 products of all rows."""
    out = factors < bounds.SMALLEST
    if tape.deferred and math.isfinite(max_grad_norm):
        error = torch.stack([kept.sum_error(layout, factors) for kept in tape.deferred.values()]).sum(0)
        out = out | ~(error <= (bounds.SUMS * max_grad_norm) ** 2)
    return out


def add_apart(
    tape: Tape, layout: Layout, leaving: Tensor, squared: Tensor, factors: Tensor, goal: float
) -> dict[Source, Tensor]:
    """The clipped gradients of patients who leave, summed; their rows become zero, `squared` their formed norms.

    What was formed with everybody's (blocks) stays there where the factor is in float32's reach; such a gradient is
    what was measured already.
    """
    terms: dict[Source, Tensor] = {}
    blocks = tape.blocks(layout)
    for i in torch.nonzero(leaving).flatten().tolist():
        formed = {source: kept.formed_alone(layout, i) for source, kept in tape.deferred.items()}
        norms = [value.square().sum() for value in formed.values()] + [block.squared[i] for block in blocks]
        squared[i] = torch.stack(norms).sum() if norms else 0.0
        factor = float(clip_factors(squared[i], goal))
        if not math.isfinite(float(squared[i])) or factor == 0:
            squared[i] = torch.where(torch.isfinite(squared[i]), math.inf, squared[i])
            continue
        factors[i] = factor
        if factor < bounds.SMALLEST:
            factors[i] = 1.0
            for block in blocks:
                block.matrix[:, i] = (block.matrix[:, i].double() * factor).to(block.matrix.dtype)
        for source, value in formed.items():
            term = (value * factor).to(sum_dtype(source.plain))
            terms[source] = terms[source] + term if source in terms else term
    for kept in tape.deferred.values():
        kept.silence(layout, leaving)
    return terms


def silence(tape: Tape, layout: Layout, bad: Tensor) -> None:
    """Make the rows of non-finite patients zero before anything is multiplied with them (0·NaN = NaN)."""
    for block in tape.blocks(layout):
        block.matrix[:, bad] = 0
    for kept in tape.deferred.values():
        kept.silence(layout, bad)


def weighted_sums(tape: Tape, layout: Layout, factors: Tensor, sources: Sequence[Source]) -> dict[str, Tensor]:
    """Σ_i factors[i] · gradient_i of every parameter."""
    sums = tape.sums(layout, factors)
    by_row: dict[int, Tensor] = {}
    for source, kept in tape.deferred.items():
        rows = len(kept.kept[-1])
        if rows not in by_row:
            by_row[rows] = layout.per_row(factors, rows)
        part = kept.use.weighted(kept.slot, kept.untouched(), by_row[rows])
        sums[source] = sums[source] + part if source in sums else part
    for source in sources:
        dtype = sum_dtype(source.plain)
        if source not in sums:
            sums[source] = torch.zeros(source.shape, dtype=dtype, device=source.plain.device)
        elif sums[source].dtype != dtype:
            sums[source] = sums[source].to(dtype)
    return {source.name: sums[source] for source in sources}
