"""Operations on trainable parameters, as autograd functions that form no weight gradient.

Each function computes what torch computes, keeps what torch keeps, and in its backward pass hands (input,
output gradient) to the tape instead of summing over the batch. A scalar leaf, the tape's token, makes the
output part of the graph where the input itself needs no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from dptrain.engine import conv
from dptrain.engine.bounds import Inner
from dptrain.engine.layout import Layout
from dptrain.engine.tape import Source, Tape, Use, precise


class LinearUse(Use):
    """`x @ weightᵀ + bias`; x is [rows, …, D], the output gradient [rows, …, p]."""

    def by_row(self, slot: str, kept: Sequence[Tensor]) -> Tensor | None:
        if slot == "weight":
            return None
        g = precise(kept[1])
        return g.flatten(1, -2).sum(1) if g.dim() > 2 else g.clone()

    def patient_gradients(self, slot: str, layout: Layout, kept: Sequence[Tensor]) -> Tensor:
        if slot == "bias":
            return super().patient_gradients(slot, layout, kept)
        x, g = (precise(t) for t in kept)
        out: Tensor | None = None
        for members, (xs, gs) in layout.groups(x, g):
            part = torch.bmm(gs.flatten(1, -2).transpose(1, 2), xs.flatten(1, -2))
            if isinstance(members, slice):
                return part
            if out is None:
                out = part.new_zeros(layout.patients, *part.shape[1:])
            out[members] = part
        assert out is not None
        return out

    def norms(self, slot: str, layout: Layout, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
        x, g = kept
        t = x[0].numel() // x.shape[-1] * (len(x) // layout.records) * layout.usual
        p, d = g.shape[-1], x.shape[-1]
        return None if t * t * (p + d) > t * p * d + 8 * p * d else self.gram(slot, layout, kept)

    def gram(self, slot: str, layout: Layout, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        x, g = kept
        squared = torch.zeros(layout.patients, dtype=precise(x[:0]).dtype, device=x.device)
        bound = squared.clone()
        for members, (xs, gs) in layout.groups(precise(x), precise(g)):
            squared[members], bound[members] = conv.gram(xs.flatten(1, -2), gs.flatten(1, -2), len(xs))
        return squared, bound

    def inner(self, layout: Layout, kept: Sequence[Tensor]) -> Inner:
        x, g = kept
        rows = x.numel() // x.shape[-1]
        return Inner((x.shape[-1], g.shape[-1]), layout.most * (rows // layout.records), rows)

    def weighted(self, slot: str, kept: Sequence[Tensor], factors: Tensor | None) -> Tensor:
        if slot == "bias":
            return super().weighted(slot, kept, factors)
        x, g = (precise(t) for t in kept)
        if x.shape[-1] < g.shape[-1]:
            x = conv.per_row(x, factors)
        else:
            g = conv.per_row(g, factors)
        return g.reshape(-1, g.shape[-1]).t() @ x.reshape(-1, x.shape[-1])


class Linear(Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, x: Tensor, w: Tensor, b: Tensor | None, use: LinearUse) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.use = use
        return conv.row_products(x, w, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        ctx.use.tape.receive(ctx.use, x, g)
        return None, (_back(g, w) if ctx.needs_input_grad[1] else None), None, None, None


def _back(g: Tensor, w: Tensor) -> Tensor:
    return g @ w if w.shape[1] >= conv.FEW else conv.row_products(g, w.t())


class ConvUse(Use):
    """Any convolution; x is [rows, C, *space], the output gradient [rows, O, *places]."""

    def __init__(self, tape: Tape, geo: conv.Geometry, measure: bool, **slots: Source | None) -> None:
        super().__init__(tape, **slots)
        self.geo = geo
        self.measure = measure
        self.way = "native"

    def by_row(self, slot: str, kept: Sequence[Tensor]) -> Tensor | None:
        return precise(kept[1]).flatten(2).sum(2) if slot == "bias" else None

    def patient_gradients(self, slot: str, layout: Layout, kept: Sequence[Tensor]) -> Tensor:
        if slot == "bias":
            return super().patient_gradients(slot, layout, kept)
        x, g = (precise(t) for t in kept)
        return conv.patient_gradients(self.geo, layout, x, g, "native").tensor()

    def formed(self, slot: str, layout: Layout, kept: Sequence[Tensor]) -> conv.Formed:
        x, g = (precise(t) for t in kept)
        return conv.patient_gradients(self.geo, layout, x, g, self.way)

    def norms(self, slot: str, layout: Layout, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
        x, g = (precise(t) for t in kept)
        self.way = conv.choose(self.geo, layout, x, g, self.measure)
        return conv.norms(self.geo, layout, x, g) if self.way == "gram" else None

    def gram(self, slot: str, layout: Layout, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return conv.norms(self.geo, layout, *(precise(t) for t in kept))

    def inner(self, layout: Layout, kept: Sequence[Tensor]) -> Inner:
        small = kept[0] if self.geo.transposed else kept[1]
        rows = small.numel() // small.shape[1]
        lengths = (math.prod(self.geo.weight[1:]), self.geo.weight[0] // self.geo.groups)
        return Inner(lengths, layout.most * (rows // layout.records), rows)

    def weighted(self, slot: str, kept: Sequence[Tensor], factors: Tensor | None) -> Tensor:
        if slot == "bias":
            return super().weighted(slot, kept, factors)
        x, g = (precise(t) for t in kept)
        return self.geo.weight_gradient(x, g, factors)


class Convolution(Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, x: Tensor, w: Tensor, b: Tensor | None, use: ConvUse) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.use = use
        return use.geo.output(x, w, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        g = g.contiguous()
        ctx.use.tape.receive(ctx.use, x, g)
        gx = ctx.use.geo.input_gradient(x, g, w) if ctx.needs_input_grad[1] else None
        return None, gx, None, None, None


class ScaleUse(Use):
    """`weight · x̂ + bias` with one weight a channel; kept are x̂·g summed over space, and g summed: [rows, C]."""

    def by_row(self, slot: str, kept: Sequence[Tensor]) -> Tensor:
        scale, shift = kept
        return scale if slot == "weight" else shift


class GroupNorm(Function):
    """Group norm of x [rows, C, …]; instance norm is the case of one channel a group."""

    @staticmethod
    def forward(
        ctx: Any, token: Tensor, x: Tensor, w: Tensor | None, b: Tensor | None, groups: int, eps: float, use: ScaleUse
    ) -> Tensor:
        x = x.contiguous()
        n, c = x.shape[:2]
        out, mean, rstd = torch.native_group_norm(x, w, b, n, c, math.prod(x.shape[2:]), groups, eps)
        ctx.save_for_backward(x, w, mean, rstd)
        ctx.groups, ctx.use = groups, use
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w, mean, rstd = ctx.saved_tensors
        g = g.contiguous()
        n, c = x.shape[:2]
        groups, size = ctx.groups, math.prod(x.shape[2:])
        wanted = bool(ctx.needs_input_grad[1])
        if precise(g) is g:
            # torch's kernel with each row's channels as channels of their own: what it sums over rows is one row.
            # gx must not be a view: autograd adds to a gradient in place only where nothing else holds its memory
            gx, scale, shift = torch.ops.aten.native_group_norm_backward(
                g, x, mean.view(1, -1), rstd.view(1, -1), None if w is None else w.expand(n, c).contiguous().view(-1),
                1, n * c, size, n * groups, [wanted, True, True],
            )  # fmt: skip
            scale, shift, gx = scale.view(n, c), shift.view(n, c), gx if wanted else None
        else:
            gp, xp = precise(g).view(n, c, size), precise(x).view(n, c, size)
            shift = gp.sum(2)
            scale = (gp * xp).sum(2).view(n, groups, -1)
            scale = ((scale - mean.unsqueeze(2) * shift.view(n, groups, -1)) * rstd.unsqueeze(2)).view(n, c)
            gx = None
            if wanted:
                gx = torch.ops.aten.native_group_norm_backward(
                    g, x, mean, rstd, w, n, c, size, groups, [True, False, False]
                )[0]
        ctx.use.tape.receive(ctx.use, scale, shift)
        return None, gx, None, None, None, None, None


class LayerNorm(Function):
    """Layer norm of x [rows, …, *shape]."""

    @staticmethod
    def forward(
        ctx: Any, token: Tensor, x: Tensor, shape: list[int], w: Tensor | None, b: Tensor | None, eps: float,
        use: ScaleUse,
    ) -> Tensor:  # fmt: skip
        out, mean, rstd = torch.native_layer_norm(x, shape, w, b, eps)
        ctx.save_for_backward(x, w, b, mean, rstd)
        ctx.shape, ctx.use = shape, use
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w, b, mean, rstd = ctx.saved_tensors
        g = g.contiguous()
        size = math.prod(ctx.shape)
        gp = precise(g).reshape(len(x), -1, size)
        xp = precise(x).reshape(len(x), -1, size)
        normal = (xp - mean.reshape(len(x), -1, 1)).mul_(rstd.reshape(len(x), -1, 1)).mul_(gp)
        ctx.use.tape.receive(ctx.use, normal.sum(1), gp.sum(1))
        gx = None
        if ctx.needs_input_grad[1]:
            gx = torch.ops.aten.native_layer_norm_backward(g, x, ctx.shape, mean, rstd, w, b, [True, False, False])[0]
        return None, gx, None, None, None, None, None


class PReLUUse(Use):
    """One slope, or one a channel; kept is the gradient by place [rows, C, …]."""

    def by_row(self, slot: str, kept: Sequence[Tensor]) -> Tensor:
        by_place = precise(kept[0])
        if self.sources["weight"].shape.numel() == 1:
            return by_place.reshape(len(by_place), -1).sum(1, keepdim=True)
        return by_place.reshape(*by_place.shape[:2], -1).sum(2)


class PReLU(Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, x: Tensor, w: Tensor, use: PReLUUse) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.use = use
        return torch.nn.functional.prelu(x, w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        gx, gw = torch.ops.aten._prelu_kernel_backward(g, x, w.reshape(-1, *[1] * (x.dim() - 2)))
        ctx.use.tape.receive(ctx.use, gw)
        return None, gx, None, None


class EmbeddingUse(Use):
    """Rows of a table [V, D] by index [rows, …]; the output gradient is [rows, …, D]."""

    def __init__(self, tape: Tape, padding: int | None, **slots: Source | None) -> None:
        super().__init__(tape, **slots)
        self.padding = padding

    def _masked(self, index: Tensor, g: Tensor) -> Tensor:
        g = precise(g)
        return g if self.padding is None else g.masked_fill((index == self.padding).unsqueeze(-1), 0)

    def patient_gradients(self, slot: str, layout: Layout, kept: Sequence[Tensor]) -> Tensor:
        index, g = kept
        size, width = self.sources[slot].shape
        index = index.reshape(len(index), -1)
        g = self._masked(index, g.reshape(*index.shape, width))
        owner = layout.per_row(torch.arange(layout.patients, device=g.device), len(index)).unsqueeze(1)
        out = g.new_zeros(layout.patients * size, width)
        out.index_add_(0, (owner * size + index).flatten(), g.flatten(0, 1))
        return out.view(layout.patients, size, width)

    def norms(self, slot: str, layout: Layout, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
        index, g = kept
        t = index[0].numel() * (len(index) // layout.records) * layout.usual
        return None if t * t > g.shape[-1] * self.sources[slot].shape[0] else self.gram(slot, layout, kept)

    def gram(self, slot: str, layout: Layout, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        index, g = kept
        squared = torch.zeros(layout.patients, dtype=precise(g[:0]).dtype, device=g.device)
        bound = squared.clone()
        for members, (rows, gs) in layout.groups(index, self._masked(index, g)):
            rows, gs = rows.flatten(1), gs.flatten(1, -2)
            products = torch.bmm(gs, gs.transpose(1, 2))
            squared[members] = (products * (rows.unsqueeze(1) == rows.unsqueeze(2))).sum((1, 2))
            bound[members] = products.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt().sum(1).square()
        return squared, bound

    def inner(self, layout: Layout, kept: Sequence[Tensor]) -> Inner:
        index, g = kept
        return Inner((1, g.shape[-1]), layout.most * (index.numel() // layout.records), index.numel())

    def weighted(self, slot: str, kept: Sequence[Tensor], factors: Tensor | None) -> Tensor:
        index, g = kept
        g = conv.per_row(self._masked(index, g), factors)
        return g.new_zeros(self.sources[slot].shape).index_add_(0, index.flatten(), g.flatten(0, -2))


class Embedding(Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, index: Tensor, w: Tensor, use: EmbeddingUse) -> Tensor:
        ctx.save_for_backward(index)
        ctx.use = use
        return torch.nn.functional.embedding(index, w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        ctx.use.tape.receive(ctx.use, index, g.contiguous())
        return None, None, None, None


class SpreadUse(Use):
    """A value given to every row alike; kept is the gradient of each row's copy [rows, *shape]."""

    def by_row(self, slot: str, kept: Sequence[Tensor]) -> Tensor | None:
        g = precise(kept[0])
        return g.reshape(len(g), -1).clone()


class Spread(Function):
    """The value [*shape] as [rows, *shape]: what broadcasting does, but the gradient comes back by row."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, value: Tensor, rows: int, use: SpreadUse) -> Tensor:
        ctx.use = use
        return value.expand(rows, *value.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        ctx.use.tape.receive(ctx.use, g)
        return None, None, None, None
