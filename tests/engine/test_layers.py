"""Every layer, every setting: the engine's sums equal one-patient-at-a-time autograd in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dptrain.engine import PatientGradients, conv
from dptrain.engine.layout import Layout
from dptrain.errors import CheckRefused
from tests.engine import oracle

EXACT = 1e-9
few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Ragged patients in any order, some or all perhaps without a record."""
    counts = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    if draw(st.booleans()):
        counts = [counts[0]] * len(counts)
    patient = [i for i, count in enumerate(counts) for _ in range(count)]
    if draw(st.booleans()):
        patient = draw(st.permutations(patient))
    return torch.tensor(patient, dtype=torch.int64), len(counts)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    n = draw(st.integers(1, 3))
    transposed = draw(st.booleans())
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    c, o = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))

    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(n))

    kernel, stride, dilation = sizes(1, 3), sizes(1, 3), sizes(1, 2)
    space = tuple(draw(st.integers(d * (k - 1) + 1, d * (k - 1) + 4)) for k, d in zip(kernel, dilation))
    bias = draw(st.booleans())
    if transposed:
        padding = tuple(draw(st.integers(0, d * (k - 1))) for k, d in zip(kernel, dilation))
        extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation))
        space = tuple(s + 1 for s in space)
        kind: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[n - 1]
        layer: nn.Module = kind(c, o, kernel, stride, padding, extra, groups, bias, dilation)
        return layer, (c, *space)
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    padding_: tuple[int, ...] | str = tuple(draw(st.integers(0, min(2, s - 1))) for s in space)
    if set(stride) == {1} and draw(st.booleans()):
        padding_ = draw(st.sampled_from(["same", "valid"]))
        space = tuple(s + d * (k - 1) for s, k, d in zip(space, kernel, dilation))
    kind_: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n - 1]
    return kind_(c, o, kernel, stride, padding_, dilation, groups, bias, mode), (c, *space)


@few
@given(
    convolutions(),
    cohorts(),
    st.sampled_from(["gram", "native", "correlated", "shifted", "unfolded", "turned"]),
    st.booleans(),
)
def test_convolutions_are_exact(
    made: tuple[nn.Module, tuple[int, ...]], cohort: tuple[Tensor, int], way: str, deep: bool
) -> None:
    layer, shape = made
    patient, patients = cohort
    torch.manual_seed(0)
    if way == "turned" and set(layer.stride) != {1}:  # type: ignore[arg-type]
        way = "unfolded"
    model = nn.Sequential(nn.Tanh(), layer, nn.Tanh()) if deep else nn.Sequential(layer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "choose", lambda *_: way)
        assert oracle.gap(model.double(), torch.randn(len(patient), *shape).double(), patient, patients) < EXACT


@st.composite
def simple_layers(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    c = 2 * draw(st.integers(1, 4))
    space = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    bias, affine = draw(st.booleans()), True
    between = tuple(draw(st.lists(st.integers(1, 4), max_size=2)))
    instance = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[len(space)]
    batch = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[len(space)]
    space = tuple(s + 1 for s in space)
    frozen = batch(c).double()
    frozen.running_mean.uniform_(-1, 1)
    frozen.running_var.uniform_(0.5, 2)
    return draw(
        st.sampled_from(
            [
                (nn.Linear(c, draw(st.integers(1, 7)), bias=bias), (*between, c)),
                (nn.GroupNorm(2, c, affine=affine), (c, *space)),
                (nn.GroupNorm(2, c, affine=affine), (c, 4, *space[1:], 5)),
                (instance(c, affine=affine), (c, *space)),
                (frozen.eval(), (c, *space)),
                (nn.LayerNorm(c, bias=bias), (*between, c)),
                (nn.LayerNorm((2, c), bias=bias), (3, 2, c)),
                (nn.RMSNorm(c), (*between, c)),
                (nn.PReLU(), (c, *space)),
                (nn.PReLU(c), (c, *space)),
            ]
        )
    )


@settings(few, max_examples=40)
@given(simple_layers(), cohorts())
def test_layers_are_exact(made: tuple[nn.Module, tuple[int, ...]], cohort: tuple[Tensor, int]) -> None:
    layer, shape = made
    patient, patients = cohort
    torch.manual_seed(0)
    model = nn.Sequential(nn.Tanh(), layer)
    for p in layer.parameters():
        nn.init.normal_(p)
    assert oracle.gap(model.double(), torch.randn(len(patient), *shape).double(), patient, patients) < EXACT


@few
@given(cohorts(), st.integers(1, 12), st.sampled_from([None, 0, -1]), st.integers(2, 40))
def test_embeddings_are_exact(cohort: tuple[Tensor, int], length: int, padding: int | None, size: int) -> None:
    patient, patients = cohort
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(size, 3, padding_idx=padding), nn.Flatten(), nn.Tanh()).double()
    index = torch.randint(0, size, (len(patient), length))
    assert oracle.gap(model, index, patient, patients) < EXACT


class Shared(nn.Module):
    """One linear layer used twice and tied to another's weight, a frozen one, and one left unused."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(2, 2)
        self.b.weight = self.a.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x)) + self.frozen(x)
        return self.b(torch.tanh(self.a(x)))


class Direct(nn.Module):
    """Parameters used as position embedding, class token, scale, bias table, weight norm and by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 5, 4))
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.scale = nn.Parameter(torch.randn(4))
        self.offset = nn.Parameter(torch.randn(()))
        self.table = nn.Parameter(torch.randn(7, 2))
        self.direction, self.length = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.rand(3, 1))
        self.mix = nn.Parameter(torch.randn(3, 3))
        self.right = nn.Parameter(torch.randn(3, 2))
        self.register_buffer("index", torch.tensor([[0, 3], [3, 6]]))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        x = x * self.scale + self.offset
        weight = self.direction * self.length / self.direction.norm(dim=1, keepdim=True)
        x = torch.tanh(nn.functional.linear(x, weight))
        x = torch.einsum("nlc,cd->nld", x, self.mix) @ self.right
        windows = x.repeat_interleave(2, 0)[:, :2] + self.table[self.index.reshape(-1)].view(2, 2, 2).sum(0)
        return windows.reshape(len(x), -1)


class Blocks(nn.Module):
    """In-place residuals and shared activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu_(self.first(x))
        y = self.norm(self.second(x))
        y += x
        return nn.functional.relu_(y).mean((2, 3))


class Attention(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, **options)
        self.first = bool(options.get("batch_first"))

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.first else x.transpose(0, 1)
        other = torch.tanh(x) if self.attend._qkv_same_embed_dim is False else x
        y = self.attend(x, other, other, need_weights=False)[0]
        return (y if self.first else y.transpose(0, 1)).flatten(1)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Shared(), (4,)),
        (Direct(), (4, 4)),
        (Blocks(), (2, 6, 6)),
        (Attention(), (5, 8)),
        (Attention(batch_first=True, add_bias_kv=True, add_zero_attn=True), (5, 8)),
        (Attention(kdim=8, vdim=8, bias=False), (5, 8)),
        (nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), (5, 8)),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 2)), nn.Flatten()), (3, 6)),
        (nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)).eval(), nn.Flatten()), (3,)),
        (nn.Sequential(nn.utils.weight_norm(nn.Conv1d(3, 4, 2)), nn.Flatten()), (3, 6)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
@pytest.mark.parametrize("records", [[0, 1, 1, 2, 1, 0], [0, 1, 2], [0], [2, 2, 0, 0]])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_networks_are_exact(model: nn.Module, shape: tuple[int, ...], records: list[int]) -> None:
    torch.manual_seed(1)
    patient = torch.tensor(records)
    assert oracle.gap(model.double(), torch.randn(len(records), *shape).double(), patient, 3) < EXACT


def test_sequence_first_attention_layers_are_refused_or_taken_one_by_one() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0).double()

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = model

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.transpose(0, 1)).transpose(0, 1)

    x, patient = torch.randn(6, 6, 8).double(), torch.tensor([0, 1, 1, 2, 2, 2])
    from dptrain.errors import CheckRefused

    with pytest.raises(CheckRefused, match="own rows"):
        oracle.run(Turned(), x, torch.zeros(6).double(), patient, 3, 1.0)
    with pytest.warns(UserWarning, match="one patient at a time"):  # 5 places are no multiple of 6 records: no rule
        assert oracle.gap(Turned(), x[:, :5], patient, 3) < EXACT
    assert oracle.gap(Turned(), x, patient, 3, rules={"layer": "one-by-one"}) < EXACT


def test_layers_without_a_rule_are_exact_and_say_what_they_cost() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.memory(x)[0][:, -1])

    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"memory.*one patient at a time"):
        gap = oracle.gap(Recurrent().double(), torch.randn(5, 6, 3).double(), torch.tensor([0, 2, 2, 0, 0]), 3)
    assert gap < EXACT


def test_windows_folded_into_the_batch_stay_with_their_patient() -> None:
    """Rows N·k with k rows a record, as window attention makes them, through every way of a convolution."""

    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(2, 3, 2)
            self.line = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            n = len(x)
            y = self.inner(torch.tanh(x).reshape(n * 3, 2, *x.shape[2:])).flatten(2).transpose(1, 2)
            return self.line(y).reshape(n, -1)

    torch.manual_seed(0)
    assert oracle.gap(Folded().double(), torch.randn(4, 6, 4, 4).double(), torch.tensor([1, 0, 1, 1]), 2) < EXACT


def test_large_maps_and_measured_ways_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Group norm record by record, and convolutions by whichever way the clock prefers."""
    monkeypatch.setattr(conv, "WORTH", 0)
    monkeypatch.setattr(conv, "_chosen", {})
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 4, 3, stride=2, padding=1),
        nn.Tanh(), nn.Conv2d(4, 24, 3), nn.Conv2d(24, 2, 3, padding="same"), nn.Flatten(),
    ).double()  # fmt: skip
    assert oracle.gap(model, torch.randn(4, 1, 64, 64).double(), torch.tensor([0, 1, 1, 2]), 3, measure=True) < EXACT
    assert len(conv._chosen) == 4


def test_operations_on_rows_go_by_vmap_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(2, 3, 5))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(torch.einsum("nlc,cd->nld", x, self.a))
            return torch.einsum("nld,hde->nlhe", y, self.b).flatten(1)

    torch.manual_seed(0)
    assert oracle.gap(Mixed().double(), torch.randn(5, 6, 4).double(), torch.tensor([0, 2, 2, 0, 0]), 3) < EXACT
    assert not [w for w in recwarn if "one patient" in str(w.message)]


def test_sums_over_rows_do_not_pass_for_operations_on_rows() -> None:
    """A result that vmap would change is left to autograd, and the mixing is then refused or exact."""

    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.randn(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("nlc,cd->lnd", torch.tanh(x), self.a).transpose(0, 1).flatten(1)

    torch.manual_seed(0)
    x, patient = torch.randn(5, 5, 4).double(), torch.tensor([0, 2, 2, 0, 0])
    with pytest.warns(UserWarning, match="one patient at a time"):
        assert oracle.gap(Crossed().double(), x, patient, 3) < EXACT


def test_layout_groups_patients_by_their_records() -> None:
    layout = Layout(torch.tensor([3, 0, 3, 1]), 5)
    assert layout.uniform is None
    assert layout.most == 2
    found = {tuple(members.tolist()): tensors[0].tolist() for members, tensors in layout.groups(torch.arange(4))}
    assert found == {(0, 1): [[1], [3]], (3,): [[0, 2]]}
    assert layout.sum_rows(torch.tensor([1.0, 2, 4, 8])).tolist() == [2, 8, 0, 5, 0]
    assert layout.record_weight.tolist() == [0.5, 1, 0.5, 1]


@few
@given(
    st.integers(1, 3),
    st.integers(0, 3),
    st.sampled_from([1, 5, 40]),
    st.sampled_from([1, 7, 33]),
    st.integers(1, 6),
    st.booleans(),
)
def test_pointwise_convolutions_by_products_are_those_of_torch(
    dims: int, rows: int, inputs: int, outputs: int, size: int, weighted: bool
) -> None:
    """Every way of multiplying: one place, few, many, rows without any."""
    torch.manual_seed(0)
    ones = (1,) * dims
    geo = conv.Geometry((outputs, inputs, *ones), ones, (0,) * dims, ones, 1, False, (0,) * dims)
    x = torch.randn(rows, inputs, *[size] * dims, dtype=torch.float64, requires_grad=True)
    w = torch.randn(outputs, inputs, *ones, dtype=torch.float64, requires_grad=True)
    truth = (torch.conv1d, torch.conv2d, torch.conv3d)[dims - 1](x, w)
    g = torch.randn_like(truth)
    factors = torch.rand(rows, dtype=torch.float64) if weighted else None
    with torch.no_grad():
        gx = geo.input_gradient(x, g, w)
    assert gx._base is None  # in-place layers work on it, as autograd does on the other
    expected_x, expected_w = torch.autograd.grad(truth, [x, w], g, retain_graph=True)
    if factors is not None:
        (expected_w,) = torch.autograd.grad(truth, [w], g * factors.view(-1, *[1] * (dims + 1)))
    torch.testing.assert_close(gx, expected_x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(geo.weight_gradient(x.detach(), g, factors), expected_w, rtol=1e-12, atol=1e-12)


def test_a_transposed_kernel_of_one_place_with_output_padding_is_exact() -> None:
    """More places come out than went in: a norm taken as if each were read once was nine times too small."""
    layer = nn.ConvTranspose1d(3, 2, 1, dilation=2, output_padding=1, bias=False)
    for size in (1, 4):
        for seed in range(5):
            torch.manual_seed(seed)
            x, patient = torch.randn(3, 3, size).double(), torch.tensor([0, 1, 0])
            model = nn.Sequential(layer).double()
            found = oracle.run(model, x, torch.zeros(3).double(), patient, 2, 0.1, verify=False)
            truth = oracle.patient_gradients(model, x, torch.zeros(3).double(), patient, 2)
            torch.testing.assert_close(found.norms, oracle.norms(truth).double(), rtol=1e-9, atol=1e-12)


def test_a_norm_that_is_not_that_of_the_gradient_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Gram norm that came out too small would let a patient pass the clip, with a sum that is right."""
    torch.manual_seed(0)
    model, right = nn.Sequential(nn.Conv2d(2, 3, 3)).double(), conv.gram_norms
    x, y, patient = torch.randn(4, 2, 6, 6).double(), torch.zeros(4).double(), torch.arange(4)
    monkeypatch.setattr(conv, "choose", lambda *_: "gram")
    oracle.run(model, x, y, patient, 4, 1.0)
    monkeypatch.setattr(conv, "gram_norms", lambda *some: (0.9 * right(*some)[0], right(*some)[1]))
    with pytest.raises(CheckRefused, match="norm found for the gradient"):
        oracle.run(model, x, y, patient, 4, 1.0)


@pytest.mark.parametrize("table", [0, 1 << 30])
@few
@given(convolutions(), cohorts())
def test_gram_norms_by_table_and_by_slices_are_exact(
    table: int, made: tuple[nn.Module, tuple[int, ...]], cohort: tuple[Tensor, int]
) -> None:
    layer, shape = made
    patient, patients = cohort
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "choose", lambda *_: "gram")
        patch.setattr(conv, "TABLE", table)
        model = nn.Sequential(layer).double()
        assert oracle.gap(model, torch.randn(len(patient), *shape).double(), patient, patients) < EXACT


def test_small_parameters_of_different_rows_and_many_uses_are_exact() -> None:
    """Biases and scales are kept by row: of windows folded into the batch, of records, and used twice."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.windows, self.norm = nn.Linear(4, 4), nn.GroupNorm(2, 4)
            self.twice, self.shift = nn.Conv1d(4, 4, 1), nn.Parameter(torch.randn(4, 6))

        def forward(self, x: Tensor) -> Tensor:
            n = len(x)
            x = self.windows(x.transpose(1, 2).reshape(n * 3, 2, 4)).reshape(n, 6, 4).transpose(1, 2)
            return self.twice(torch.tanh(self.twice(self.norm(x) + self.shift)))

    torch.manual_seed(0)
    patient = torch.tensor([2, 0, 0, 3, 2])
    assert oracle.gap(Mixed().double(), torch.randn(5, 4, 6).double(), patient, 4) < EXACT


@pytest.mark.parametrize("layer", [nn.GroupNorm(1, 1), nn.InstanceNorm2d(1, affine=True)])
def test_norms_of_a_single_channel_are_exact(layer: nn.Module) -> None:
    """A weight of one number spread over the rows must lie in memory row by row: torch's kernel reads it so."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 1, 3), layer).double()
    for p in layer.parameters():
        nn.init.normal_(p)
    assert oracle.gap(model, torch.randn(6, 1, 5, 5).double(), torch.tensor([1, 0, 0, 2, 1, 1]), 3) < EXACT


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_is_torchs_own_bit_for_bit(dims: int, kernel: int) -> None:
    """Activations whose sign hangs by the last digit must not differ from those of the network without the engine."""
    torch.manual_seed(0)
    layer = getattr(nn, f"Conv{dims}d")(24, 40, kernel)
    x = torch.randn(5, 24, *[9] * dims)
    expected = layer(x)
    engine = PatientGradients(layer, max_grad_norm=1.0)
    assert torch.equal(layer(x), expected)
    engine.detach()
