"""A proof that no record of a batch sees another: the network's operations, followed along the batch dimension.

No finite set of trials finds all networks that mix patients (`if 300 < x.max() < 400: …`). So network and loss are
written down once as a graph of torch operations on a batch of unknown length (`torch.export`), and that length, one
symbol, is followed from the input to the losses. Each operation must be on the list below and keep its rule. What is
not on the list is not proved, and runs one patient at a time.

The state of a value is the place of its batch dimension, and what was folded into it: its size there is a·N·k, with
the a slowest and the k rows of a record side by side. Values without one depend on no record. Elementwise operations
must align their batch dimensions; reductions, products and indices must leave it alone; a reshape may fold other
dimensions into it or take them out again. The number of records itself may only be a size, never a value, and no
branch may hang on it (export refuses branches on values and sizes).
"""

from __future__ import annotations

import logging
import math
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from dptrain.models.losses import Loss


@dataclass(frozen=True)
class Trace:
    """Whether no record sees another: proved, or the reason why not. `operations` were followed."""

    proved: bool
    why: str
    operations: int = 0


class _NotProved(Exception):
    pass


class _Whole(nn.Module):
    """Network and loss: (image, label) -> [N]."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        losses: Tensor = self.loss(self.model(image), label)
        return losses


MOST = 1 << 20
"""Records up to which a graph must hold."""


def trace(model: nn.Module, loss: Loss, image: Tensor, label: Tensor) -> Trace:
    """Follow the batch dimension through network and loss in the mode that the network is in.

    Args:
        model, loss: (image) -> output, (output, label) -> [N].
        image, label: made-up, of two records or more.
    """
    batch = torch.export.Dim("batch", min=2, max=MOST)
    try:
        with warnings.catch_warnings(), _quiet(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            shapes = {"image": {0: batch}, "label": {0: batch}}
            program = torch.export.export(_Whole(model, loss), (image, label), dynamic_shapes=shapes, strict=False)
    except Exception as error:
        return Trace(False, f"it cannot be written down as a graph of operations ({_reason(error)})")
    signature = program.graph_signature
    changed = [*signature.buffers_to_mutate.values(), *signature.parameters_to_mutate.values()]
    if changed:
        return Trace(False, f"it changes its buffers or parameters in each pass: {', '.join(changed[:3])}")
    graph = program.graph_module.graph
    inputs = dict.fromkeys(program.graph_signature.user_inputs, 0)
    try:
        walk = _Walk(program.graph_module)
        outputs = walk.run(graph, lambda node: inputs.get(node.name))
        final = outputs[-1] if isinstance(outputs, list) else outputs
        last = next(node for node in graph.nodes if node.op == "output").args[0][-1]
        value = _value(last)
        if final != 0 or walk.ahead.get(last, 1) > 1 or value.dim() != 1 or _per_record(value, 0) != 1:
            return Trace(False, "its losses are not one a record")
    except _NotProved as error:
        return Trace(False, str(error))
    return Trace(True, "every operation works on each record alone", walk.operations)


class _quiet:  # noqa: N801
    """No lines of torch's exporter on the terminal."""

    def __enter__(self) -> None:
        self.before = logging.root.manager.disable
        logging.disable(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.disable(self.before)


def _reason(error: BaseException) -> str:
    kind = type(error).__name__
    if "DataDependent" in kind or "data-dependent" in str(error):
        return "what it does depends on values"
    if "onstraint" in str(error)[:200] or "specializ" in str(error):
        return "what it does depends on the number of records"
    return kind


# --- values -------------------------------------------------------------------------------------------------------

OPERATION = type(torch.ops.aten.add.Tensor)
State = Any
"""Place of the batch dimension; None for what depends on no record; SYMBOL; a list for several values."""
SYMBOL = "the number of records"


def _symbolic(size: object) -> bool:
    return isinstance(size, torch.SymInt) and bool(getattr(size.node.expr, "free_symbols", ()))


def _batch_dim(value: Tensor) -> int | None:
    """The one dimension whose size follows the number of records. Raises _NotProved where there are several."""
    following = [dim for dim, size in enumerate(value.shape) if _symbolic(size)]
    if len(following) > 1:
        raise _NotProved("two dimensions of a value follow the number of records")
    return following[0] if following else None


def _per_record(value: Tensor, dim: int) -> int:
    """k, rows a record. Raises _NotProved where the size is no multiple of the number of records."""
    size: Any = value.shape[dim]
    expression = size.node.expr
    (symbol,) = expression.free_symbols
    ratio = expression / symbol
    if not (ratio.is_Integer and int(ratio) > 0):
        raise _NotProved(f"a dimension of size {expression} is no multiple of the number of records")
    return int(ratio)


VALUE, PLACE, SCHEMA = "val", "nn_module_stack", "_schema"  # what torch's exporter calls them


def _value(node: fx.Node) -> Any:
    """The tensors that a node stands for, without their numbers; None for what is no tensor."""
    return node.meta.get(VALUE)


class Call:
    """One operation of the graph: its arguments by name, and the states of those that are values."""

    def __init__(self, node: fx.Node, states: dict[fx.Node, State]) -> None:
        self.node = node
        self.folded = 1  # a of the operands
        self.ahead: int | None = None  # a of the result, where it is another
        self._states = states
        schema = getattr(node.target, SCHEMA).arguments
        self.arguments: dict[str, Any] = {a.name: a.default_value for a in schema if a.has_default_value()}
        self.arguments.update(zip((a.name for a in schema), node.args, strict=False))
        self.arguments.update(node.kwargs)

    def given(self, name: str) -> Any:
        """The argument of this name, its default where it was left out, None where there is no such."""
        return self.arguments.get(name)

    def state(self, value: Any) -> State:
        return self._states.get(value) if isinstance(value, fx.Node) else None

    def shape(self, value: Any) -> torch.Size:
        shape: torch.Size = _value(value).shape
        return shape

    @property
    def out(self) -> Tensor:
        value: Tensor = _value(self.node)
        return value

    def batched(self) -> list[tuple[fx.Node, int]]:
        """Values with a batch dimension, and where it is."""
        return [(node, self._states[node]) for node in self.node.all_input_nodes if type(self._states[node]) is int]

    def refuse(self, why: str) -> _NotProved:
        stack = self.node.meta.get(PLACE) or {}
        inner = [str(path) for path, _ in stack.values() if str(path).startswith("model.")]
        where = f" in {inner[-1].removeprefix('model.')}" if inner else ""
        return _NotProved(f"{_name(self.node)}{where}: {why}")


def _name(node: fx.Node) -> str:
    target = node.target
    packet = getattr(target, "overloadpacket", None)
    return str(packet).removeprefix("aten.") if packet is not None else str(getattr(target, "__name__", target))


Rule = Callable[[Call], State]
RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


class _Walk:
    """Carries states through a graph and those that it calls."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.operations = 0
        self.ahead: dict[fx.Node, int] = {}

    def run(self, graph: fx.Graph, given: Callable[[fx.Node], State]) -> State:
        states: dict[fx.Node, State] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                states[node] = given(node)
            elif node.op == "get_attr":
                states[node] = None
            elif node.op == "call_function":
                states[node] = self._call(node, states)
            elif node.op == "output":
                return [states[n] if isinstance(n, fx.Node) else None for n in node.args[0]]
        raise _NotProved("a graph without an output")

    def _call(self, node: fx.Node, states: dict[fx.Node, State]) -> State:
        self.operations += 1
        name = _name(node)
        if node.target is operator.getitem:
            several: Any = states[node.args[0]]  # type: ignore[index]
            place: Any = node.args[1]
            self.ahead[node] = self.ahead.get(node.args[0], 1)  # type: ignore[arg-type]
            return several[place] if isinstance(several, list) else None
        if name == "wrap_with_set_grad_enabled":
            inner = getattr(self.module, str(node.args[1].target))  # type: ignore[union-attr]
            if any(self.ahead.get(n, 1) > 1 for n in node.all_input_nodes):
                raise _NotProved("records of a part without gradients are folded into other dimensions")
            given = iter([states[n] if isinstance(n, fx.Node) else None for n in node.args[2:]])
            results = self.run(inner.graph, lambda _: next(given))
            last = next(n for n in inner.graph.nodes if n.op == "output").args[0]
            if any(self.ahead.get(n, 1) > 1 for n in last if isinstance(n, fx.Node)):
                raise _NotProved("records of a part without gradients are folded into other dimensions")
            return results
        if name == "sym_size" or (node.target in _ARITHMETIC and _only_symbols(node, states)):
            return SYMBOL
        if not isinstance(node.target, OPERATION):
            raise _NotProved(f"{name} is no operation on the list")
        call = Call(node, states)
        symbols = [n for n in node.all_input_nodes if states[n] == SYMBOL]
        rule = RULES.get(name)
        if not call.batched() and not symbols:
            return self._constant(call)
        if rule is None:
            raise call.refuse("it is not on the list of operations that are known to keep records apart")
        if symbols and name not in _SIZES:
            raise call.refuse("it takes the number of records as a value")
        folded = {self.ahead.get(n, 1) for n, _ in call.batched()}
        call.folded = next(iter(folded), 1)
        if len(folded) > 1:
            raise call.refuse("records of its operands do not meet their own")
        state = rule(call)
        self._check(call, state)
        self.ahead[node] = call.folded if call.ahead is None else call.ahead
        return state

    def _constant(self, call: Call) -> State:
        value = _value(call.node)
        if _draws(call):
            raise call.refuse("the records of a batch share its random numbers")
        for tensor in value if isinstance(value, list | tuple) else [value]:
            if isinstance(tensor, Tensor) and _batch_dim(tensor) is not None:
                raise call.refuse("a value of the batch's size that is made of no record")
        return [None] * len(value) if isinstance(value, list | tuple) else None

    def _check(self, call: Call, state: State) -> None:
        """The state that a rule gives must be where the symbol is."""
        value = _value(call.node)
        pairs = zip(value, state, strict=True) if isinstance(value, list | tuple) else [(value, state)]
        for tensor, dim in pairs:
            if isinstance(tensor, Tensor):
                if _batch_dim(tensor) != dim:
                    raise call.refuse("its result does not hold the records where it should")
                if dim is not None:
                    _per_record(tensor, dim)


def _draws(call: Call) -> bool:
    """Whether it draws random numbers. Shared ones tell who ran together: one patient more moves others apart."""
    idle = call.given("train") is False or call.given("p") == 0
    return torch.Tag.nondeterministic_seeded in getattr(call.node.target, "tags", ()) and not idle


_ARITHMETIC = {operator.mul, operator.add, operator.sub, operator.floordiv}


def _only_symbols(node: fx.Node, states: dict[fx.Node, State]) -> bool:
    return all(states[n] == SYMBOL for n in node.all_input_nodes)


# --- rules --------------------------------------------------------------------------------------------------------


def _same_from_the_right(call: Call) -> int:
    """Batch dimensions of all values and of the result, counted from the right, must be one, of one size."""
    out = _batch_dim(call.out)
    if out is None:
        raise call.refuse("its result holds no records")
    for node, dim in call.batched():
        shape = call.shape(node)
        if len(shape) - dim != call.out.dim() - out or shape[dim] != call.out.shape[out]:
            raise call.refuse("records of its operands do not meet their own")
    return out


@_rule(
    "abs", "add", "add_", "addcdiv", "addcmul", "alias", "atan", "bernoulli", "bernoulli_", "binary_cross_entropy",
    "binary_cross_entropy_with_logits", "bitwise_and", "bitwise_not", "bitwise_or", "ceil", "celu", "clamp", "clamp_",
    "clamp_max", "clamp_min", "clone", "contiguous", "cos", "detach", "detach_", "div", "div_", "dropout", "dropout_",
    "elu", "elu_", "eq", "erf", "exp", "expm1", "fill_", "floor", "floor_", "floor_divide", "fmod",
    "ge", "gelu", "gt", "hardsigmoid",
    "hardsigmoid_", "hardswish", "hardswish_", "hardtanh", "hardtanh_", "isfinite", "isnan", "le", "leaky_relu",
    "leaky_relu_", "lerp", "lift_fresh_copy", "log", "log1p", "log_sigmoid", "logical_and", "logical_not",
    "logical_or", "lt", "masked_fill", "masked_fill_", "maximum", "minimum", "mish", "mish_", "mul", "mul_",
    "nan_to_num", "ne", "neg", "ones_like", "pow", "rand_like", "randn_like", "reciprocal", "relu", "relu6", "relu_",
    "remainder", "round", "rsqrt", "rsub", "selu", "selu_", "sigmoid", "sigmoid_", "sign", "silu", "silu_", "sin",
    "softplus", "softsign", "sqrt", "square", "sub", "sub_", "tanh", "tanh_", "tanhshrink", "threshold", "threshold_",
    "to", "_to_copy", "trunc", "type_as", "where", "xlogy", "zeros_like",
)  # fmt: skip
def _elementwise(call: Call) -> State:
    if call.given("reduction") not in (None, 0):
        raise call.refuse("it adds up the records of the batch")
    return _same_from_the_right(call)


@_rule("feature_dropout", "feature_dropout_", "alpha_dropout", "feature_alpha_dropout")
def _by_channel(call: Call) -> State:
    return _leading(call)


_SIZES = {"view", "reshape", "expand", "repeat", "zeros", "ones", "full", "rand", "randn", "new_zeros", "new_ones",
          "new_full", "unflatten", "_unsafe_view", "_assert_scalar"}  # fmt: skip
"""Operations that may be told the number of records, as a size."""


@_rule("zeros", "ones", "full", "rand", "randn", "new_zeros", "new_ones", "new_full")
def _made(call: Call) -> State:
    """Values alike for every record, or drawn for each."""
    if call.state(call.given("fill_value")) is not None:
        raise call.refuse("it takes the number of records as a value")
    return _batch_dim(call.out)


@_rule("_assert_tensor_metadata")
def _nothing(call: Call) -> State:
    return None


def _first(call: Call) -> tuple[fx.Node, int]:
    """The first argument, which must be the only value that holds records."""
    node = call.node.args[0]
    if not isinstance(node, fx.Node) or [n for n, _ in call.batched()] != [node]:
        raise call.refuse("it takes weights or settings from records")
    return node, call.state(node)


def _leading(call: Call) -> int:
    """Batch first, in and out, with as many rows."""
    node, dim = _first(call)
    if dim != 0 or call.shape(node)[0] != call.out.shape[0]:
        raise call.refuse("the records are not in the first dimension")
    return 0


@_rule(
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution",
)  # fmt: skip
def _convolution(call: Call) -> State:
    if len(call.shape(call.node.args[0])) != len(call.shape(call.given("weight"))):
        raise call.refuse("the records are not in the first dimension")
    return _leading(call)


@_rule(
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d",
    "max_pool2d_with_indices", "max_pool3d_with_indices", "group_norm", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
    "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
)  # fmt: skip
def _by_record(call: Call) -> State:
    value = _value(call.node)
    if isinstance(value, tuple | list):
        if _first(call)[1] != 0:
            raise call.refuse("the records are not in the first dimension")
        return [0] * len(value)
    return _leading(call)


@_rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "im2col", "col2im", "prelu")
def _of_maps(call: Call) -> State:
    least = 2 if _name(call.node) == "prelu" else 4 if _name(call.node) != "col2im" else 3
    if len(call.shape(call.node.args[0])) < least:
        raise call.refuse("the records are not in the first dimension")
    return _leading(call)


@_rule("instance_norm")
def _instance_norm(call: Call) -> State:
    if call.given("use_input_stats") and call.given("running_mean") is not None:
        raise call.refuse("it keeps statistics of the batch")
    return _leading(call)


@_rule("batch_norm")
def _batch_norm(call: Call) -> State:
    if call.given("training"):
        raise call.refuse("it takes statistics of the batch")
    return _leading(call)


@_rule("linear")
def _linear(call: Call) -> State:
    node, dim = _first(call)
    if dim == len(call.shape(node)) - 1:
        raise call.refuse("it adds up over the records")
    return dim


@_rule("layer_norm", "rms_norm")
def _layer_norm(call: Call) -> State:
    node, dim = _first(call)
    if dim >= len(call.shape(node)) - len(call.given("normalized_shape")):
        raise call.refuse("it takes statistics over the records")
    return dim


@_rule("embedding")
def _embedding(call: Call) -> State:
    if [n for n, _ in call.batched()] != [call.given("indices")]:
        raise call.refuse("its table is made of records")
    return call.state(call.given("indices"))


@_rule("cross_entropy_loss", "nll_loss", "nll_loss_nd", "nll_loss2d")
def _cross_entropy(call: Call) -> State:
    allowed = {call.node.args[0], call.node.args[1]}
    if call.given("reduction") != 0 or any(dim != 0 or node not in allowed for node, dim in call.batched()):
        raise call.refuse("it adds up the records of the batch")
    return 0


# --- reductions ---------------------------------------------------------------------------------------------------


def _dims(call: Call, name: str = "dim") -> list[int]:
    node, _ = _first(call)
    given = call.given(name)
    n = len(call.shape(node))
    wanted = [given] if isinstance(given, int) else list(given or ())
    if not wanted:
        raise call.refuse("it works over all records at once")
    return [d % n for d in wanted]


@_rule(
    "softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "cumprod", "flip", "glu", "logcumsumexp",
)  # fmt: skip
def _along(call: Call) -> State:
    _, dim = _first(call)
    if dim in _dims(call, "dims" if _name(call.node) == "flip" else "dim"):
        raise call.refuse("it works along the records")
    return dim


@_rule("roll")
def _roll(call: Call) -> State:
    _, dim = _first(call)
    if dim in _dims(call, "dims"):
        raise call.refuse("it works along the records")
    return dim


@_rule(
    "sum", "mean", "amax", "amin", "max", "min", "var", "std", "logsumexp", "linalg_vector_norm", "prod", "argmax",
    "argmin", "all", "any", "median", "norm",
)  # fmt: skip
def _reduction(call: Call) -> State:
    if len(call.batched()) > 1:
        return _same_from_the_right(call)  # torch.max and torch.min of two values
    _, dim = _first(call)
    dims = _dims(call)
    if dim in dims:
        raise call.refuse("it adds up, or chooses among, the records")
    to = dim if call.given("keepdim") else dim - sum(d < dim for d in dims)
    value = _value(call.node)
    return [to] * len(value) if isinstance(value, tuple | list) else to


# --- shapes -------------------------------------------------------------------------------------------------------


def _ahead(shape: Sequence[Any], dim: int) -> int:
    return math.prod(int(size) for size in shape[:dim])


@_rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as")
def _reshape(call: Call) -> State:
    """As much as before must come ahead of the records, be it in dimensions of their own or folded in."""
    node, dim = call.node.args[0], call.state(call.node.args[0])
    if dim is None:
        raise call.refuse("a value of the batch's size that is made of no record")
    to = _batch_dim(call.out)
    if to is None:
        raise call.refuse("its result holds no records")
    call.ahead, rest = divmod(_ahead(call.shape(node), dim) * call.folded, _ahead(call.out.shape, to))
    if rest or call.ahead == 0 or _per_record(call.out, to) % call.ahead:
        raise call.refuse("it moves records to the places of others")
    return to


@_rule("permute", "transpose", "t", "movedim", "swapaxes", "numpy_T", "adjoint", "mT")
def _permute(call: Call) -> State:
    _first(call)
    return _batch_dim(call.out)


@_rule("expand", "repeat", "expand_as", "broadcast_to")
def _expand(call: Call) -> State:
    node = call.node.args[0]
    dim = call.state(node)
    to = _batch_dim(call.out)
    if dim is None:
        return to  # alike for every record
    if (
        to is None
        or len(call.shape(node)) - dim != call.out.dim() - to
        or call.shape(node)[dim] != call.out.shape[to]
    ):
        raise call.refuse("it repeats records")
    return to


@_rule("slice", "narrow", "select", "unfold", "index_select")
def _slice(call: Call) -> State:
    node, dim = _first(call)
    n = len(call.shape(node))
    along = (call.given("dim") if call.given("dim") is not None else call.given("dimension")) % n
    if along == dim:
        all_records = (
            _name(call.node) == "slice" and call.out.shape[dim] == call.shape(node)[dim] and call.given("step") == 1
        )
        if not all_records:
            raise call.refuse("it chooses among the records")
    return dim - (_name(call.node) == "select" and along < dim)


@_rule("split", "split_with_sizes", "chunk", "unbind", "tensor_split")
def _split(call: Call) -> State:
    node, dim = _first(call)
    along = call.given("dim") % len(call.shape(node))
    if along == dim:
        raise call.refuse("it chooses among the records")
    return [dim - (_name(call.node) == "unbind" and along < dim)] * len(_value(call.node))


@_rule("cat", "stack", "concat")
def _cat(call: Call) -> State:
    to, along = _batch_dim(call.out), call.given("dim") % call.out.dim()
    tensors = call.given("tensors")
    if to is None or along == to or any(call.state(t) is None for t in tensors):
        raise call.refuse("it joins records with one another")
    added = _name(call.node) == "stack" and along < to
    if any(call.state(t) != to - added or call.shape(t)[to - added] != call.out.shape[to] for t in tensors):
        raise call.refuse("records of its operands do not meet their own")
    return to


@_rule("pad", "constant_pad_nd")
def _pad(call: Call) -> State:
    node, dim = _first(call)
    padded = len(call.given("pad")) // 2
    beside = (
        call.given("pad")[2 * (len(call.shape(node)) - 1 - dim) :][:2]
        if dim >= len(call.shape(node)) - padded
        else []
    )
    if any(beside):
        raise call.refuse("it adds rows to the records")
    return dim


@_rule("index")
def _index(call: Call) -> State:
    """Constant places of each record, or rows of a constant table by a record's own numbers."""
    dim = call.state(call.node.args[0])
    chosen = list(call.given("indices"))
    if dim is None:
        if len(chosen) != 1:
            raise call.refuse("records choose among several dimensions of a table")
        return call.state(chosen[0])
    _first(call)
    if dim < len(chosen) and chosen[dim] is not None:
        raise call.refuse("it chooses among the records")
    return _batch_dim(call.out)


@_rule("gather", "take_along_dim")
def _gather(call: Call) -> State:
    to = _same_from_the_right(call)
    if call.given("dim") % call.out.dim() == to or any(
        dim is None for dim in map(call.state, call.node.all_input_nodes)
    ):
        raise call.refuse("it chooses among the records")
    return to


# --- products -----------------------------------------------------------------------------------------------------


@_rule("matmul", "mm", "bmm")
def _matmul(call: Call) -> State:
    one, two = call.node.args[:2]
    a, b = call.state(one), call.state(two)
    n, m = len(call.shape(one)), len(call.shape(two))
    if n < 2 or m < 2 or (a is not None and a == n - 1) or (b is not None and b == m - 2):
        raise call.refuse("it adds up over the records")
    if a is not None and b is not None and not (a < n - 2 and b < m - 2):
        raise call.refuse("it multiplies records with one another")
    return _same_from_the_right(call)


@_rule("addmm", "baddbmm")
def _addmm(call: Call) -> State:
    one, two = call.node.args[1:3]
    a, b = call.state(one), call.state(two)
    n = len(call.shape(one))
    if a == n - 1 or b == n - 2 or (a is not None and b is not None and n == 2):
        raise call.refuse("it adds up over the records")
    return _same_from_the_right(call)


@_rule("einsum")
def _einsum(call: Call) -> State:
    equation = call.given("equation").replace(" ", "")
    inputs, arrow, out = equation.partition("->")
    operands = call.given("tensors")
    letters = inputs.split(",")
    if not arrow or "." in equation or len(letters) != len(operands):
        raise call.refuse("its result is not spelled out")
    batch = {names[call.state(t)] for names, t in zip(letters, operands, strict=True) if call.state(t) is not None}
    if len(batch) != 1:
        raise call.refuse("records of its operands do not meet their own")
    (letter,) = batch
    alone = all(
        names.count(letter) == (call.state(t) is not None) for names, t in zip(letters, operands, strict=True)
    )
    if letter not in out or not alone:
        raise call.refuse("it adds up over the records")
    return out.index(letter)


@_rule("scaled_dot_product_attention")
def _attention(call: Call) -> State:
    places = {call.state(call.given(name)) for name in ("query", "key", "value")}
    n = call.out.dim()
    if len(places) != 1 or None in places or next(iter(places)) >= n - 2:
        raise call.refuse("records attend to one another")
    if any(
        node not in {call.given(name) for name in ("query", "key", "value", "attn_mask")}
        for node, _ in call.batched()
    ):
        raise call.refuse("it takes settings from records")
    mask = call.given("attn_mask")
    if call.state(mask) is not None and len(call.shape(mask)) - call.state(mask) != n - next(iter(places)):
        raise call.refuse("records of its operands do not meet their own")
    return next(iter(places))


def operations() -> Iterator[str]:
    """Names of the operations that have a rule."""
    return iter(sorted(RULES))
