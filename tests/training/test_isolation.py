"""One patient's data stop nothing: such a patient counts as zero, and the others count as they would have."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dptrain.data import PatientBatch
from dptrain.engine.chunks import ChunkShape
from dptrain.plan import Plan
from dptrain.settings import OptimizerConfig
from dptrain.training.step import PrivateStep, StepSum

PLAN = Plan(public_size=40, expected_batch_size=8, steps=4, noise_multiplier=0.0, max_grad_norm=0.5, delta=1e-3)


class Draw:
    """One chunk of patients with a record each."""

    def __init__(self, image: Tensor, label: Tensor) -> None:
        self.step, self.patients = 0, len(image)
        self._chunk = PatientBatch(image, label, torch.arange(len(image)), len(image))

    def chunks(self) -> Iterator[PatientBatch]:
        return iter([self._chunk])


class Touchy(nn.Module):
    """Fails on one pixel's value, in the forward or in the backward pass."""

    def __init__(self, fails: str) -> None:
        super().__init__()
        self.line, self.fails = nn.Linear(6, 1), fails

    def forward(self, x: Tensor) -> Tensor:
        if self.fails == "forward" and bool((x == 7).any()):
            raise ValueError("a pixel is 7.0")
        if self.fails == "memory" and bool((x == 7).any()):
            raise torch.OutOfMemoryError("no memory")
        y = self.line(x)
        if self.fails == "backward" and y.requires_grad and bool((x == 7).any()):
            y.register_hook(self._raise)
        return y

    @staticmethod
    def _raise(g: Tensor) -> Tensor:
        raise RuntimeError("backward fails")


def by_label(output: Tensor, label: Tensor) -> Tensor:
    if bool((label > 1).any()):
        raise IndexError("label 9 is out of range")
    return functional.binary_cross_entropy_with_logits(output.flatten(), label.float(), reduction="none")


def of_another_shape(output: Tensor, label: Tensor) -> Tensor:
    losses = functional.binary_cross_entropy_with_logits(
        output.flatten(), label.clamp(max=1).float(), reduction="none"
    )
    return losses.mean() if bool((label > 1).any()) else losses


def total(
    model: nn.Module, loss: Callable[..., Tensor], draw: Draw, *, isolates: bool = True, together: bool = True
) -> StepSum:
    optimizer = OptimizerConfig(name="sgd", lr=0.1)
    step = PrivateStep(model, PLAN, loss=loss, optimizer=optimizer, together=together)
    step.shape, step.isolates = ChunkShape(8, 1, 1), isolates
    with step:
        return step.clipped_sum(draw)


FAULTS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "in the forward pass": ("forward", by_label),
    "out of memory": ("memory", by_label),
    "in the backward pass": ("backward", by_label),
    "in the loss": ("", by_label),
    "a loss of another shape": ("", of_another_shape),
}


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_patient_who_fails_counts_as_zero_and_the_others_as_ever(fault: str, together: bool) -> None:
    fails, loss = FAULTS[fault]
    torch.manual_seed(0)
    model = Touchy(fails)
    image, label = torch.randn(5, 6), torch.tensor([0, 1, 1, 0, 1])
    odd_image, odd_label = image.clone(), label.clone()
    odd_image[2, 3], odd_label[2] = 7.0, 9
    if fails:
        odd_label[2] = 1
    others = [0, 1, 3, 4]
    expected = total(model, loss, Draw(image[others], label[others]), together=together)
    found = total(model, loss, Draw(odd_image, odd_label), together=together)
    assert (found.failed, found.patients, found.nonfinite) == (1, 5, 0)
    assert expected.failed == 0
    for one, other in zip(expected.tensors, found.tensors, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
        assert bool(one.any())
    with pytest.raises(Exception):  # noqa: B017 - untried networks and losses say what is wrong with them
        total(model, loss, Draw(odd_image, odd_label), isolates=False, together=together)


def test_a_forward_pass_that_failed_leaves_nothing_to_the_next() -> None:
    torch.manual_seed(0)
    model = Touchy("forward")
    image, label = torch.randn(5, 6), torch.tensor([0, 1, 1, 0, 1])
    first = total(model, by_label, Draw(image, label))
    step = PrivateStep(model, PLAN, loss=by_label, optimizer=OptimizerConfig(name="sgd", lr=0.1))
    step.shape, step.isolates = ChunkShape(8, 1, 1), True
    with step:
        step.clipped_sum(Draw(torch.full((5, 6), 7.0), label))
        again = step.clipped_sum(Draw(image, label))
    for one, other in zip(first.tensors, again.tensors, strict=True):
        assert torch.equal(one, other)
    assert not any("weight" in module.__dict__ for module in model.modules())


class Branching(nn.Module):
    """Not proved to keep records apart: takes another way, or keeps something, where a pixel is large."""

    seen: Tensor

    def __init__(self, large: str) -> None:
        super().__init__()
        self.line, self.last, self.large = nn.Linear(6, 6), nn.Linear(6, 1), large
        self.scale = nn.Parameter(torch.ones(6))
        self.without_rule = [self.scale]
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.line(x) + self.seen
        if bool((x > 5).any()):
            if self.large == "another way":
                return self.last(hidden * self.without_rule[0])
            with torch.no_grad():
                if self.large == "in place":
                    self.seen.add_(x.mean(0))
                elif self.large == "another tensor":
                    self.seen = x.mean(0)
                else:
                    self.line.weight.mul_(2)
        return self.last(hidden)


@pytest.mark.parametrize("large", ["another way", "in place", "another tensor", "weights"])
def test_what_one_patient_does_to_network_or_engine_reaches_no_other(
    large: str, recwarn: pytest.WarningsRecorder
) -> None:
    torch.manual_seed(0)
    model = Branching(large)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image, label = torch.randn(4, 6), torch.tensor([0, 1, 1, 0])
    image[1:, 2] = 7.0
    each = [total(model, by_label, Draw(image[[i]], label[[i]]), together=False) for i in range(4)]
    all_four = total(model, by_label, Draw(image, label), together=False)
    assert all_four.failed == sum(one.failed for one in each)
    for n, found in enumerate(all_four.tensors):
        assert torch.allclose(found, sum((one.tensors[n] for one in each), torch.zeros(())), atol=1e-6)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not recwarn.list  # a warning would tell of a patient
