"""Weight gradients of convolutions, patient by patient: four exact ways and a choice between them.

All work on one form. A convolution `out[o, t] = Σ W[o, c, k] · inp[c, s·t + d·k − p]` has the weight gradient
`Σ_t g[o, t] · inp[c, s·t + d·k − p]`; a transposed convolution has the same with input and gradient swapped.
Below, `big` is the tensor that is read at shifted places and `small` the one that is read once.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

    @property
    def pointwise(self) -> bool:
        """A 1×1 kernel that reads every place once."""
        n = len(self.kernel)
        return self.kernel == (1,) * n == self.stride and self.padding == (0,) * n

    def native(self, x: Tensor, g: Tensor, w: Tensor, wanted: list[bool]) -> list[Tensor]:
        """torch's own backward: [input gradient, weight gradient, bias gradient] as wanted."""
        return torch.ops.aten.convolution_backward(
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

    def weight_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        """The weight gradient summed over all rows."""
        return self.native(x, g, x.new_empty(()).expand(self.weight), [False, True, False])[1]


def _windows(big: Tensor, places: Sequence[int], geo: Geometry) -> Tensor:
    """View [m, R, C, *places, *kernel] of the padded big [m, R, C, *space]."""
    n = len(places)
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
    return (
        padded.as_strided(
            (*big.shape[:3], *places, *geo.kernel), (*strides[:3], *steps, *reach), padded.storage_offset()
        )
        if n
        else padded
    )


def _unfolded(big: Tensor, places: Sequence[int], geo: Geometry) -> Tensor:
    """[m·groups, R·T, C/groups·K] copy of the windows of big [m, R, C, *space]."""
    m, r, c = big.shape[:3]
    n = len(places)
    if geo.pointwise and r == 1:  # a view
        return big.reshape(m * geo.groups, c // geo.groups, -1).transpose(1, 2)
    view = _windows(big, places, geo)
    view = view.reshape(m, r, geo.groups, c // geo.groups, *view.shape[3:])
    order = (0, 2, 1, *range(4, 4 + n), 3, *range(4 + n, 4 + 2 * n))
    return view.permute(order).reshape(m * geo.groups, r * math.prod(places), -1)


def _flat(small: Tensor, geo: Geometry) -> Tensor:
    """[m·groups, R·T, O/groups] of small [m, R, O, *places] (a view where R is 1)."""
    m, r, o = small.shape[:3]
    parts = small.reshape(m, r, geo.groups, o // geo.groups, -1)
    return parts.permute(0, 2, 1, 4, 3).reshape(m * geo.groups, -1, o // geo.groups)


def unfolded_gradients(big: Tensor, small: Tensor, geo: Geometry) -> Tensor:
    """[m, *weight] through one copy of all windows and one batched product."""
    m = len(big)
    product = torch.bmm(_flat(small, geo).transpose(1, 2), _unfolded(big, small.shape[3:], geo))
    return product.reshape(m, *geo.weight)


def shifted_gradients(big: Tensor, small: Tensor, geo: Geometry) -> Tensor:
    """[m, *weight] through one batched product for each place of the kernel.

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
        extra = sum(d * (k - 1) * math.prod(room[i + 1 :]) for i, (d, k) in enumerate(zip(geo.dilation, kernel)))
        x = big.new_zeros(m, c, r * area + extra)
        inner = x[:, :, : r * area].view(m, c, r, *room)
        source = [slice(None)] * len(kernel)
        for axis, (p, size, whole) in enumerate(zip(geo.padding, big.shape[3:], room, strict=True)):
            length = min(size, whole - p)
            inner = inner.narrow(3 + axis, p, length)
            source[axis] = slice(0, length)
        inner.copy_(big[(slice(None), slice(None), slice(None), *source)].transpose(1, 2))
        g = big.new_zeros(m, o, r, *room)
        place = g
        for axis, t in enumerate(places):
            place = place.narrow(3 + axis, 0, t)
        place.copy_(small.transpose(1, 2))
        g = g.view(m * groups, o // groups, r * area)
        x = x.view(m * groups, c // groups, -1)
        for index, shift in enumerate(itertools.product(*(range(k) for k in kernel))):
            offset = sum(s * d * math.prod(room[i + 1 :]) for i, (s, d) in enumerate(zip(shift, geo.dilation)))
            torch.bmm(g, x[:, :, offset : offset + r * area].transpose(1, 2), out=out[index])
    else:
        g = _flat(small, geo).transpose(1, 2)
        view = _windows(big, places, geo)
        for index, shift in enumerate(itertools.product(*(range(k) for k in kernel))):
            part = view[(..., *shift)].reshape(m, r, groups, c // groups, -1)
            part = part.permute(0, 2, 1, 4, 3).reshape(m * groups, -1, c // groups)
            torch.bmm(g, part, out=out[index])
    out = out.permute(1, 2, 3, 0)
    return out.reshape(m, *geo.weight)


def native_gradients(x: Tensor, g: Tensor, geo: Geometry) -> Tensor:
    """[m, *weight] by torch's weight-gradient kernel, one patient at a time; x, g are [m, R, …] as they came."""
    out = x.new_empty(len(x), *geo.weight)
    empty = x.new_empty(()).expand(geo.weight)
    for i in range(len(x)):
        out[i] = geo.native(x[i], g[i], empty, [False, True, False])[1]
    return out


def gram_norms(big: Tensor, small: Tensor, geo: Geometry) -> tuple[Tensor, Tensor]:
    """Squared norms [m] of the gradients, and the bound of :meth:`Use.norms`, through T×T products.

    |Σ_t s_t b_tᵀ|² = Σ_{t,t'} (s_t·s_t')(b_t·b_t') (Goodfellow 2015; Bu et al. 2022 for convolutions).
    """
    m = len(big)
    return gram(_unfolded(big, small.shape[3:], geo), _flat(small, geo), m)


def gram(a: Tensor, g: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Squared norms of Σ_t a_t g_tᵀ for a [m·groups, T, D], g [m·groups, T, p], and their bound; both [m]."""
    if a.shape[1] == 1:
        squared = (a.square().sum(-1) * g.square().sum(-1)).reshape(m, -1).sum(1)
        return squared, squared
    aa = torch.bmm(a, a.transpose(1, 2))
    gg = torch.bmm(g, g.transpose(1, 2))
    bound = (aa.diagonal(dim1=1, dim2=2) * gg.diagonal(dim1=1, dim2=2)).abs_().sqrt_().sum(1).square_()
    squared = (aa.mul_(gg)).sum((1, 2))
    if len(squared) != m:
        squared, bound = squared.view(m, -1).sum(1), bound.view(m, -1).sum(1)
    return squared, bound


# --- the choice ---------------------------------------------------------------------------------------------------

_chosen: dict[tuple, str] = {}


def rows(geo: Geometry, x: Tensor, g: Tensor) -> int:
    """T of one row: places that the small tensor has."""
    return math.prod((x if geo.transposed else g).shape[2:])


def choose(geo: Geometry, layout: Layout, x: Tensor, g: Tensor, measure: bool) -> str:
    """`gram`, or the way to form the gradients: `native`, `shifted`, `unfolded`.

    By measuring on the tensors at hand, once for each geometry, map size and (rounded) number of patients
    and records; by counting multiplications where `measure` is off or the layer is small.
    """
    fold = len(x) // max(1, layout.records)
    t = rows(geo, x, g) * layout.most * fold
    p = geo.weight[0] // geo.groups
    d = math.prod(geo.weight[1:])
    counted = "gram" if 2 * t * t < p * d * geo.groups else "native"
    if geo.pointwise and counted != "gram":
        counted = "unfolded"
    work = t * p * d * geo.groups * layout.patients
    if not measure or work < 2e6:
        return counted
    key = (
        geo, tuple(x.shape[1:]), tuple(g.shape[1:]), x.device.type, x.dtype, layout.uniform is None,
        _rounded(layout.most * fold), _rounded(layout.patients), torch.get_num_threads(),
    )  # fmt: skip
    if key not in _chosen:
        _chosen[key] = _measured(geo, layout, x, g, t, p, d)
    return _chosen[key]


def _rounded(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def _measured(geo: Geometry, layout: Layout, x: Tensor, g: Tensor, t: int, p: int, d: int) -> str:
    forming = t * p * d * geo.groups
    squares = t * t * (p + d) * geo.groups
    element = x.element_size()
    kept = (x.numel() + g.numel()) * element
    formed = layout.patients * p * d * geo.groups * element
    candidates: dict[str, Callable[[], object]] = {}
    if squares < 12 * forming and t * t * layout.patients * geo.groups * element < max(1 << 26, 2 * kept):
        candidates["gram"] = lambda: (norms(geo, layout, x, g), geo.weight_gradient(x, g))

    def way(name: str) -> Callable[[], object]:
        def run() -> object:
            formed = patient_gradients(geo, layout, x, g, name)
            flat = formed.reshape(layout.patients, -1)
            return torch.linalg.vector_norm(flat, dim=1) @ flat

        return run

    if not candidates or formed < max(1 << 25, 4 * kept):
        names = ["unfolded"] if geo.pointwise else ["native", "shifted"]
        if not geo.pointwise and layout.patients * t * d * geo.groups * element < 1 << 28:
            names.append("unfolded")
        candidates |= {name: way(name) for name in names}
    if len(candidates) == 1:
        return next(iter(candidates))
    times: dict[str, float] = {}
    for _ in range(2):
        for name, run in candidates.items():
            if name in times and times[name] > 3 * min(times.values()):
                continue
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)
            start = time.perf_counter()
            run()
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)
            taken = time.perf_counter() - start
            times[name] = min(taken, times.get(name, math.inf))
    return min(times, key=lambda name: times[name])


def _pair(geo: Geometry, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    return (g, x) if geo.transposed else (x, g)


def patient_gradients(geo: Geometry, layout: Layout, x: Tensor, g: Tensor, way: str) -> Tensor:
    """[P, *weight] the named way; x and g have N·k rows."""
    out: Tensor | None = None
    for members, (xs, gs) in layout.groups(x, g):
        if way == "native":
            part = native_gradients(xs, gs, geo)
        else:
            part = (shifted_gradients if way == "shifted" else unfolded_gradients)(*_pair(geo, xs, gs), geo)
        if isinstance(members, slice):
            return part
        if out is None:
            out = part.new_zeros(layout.patients, *geo.weight)
        out[members] = part
    assert out is not None
    return out


def norms(geo: Geometry, layout: Layout, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Squared norms and their bounds [P] through Gram matrices."""
    squared, bound = x.new_zeros(layout.patients), x.new_zeros(layout.patients)
    for members, (xs, gs) in layout.groups(x, g):
        found = gram_norms(*_pair(geo, xs, gs), geo)
        if isinstance(members, slice):
            return found
        squared[members], bound[members] = found
    return squared, bound
