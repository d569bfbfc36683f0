"""Networks that use their parameters in odd ways: every patient's gradient is exact, or the network is refused.

What torch asks no stand-in about (a network's own autograd functions, scripted ones), hooks, caches, rows that move,
experts that wake up late: each of these once let a gradient through unseen, or could have.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dptrain.engine import PatientGradients
from dptrain.engine.layout import Layout
from dptrain.errors import CheckRefused
from tests.engine import oracle

EXACT = 1e-9
RAGGED, SINGLE = [0, 1, 1, 2, 1, 0], [0, 1, 2, 3]


class Scale(torch.autograd.Function):
    """x · w by an autograd function of one's own: torch hands the stand-in to it as a tensor."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g * w, (g * x).sum(0)


@torch.jit.script
def scripted(x: Tensor, w: Tensor) -> Tensor:
    return torch.tanh(x * w)


class Odd(nn.Module):
    """A linear layer, then `use` of a vector, a matrix and two factors."""

    def __init__(self, use: Callable[[Odd, Tensor], Tensor]) -> None:
        super().__init__()
        self.line, self.w = nn.Linear(4, 4), nn.Parameter(torch.randn(4))
        self.down, self.up = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(4, 2))
        self.held = [self.line.weight]
        self.listed = nn.ParameterList([nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4, 4))])
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self, torch.tanh(self.line(x)))


def called(self: Odd, x: Tensor) -> Tensor:
    return torch.func.functional_call(self.line, dict(self.line.named_parameters()), x)


def in_blocks(self: Odd, x: Tensor) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    return checkpoint(lambda v: torch.tanh(self.line(v)) * self.w, x, use_reentrant=False)


def hooked(self: Odd, x: Tensor) -> Tensor:
    y = self.line(x)
    if y.requires_grad:
        y.register_hook(lambda g: 2 * g)
    return y


USES: dict[str, Callable[[Odd, Tensor], Tensor]] = {
    "own function": lambda self, x: Scale.apply(x, self.w),
    "own function of a value computed": lambda self, x: Scale.apply(x, 2 * self.w + self.up.sum()),
    "own function, and torch's": lambda self, x: Scale.apply(x, self.w) * self.w,
    "scripted function": lambda self, x: scripted(x, self.w),
    "low rank, merged": lambda self, x: F.linear(x, self.line.weight.detach() + self.up @ self.down),
    "low rank, aside": lambda self, x: F.linear(F.linear(x, self.down), self.up) + x,
    "parameter lists": lambda self, x: (x * self.listed[0]) @ self.listed[1],
    "held elsewhere": lambda self, x: F.linear(x, self.held[0]),
    "functional call": called,
    "checkpointed": in_blocks,
    "gradient hook on an activation": hooked,
    "complex numbers": lambda self, x: torch.fft.irfft(
        torch.fft.rfft(x) * torch.view_as_complex(self.w[:2].repeat(3).view(3, 2)), n=4
    ),
    "norm and softmax of weights": lambda self, x: x * torch.softmax(self.w, 0) / self.up.norm(),
    "weight from the left": lambda self, x: (self.up.T @ x.T).T,
    "fused elementwise": lambda self, x: torch.addcmul(x, x, self.w, value=2) + torch.lerp(x, self.w, 0.3),
    "penalty in the output": lambda self, x: x + sum(p.square().sum() for p in self.parameters()),
}


@pytest.mark.parametrize("use", USES, ids=str)
@pytest.mark.parametrize("records", [RAGGED, SINGLE], ids=str)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_parameters_in_odd_ways_are_exact(use: str, records: list[int]) -> None:
    torch.manual_seed(1)
    model = Odd(USES[use]).double()
    patient = torch.tensor(records)
    x = torch.randn(len(records), 4).double()
    assert oracle.gap(model, x, patient, 4) < EXACT
    y, clip = torch.zeros(len(records)).double(), 0.1
    truth = oracle.clipped(oracle.patient_gradients(model, x, y, patient, 4), clip)
    engine = PatientGradients(model, max_grad_norm=clip, measure=False)
    for _ in range(2):  # what the first chunk found out serves the second
        chunk = engine.clipped_sum(oracle.squares(model(x), y), patient, 4)
        assert oracle.distance(chunk.sums, truth) < EXACT
    engine.detach()


def module(make: Callable[[], nn.Module], *shape: int) -> tuple[Callable[[], nn.Module], tuple[int, ...]]:
    return make, shape


class LearnedMask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mask = nn.Parameter(torch.randn(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, x, x, attn_mask=self.mask, need_weights=False)[0].flatten(1)


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Tanh())), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(x))


class Compiled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), backend="eager")
        self.out = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(x))


def fixed_instance_norm() -> nn.Module:
    norm = nn.InstanceNorm1d(3, affine=True, track_running_stats=True)
    norm.running_mean.uniform_()
    return nn.Sequential(norm.eval(), nn.Flatten())


def with_backward_hook() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    model[2].register_full_backward_hook(lambda _, grad_input, __: (3 * grad_input[0],))
    return model


def pruned() -> nn.Module:
    from torch.nn.utils import prune

    line = nn.Linear(4, 4)
    prune.random_unstructured(line, "weight", 0.5)
    return nn.Sequential(line, nn.Tanh())


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        module(LearnedMask, 5, 8),
        module(Scripted, 4),
        module(Compiled, 4),
        module(fixed_instance_norm, 3, 6),
        module(with_backward_hook, 4),
        module(pruned, 4),
        module(lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))), 4),
    ],
    ids=[
        "attention mask",
        "scripted",
        "compiled",
        "instance norm in eval",
        "backward hook",
        "pruned",
        "spectral norm",
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_modules_of_odd_kinds_are_exact(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    model = make().double()
    for part in model.modules():
        if isinstance(part, nn.utils.parametrize.ParametrizationList):
            part.eval()  # a spectral norm that is still converging is another one in each pass
    for records in (RAGGED, SINGLE):
        assert oracle.gap(model, torch.randn(len(records), *shape).double(), torch.tensor(records), 4) < EXACT


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sparse_tables_give_dense_sums(kind: type[nn.Module]) -> None:
    index, y, patient = torch.randint(0, 6, (6, 4)), torch.zeros(6).double(), torch.tensor(RAGGED)
    sums = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(kind(6, 3, sparse=sparse), nn.Flatten()).double()
        sums.append(oracle.run(model, index, y, patient, 3, 0.1).sums)
        assert not any(value.is_sparse for value in sums[-1].values())
    assert oracle.distance(*sums) < EXACT


@pytest.mark.parametrize("low", [torch.float32, torch.bfloat16], ids=str)
def test_mixed_precisions_are_clipped_by_the_norm_of_what_is_summed(low: torch.dtype) -> None:
    """Layers of two precisions: sums are float32 (float64 for float64), and nobody passes the clip."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4).double(), nn.Linear(4, 4).to(low)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.b(self.a(x).to(low)).double())

    torch.manual_seed(0)
    model, x, y, patient = Mixed(), torch.randn(6, 4).double(), torch.zeros(6).double(), torch.tensor(RAGGED)
    truth = oracle.norms(
        [{n: g.double() for n, g in one.items()} for one in oracle.patient_gradients(model, x, y, patient, 3)]
    )
    result = oracle.run(model, x, y, patient, 3, 1e-3, verify=False)  # verifying is for float64
    rough = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[low]
    torch.testing.assert_close(result.norms, truth, rtol=rough, atol=0)
    assert {name: value.dtype for name, value in result.sums.items()} == {
        "a.weight": torch.float64, "a.bias": torch.float64, "b.weight": torch.float32, "b.bias": torch.float32
    }  # fmt: skip
    for i in range(3):
        rows = patient == i
        alone = oracle.run(model, x[rows], y[rows], patient[rows] * 0, 1, 1e-3, verify=False).sums
        size = sum(float(value.double().square().sum()) for value in alone.values()) ** 0.5
        assert 0.99e-3 < size <= 1e-3


# --- refused ------------------------------------------------------------------------------------------------------


def hook_on_a_parameter(model: Odd) -> None:
    model.w.register_hook(lambda g: 10 * g)


def hook_after_accumulation(model: Odd) -> None:
    model.w.register_post_accumulate_grad_hook(lambda p: None)


@pytest.mark.parametrize("hook", [hook_on_a_parameter, hook_after_accumulation])
@pytest.mark.parametrize("late", [False, True])
def test_hooks_on_parameters_are_refused(hook: Callable[[Odd], None], late: bool) -> None:
    """The engine forms no gradient of the batch that could be handed to them: they would silently never run."""
    model = Odd(USES["low rank, aside"])
    x, y = torch.randn(4, 4), torch.zeros(4)
    if late:
        engine = PatientGradients(model, max_grad_norm=1.0)
        hook(model)
        with pytest.raises(CheckRefused, match="w has a hook"):
            engine.clipped_sum(oracle.squares(model(x), y), torch.arange(4), 4)
        engine.detach()
    else:
        hook(model)
        with pytest.raises(CheckRefused, match="w has a hook"):
            PatientGradients(model, max_grad_norm=1.0)


class Overwriting(torch.autograd.Function):
    """Writes into the gradient that it is handed, which torch forbids and does not see."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g.mul_(100)


@pytest.mark.parametrize("verify", [False, True])
def test_what_was_measured_is_what_is_summed(verify: bool) -> None:
    """A norm taken before an overwritten gradient and a sum taken after it would pass the clip a hundredfold."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 40), nn.Linear(4, 40)

        def forward(self, x: Tensor) -> Tensor:
            return Overwriting.apply(self.b(x)) + self.a(x)

    torch.manual_seed(0)
    with pytest.raises(CheckRefused, match="in place"):
        oracle.run(Residual(), torch.randn(4, 4), torch.zeros(4), torch.arange(4), 4, 1e-3, verify=verify)


class Shifts(nn.Module):
    """Biases whose gradient is the gradient of the output as it came, and is overwritten by the other branch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return Overwriting.apply(x + self.b) + (x + self.a)


class Lines(nn.Module):
    """The same with linear layers whose weights are frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.a.weight.requires_grad_(False)
        self.b.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return Overwriting.apply(self.b(x)) + self.a(x)


@pytest.mark.parametrize("network", [Shifts, Lines])
def test_a_bias_keeps_the_gradient_that_came(network: type[nn.Module]) -> None:
    """A row's gradient is copied where it is the tensor itself: nobody writes into it afterwards."""
    torch.manual_seed(0)
    oracle.run(network(), torch.randn(4, 4), torch.zeros(4), torch.arange(4), 4, 1e-3)


class Moved(nn.Module):
    """Works on the rows in another order and puts them back: every record alone, and no row where it was."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.line, self.order = nn.Linear(4, 4), torch.tensor(order)

    def forward(self, x: Tensor) -> Tensor:
        y = self.line(x[self.order])
        return torch.tanh(y[torch.argsort(self.order)])


@pytest.mark.parametrize("order", [[5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 5, 4], [0, 3, 2, 1, 4, 5], [5, 1, 2, 4, 3, 0]])
def test_rows_that_change_places_are_refused_whichever_patients_they_are(order: list[int]) -> None:
    """The first patient's rows may stay his: all patients are compared, not one."""
    torch.manual_seed(0)
    with pytest.raises(CheckRefused, match="own rows"):
        oracle.run(Moved(order).double(), torch.randn(6, 4).double(), torch.zeros(6), torch.tensor(RAGGED), 3, 1.0)


class Experts(nn.Module):
    """Two experts that see some of each record's four tokens, chosen by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)
        self.chosen = torch.zeros(0, dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.tanh(self.gate(x)).flatten(0, 1)
        out = torch.zeros(len(tokens), 3, dtype=x.dtype)
        rest = torch.ones(len(tokens), dtype=torch.bool)
        rest[self.chosen] = False
        out = out.index_put((torch.nonzero(rest).flatten(),), self.one(tokens[rest]))
        if len(self.chosen):
            out = out.index_put((self.chosen,), self.two(tokens[self.chosen]))
        return out.view(len(x), -1)


def test_an_expert_that_wakes_up_late_is_compared_when_it_does() -> None:
    """Its rows may by chance be as many as the records, and belong to others."""
    torch.manual_seed(0)
    model, x, y, patient = Experts().double(), torch.randn(6, 4, 4).double(), torch.zeros(6), torch.tensor(RAGGED)
    engine = PatientGradients(model, max_grad_norm=1.0, measure=False, verify=True)
    engine.clipped_sum(oracle.squares(model(x), y), patient, 3)
    model.chosen = torch.tensor([0, 1, 2, 3, 4, 5])  # six of 24 tokens: of two records, not one of each
    with pytest.raises(CheckRefused, match=r"the gradient of (one, )?two does not come"):
        engine.clipped_sum(oracle.squares(model(x), y), patient, 3)
    engine.detach()


def test_a_layer_that_meets_another_number_of_rows_is_compared_again() -> None:
    torch.manual_seed(0)
    model, x, y, patient = Experts().double(), torch.randn(6, 4, 4).double(), torch.zeros(6), torch.tensor(RAGGED)
    engine = PatientGradients(model, max_grad_norm=1.0, measure=False, verify=True)
    model.chosen = torch.arange(24).view(6, 4)[:, :2].flatten()  # two tokens of each record, in order
    for _ in range(2):
        engine.clipped_sum(oracle.squares(model(x), y), patient, 3)
    model.chosen = torch.arange(6)  # as many rows as records, but those of two
    with pytest.raises(CheckRefused, match="does not come"):
        engine.clipped_sum(oracle.squares(model(x), y), patient, 3)
    engine.detach()


def test_verifying_costs_one_pass_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    original = PatientGradients._verify
    monkeypatch.setattr(PatientGradients, "_verify", lambda self, *a: ran.append(1) or original(self, *a))
    torch.manual_seed(0)
    model, x, y, patient = Experts(), torch.randn(6, 4, 4), torch.zeros(6), torch.tensor(RAGGED)
    engine = PatientGradients(model, max_grad_norm=1.0, measure=False, verify=True)
    for _ in range(4):
        engine.clipped_sum(oracle.squares(model(x), y), patient, 3)
    assert len(ran) == 1
    engine.detach()


def test_a_value_kept_from_an_earlier_pass_is_refused() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line, self.w, self.cache = nn.Linear(4, 4), nn.Parameter(torch.randn(4)), None

        def forward(self, x: Tensor) -> Tensor:
            if self.cache is None:
                self.cache = 2 * self.w  # type: ignore[assignment]
            return self.line(x) * self.cache

    model, x, y, patient = Cached(), torch.randn(4, 4), torch.zeros(4), torch.arange(4)
    engine = PatientGradients(model, max_grad_norm=1.0, measure=False)
    engine.clipped_sum(oracle.squares(model(x), y), patient, 4)
    with pytest.raises(CheckRefused, match="earlier forward pass computed from w"):
        engine.clipped_sum(oracle.squares(model(x), y), patient, 4)
    engine.detach()


def mean_over_the_batch(self: Odd, x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True) * self.w


def normalised_gradient(self: Odd, x: Tensor) -> Tensor:
    y = self.line(x)
    if y.requires_grad:
        y.register_hook(lambda g: g / g.norm())
    return y


@pytest.mark.parametrize("use", [mean_over_the_batch, normalised_gradient])
def test_batches_that_are_mixed_without_a_layer_are_refused(use: Callable[[Odd, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    with pytest.raises(CheckRefused, match="mixes the records"):
        oracle.run(Odd(use), torch.randn(6, 4), torch.zeros(6), torch.tensor(RAGGED), 3, 1.0)


def test_complex_parameters_are_refused() -> None:
    model = Odd(USES["own function"])
    model.w = nn.Parameter(torch.randn(4, dtype=torch.complex64))
    with pytest.raises(CheckRefused, match="complex64"):
        PatientGradients(model, max_grad_norm=1.0)


def test_a_batch_norm_switched_on_later_is_refused() -> None:
    """Also where it has no parameters of its own, and where training switches it on between two steps."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False))
    model[1].eval()
    engine = PatientGradients(model, max_grad_norm=1.0)
    before = {name: value.clone() for name, value in model.named_buffers()}
    engine.clipped_sum(oracle.squares(model(torch.randn(4, 4)), torch.zeros(4)), torch.arange(4), 4)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    model.train()
    with pytest.raises(CheckRefused, match="in training mode"):
        model(torch.randn(4, 4))
    engine.detach()


def test_patients_are_whole_numbers() -> None:
    with pytest.raises(CheckRefused, match="whole numbers"):
        Layout(torch.tensor([0.0, 0.9, 1.0]), 2)


def test_two_passes_before_one_sum_add_up() -> None:
    """A loss of two views of a record, each through the network."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, patient = torch.randn(6, 4).double(), torch.tensor(RAGGED)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.inner(x.flip(1))

    y = torch.zeros(6).double()
    truth = oracle.clipped(oracle.patient_gradients(Twice(), x, y, patient, 3), 0.1)
    engine = PatientGradients(model, max_grad_norm=0.1, measure=False)
    sums = engine.clipped_sum(oracle.squares(model(x) * model(x.flip(1)), y), patient, 3).sums
    engine.detach()
    assert oracle.distance({f"inner.{name}": value for name, value in sums.items()}, truth) < EXACT


def test_one_warning_names_what_has_no_rule() -> None:
    torch.manual_seed(0)
    model, x, y = Odd(USES["own function"]), torch.randn(4, 4), torch.zeros(4)
    engine = PatientGradients(model, max_grad_norm=1.0, measure=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            engine.clipped_sum(oracle.squares(model(x), y), torch.arange(4), 4)
    assert ["how w uses its parameters" in str(one.message) for one in said] == [True]
    engine.detach()


# --- by rule ------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


@pytest.mark.parametrize("name", ["first.weight", "last.weight", "last", "first"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_rule_may_name_a_shared_parameter_by_any_of_its_names(name: str) -> None:
    torch.manual_seed(0)
    model, x = Tied().double(), torch.randn(6, 4).double()
    engine = PatientGradients(model, max_grad_norm=1.0, rules={name: "one-by-one"})
    assert "first.weight" in engine._slow
    engine.detach()
    assert oracle.gap(model, x, torch.tensor(RAGGED), 3, rules={name: "one-by-one"}) < EXACT


def test_rules_that_name_nothing_are_refused() -> None:
    for name in ("second", "first.weigh", "", "first."):
        with pytest.raises(CheckRefused, match="neither a trainable parameter nor a module"):
            PatientGradients(Tied(), max_grad_norm=1.0, rules={name: "one-by-one"})
    with pytest.raises(CheckRefused, match="first=fast is not accepted"):
        PatientGradients(Tied(), max_grad_norm=1.0, rules={"first": "fast"})
    part = PatientGradients(
        Tied().first, max_grad_norm=1.0, rules={"net.first": "one-by-one"}, names={"weight": "net.first.weight"}
    )
    assert set(part._slow) == {"net.first.weight"}


@pytest.mark.filterwarnings("error::UserWarning")
def test_shifted_windows_of_monai_are_exact_and_fast() -> None:
    """SwinUNETR's attention: windows fold into the batch, a table of biases is read by an index."""
    from monai.networks.nets.swin_unetr import BasicLayer, PatchMergingV2

    torch.manual_seed(0)
    layer = BasicLayer(8, 2, 2, (2, 2), [0.0, 0.0], 2.0, True, downsample=PatchMergingV2).double()  # type: ignore[arg-type]
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    assert oracle.gap(layer, torch.randn(6, 8, 4, 4).double(), torch.tensor(RAGGED), 3) < EXACT


def test_chunks_without_a_record_change_nothing_in_a_step() -> None:
    """Gradient accumulation over chunks of which some hold nobody, or only patients without a record."""
    from dptrain.engine import NoiseSource, PatientOptimizer

    moved = []
    for empty in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 2).double()
        engine = PatientGradients(model, max_grad_norm=0.1)
        with NoiseSource() as noise:
            private = PatientOptimizer(
                torch.optim.SGD(model.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=0.1,
                expected_batch_size=2, noise=noise,
            )  # fmt: skip
            before = model.weight.detach().clone()
            for rows in ([0, 1], [], [2, 3]) if empty else ([0, 1], [2, 3]):
                x = torch.eye(4).double()[rows]
                patient = torch.arange(len(rows)) * 2 if empty else torch.arange(len(rows))
                losses = oracle.squares(model(x), torch.zeros(len(rows)).double())
                private.accumulate(engine.clipped_sum(losses, patient, 4))
            private.step()
        engine.detach()
        moved.append(model.weight.detach() - before)
    assert moved[0].any()
    torch.testing.assert_close(*moved, rtol=0, atol=0)
