"""Convolutions, and their weight gradients patient by patient: several exact ways and a choice between them.

All work on one form. A convolution `out[o, t] = Σ W[o, c, k] · inp[c, s·t + d·k − p]` has the weight gradient
`Σ_t g[o, t] · inp[c, s·t + d·k − p]`; a transposed convolution has the same with input and gradient swapped.
Below, `big` is the tensor that is read at shifted places and `small` the one that is read once.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dptrain.engine.layout import Layout


@dataclass(frozen=True)
class Geometry:
    """Settings of a convolution, one number a spatial dimension."""

    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool
    output_padding: tuple[int, ...]

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.weight[2:]

    @functools.cached_property
    def pointwise(self) -> bool:
        """A 1×1 kernel that reads every place once, and nothing else."""
        n = len(self.kernel)
        return self.kernel == (1,) * n == self.stride and self.padding == (0,) * n == self.output_padding

    def _by_products(self, g: Tensor) -> bool:
        """Whether matrix products do the work of torch's backward for 1×1 kernels, which copies its operands."""
        plain = self.pointwise and self.groups == 1 and not self.transposed
        return plain and g.device.type == "cpu" and g.dtype in (torch.float32, torch.float64)

    def output(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """[rows, O, *places] of x [rows, C, *space]: torch's own, bit for bit.

        A product for 1×1 kernels would be faster here too, but it rounds otherwise, and where an activation then
        changes its sign, gradients differ from those that autograd gives, by up to 3e-5 in two networks.
        """
        return torch.convolution(
            x, w, b, self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups
        )

    def input_gradient(self, x: Tensor, g: Tensor, w: Tensor) -> Tensor:
        """[rows, C, *space] of the output gradient g [rows, O, *places]."""
        if self._by_products(g):
            return _channels(w.flatten(1).t(), g)
        return self._native(x, g, w, [True, False, False])[0]

    def weight_gradient(self, x: Tensor, g: Tensor, factors: Tensor | None = None) -> Tensor:
        """The weight gradient summed over all rows, each times its factor [rows]."""
        small_x = math.prod(x.shape[1:]) < math.prod(g.shape[1:])
        if self._by_products(g):
            lines = _lines(x, factors if small_x else None), _lines(g, None if small_x else factors)
            return (lines[1] @ lines[0].t()).view(self.weight)
        x, g = (per_row(x, factors), g) if small_x else (x, per_row(g, factors))
        return self._native(x, g, x.new_empty(self.weight), [False, True, False])[1]

    def _native(self, x: Tensor, g: Tensor, w: Tensor, wanted: list[bool]) -> list[Tensor]:
        """torch's own backward: [input gradient, weight gradient, bias gradient] as wanted."""
        gradients: list[Tensor] = torch.ops.aten.convolution_backward(
            g,
            x,
            w,
            [self.weight[1] * self.groups if self.transposed else self.weight[0]],
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
            wanted,
        )
        return gradients


FEW = 16
"""Columns below which kernels sum a row in an order that follows its place among the others (measured with MKL)."""


def row_products(rows: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """[…, M] of rows […, K] times matrix [M, K], plus bias: `F.linear`, each row's digits alike wherever it lies."""
    few = len(matrix)
    if not 1 < few < FEW:
        return F.linear(rows, matrix, bias)
    wide = matrix.new_zeros(FEW, matrix.shape[1])
    wide[:few] = matrix
    product = F.linear(rows, wide)[..., :few]
    return product.contiguous() if bias is None else product + bias


def per_row(maps: Tensor, factors: Tensor | None) -> Tensor:
    """maps [rows, …], each row times its factor [rows]; as they are for None."""
    return maps if factors is None else maps * factors.to(maps.dtype).view(-1, *[1] * (maps.dim() - 1))


def _channels(matrix: Tensor, maps: Tensor) -> Tensor:
    """[rows, O, *space] of matrix [O, C] times the channels of maps [rows, C, *space]; no view, autograd minds."""
    n, c, *space = maps.shape
    out = maps.new_empty(n, len(matrix), *space)
    places = math.prod(space)
    maps, flat = maps.view(n, c, places), out.view(n, len(matrix), places)
    if places == 1 and len(matrix) >= FEW:
        torch.mm(maps.squeeze(2), matrix.t(), out=flat.squeeze(2))
    elif places == 1:
        flat.squeeze(2).copy_(row_products(maps.squeeze(2), matrix))
    elif places <= 8 or matrix.numel() > places << 14:  # one product of all rows: one a row would be too small
        product = row_products(maps.transpose(1, 2).reshape(-1, c), matrix)
        flat.copy_(product.view(n, places, len(matrix)).transpose(1, 2))
    else:
        torch.bmm(matrix.expand(n, *matrix.shape), maps, out=flat)
    return out


def _lines(maps: Tensor, factors: Tensor | None) -> Tensor:
    """[C, rows·places] of maps [rows, C, *space], each row times its factor."""
    flat = maps.flatten(2).transpose(0, 1)
    if factors is None:
        return flat.reshape(len(flat), -1)
    lines = maps.new_empty(flat.shape)
    return torch.mul(flat, factors.to(maps.dtype).unsqueeze(1), out=lines).view(len(flat), -1)


def _windows(big: Tensor, places: Sequence[int], geo: Geometry) -> Tensor:
    """View [m, R, C, *places, *kernel] of the padded big [m, R, C, *space]."""
    ends = [
        max(0, s * (t - 1) + d * (k - 1) + 1 - p - size)
        for t, s, d, k, p, size in zip(
            places, geo.stride, geo.dilation, geo.kernel, geo.padding, big.shape[3:], strict=True
        )
    ]
    pads = [amount for p, e in zip(reversed(geo.padding), reversed(ends), strict=True) for amount in (p, e)]
    padded = F.pad(big, pads) if any(pads) else big
    strides = padded.stride()
    steps = [stride * s for stride, s in zip(strides[3:], geo.stride, strict=True)]
    reach = [stride * d for stride, d in zip(strides[3:], geo.dilation, strict=True)]
    shape = (*big.shape[:3], *places, *geo.kernel)
    return padded.as_strided(shape, (*strides[:3], *steps, *reach), padded.storage_offset())


def _unfolded(big: Tensor, places: Sequence[int], geo: Geometry) -> Tensor:
    """[m·groups, C/groups·K, R·T] copy of the windows of big [m, R, C, *space]; a view for 1×1 kernels."""
    m, r, c = big.shape[:3]
    n = len(places)
    if geo.pointwise and r == 1:
        return big.reshape(m * geo.groups, c // geo.groups, -1)
    view = _windows(big, places, geo)
    order = (0, 2, *range(3 + n, 3 + 2 * n), 1, *range(3, 3 + n))
    return view.permute(order).reshape(m * geo.groups, -1, r * math.prod(places))


def _flat(maps: Tensor, groups: int) -> Tensor:
    """[m·groups, O/groups, R·T] of maps [m, R, O, *places] (a view where R is 1)."""
    m, r, o = maps.shape[:3]
    return maps.reshape(m, r, o, -1).transpose(1, 2).reshape(m * groups, o // groups, -1)


@dataclass
class Formed:
    """Patient gradients in the layout that they came in; norms and sums do not mind it.

    Attributes:
        matrix: [B, P, n], B·n numbers a patient.
        arrange: [B, n] -> the gradient in its parameter's shape.
    """

    matrix: Tensor
    arrange: Callable[[Tensor], Tensor]

    def tensor(self) -> Tensor:
        """[P, *shape]"""
        return torch.stack([self.arrange(self.matrix[:, i]) for i in range(self.matrix.shape[1])])


RUN = 1024
"""Values whose squares are summed in float32 before float64 takes over."""


def squared_norms(values: Tensor) -> Tensor:
    """Squared norms over the last dimension, in float64: [..., n] -> [...].

    Millions of float32 squares summed one after another lose digits, always downward: a norm over 6e7 values came
    out 4.7e-3 too small, more than the margin that clipping keeps. So runs of 1,024 values are summed in float32
    (exact to about 1e-7) and the runs in float64.
    """
    full = values.shape[-1] - values.shape[-1] % RUN
    total: Tensor = torch.linalg.vector_norm(values[..., full:], dim=-1).double().square()
    if full:
        runs = values[..., :full].unflatten(-1, (-1, RUN))
        total = total + torch.linalg.vector_norm(runs, dim=-1).double().square().sum(-1)
    return total


def unfolded_gradients(big: Tensor, small: Tensor, geo: Geometry) -> Formed:
    """Through one copy of all windows and one batched product."""
    product = torch.bmm(_flat(small, geo.groups), _unfolded(big, small.shape[3:], geo).transpose(1, 2))
    return Formed(product.reshape(1, len(big), -1), lambda flat: flat.reshape(geo.weight))


def turned_gradients(big: Tensor, small: Tensor, geo: Geometry) -> Formed:
    """As :func:`unfolded_gradients` with the windows cut from the other tensor; at stride 1, for few output channels.

    Σ_t g[t] · inp[t + d·k − p] = Σ_u inp[u] · g[u − d·k + p].
    """
    n, groups = len(geo.kernel), geo.groups
    reach = [d * (k - 1) for d, k in zip(geo.dilation, geo.kernel, strict=True)]
    pads = []
    for far, p, space, places in reversed(list(zip(reach, geo.padding, big.shape[3:], small.shape[3:], strict=True))):
        pads += [far - p, space + p - places]
    m, o = len(small), small.shape[2]
    c = big.shape[2]
    plain = replace(geo, padding=(0,) * n, weight=(c, o // groups, *geo.kernel))
    windows = _unfolded(F.pad(small, pads), big.shape[3:], plain)
    product = torch.bmm(_flat(big, groups), windows.transpose(1, 2))

    def arrange(flat: Tensor) -> Tensor:
        parts = flat.reshape(groups, c // groups, o // groups, *geo.kernel).transpose(1, 2)
        return parts.reshape(geo.weight).flip(tuple(range(2, 2 + n)))

    return Formed(product.reshape(1, m, -1), arrange)


def shifted_gradients(big: Tensor, small: Tensor, geo: Geometry) -> Formed:
    """Through one batched product for each place of the kernel.

    At stride 1 nothing is copied but the padded input: in a padded, flattened map, a shift of the kernel is a
    shift of the offset, and zeros in the gradient's margin keep the rows apart.
    """
    m, r, c = big.shape[:3]
    o, places = small.shape[2], small.shape[3:]
    kernel, groups = geo.kernel, geo.groups
    out = big.new_empty(math.prod(kernel), m * groups, o // groups, c // groups)
    if all(s == 1 for s in geo.stride):
        room = [t + d * (k - 1) for t, d, k in zip(places, geo.dilation, kernel, strict=True)]
        area = math.prod(room)
        steps = [math.prod(room[i + 1 :]) for i in range(len(room))]
        extra = sum(d * (k - 1) * step for d, k, step in zip(geo.dilation, kernel, steps, strict=True))
        x = big.new_zeros(m, c, r * area + extra)
        inner = x[:, :, : r * area].view(m, c, r, *room)
        source = big
        for axis, (p, size, padded) in enumerate(zip(geo.padding, big.shape[3:], room, strict=True)):
            length = min(size, padded - p)
            inner = inner.narrow(3 + axis, p, length)
            source = source.narrow(3 + axis, 0, length)
        inner.copy_(source.transpose(1, 2))
        g = big.new_zeros(m, o, r, *room)
        place = g
        for axis, t in enumerate(places):
            place = place.narrow(3 + axis, 0, t)
        place.copy_(small.transpose(1, 2))
        g = g.view(m * groups, o // groups, r * area)
        x = x.view(m * groups, c // groups, -1)
        for index, shift in enumerate(itertools.product(*(range(k) for k in kernel))):
            offset = sum(at * d * step for at, d, step in zip(shift, geo.dilation, steps, strict=True))
            torch.bmm(g, x[:, :, offset : offset + r * area].transpose(1, 2), out=out[index])
    else:
        g = _flat(small, groups)
        view = _windows(big, places, geo)
        every: Any = slice(None)
        for index, shift in enumerate(itertools.product(*(range(k) for k in kernel))):
            torch.bmm(g, _flat(view[(*[every] * (3 + len(places)), *shift)], groups).transpose(1, 2), out=out[index])
    return Formed(out.view(len(out), m, -1), lambda flat: flat.t().reshape(geo.weight))


def native_gradients(x: Tensor, g: Tensor, geo: Geometry) -> Formed:
    """By torch's weight-gradient kernel, one patient at a time; x, g are [m, R, …] as they came."""
    out = x.new_empty(len(x), *geo.weight)
    for i in range(len(x)):
        out[i] = geo.weight_gradient(x[i], g[i])
    return Formed(out.view(1, len(x), -1), lambda flat: flat.reshape(geo.weight))


def correlated_gradients(big: Tensor, small: Tensor, geo: Geometry) -> Formed:
    """By one grouped convolution whose kernels are the small maps, its stride and dilation swapped; for many groups.

    Σ_t s[t] · b[s·t + d·k − p], read over k, is a convolution of b with the kernel s. For 32 patients' 5×5 kernels of
    1,152 separate channels it takes 0.9 ms, torch's weight gradient of the batch's sum 10 ms.
    """
    m, r, c = big.shape[:3]
    o, groups, n = small.shape[2], geo.groups, len(geo.kernel)
    maps = big.reshape(m, r, groups, c // groups, *big.shape[3:]).permute(3, 0, 2, 1, *range(4, 4 + n))
    kernels = small.reshape(m, r, groups, o // groups, *small.shape[3:]).permute(0, 2, 3, 1, *range(4, 4 + n))
    correlated = torch.ops.aten.convolution(
        maps.reshape(c // groups, m * groups * r, *big.shape[3:]),
        kernels.reshape(m * o, r, *small.shape[3:]),
        None, geo.dilation, geo.padding, geo.stride, False, (0,) * n, m * groups,
    )  # fmt: skip
    for axis, k in enumerate(geo.kernel):
        correlated = correlated.narrow(2 + axis, 0, k)  # more fit where the last places were left out by the stride
    return Formed(correlated.transpose(0, 1).reshape(1, m, -1), lambda flat: flat.reshape(geo.weight))


def gram_norms(big: Tensor, small: Tensor, geo: Geometry) -> tuple[Tensor, Tensor]:
    """Squared norms [m] of the gradients, and the bound of :meth:`Use.norms`, through T×T products.

    |Σ_t s_t b_tᵀ|² = Σ_{t,t'} (s_t·s_t')(b_t·b_t') (Goodfellow 2015; Bu et al. 2022 for convolutions). The
    products of the windows b_t are sums of products of single places, shifted along the kernel, so that the
    windows need not be copied: (b_t·b_t') = Σ_k (x_{s·t+d·k−p} · x_{s·t'+d·k−p}).
    """
    m = len(big)
    places, space = small.shape[3:], big.shape[3:]
    g = _flat(small, geo.groups).transpose(1, 2)
    if geo.pointwise or math.prod(space) ** 2 > math.prod(places) ** 2 * math.prod(geo.kernel):
        return gram(_unfolded(big, places, geo).transpose(1, 2), g, m)
    r, s, t = big.shape[1], math.prod(space), math.prod(places)
    flat = _flat(big, geo.groups)
    products = torch.bmm(flat.transpose(1, 2), flat).view(m * geo.groups, r, s, r, s)
    key = (geo.kernel, geo.stride, geo.padding, geo.dilation, tuple(space), tuple(places))
    if s * s * t * t <= TABLE:
        table = _window_table(*key, products.dtype, products.device)
        total = (products.transpose(2, 3).reshape(-1, s * s) @ table).view(-1, r, r, t, t).transpose(2, 3)
    else:
        total = _window_products(products, *key)
    return _products_norms(total.reshape(-1, r * t, r * t), torch.bmm(g, g.transpose(1, 2)), m)


TABLE = 1 << 20
"""Numbers of a table that turns the products of places into those of windows; above, it is done place by place."""


def _window_products(
    products: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    space: Sequence[int], places: Sequence[int],
) -> Tensor:  # fmt: skip
    """[b, r, T, r, T] products of windows, from the products of places [b, r, S, r, S]."""
    b, r = products.shape[:2]
    ahead, behind = 1, math.prod(space)
    for k, s, p, d, size, count in zip(kernel, stride, padding, dilation, space, places, strict=True):
        behind //= size
        products = products.reshape(b, r, ahead, size, behind, r, ahead, size, behind)
        total = products.new_zeros(b, r, ahead, count, behind, r, ahead, count, behind)
        for at in range(k):  # one axis after the other: fewer sums than places of the kernel
            offset = d * at - p
            low, high = max(0, -(offset // s)), min(count, (size - 1 - offset) // s + 1)
            if low < high:
                first = s * low + offset
                to, of = slice(low, high), slice(first, first + s * (high - low - 1) + 1, s)
                total[:, :, :, to, :, :, :, to] += products[:, :, :, of, :, :, :, of]
        products, ahead = total, ahead * count
    return products.reshape(b, r, ahead, r, ahead)


@functools.lru_cache(maxsize=64)
def _window_table(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    space: Sequence[int], places: Sequence[int], dtype: torch.dtype, device: torch.device,
) -> Tensor:  # fmt: skip
    """Zeros and ones [S·S, T·T]: :func:`_window_products` as one matrix product, where slices cost more than sums."""
    s = math.prod(space)
    pairs = torch.eye(s * s, dtype=dtype, device=device).view(s * s, 1, s, 1, s)
    return _window_products(pairs, kernel, stride, padding, dilation, space, places).view(s * s, -1)


def gram(a: Tensor, g: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Squared norms of Σ_t a_t g_tᵀ for a [m·groups, T, D], g [m·groups, T, p], and their bound; both [m]."""
    if a.shape[1] == 1:
        squared = (a.square().sum(-1) * g.square().sum(-1)).reshape(m, -1).sum(1)
        return squared, squared
    return _products_norms(torch.bmm(a, a.transpose(1, 2)), torch.bmm(g, g.transpose(1, 2)), m)


def _products_norms(aa: Tensor, gg: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """From the T×T products [m·groups, T, T]; `aa` is overwritten."""
    assert aa.shape == gg.shape, (aa.shape, gg.shape)  # never one place spread over many
    limits = torch.finfo(aa.dtype)  # zero and infinity have no reciprocal root that leads back to theirs
    sizes = (aa.diagonal(dim1=1, dim2=2) * gg.diagonal(dim1=1, dim2=2)).clamp_(limits.tiny, limits.max)
    bound = (sizes * sizes.rsqrt()).sum(1).square_()  # torch's sqrt wakes all threads: 65 µs against 1
    squared = (aa.mul_(gg)).sum((1, 2))
    if len(squared) != m:
        squared, bound = squared.view(m, -1).sum(1), bound.view(m, -1).sum(1)
    return squared, bound


# --- the choice ---------------------------------------------------------------------------------------------------

_chosen: dict[tuple[Any, ...], str] = {}
WORTH = 2e6
"""Multiplications of a layer below which its way is not worth measuring."""
COLD = 4e-10
"""Seconds a byte that formed gradients cost beyond the timing: in a step they are new memory, and cold when read."""


def _ways(geo: Geometry) -> list[str]:
    """Ways to form the gradients that are worth a trial anywhere; the first where nothing is tried."""
    if geo.groups > 1:
        return ["correlated", "native", "shifted"]
    return ["unfolded"] if geo.pointwise else ["native", "shifted"]


def choose(geo: Geometry, layout: Layout, x: Tensor, g: Tensor, measure: bool) -> str:
    """`gram`, or the way to form the gradients: `native` or one of `_WAYS`.

    By measuring on the tensors at hand, once for each geometry, map size and number of rows; by counting
    multiplications where `measure` is off or the layer is small.
    """
    records = layout.usual * (len(x) // max(1, layout.records))
    patients = max(1, layout.records // layout.usual)
    key = (geo, x.shape, g.shape[1:], x.device.type, x.dtype, records, patients, torch.get_num_threads(), measure)
    if key not in _chosen:
        _chosen[key] = _choice(geo, layout, x, g, records, measure)
    return _chosen[key]


def _choice(geo: Geometry, layout: Layout, x: Tensor, g: Tensor, records: int, measure: bool) -> str:
    t = math.prod((x if geo.transposed else g).shape[2:]) * records
    p = geo.weight[0] // geo.groups
    d = math.prod(geo.weight[1:])
    counted = "gram" if 2 * t * t < p * d * geo.groups else _ways(geo)[0]
    work = t * p * d * geo.groups * max(1, layout.records // layout.usual)
    return counted if not measure or work < WORTH else _measured(geo, layout, x, g, t, p, d)


def _measured(geo: Geometry, layout: Layout, x: Tensor, g: Tensor, t: int, p: int, d: int) -> str:
    forming = t * p * d * geo.groups
    squares = t * t * (p + geo.weight[1] + 2 * math.prod(geo.kernel)) * geo.groups
    element = x.element_size()
    kept = (x.numel() + g.numel()) * element
    formed = layout.patients * p * d * geo.groups * element
    candidates: dict[str, Callable[[], object]] = {}
    if squares < 12 * forming and t * t * layout.patients * geo.groups * element < max(1 << 26, 2 * kept):
        candidates["gram"] = lambda: (norms(geo, layout, x, g), geo.weight_gradient(x, g))

    def way(name: str) -> Callable[[], object]:
        def run() -> object:
            matrix = patient_gradients(geo, layout, x, g, name).matrix
            return squared_norms(matrix).sum(0).to(matrix.dtype) @ matrix  # as the clipped sum is made

        return run

    if not candidates or formed < max(1 << 25, 4 * kept):
        names = _ways(geo)
        if not geo.pointwise and layout.patients * t * d * geo.groups * element < 1 << 26:
            names.append("unfolded")
        if not geo.pointwise and set(geo.stride) == {1} and p < geo.weight[1]:
            names.append("turned")
        candidates |= {name: way(name) for name in names}
    if len(candidates) == 1:
        return next(iter(candidates))
    times: dict[str, float] = {}
    for _ in range(3):
        for name, run in candidates.items():
            if name in times and times[name] > 2 * min(times.values()):
                continue
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)
            start = time.perf_counter()
            run()
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)
            taken = time.perf_counter() - start
            times[name] = min(taken, times.get(name, math.inf))
    return min(times, key=lambda name: times[name] + (0 if name == "gram" else formed * COLD))


def _pair(geo: Geometry, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    return (g, x) if geo.transposed else (x, g)


_WAYS = {
    "shifted": shifted_gradients,
    "unfolded": unfolded_gradients,
    "turned": turned_gradients,
    "correlated": correlated_gradients,
}


def patient_gradients(geo: Geometry, layout: Layout, x: Tensor, g: Tensor, way: str) -> Formed:
    """The patients' gradients the named way; x and g have N·k rows."""
    out: Formed | None = None
    for members, (xs, gs) in layout.groups(x, g):
        if way == "native":
            part = native_gradients(xs, gs, geo)
        else:
            part = _WAYS[way](*_pair(geo, xs, gs), geo)
        if isinstance(members, slice):
            return part
        if out is None:
            size, _, n = part.matrix.shape
            out = Formed(part.matrix.new_zeros(size, layout.patients, n), part.arrange)
        out.matrix[:, members] = part.matrix
    assert out is not None
    return out


def norms(geo: Geometry, layout: Layout, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Squared norms and their bounds [P] through Gram matrices."""
    out: tuple[Tensor, Tensor] | None = None
    for members, (xs, gs) in layout.groups(x, g):
        part = gram_norms(*_pair(geo, xs, gs), geo)
        if isinstance(members, slice):
            return part
        if out is None:
            out = x.new_zeros(layout.patients), x.new_zeros(layout.patients)
        for all_of, some in zip(out, part, strict=True):
            all_of[members] = some
    assert out is not None
    return out
