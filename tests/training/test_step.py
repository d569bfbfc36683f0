"""The private step: taken apart it is the same step, bit for bit; nothing is copied; nothing is released twice."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dptrain.data import PatientBatch
from dptrain.engine import NoiseSource, PatientGradients, PatientOptimizer, noise
from dptrain.engine.chunks import ChunkShape
from dptrain.errors import CheckRefused
from dptrain.plan import Plan
from dptrain.settings import OptimizerConfig
from dptrain.training.loop import fit
from dptrain.training.step import PrivateStep, StepSum

PLAN = Plan(public_size=40, expected_batch_size=8, steps=4, noise_multiplier=1.5, max_grad_norm=0.5, delta=1e-3)
OPTIMIZER = OptimizerConfig(name="sgd", lr=0.2, momentum=0.9, schedule="cosine")


class Drawn:
    """One step's draw: chunks of patients with two records each."""

    def __init__(self, step: int, chunks: Sequence[int]) -> None:
        random = torch.Generator().manual_seed(step)
        self.step, self.patients, self._chunks = step, sum(chunks), []
        for patients in chunks:
            image = torch.randn(2 * patients, 1, 6, 6, generator=random)
            label = torch.randint(0, 2, (2 * patients,), generator=random)
            self._chunks.append(PatientBatch(image, label, torch.arange(patients).repeat_interleave(2), patients))

    def chunks(self) -> Iterator[PatientBatch]:
        return iter(self._chunks)


class Loader(list[Drawn]):
    """Draws as a loader gives them: of chunks that are filled up to one shape."""

    chunk_shape = ChunkShape(rows=8, of_patient=2, of_record=1)


DRAWS = [Drawn(0, [3, 2]), Drawn(1, []), Drawn(2, [4]), Drawn(3, [1, 1, 1])]


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1))


def loss(output: Tensor, label: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(output.flatten(), label.float(), reduction="none")


def private_step(model: nn.Module, **words: float) -> PrivateStep:
    return PrivateStep(model, PLAN, loss=loss, optimizer=OPTIMIZER, **words)  # type: ignore[arg-type]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every noise source hands out the same bits, in order."""

    def bits(_: str) -> object:
        random = np.random.default_rng(11)

        def fill(words: np.ndarray) -> None:
            words[:] = random.integers(-(2**63), 2**63 - 1, len(words))

        return fill

    monkeypatch.setattr(noise, "new_bits", bits)


@pytest.mark.usefixtures("planted")
def test_taken_apart_it_is_the_same_step_bit_for_bit() -> None:
    """As :meth:`take`, as the three parts, and as Opacus's own fused `step` with the same schedule."""
    one, two, three = (network() for _ in range(3))
    with private_step(one, ema=0.9) as whole:
        logs = [whole.take(draw) for draw in DRAWS]
        kept = whole.state()
    with private_step(two, ema=0.9) as parts:
        for draw in DRAWS:
            gradient = parts.noisy_mean(parts.clipped_sum(draw))
            parts.update(gradient)
    base = torch.optim.SGD(three.parameters(), lr=0.2, momentum=0.9)
    gradients = PatientGradients(three, max_grad_norm=PLAN.max_grad_norm)
    fused = PatientOptimizer(
        base, noise_multiplier=1.5, max_grad_norm=0.5, expected_batch_size=8, noise=NoiseSource("cryptographic")
    )
    for draw, log in zip(DRAWS, logs, strict=True):
        fused.zero_grad()
        base.param_groups[0]["lr"] = log.public["learning_rate"]
        for chunk in draw.chunks():
            losses = loss(three(chunk.image), chunk.label)
            fused.accumulate(gradients.clipped_sum(losses, chunk.patient, chunk.patients))
        fused.step()
    gradients.detach()
    other = parts.state()
    assert kept.step == other.step == 4
    assert kept.average is not None
    assert other.average is not None
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name
        assert torch.equal(value, three.state_dict()[name]), name
        assert torch.equal(kept.average[name], other.average[name]), name
        assert not torch.equal(value, network().state_dict()[name]), name
    assert [log.restricted["patients"] for log in logs] == [5, 0, 4, 3]


def test_the_parts_hand_over_memory_and_copy_nothing() -> None:
    model = network()
    with private_step(model) as step:
        total = step.clipped_sum(DRAWS[2])
        places = [value.data_ptr() for value in total.tensors]
        assert all(parameter.grad is None for parameter in model.parameters())  # nothing released yet
        gradient = step.noisy_mean(total)
        assert [value.data_ptr() for value in total.tensors] == places
        assert len({value.untyped_storage().data_ptr() for value in gradient}) == 1  # views of one draw of noise
        step.update(gradient)
        assert [p.grad.data_ptr() for p in model.parameters()] == [g.data_ptr() for g in gradient]
        assert step.names == [name for name, _ in model.named_parameters()]


@pytest.mark.usefixtures("planted")
def test_sums_may_be_added_up_before_the_noise() -> None:
    """Two hospitals with half of the patients each: the noise of one step, on the sum of both."""
    whole, halves = network(), network()
    with private_step(whole) as step:
        step.take(Drawn(0, [3, 2]))
    first, second = copy.deepcopy(DRAWS[0]), copy.deepcopy(DRAWS[0])
    first._chunks, second._chunks = first._chunks[:1], second._chunks[1:]
    with private_step(halves) as step, private_step(copy.deepcopy(halves)) as there:
        total = step.clipped_sum(first)
        for mine, other in zip(total.tensors, there.clipped_sum(second).tensors, strict=True):
            mine.add_(other)
        step.update(step.noisy_mean(total))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, halves.state_dict()[name]), name


def test_a_sum_is_released_once() -> None:
    with private_step(network()) as step:
        total = step.clipped_sum(DRAWS[0])
        step.noisy_mean(total)
        with pytest.raises(CheckRefused, match="used in an earlier step"):
            step.noisy_mean(total)


def test_the_draw_of_another_step_is_refused() -> None:
    with private_step(network()) as step, pytest.raises(CheckRefused, match="stands at step 2"):
        step.take(DRAWS[2])


def test_the_loop_takes_a_step_of_one_s_own() -> None:
    """An observer of what is released sees all that the weights are made of."""
    from dptrain.audit.reference.engine import ReferenceLeave

    class Observed(PrivateStep):
        seen: list[list[Tensor]] = []

        def noisy_mean(self, total: StepSum) -> list[Tensor]:
            gradient = super().noisy_mean(total)
            self.seen.append([value.clone() for value in gradient])
            return gradient

    model = network()
    start = copy.deepcopy(model)
    step = Observed(model, PLAN, loss=loss, optimizer=OptimizerConfig(name="sgd", lr=0.1, momentum=0.0))
    result = fit(step, Loader(DRAWS), ReferenceLeave(PLAN, frozenset()), checked=True)  # type: ignore[arg-type]
    assert result.steps_run == len(Observed.seen) == PLAN.steps
    for number, (before, after) in enumerate(zip(start.parameters(), result.model.parameters(), strict=True)):
        moved = sum(0.1 * gradient[number] for gradient in Observed.seen)
        assert torch.allclose(before - moved, after, atol=1e-6)


def test_a_state_goes_on_under_its_own_plan_alone() -> None:
    with private_step(network(), ema=0.5) as step:
        step.take(DRAWS[0])
        state = step.state()
    with private_step(network(), ema=0.5) as again:
        again.resume(state)
        assert again.number == 1
        assert again.state().average is not None
        state.plan = "0" * 64
        with pytest.raises(CheckRefused, match="belongs to plan 000000000000"):
            again.resume(state)
