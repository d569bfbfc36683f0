"""What the guarantee rests on, each with the fault that would break it planted and caught."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dptrain.engine import MARGIN, ClippedSum, NoiseSource, PatientGradients, PatientOptimizer, bounds, conv, sums
from dptrain.errors import CheckRefused
from tests.engine import oracle


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(54, 3),
    )  # fmt: skip


def batch(records: list[int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return (
        torch.randn(len(records), 2, 8, 8, dtype=dtype),
        torch.randn(len(records), dtype=dtype),
        torch.tensor(records),
    )


RECORDS = [0, 0, 1, 2, 2, 2]


# --- the checks ---------------------------------------------------------------------------------------------------


def check_sum() -> None:
    """The sum is that of patients' mean gradients, each clipped: not of records'."""
    x, _, patient = batch(RECORDS, torch.float64)
    assert oracle.gap(small().double(), x, patient, 3) < 1e-9


def check_sensitivity() -> None:
    """Adding any one patient moves the sum by at most C, here for gradients far above C."""
    x, y, patient = batch(RECORDS)
    model, clip = small(), 1e-3
    whole = oracle.run(model, x, y, patient, 3, clip).sums
    for i in range(3):
        keep = patient != i
        rest = oracle.run(model, x[keep], y[keep], patient[keep], 3, clip).sums
        moved = math.sqrt(sum(float((whole[n].double() - rest[n].double()).square().sum()) for n in whole))
        assert 0.99 * clip < moved <= clip


def check_nonfinite() -> None:
    """A patient whose gradient is NaN or infinite counts as zero and harms nobody else."""
    for poison in (math.nan, math.inf):
        x, y, patient = batch(RECORDS)
        model = small()
        clean = oracle.run(model, x[2:], y[2:], patient[2:], 3, 1.0)
        x[1, 0, 3, 3] = poison
        result = oracle.run(model, x, y, patient, 3, 1.0)
        assert result.nonfinite == 1
        assert oracle.distance(result.sums, clean.sums) < 1e-5


def check_precision() -> None:
    """Norms are float32's under bf16 autocast, from the tensors that are summed."""
    x, y, patient = batch(RECORDS)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 3))
    clip = 1e-2
    with torch.autocast("cpu", torch.bfloat16):
        engine = PatientGradients(model, max_grad_norm=clip, measure=False)
        losses = oracle.squares(model(x).float(), y)
        engine_sum = engine.clipped_sum(losses, patient, 3)
        engine.detach()
        unclipped = []
        for i in range(3):
            keep = patient == i
            engine = PatientGradients(model, max_grad_norm=1e6, measure=False)
            losses = oracle.squares(model(x[keep]).float(), y[keep])
            unclipped.append(engine.clipped_sum(losses, patient[keep] * 0, 1).sums)
            engine.detach()
    norms = oracle.norms(unclipped)
    torch.testing.assert_close(engine_sum.norms, norms.double(), rtol=2e-5, atol=0)
    assert all(value.dtype == torch.float32 for value in engine_sum.sums.values())


def check_cancellation() -> None:
    """Activations of mean 100 and output gradients that cancel: the Gram norm alone would be rubbish."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    x = 100 + 0.01 * torch.randn(2, 4, 64)
    away = torch.randn(2, 4, 64)
    away = away - away.mean(1, keepdim=True)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output * away.to(output.dtype)[: len(output)]).sum((1, 2))

    truth = []
    for i in range(2):
        g = away[i].double().T @ x[i].double()
        truth.append(float(g.norm()))
    engine = PatientGradients(model, max_grad_norm=min(truth) / 4, measure=False)
    result = engine.clipped_sum(loss(model(x), x), torch.tensor([0, 1]), 2)
    engine.detach()
    torch.testing.assert_close(result.norms, torch.tensor(truth).double(), rtol=MARGIN, atol=0)


class Placed(nn.Module):
    """A parameter used directly, beside a constant whose length is no number of records."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5))
        self.register_buffer("constant", torch.arange(5.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.constant * self.scale.sum()


class Steps:
    """Logical steps of two chunks at a learning rate of one, so that the weights show what was added."""

    optimizer = PatientOptimizer

    def __init__(self, sigma: float, expected: int = 4, clip: float = 0.5) -> None:
        self.model = nn.Linear(40, 50)
        self.source = NoiseSource("cryptographic", ahead=False)
        self.engine = PatientGradients(self.model, max_grad_norm=clip)
        self.private = self.optimizer(
            torch.optim.SGD(self.model.parameters(), lr=1.0),
            noise_multiplier=sigma, max_grad_norm=clip, expected_batch_size=expected, noise=self.source,
        )  # fmt: skip

    def step(self, *sizes: int) -> Tensor:
        """One logical step with chunks of these sizes; returns by how much the weights moved, −Δw."""
        before = torch.cat([p.detach().flatten().clone() for p in self.model.parameters()])
        for size in sizes:
            x = torch.ones(size, 40)
            patient = torch.arange(size)
            self.private.accumulate(self.engine.clipped_sum(self.model(x).sum(1), patient, size))
        self.private.step()
        return before - torch.cat([p.detach().flatten() for p in self.model.parameters()])


def check_noise_scale() -> None:
    """Noise of σ·C over the expected batch, once a step, however many chunks (none included)."""
    for chunks in ((), (2,), (2, 2, 2, 2)):
        steps = Steps(sigma=50.0)
        moved = torch.stack([steps.step(*chunks) for _ in range(8)])
        expected = 50.0 * 0.5 / 4
        found = float(moved.std())
        assert abs(found / expected - 1) < 5 / math.sqrt(2 * moved.numel())


def check_normaliser() -> None:
    """The sum is divided by the public expected batch size, not by who was drawn."""
    for size in (1, 3, 8):
        moved = float(Steps(sigma=0.0).step(size).norm())
        assert moved == pytest.approx(size * 0.5 * (1 - MARGIN) / 4, rel=1e-4)


def check_bias() -> None:
    """Every trainable parameter counts in the norm."""
    x, y, patient = batch(RECORDS, torch.float64)
    model = small().double()
    result = oracle.run(model, x, y, patient, 3, 1.0)
    truth = oracle.norms(oracle.patient_gradients(model, x, y, patient, 3))
    torch.testing.assert_close(result.norms, truth, rtol=1e-9, atol=0)


CHECKS = [
    check_sum, check_sensitivity, check_nonfinite, check_precision, check_cancellation, check_noise_scale,
    check_normaliser, check_bias,
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_holds(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_holds_where_matrix_products_may_be_rough(check: Callable[[], None]) -> None:
    """On a CPU with AMX, "medium" makes every float32 product a bf16 one."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        check()
    finally:
        torch.set_float32_matmul_precision(before)


# --- the faults ---------------------------------------------------------------------------------------------------


def clip_by_record(patch: pytest.MonkeyPatch) -> None:
    original = PatientGradients.clipped_sum

    def by_record(self: PatientGradients, losses: Tensor, patient: Tensor, patients: int) -> ClippedSum:
        return original(self, losses, torch.arange(len(losses)), len(losses))

    patch.setattr(PatientGradients, "clipped_sum", by_record)


def noise_by_chunk(patch: pytest.MonkeyPatch) -> None:
    class Noisy(PatientOptimizer):
        def accumulate(self, chunk: ClippedSum | None = None) -> None:
            super().accumulate(chunk)
            if chunk is not None:
                for p in self.params:
                    p.summed_grad += self.noise_multiplier * self.max_grad_norm * torch.randn_like(p)

    patch.setattr(Steps, "optimizer", Noisy)


def normalise_by_realised(patch: pytest.MonkeyPatch) -> None:
    class Realised(PatientOptimizer):
        count = 0

        def accumulate(self, chunk: ClippedSum | None = None) -> None:
            super().accumulate(chunk)
            if chunk is not None:
                self.count += chunk.patients

        def scale_grad(self) -> None:
            for p in self.params:
                p.grad /= max(1, self.count)
            self.count = 0

    patch.setattr(Steps, "optimizer", Realised)


def noise_by_root_of_chunks(patch: pytest.MonkeyPatch) -> None:
    class Weak(PatientOptimizer):
        chunks = 0

        def accumulate(self, chunk: ClippedSum | None = None) -> None:
            super().accumulate(chunk)
            self.chunks += chunk is not None

        def add_noise(self) -> None:
            kept, self.noise_multiplier = self.noise_multiplier, self.noise_multiplier / max(1, self.chunks) ** 0.5  # type: ignore[has-type]
            super().add_noise()
            self.noise_multiplier, self.chunks = kept, 0

    patch.setattr(Steps, "optimizer", Weak)


def no_noise_for_an_empty_draw(patch: pytest.MonkeyPatch) -> None:
    class Silent(PatientOptimizer):
        def add_noise(self) -> None:
            if all(not p.summed_grad.any() for p in self.params):
                for p in self.params:
                    p.grad = p.summed_grad
                return
            super().add_noise()

    patch.setattr(Steps, "optimizer", Silent)


def leave_bias_out(patch: pytest.MonkeyPatch) -> None:
    original = sums.squared_norms

    def without(tape, layout):
        whole = original(tape, layout)
        for block in tape.blocks(layout):
            sizes = [source.shape.numel() // len(block.matrix) for source, _ in block.parts]
            for (source, _), part in zip(block.parts, block.matrix.split(sizes, 2), strict=True):
                if source.name.endswith("bias"):
                    whole = whole - part.double().square().sum((0, 2))
        return whole

    patch.setattr(sums, "squared_norms", without)


def let_nan_through(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sums, "silence", lambda *_: None)


def norms_in_bf16(patch: pytest.MonkeyPatch) -> None:
    def rough(a: Tensor, g: Tensor, m: int) -> tuple[Tensor, Tensor]:
        a, g = a.bfloat16(), g.bfloat16()
        squared = (torch.bmm(a, a.transpose(1, 2)) * torch.bmm(g, g.transpose(1, 2))).sum((1, 2))
        return squared.float().reshape(m, -1).sum(1), squared.float().abs().reshape(m, -1).sum(1)

    patch.setattr(conv, "gram", rough)


def trust_gram(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sums, "measure", lambda *_: None)
    patch.setattr(sums, "leaves", lambda tape, layout, factors, clip: torch.zeros_like(factors, dtype=torch.bool))


def clip_late(patch: pytest.MonkeyPatch) -> None:
    original = sums.weighted_sums

    def loose(tape, layout, factors, sources):
        return original(tape, layout, (factors * 1.5).clamp(max=1), sources)

    patch.setattr(sums, "weighted_sums", loose)
    patch.setattr(PatientGradients, "_verify", lambda *_: True)  # it would refuse


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (clip_by_record, check_sum),
        (clip_by_record, check_sensitivity),
        (noise_by_chunk, check_noise_scale),
        (noise_by_root_of_chunks, check_noise_scale),
        (no_noise_for_an_empty_draw, check_noise_scale),
        (normalise_by_realised, check_normaliser),
        (leave_bias_out, check_bias),
        (let_nan_through, check_nonfinite),
        (norms_in_bf16, check_precision),
        (trust_gram, check_cancellation),
        (clip_late, check_sensitivity),
    ],
    ids=lambda value: value.__name__,
)
def test_catches(fault: Callable[[pytest.MonkeyPatch], None], check: Callable[[], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        with pytest.raises((AssertionError, CheckRefused)):
            check()


# --- more of the contract -----------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.floats(-6, 6), st.integers(0, 1000))
def test_sensitivity_at_any_scale(records: list[int], magnitude: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv1d(2, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 2))
    x, y, patient = torch.randn(len(records), 2, 8), torch.randn(len(records)), torch.tensor(records)
    clip = 0.7

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return 10**magnitude * oracle.squares(output, target)

    whole = oracle.run(model, x, y, patient, 4, clip, loss).sums
    keep = patient != records[0]
    rest = oracle.run(model, x[keep], y[keep], patient[keep], 4, clip, loss).sums
    moved = math.sqrt(sum(float((whole[n].double() - rest[n].double()).square().sum()) for n in whole))
    assert moved <= clip


def test_chunks_add_up_to_the_whole() -> None:
    x, y, patient = batch([0, 1, 2, 3, 1, 3], torch.float64)
    model = small().double()
    whole = oracle.run(model, x, y, patient, 4, 0.1).sums
    parts = [oracle.run(model, x[rows], y[rows], patient[rows] - low, 2, 0.1).sums
             for low, rows in ((0, patient < 2), (2, patient >= 2))]  # fmt: skip
    assert oracle.distance({n: parts[0][n] + parts[1][n] for n in whole}, whole) < 1e-12


def test_views_count_as_records_of_their_patient() -> None:
    """Augmentation multiplicity: K copies of a record change nothing, and the norms are taken once a patient."""
    x, y, patient = batch([0, 1, 2], torch.float64)
    model = small().double()
    once = oracle.run(model, x, y, patient, 3, 0.1)
    four = oracle.run(model, x.repeat(4, 1, 1, 1), y.repeat(4), patient.repeat(4), 3, 0.1)
    assert four.norms.shape == (3,)
    assert oracle.distance(four.sums, once.sums) < 1e-12


def test_views_cost_no_norm_work_of_their_own() -> None:
    """Multiplications beyond a plain step's, counted: with 16 views a patient they are a smaller share."""
    from torch.utils.flop_counter import FlopCounterMode

    def count(views: int, ours: bool) -> int:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
        )  # fmt: skip
        x, y, patient = (
            torch.randn(2 * views, 1, 16, 16),
            torch.zeros(2 * views),
            torch.arange(2).repeat_interleave(views),
        )
        engine = PatientGradients(model, max_grad_norm=1.0, measure=False) if ours else None

        def step() -> None:
            losses = oracle.squares(model(x), y)
            if engine is None:
                losses.mean().backward()
            else:
                engine.clipped_sum(losses, patient, 2)

        step()  # the first chunk looks for parameters without a rule
        with FlopCounterMode(display=False) as counter:
            step()
        return counter.get_total_flops()

    plain, ours = {k: count(k, False) for k in (1, 16)}, {k: count(k, True) for k in (1, 16)}
    assert plain[16] == 16 * plain[1]
    assert ours[16] <= 1.05 * plain[16]
    assert ours[16] / plain[16] <= ours[1] / plain[1]


def test_empty_draws_and_empty_chunks() -> None:
    model = small()
    engine = PatientGradients(model, max_grad_norm=1.0)
    result = engine.clipped_sum(torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0)
    assert result.patients == 0
    assert set(result.sums) == {name for name, _ in model.named_parameters()}
    assert all(not value.any() for value in result.sums.values())
    result = engine.clipped_sum(oracle.squares(model(torch.zeros(0, 2, 8, 8)), torch.zeros(0)), torch.zeros(0), 0)
    assert result.nonfinite == 0


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), (5, 8)),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.PReLU(), nn.LayerNorm(6)), (2, 8, 8)),
        (nn.Sequential(nn.BatchNorm2d(2).eval(), nn.ConvTranspose2d(2, 3, 2), nn.RMSNorm(9)), (2, 8, 8)),
        (Placed(), (5,)),
    ],
    ids=["attention", "convolution", "transposed", "direct"],
)  # fmt: skip
@pytest.mark.filterwarnings("error::UserWarning")
def test_an_empty_batch_runs_and_decides_nothing(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Training never runs the network on an empty draw; who does gets sums of zero, and what follows is as ever."""
    engine = PatientGradients(model, max_grad_norm=0.1, measure=False)
    for _ in range(2):
        none = torch.zeros(0, *shape)
        empty = engine.clipped_sum(oracle.squares(model(none), torch.zeros(0)), torch.zeros(0, dtype=torch.int64), 2)
        assert set(empty.sums) == {name for name, _ in model.named_parameters()}
        assert not any(value.any() for value in empty.sums.values())
        torch.manual_seed(0)
        x, y, patient = torch.randn(4, *shape), torch.zeros(4), torch.tensor([0, 1, 1, 2])
        found = engine.clipped_sum(oracle.squares(model(x), y), patient, 3)
        assert not engine._slow
    engine.detach()
    assert oracle.distance(found.sums, oracle.run(model, x, y, patient, 3, 0.1).sums) < 1e-6


def test_infinite_clip_gives_plain_sums() -> None:
    x, _, patient = batch(RECORDS, torch.float64)
    assert oracle.gap(small().double(), x, patient, 3, clip=math.inf) < 1e-9


def test_bf16_autocast_on_cpu_is_near_float32() -> None:
    x, y, patient = batch(RECORDS)
    model = small()
    exact = oracle.run(model, x, y, patient, 3, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        rough = oracle.run(model, x, y, patient, 3, 0.1, verify=False)  # verifying is for float64
    assert oracle.distance(rough.sums, exact.sums) < 0.1
    assert all(value.dtype == torch.float32 for value in rough.sums.values())


def test_metatensors_and_keyword_inputs() -> None:
    from monai.data import MetaTensor

    x, y, patient = batch(RECORDS)
    model = small()
    engine = PatientGradients(model, max_grad_norm=1.0)
    plain = engine.clipped_sum(oracle.squares(model(x), y), patient, 3)
    meta = engine.clipped_sum(oracle.squares(model(MetaTensor(x)), y), patient, 3)
    word = engine.clipped_sum(oracle.squares(model(input=x), y), patient, 3)
    assert oracle.distance(plain.sums, meta.sums) == 0
    assert oracle.distance(plain.sums, word.sums) == 0


def test_checkpointed_blocks() -> None:
    from torch.utils.checkpoint import checkpoint

    class Thrifty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.inner, torch.tanh(x), use_reentrant=False))

    model = Thrifty().double()
    x, y, patient = torch.randn(4, 6).double(), torch.zeros(4).double(), torch.tensor([0, 1, 1, 2])
    truth = oracle.patient_gradients(model, x, y, patient, 3)
    result = oracle.run(model, x, y, patient, 3, 0.05, verify=False)
    assert oracle.distance(result.sums, oracle.clipped(truth, 0.05)) < 1e-9


def test_the_network_stays_itself() -> None:
    """Weights can be replaced, saved, copied and evaluated while the engine is attached; detach leaves nothing."""
    import copy

    x, y, patient = batch(RECORDS)
    model = small()
    engine = PatientGradients(model, max_grad_norm=1.0)
    oracle.squares(model(x), y)
    twin = copy.deepcopy(model)
    for name, value in model.named_parameters():
        assert type(value) is nn.Parameter
        assert type(dict(twin.named_parameters())[name]) is nn.Parameter
    with torch.no_grad():
        torch.testing.assert_close(model(x), twin(x))
    with pytest.raises(CheckRefused, match="outside clipped_sum"):
        oracle.squares(model(x), y).sum().backward()
    for p in model.parameters():
        p.data = p.data * 2  # another storage behind the same parameter
    doubled = engine.clipped_sum(oracle.squares(model(x), y), patient, 3)
    engine.detach()
    fresh = oracle.run(model, x, y, patient, 3, 1.0)
    assert oracle.distance(doubled.sums, fresh.sums) < 1e-6
    oracle.squares(model(x), y).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not any("weight" in module.__dict__ for module in model.modules())


def test_frozen_parameters_have_no_sum_and_tied_ones_have_one() -> None:
    model = nn.Sequential(small(), nn.Linear(3, 3), nn.Linear(3, 3))
    model[0][0].requires_grad_(False)
    model[2].weight = model[1].weight
    x, y, patient = batch(RECORDS)
    result = oracle.run(model, x, y, patient, 3, 1.0)
    names = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    assert set(result.sums) == names - {"2.weight"}


@pytest.mark.parametrize(
    ("losses", "patient", "patients"),
    [
        (torch.zeros(6, 2), torch.zeros(6, dtype=torch.int64), 1),
        (torch.zeros(5), torch.zeros(6, dtype=torch.int64), 1),
        (torch.zeros(6), torch.zeros(6, dtype=torch.int64), 1),
    ],
)
def test_refuses_losses_that_are_not_the_networks(losses: Tensor, patient: Tensor, patients: int) -> None:
    engine = PatientGradients(small(), max_grad_norm=1.0)
    with pytest.raises(CheckRefused):
        engine.clipped_sum(losses, patient, patients)


def test_refuses_patients_out_of_range() -> None:
    model = small()
    engine = PatientGradients(model, max_grad_norm=1.0)
    x, y, _ = batch(RECORDS)
    with pytest.raises(CheckRefused, match=r"0…1"):
        engine.clipped_sum(oracle.squares(model(x), y), torch.tensor(RECORDS), 2)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, track_running_stats=False).eval(),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.Embedding(3, 4, max_norm=1.0),
        nn.Embedding(3, 4, scale_grad_by_freq=True),
        nn.LazyLinear(3),
    ],
    ids=str,
)
def test_refuses_layers_without_a_rule(layer: nn.Module) -> None:
    with pytest.raises(CheckRefused) as caught:
        PatientGradients(nn.Sequential(nn.Conv2d(2, 4, 3), layer), max_grad_norm=1.0)
    assert caught.value.remedy


def test_refuses_layers_that_mix_records() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.line(x)
            return y - y.mean(0)

    model = Mixing()
    with pytest.raises(CheckRefused, match="mixes the records"):
        oracle.run(model, torch.randn(4, 4), torch.zeros(4), torch.arange(4), 4, 1.0)


def test_a_first_chunk_of_one_patient_does_not_pass_for_verified() -> None:
    """Patients without a record tell nothing about mixing: the next chunk is compared instead."""

    class Turned(nn.Module):
        """Takes the sequence before the batch, so that rows do not lie with their records."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.transpose(0, 1)).transpose(0, 1)

    torch.manual_seed(0)
    model, x, y = Turned(), torch.randn(6, 6, 8), torch.zeros(6)
    engine = PatientGradients(model, max_grad_norm=1.0, measure=False, verify=True)
    engine.clipped_sum(oracle.squares(model(x), y), torch.zeros(6, dtype=torch.int64), 2)
    with pytest.raises(CheckRefused, match="own rows"):
        engine.clipped_sum(oracle.squares(model(x), y), torch.tensor(RECORDS), 3)
    engine.detach()


def test_no_refusal_follows_from_private_rows() -> None:
    """Huge activations and tiny output gradients, whose Gram norm float32 cannot hold, in the very first chunk."""
    model = nn.Linear(4, 512, bias=False)
    engine = PatientGradients(model, max_grad_norm=1e-3, measure=False)
    x, away = torch.full((2, 4), 8e18), torch.full((2, 512), 2.6e-23)
    x[1] = away[1] = 0.1
    engine.clipped_sum((model(x) * away).sum(1), torch.arange(2), 2)
    engine.detach()


def test_optimizer_refuses_what_would_break_the_account() -> None:
    steps = Steps(sigma=1.0)
    chunk = steps.engine.clipped_sum(steps.model(torch.ones(2, 40)).sum(1), torch.arange(2), 2)
    steps.private.accumulate(chunk)
    with pytest.raises(CheckRefused, match="twice"):
        steps.private.accumulate(chunk)
    other = PatientGradients(nn.Linear(2, 2), max_grad_norm=0.5)
    empty = other.clipped_sum(torch.zeros(0), torch.zeros(0), 0)
    with pytest.raises(CheckRefused, match="no clipped sum"):
        steps.private.accumulate(empty)
    empty.max_grad_norm = 3.0
    with pytest.raises(CheckRefused, match="clipped to 3"):
        steps.private.accumulate(empty)
    optimizer = torch.optim.SGD(steps.model.parameters(), lr=1.0)
    for wrong in ({"noise_multiplier": math.nan}, {"max_grad_norm": math.inf}, {"expected_batch_size": 0}):
        settings = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "expected_batch_size": 1} | wrong
        with pytest.raises(CheckRefused):
            PatientOptimizer(optimizer, noise=steps.source, **settings)


def test_state_of_the_optimizer_holds_no_noise() -> None:
    steps = Steps(sigma=1.0)
    steps.step(2)
    assert steps.private.state_dict() == steps.private.original_optimizer.state_dict()


def test_a_kept_pair_is_measured_and_formed_alone() -> None:
    """The norm of a doubtful patient, and the term of one who leaves, are the formed gradient's in any layout."""
    x, y, patient = batch([2, 0, 2, 1, 0, 2], torch.float64)
    model = small().double()
    truth = oracle.patient_gradients(model, x, y, patient, 3)
    for share in ("NORMS", "SUMS"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bounds, share, 1e-30)
            result = oracle.run(model, x, y, patient, 3, 0.1)
        assert result.apart == (3 if share == "SUMS" else 0)
        torch.testing.assert_close(result.norms, oracle.norms(truth), rtol=1e-9, atol=0)
        assert oracle.distance(result.sums, oracle.clipped(truth, 0.1)) < 1e-9


def test_a_chunk_leaves_nothing_behind() -> None:
    """Activations and patient gradients go with the sum, without waiting for the garbage collector."""
    x, y, patient = batch(RECORDS)
    model = small()
    engine = PatientGradients(model, max_grad_norm=1.0)
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):  # the first chunk also verifies
            losses = oracle.squares(model(x), y)
            tape = weakref.ref(engine._recorder.tape)
            engine.clipped_sum(losses, patient, 3)
            del losses
            left = tape()
            assert left is None or not (left.deferred or left.formed or left.gradients or left._blocks)
    finally:
        gc.enable()
        engine.detach()


def test_zero_grad_frees_the_memory() -> None:
    x, y, patient = batch(RECORDS)
    model = small()
    engine = PatientGradients(model, max_grad_norm=1.0)
    with NoiseSource() as noise:
        optimizer = PatientOptimizer(
            torch.optim.SGD(model.parameters(), 0.1), noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=3,
            noise=noise,
        )  # fmt: skip
        optimizer.accumulate(engine.clipped_sum(oracle.squares(model(x), y), patient, 3))
        optimizer.step()
        optimizer.zero_grad()
    assert all(p.grad is None and p.summed_grad is None for p in optimizer.params)
    engine.detach()


class Ones:
    """Stands where noise comes from, so that its scale shows to the last digit."""

    def prepare(self, size: int) -> None:
        self.size = size

    def normal(self, shape, dtype=torch.float32, device="cpu"):
        return torch.ones(shape, dtype=dtype, device=device)


@pytest.mark.parametrize("chunks", [0, 1, 3])
def test_noise_has_the_scale_of_the_plan_to_the_last_digit(chunks: int) -> None:
    """σ·C over the expected batch for every value of every parameter, whichever its precision: a statistic would not
    see two per cent."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2).double())
    model[0].register_forward_hook(lambda _, __, output: output.double())
    engine = PatientGradients(model, max_grad_norm=0.5)
    moved = []
    for sigma in (0.0, 3.0):
        private = PatientOptimizer(
            torch.optim.SGD(model.parameters(), lr=1.0), noise_multiplier=sigma, max_grad_norm=0.5,
            expected_batch_size=4, noise=Ones(),  # type: ignore[arg-type]
        )  # fmt: skip
        kept = {name: p.detach().clone() for name, p in model.named_parameters()}
        for _ in range(chunks):
            losses = model(torch.ones(2, 4)).square().sum(1)
            private.accumulate(engine.clipped_sum(losses, torch.arange(2), 2))
        private.step()
        moved.append([kept[name].double() - p.detach().double() for name, p in model.named_parameters()])
        model.load_state_dict(kept)
    for without, noisy in zip(*moved, strict=True):
        torch.testing.assert_close(noisy - without, torch.full_like(noisy, 3.0 * 0.5 / 4), rtol=1e-5, atol=0)
    engine.detach()


def test_noise_is_never_added_to_a_sum_twice() -> None:
    steps = Steps(sigma=1.0)
    steps.private.accumulate(steps.engine.clipped_sum(steps.model(torch.ones(2, 40)).sum(1), torch.arange(2), 2))
    steps.private.add_noise()
    with pytest.raises(CheckRefused, match="earlier step"):
        steps.private.add_noise()
