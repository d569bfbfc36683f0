"""How the engine meets the parameters: stand-ins that see every operation they are used in.

While a watched network runs forward, each trainable parameter is stood in for by a :class:`Seen` tensor. Torch
asks a Seen what to do whenever an operation takes one (`__torch_function__`). Operations with a rule become
the functions of :mod:`dptrain.engine.functions`; operations on parameters alone (an index, a view, a weight
norm) give another Seen; a value that is broadcast over the batch (position embeddings, scales, bias tables) is
spread row by row. Everything else goes the ordinary way of autograd, where the engine finds it afterwards and
takes the slow exact way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dptrain.engine import functions as fn
from dptrain.engine.conv import Geometry
from dptrain.engine.tape import Source, Tape, slow_way
from dptrain.errors import CheckRefused

Handler = Callable[..., Any]
HANDLERS: dict[Any, Handler] = {}


class Recorder:
    """What the stand-ins of one network share.

    Attributes:
        tape: the record of the chunk at hand; None where nothing is recorded.
        token: a scalar leaf that makes outputs part of the graph.
        measure: choose between exact ways by timing them.
    """

    def __init__(self, measure: bool) -> None:
        self.tape: Tape | None = None
        self.token = torch.zeros((), requires_grad=True)
        self.measure = measure
        self.decisions: dict[tuple[Any, ...], bool] = {}

    def is_batch(self, source: Source, function: Any, tensor: Tensor, *, exact: bool = False) -> bool:
        """Whether the rows of `tensor` are the batch's: it depends on parameters, or its rows are N·k (`exact`: N).

        For tensors without a gradient the answer of the first forward pass must hold in later ones.
        """
        assert self.tape is not None
        records, length = self.tape.records, tensor.shape[0] if tensor.dim() > 0 else 0
        rows = length > 0 and length % records == 0
        if exact and not tensor.requires_grad:
            rows = length == records
        if rows:
            self.tape.met.add((source.name, length // records))
        if tensor.requires_grad or records == 1:
            return rows
        key = (source.name, getattr(function, "__name__", str(function)), tensor.shape[1:])
        first = self.decisions.setdefault(key, rows)
        if first and not rows:
            raise CheckRefused(
                f"{source.name}: cannot tell whether the first dimension of an operand of shape "
                f"{tuple(tensor.shape)} counts records.",
                remedy=slow_way([root.name for root in source.roots]),
            )
        return first


class Seen(Tensor):
    """A stand-in for a parameter, or for a value computed from parameters alone."""

    _source: Source
    _recorder: Recorder
    stands_for: tuple[int, torch.dtype]

    @staticmethod
    def make(source: Source, recorder: Recorder) -> Seen:
        stand_in = torch.Tensor._make_subclass(Seen, source.plain.detach(), source.plain.requires_grad)
        stand_in._source = source
        stand_in._recorder = recorder
        stand_in.stands_for = (source.plain.data_ptr(), source.plain.dtype)
        return stand_in

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            recorder = next(_seen(args, kwargs))._recorder
            if recorder.tape is None or not torch.is_grad_enabled():
                return func(*_plain(args), **_plain(kwargs))
            handler = HANDLERS.get(func)
            if handler is not None:
                result = handler(recorder, func, *args, **kwargs)
                if result is not NotImplemented:
                    return result
            return _other(recorder, func, args, kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._source.plain.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        import copy

        return copy.deepcopy(self._source.plain, memo)


def _seen(*values: Any) -> Iterator[Seen]:
    for value in values:
        if isinstance(value, Seen):
            yield value
        elif isinstance(value, list | tuple):
            yield from _seen(*value)
        elif isinstance(value, dict):
            yield from _seen(*value.values())


def _tensors(*values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor) and not isinstance(value, Seen):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(*value)
        elif isinstance(value, dict):
            yield from _tensors(*value.values())


def _map(value: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        items = [_map(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    return value


def _plain(value: Any) -> Any:
    """The same with the parameters themselves in place of their stand-ins."""
    return _map(value, lambda tensor: tensor._source.plain if isinstance(tensor, Seen) else tensor)


def ordinary(value: Any) -> Any:
    """A network's output without stand-ins."""
    return _plain(value) if next(_seen(value), None) is not None else value


def _rule(*targets: Any) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        for target in targets:
            HANDLERS[target] = handler
        return handler

    return register


def _source(value: Any) -> Source | None:
    """The source of a stand-in whose gradient is wanted."""
    return value._source if isinstance(value, Seen) and value._source.plain.requires_grad else None


def _value(value: Any) -> Any:
    """What a function computes with: no graph behind it, its gradient goes through the tape."""
    if isinstance(value, Seen):
        return value._source.plain.detach()
    return value


def _cast(x: Tensor, *others: Any, full: bool = False) -> list[Any]:
    """What autocast would do to the operands: its dtype for products, float32 for norms."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return [x, *others]
    dtype = torch.float32 if full else torch.get_autocast_dtype(kind)
    return [
        v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() and v.dtype != torch.float64 else v
        for v in (x, *others)
    ]


def _usable(recorder: Recorder, func: Any, x: Any, *weights: Any) -> bool:
    """Whether a rule may take x as a batch and the weights as stand-ins (or constants)."""
    if isinstance(x, Seen) or not isinstance(x, Tensor):
        return False
    first = None
    for weight in weights:
        if isinstance(weight, Seen):
            first = first or weight._source
        elif isinstance(weight, Tensor) and weight.requires_grad:
            return False
    return first is not None and recorder.is_batch(first, func, x)


@_rule(F.linear)
def _linear(recorder: Recorder, func: Any, input: Any, weight: Any, bias: Any = None) -> Any:
    if not _usable(recorder, func, input, weight, bias) or input.dim() < 2 or weight.dim() != 2:
        return NotImplemented
    use = fn.LinearUse(_tape(recorder), weight=_source(weight), bias=_source(bias))
    with_type = _cast(input, _value(weight), _value(bias))
    return fn.Linear.apply(recorder.token, *with_type, use)


@_rule(torch.matmul, torch.mm, Tensor.matmul, Tensor.__matmul__, Tensor.mm)
def _matmul(recorder: Recorder, func: Any, input: Any, other: Any) -> Any:
    if not isinstance(other, Seen) or other.dim() != 2 or isinstance(input, Seen) or input.dim() < 2:
        return NotImplemented
    return _linear(recorder, func, input, _derive(recorder, torch.t, (other,), {}))


def _tuple(value: Any, n: int) -> tuple[int, ...]:
    return (
        (int(value),) * n if isinstance(value, int) else tuple(int(v) for v in value) * (n if len(value) == 1 else 1)
    )


_geometry = functools.lru_cache(maxsize=4096)(Geometry)


def _convolution(
    n: int, recorder: Recorder, func: Any, input: Any, weight: Any, bias: Any = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Any:  # fmt: skip
    if not _usable(recorder, func, input, weight, bias) or input.dim() != n + 2:
        return NotImplemented
    dilation, stride = _tuple(dilation, n), _tuple(stride, n)
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if any(t % 2 for t in total):
            sides = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
            input, padding = F.pad(input, sides), (0,) * n
        else:
            padding = tuple(t // 2 for t in total)
    geo = _geometry(weight.shape, stride, _tuple(padding, n), dilation, groups, False, (0,) * n)
    use = fn.ConvUse(_tape(recorder), geo, recorder.measure, weight=_source(weight), bias=_source(bias))
    return fn.Convolution.apply(recorder.token, *_cast(input, _value(weight), _value(bias)), use)


def _transposed(
    n: int, recorder: Recorder, func: Any, input: Any, weight: Any, bias: Any = None, stride: Any = 1,
    padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Any:  # fmt: skip
    if not _usable(recorder, func, input, weight, bias) or input.dim() != n + 2:
        return NotImplemented
    geo = _geometry(
        weight.shape, _tuple(stride, n), _tuple(padding, n), _tuple(dilation, n), groups, True,
        _tuple(output_padding, n),
    )  # fmt: skip
    use = fn.ConvUse(_tape(recorder), geo, recorder.measure, weight=_source(weight), bias=_source(bias))
    return fn.Convolution.apply(recorder.token, *_cast(input, _value(weight), _value(bias)), use)


for _n, _forward, _backward in (
    (1, F.conv1d, F.conv_transpose1d),
    (2, F.conv2d, F.conv_transpose2d),
    (3, F.conv3d, F.conv_transpose3d),
):
    HANDLERS[_forward] = functools.partial(_convolution, _n)
    HANDLERS[_backward] = functools.partial(_transposed, _n)


@_rule(F.group_norm)
def _group_norm(
    recorder: Recorder,
    func: Any,
    input: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    if not _usable(recorder, func, input, weight, bias):
        return NotImplemented
    use = fn.ScaleUse(_tape(recorder), weight=_source(weight), bias=_source(bias))
    x, w, b = _cast(input, _value(weight), _value(bias), full=True)
    return fn.GroupNorm.apply(recorder.token, x, w, b, num_groups, eps, use)


@_rule(F.instance_norm)
def _instance_norm(
    recorder: Recorder, func: Any, input: Any, running_mean: Any = None, running_var: Any = None, weight: Any = None,
    bias: Any = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    if not use_input_stats:
        return _fixed_norm(recorder, func, input, running_mean, running_var, weight, bias, eps)
    if running_mean is not None:
        raise CheckRefused(
            "an instance norm in training mode keeps running statistics of its batches, without noise.",
            remedy="Build it with track_running_stats=False, or put it in eval mode.",
        )
    return _group_norm(recorder, func, input, input.shape[1], weight, bias, eps)


@_rule(F.batch_norm)
def _batch_norm(
    recorder: Recorder, func: Any, input: Any, running_mean: Any, running_var: Any, weight: Any = None,
    bias: Any = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    if training:
        raise CheckRefused(
            "a batch norm in training mode mixes the records of a batch.",
            remedy="Replace it (models.make_private) or freeze it in eval mode.",
        )
    return _fixed_norm(recorder, func, input, running_mean, running_var, weight, bias, eps)


def _fixed_norm(
    recorder: Recorder, func: Any, x: Any, mean: Tensor, variance: Tensor, weight: Any, bias: Any, eps: float
) -> Any:
    """Normalisation by buffers, then scale and shift by channel."""
    if not _usable(recorder, func, x, weight, bias):
        return NotImplemented
    shape = (-1, *[1] * (x.dim() - 2))
    x, mean, variance = _cast(x, mean, variance, full=True)
    normal = (x - mean.view(shape)) * torch.rsqrt(variance + eps).view(shape)
    if weight is not None:
        normal = normal * _spread(recorder, weight, len(x)).reshape(len(x), *shape)
    if bias is not None:
        normal = normal + _spread(recorder, bias, len(x)).reshape(len(x), *shape)
    return normal


@_rule(F.layer_norm)
def _layer_norm(
    recorder: Recorder, func: Any, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None,
    eps: float = 1e-5,
) -> Any:  # fmt: skip
    if not _usable(recorder, func, input, weight, bias) or input.dim() <= len(normalized_shape):
        return NotImplemented
    use = fn.ScaleUse(_tape(recorder), weight=_source(weight), bias=_source(bias))
    x, w, b = _cast(input, _value(weight), _value(bias), full=True)
    return fn.LayerNorm.apply(recorder.token, x, list(normalized_shape), w, b, eps, use)


@_rule(F.rms_norm)
def _rms_norm(
    recorder: Recorder, func: Any, input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None
) -> Any:
    if weight is None or not _usable(recorder, func, input, weight) or input.dim() <= len(normalized_shape):
        return NotImplemented
    (x,) = _cast(input, full=True)
    normal = F.rms_norm(x, normalized_shape, None, eps)
    shape = (len(x), *[1] * (x.dim() - 1 - len(normalized_shape)), *normalized_shape)
    return normal * _spread(recorder, weight, len(x)).reshape(shape)


@_rule(F.prelu, torch.prelu, Tensor.prelu)
def _prelu(recorder: Recorder, func: Any, input: Any, weight: Any) -> Any:
    if not _usable(recorder, func, input, weight) or input.dim() < 2:
        return NotImplemented
    use = fn.PReLUUse(_tape(recorder), weight=_source(weight))
    return fn.PReLU.apply(recorder.token, input, _value(weight).to(input.dtype), use)


@_rule(F.embedding)
def _embedding(
    recorder: Recorder, func: Any, input: Any, weight: Any, padding_idx: int | None = None,
    max_norm: float | None = None, norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Any:  # fmt: skip
    if max_norm is not None or scale_grad_by_freq:
        raise CheckRefused(
            "an embedding with max_norm or scale_grad_by_freq depends on the whole batch.",
            remedy="Build it without these options.",
        )
    if not _usable(recorder, func, input, weight):
        return NotImplemented
    padding = None if padding_idx is None else padding_idx % weight.shape[0]
    use = fn.EmbeddingUse(_tape(recorder), padding, weight=_source(weight))
    return fn.Embedding.apply(recorder.token, input, _value(weight), use)


@_rule(F.multi_head_attention_forward)
def _attention(
    recorder: Recorder, func: Any, query: Any, key: Any, value: Any, embed_dim_to_check: int, num_heads: int,
    in_proj_weight: Any, in_proj_bias: Any, bias_k: Any, bias_v: Any, add_zero_attn: bool, dropout_p: float,
    out_proj_weight: Any, out_proj_bias: Any, training: bool = True, key_padding_mask: Any = None,
    need_weights: bool = True, attn_mask: Any = None, use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None, k_proj_weight: Any = None, v_proj_weight: Any = None, static_k: Any = None,
    static_v: Any = None, average_attn_weights: bool = True, is_causal: bool = False,
) -> Any:  # fmt: skip
    """Multi-head attention written with the linear rule; query [L, N, E], key and value [S, N, E]."""
    operands = (query, key, value)
    if static_k is not None or static_v is not None or any(isinstance(t, Seen) or t.dim() != 3 for t in operands):
        return NotImplemented
    if isinstance(attn_mask, Seen) or isinstance(key_padding_mask, Seen):
        return NotImplemented
    q_in, k_in, v_in = (t.transpose(0, 1) for t in operands)
    n, length, width = q_in.shape
    if n != _tape(recorder).records:
        return NotImplemented

    def part(tensor: Any, index: int) -> Any:
        if tensor is None or not isinstance(tensor, Tensor):
            return None
        return _index(recorder, tensor, slice(index * width, (index + 1) * width))

    def project(x: Tensor, weight: Any, bias: Any) -> Tensor:
        projected: Tensor = _apply(recorder, F.linear, x, weight, bias)
        return projected

    if not use_separate_proj_weight and query is key and key is value:
        q, k, v = project(q_in, in_proj_weight, in_proj_bias).chunk(3, dim=-1)
    else:
        weights = (
            (q_proj_weight, k_proj_weight, v_proj_weight)
            if use_separate_proj_weight
            else tuple(part(in_proj_weight, i) for i in range(3))
        )
        q, k, v = (project(x, w, part(in_proj_bias, i)) for i, (x, w) in enumerate(zip((q_in, k_in, v_in), weights)))
    if bias_k is not None:
        k = torch.cat([k, _spread(recorder, bias_k, n).reshape(n, 1, width)], 1)
        v = torch.cat([v, _spread(recorder, bias_v, n).reshape(n, 1, width)], 1)
    if add_zero_attn:
        k, v = (torch.cat([t, t.new_zeros(n, 1, width)], 1) for t in (k, v))
    added = k.shape[1] - k_in.shape[1]
    heads = [t.reshape(n, -1, num_heads, width // num_heads).transpose(1, 2) for t in (q, k, v)]

    def additive(mask: Tensor) -> Tensor:
        mask = (
            torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, -torch.inf) if mask.dtype == torch.bool else mask
        )
        return F.pad(mask.to(q.dtype), (0, added))

    mask: Tensor | None = None
    if attn_mask is not None:
        shape = (n, num_heads) if attn_mask.dim() == 3 else (1, 1)
        mask = additive(attn_mask).reshape(*shape, length, -1)
    if key_padding_mask is not None:
        padding = additive(key_padding_mask).reshape(n, 1, 1, -1)
        mask = padding if mask is None else mask + padding
    drop = dropout_p if training else 0.0
    if need_weights:
        scores = heads[0] * (width // num_heads) ** -0.5 @ heads[1].transpose(-2, -1)
        shares = F.dropout(torch.softmax(scores if mask is None else scores + mask, -1), drop)
        mixed = shares @ heads[2]
    else:
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=mask, dropout_p=drop)
    out = project(mixed.transpose(1, 2).reshape(n, length, width), out_proj_weight, out_proj_bias).transpose(0, 1)
    if not need_weights:
        return out, None
    return out, shares.mean(1) if average_attn_weights else shares


# --- values of parameters alone, and broadcasting -----------------------------------------------------------------

_ELEMENTWISE = {
    getattr(owner, name)
    for owner in (torch, Tensor)
    for name in (
        "add", "sub", "mul", "div", "true_divide", "subtract", "multiply", "divide", "rsub", "add_", "sub_", "mul_",
        "div_", "__add__", "__sub__", "__mul__", "__truediv__", "__radd__", "__rsub__", "__rmul__", "__rtruediv__",
        "__iadd__", "__isub__", "__imul__", "__itruediv__", "maximum", "minimum", "pow", "__pow__", "__rpow__",
        "where", "addcmul", "addcdiv", "lerp", "clamp", "masked_fill", "atan2", "hypot", "logaddexp",
    )
    if hasattr(owner, name)
}  # fmt: skip


@_rule(
    Tensor.expand, Tensor.repeat, Tensor.expand_as, torch.broadcast_to, Tensor.broadcast_to, torch.tile, Tensor.tile
)
def _expand(recorder: Recorder, func: Any, input: Any, *sizes: Any) -> Any:
    if not isinstance(input, Seen):
        return NotImplemented
    plain = input._source.plain
    result = func(plain, *_plain(sizes))
    rows = result.shape[0] if result.dim() else 0
    fresh = result.dim() > plain.dim() or (plain.dim() > 0 and plain.shape[0] == 1)
    if not fresh or rows != _tape(recorder).records or _source(input) is None:
        return NotImplemented
    value = input if result.dim() > plain.dim() else _derive(recorder, torch.squeeze, (input, 0), {})
    spread = _spread(recorder, value, rows)
    inner = result.shape[1:]
    missing = len(inner) - (spread.dim() - 1)
    spread = spread.reshape(rows, *[1] * missing, *spread.shape[1:])
    if spread.shape[1:] == inner:
        return spread
    if func in (Tensor.repeat, torch.tile, Tensor.tile):
        return spread.repeat(1, *[have // was for have, was in zip(inner, spread.shape[1:], strict=True)])
    return spread.expand(rows, *inner)


def _other(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Anything without a rule of its own."""
    wanted = [s for s in _seen(args, kwargs) if _source(s) is not None]
    if not wanted:
        return func(*_plain(args), **_plain(kwargs))
    source, tape = wanted[0]._source, _tape(recorder)
    elementwise = func in _ELEMENTWISE
    batch = [
        t
        for t in _tensors(args, kwargs)
        if t.requires_grad or (t.is_floating_point() and recorder.is_batch(source, func, t, exact=True))
    ]
    if not batch:
        return _derive(recorder, func, args, kwargs)
    if tape.records == 1:
        return _map_call(func, args, kwargs, lambda s: _spread(recorder, s, 1)[0])
    if not all(t.dim() > 0 and t.shape[0] > 0 and t.shape[0] % tape.records == 0 for t in batch):
        return func(*_plain(args), **_plain(kwargs))
    rows, dims = len(batch[0]), max(t.dim() for t in batch)
    if elementwise:
        if any(s.dim() > dims or (s.dim() == dims and s.shape[0] != 1) for s in wanted):
            return func(*_plain(args), **_plain(kwargs))

        def by_row(s: Seen) -> Tensor:
            inner = _derive(recorder, torch.squeeze, (s, 0), {}) if s.dim() == dims else s
            spread: Tensor = _spread(recorder, inner, rows)
            return spread.reshape(rows, *[1] * (dims - spread.dim()), *spread.shape[1:])

        return _map_call(func, args, kwargs, by_row)
    return _row_by_row(recorder, func, args, kwargs, rows)


def _row_by_row(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int) -> Any:
    """An operation that works on each row alone, by vmap, with the parameters' values spread over the rows.

    Whether it does is seen from its result, which must be the ordinary one; where it is not, or vmap does not
    know the operation, the parameters go the ordinary way and are taken one patient at a time.
    """
    ordinary_way = _plain(args), _plain(kwargs)
    key = ("row by row", getattr(func, "__name__", str(func)), *(s._source.name for s in _seen(args, kwargs)))
    if recorder.decisions.get(key) is False:
        return func(*ordinary_way[0], **ordinary_way[1])
    spread: list[Tensor] = []

    def gather(tensor: Tensor) -> Any:
        if isinstance(tensor, Seen):
            if _source(tensor) is None:
                return tensor._source.plain
            spread.append(_spread(recorder, tensor, rows))
            return _Hole(len(spread) - 1, False)
        if tensor.dim() > 0 and len(tensor) == rows:
            spread.append(tensor)
            return _Hole(len(spread) - 1, True)
        return tensor

    templates = _map(args, gather), _map(kwargs, gather)

    def one_row(*values: Tensor) -> Tensor:
        def fill(value: Any) -> Any:
            if isinstance(value, _Hole):
                return values[value.index].unsqueeze(0) if value.row else values[value.index]
            if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
                return type(value)(fill(item) for item in value)
            return {k: fill(v) for k, v in value.items()} if isinstance(value, dict) else value

        row: Tensor = func(*fill(templates[0]), **fill(templates[1]))[0]
        return row

    try:
        result = torch.func.vmap(one_row)(*spread)
        if key not in recorder.decisions:
            with torch.no_grad():
                expected = func(*ordinary_way[0], **ordinary_way[1])
            recorder.decisions[key] = expected.shape == result.shape and torch.allclose(
                expected, result, rtol=1e-3, atol=1e-5, equal_nan=True
            )
    except (MemoryError, torch.OutOfMemoryError):  # says nothing about the operation
        raise
    except Exception:  # whatever vmap or the operation says: the ordinary way is exact
        recorder.decisions[key] = False
    return result if recorder.decisions[key] else func(*ordinary_way[0], **ordinary_way[1])


class _Hole:
    """Where a value goes that vmap hands in; `row`: one row of a batch, not a parameter's value."""

    def __init__(self, index: int, row: bool) -> None:
        self.index = index
        self.row = row


def _map_call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Seen], Tensor]) -> Any:
    def swap(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, Seen):
            return tensor
        return change(tensor) if _source(tensor) is not None else tensor._source.plain

    return func(*_map(args, swap), **_map(kwargs, swap))


def _derive(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute from parameters alone; results that depend on them are Seen again."""
    sources = [s._source for s in _seen(args, kwargs)]
    result = func(*_plain(args), **_plain(kwargs))
    roots = tuple({root: None for source in sources for root in source.roots if root.plain.requires_grad})

    def wrap(tensor: Tensor) -> Tensor:
        same = next((s for s in _seen(args, kwargs) if s._source.plain is tensor), None)
        if same is not None or not tensor.requires_grad or tensor.grad_fn is None:
            return tensor if same is None else same
        if tensor.is_complex():  # no rule: what uses it goes the ordinary way
            return tensor
        source = Source("·".join(r.name for r in roots), tensor, roots)
        stand_in = Seen.make(source, recorder)
        _tape(recorder).derive(source, stand_in)
        return stand_in

    return _map(result, wrap)


def _index(recorder: Recorder, tensor: Tensor, index: Any) -> Any:
    if isinstance(tensor, Seen):
        return _derive(recorder, Tensor.__getitem__, (tensor, index), {})
    return tensor[index]


def _apply(recorder: Recorder, func: Any, *args: Any) -> Any:
    """Call a function that has a rule from inside a rule."""
    if next(_seen(args), None) is None:
        return func(*args)
    result = HANDLERS[func](recorder, func, *args)
    return _other(recorder, func, args, {}) if result is NotImplemented else result


def _spread(recorder: Recorder, value: Any, rows: int) -> Any:
    """[rows, *shape] of a value used alike for every row."""
    source = _source(value)
    if source is None:
        plain = _value(value)
        return plain.expand(rows, *plain.shape)
    use = fn.SpreadUse(_tape(recorder), weight=source)
    return fn.Spread.apply(recorder.token, _value(value), rows, use)


def _tape(recorder: Recorder) -> Tape:
    assert recorder.tape is not None
    return recorder.tape
