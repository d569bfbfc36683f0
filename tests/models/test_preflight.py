"""Planted faults that mix patients: each is refused, by the static check or by trying it."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.utils.data import RandomSampler, WeightedRandomSampler

from dptrain import models
from dptrain.data import PatientLoader, PoissonSampler
from dptrain.errors import CheckRefused
from dptrain.models.check import check_rules
from dptrain.models.draws import FixedDraws
from dptrain.models.preflight import check_separable
from tests.data.shared import FakeGrant
from tests.data.test_sampling import cohort_of, plan


def binary(output, label):
    return nn.functional.binary_cross_entropy_with_logits(output.flatten(), label.to(output), reduction="none")


def multiclass(output, label):
    return nn.functional.cross_entropy(output, label, reduction="none")


def dense(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), *middle, nn.Linear(16, 1))


def refused(findings):
    return [finding for finding in findings if finding.status == "refused"]


def tried(model, loss=binary, kind="binary", shape=(1, 8, 8)):
    return check_separable(model, loss, shape, kind)


class BatchMean(nn.Module):
    """Subtracts the batch's mean; `gradient=False` hides it from the derivative."""

    def __init__(self, gradient: bool = True) -> None:
        super().__init__()
        self.gradient = gradient

    def forward(self, x):
        return x - (x if self.gradient else x.detach()).mean(0)


class InBatchAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x[None], x[None], x[None])[0][0]


class ScaledBySize(nn.Module):
    def forward(self, x):
        return x / x.shape[0]


class Neighbour(nn.Module):
    """Takes a little of the next row: only the order of the batch gives it away in some rows."""

    def forward(self, x):
        return x + 0.01 * x.roll(1, 0)


class Position(nn.Module):
    def forward(self, x):
        return x * torch.arange(1, len(x) + 1, dtype=x.dtype)[:, None]


class Remembers(nn.Module):
    """Keeps the last batch's mean as a plain attribute."""

    last = 0.0

    def forward(self, x):
        out = x - self.last
        self.last = x.detach().mean()
        return out


class Running(nn.Module):
    """Uses nobody else's values, but writes their mean into a buffer that is saved with the model."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(16))

    def forward(self, x):
        self.seen.mul_(0.9).add_(x.detach().mean(0))
        return x


class FlippedGradient(nn.Module):
    """Forward looks at one record alone; backward adds the other records' gradients."""

    class _Mix(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad + grad.sum(0, keepdim=True)

    def forward(self, x):
        return self._Mix.apply(x)


@pytest.mark.parametrize(
    "fault",
    [
        nn.BatchNorm1d(16),
        BatchMean(),
        BatchMean(gradient=False),
        InBatchAttention(),
        ScaledBySize(),
        Neighbour(),
        Position(),
        Remembers(),
        Running(),
        FlippedGradient(),
        nn.BatchNorm1d(16, track_running_stats=False),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_layers_that_mix_patients_are_refused_at_run_time(fault):
    found = refused(tried(dense(fault)))
    assert found
    assert all(finding.remedy for finding in found)


def test_a_zero_head_does_not_hide_a_leak():
    net = dense(BatchMean())
    nn.init.zeros_(net[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(net[-1].bias)  # type: ignore[arg-type]
    assert refused(tried(net))
    assert not net[-1].weight.any()  # a copy was tried


@pytest.mark.parametrize(
    "harmless",
    [
        nn.Dropout(0.5),
        nn.GroupNorm(4, 16),
        nn.LayerNorm(16),
        nn.RReLU(),
        nn.AlphaDropout(0.3),
        models.FrozenBatchNorm(16),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_look_at_one_record_pass(harmless):
    assert not refused(tried(dense(harmless)))


def test_losses_that_couple_patients_are_refused():
    from monai.losses import ContrastiveLoss, DiceCELoss, DiceLoss

    net = nn.Conv2d(1, 2, 1)
    for loss in (
        DiceLoss(batch=True, reduction="none"),
        DiceCELoss(batch=True),
        ContrastiveLoss(),
        nn.CrossEntropyLoss(),
    ):
        static = [f for f in models.preflight(net, loss, (1, 8, 8), "segmentation") if f.what.startswith("loss")]
        assert refused(static), type(loss).__name__

    def batch_dice(output, label):
        soft = output.softmax(1)[:, 1:]
        both = (soft * label).sum()
        return (1 - 2 * both / (soft.sum() + label.sum())).expand(len(output))

    assert "another patient" in refused(tried(net, batch_dice, "segmentation"))[0].why

    def focal_on_batch(output, label):
        each = multiclass(output.mean((2, 3)), label.flatten(1)[:, 0])
        return each / each.detach().sum()  # self-normalised weights

    assert refused(tried(net, focal_on_batch, "segmentation"))


def test_a_loss_without_a_value_a_record_is_refused():
    found = refused(tried(dense(), lambda output, label: binary(output, label).mean()))
    assert "one value a record" in found[0].why


def test_batchnorm_is_found_statically_unless_it_is_frozen():
    net = dense(nn.BatchNorm1d(16))
    assert "BatchNorm1d '3'" in refused(models.preflight(net, binary, (1, 8, 8), "binary"))[0].what
    net.eval()  # train() would switch it on again
    assert refused(models.preflight(net, binary, (1, 8, 8), "binary"))
    frozen = models.split_frozen(net, "head")
    assert not refused(models.preflight(nn.Sequential(*frozen), binary, (1, 8, 8), "binary"))  # type: ignore[arg-type]
    for choice in ("replace", "freeze"):
        private, changes = models.make_private(dense(nn.BatchNorm1d(16)), batchnorm=choice)
        assert changes
        assert not refused(models.preflight(private, binary, (1, 8, 8), "binary"))


def test_transforms_that_mix_records_are_refused_and_crops_are_views():
    from monai.transforms import Compose, CutMixd, CutOut, MixUp, RandCropByPosNegLabeld, RandFlip

    crops = RandCropByPosNegLabeld(keys="image", label_key="label", spatial_size=(3, 3), num_samples=4)
    for bad in (
        [Compose([RandFlip(), MixUp(4)])],
        CutMixd(keys="image", batch_size=3),
        CutOut(2),
        [{"_target_": "monai.transforms.Compose", "transforms": [{"_target_": "monai.transforms.MixUpd"}]}],
        ["monai.transforms.CutMixD", "torchvision.transforms.v2.MixUp"],
    ):
        found = refused(models.preflight(dense(), binary, (1, 8, 8), "binary", transforms=bad))
        assert found, bad
        assert "several patients" in found[0].why
    named = {"_target_": "monai.transforms.RandSpatialCropSamplesd", "num_samples": 3, "keys": ["image"]}
    fine = models.preflight(dense(), binary, (1, 8, 8), "binary", transforms=[crops, named, RandFlip()])
    assert not refused(fine)
    assert [f.why for f in fine if "crops" in f.why] == [
        "its 4 crops are views of their patient",
        "its 3 crops are views of their patient",
    ]


class Turned(nn.Module):
    """An attention layer that takes the sequence before the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)

    def forward(self, x):
        return self.layer(x.transpose(0, 1)).transpose(0, 1).flatten(1)[:, :1]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory, self.head = nn.LSTM(8, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.memory(x)[0][:, -1])


def test_what_the_engine_would_refuse_is_found_before_any_charge():
    """Rows that do not lie with their records pass the separability test, but no step would."""
    torch.manual_seed(0)
    net = Turned()
    assert not refused(tried(net, shape=(4, 8)))
    image, label = models.made_up((4, 8), "binary", 4, 2, 0)
    state = torch.random.get_rng_state()
    found = refused(check_rules(net, binary, image.float(), label))
    assert "own rows" in found[0].why
    assert "batch_first" in found[0].remedy
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any("weight" in module.__dict__ for module in net.modules())


def test_layers_taken_one_patient_at_a_time_are_said_with_their_cost():
    image, label = models.made_up((6, 8), "binary", 4, 2, 0)
    found = check_rules(Recurrent(), binary, image.float(), label)
    (finding,) = found  # said once
    assert finding.status == "ok"
    assert "memory" in finding.why
    assert "backward pass for each" in finding.why


def test_layers_that_vmap_takes_are_not_said_to_be_slow():
    image, label = models.made_up((64,), "binary", 4, 2, 0)
    for cell in (nn.GRUCell(64, 1), nn.RNNCell(64, 1)):
        assert not check_rules(cell, binary, image.float(), label)


def test_a_network_of_one_finding_passes():
    def loss(output, label):
        return nn.functional.binary_cross_entropy_with_logits(output, label.to(output), reduction="none").mean(1)

    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    assert not refused(models.preflight(net, loss, (1, 8, 8), "multilabel", classes=1))


def test_samplers_other_than_poisson_draws_are_refused():
    for sampler in (WeightedRandomSampler([1.0], 1), RandomSampler([1, 2], replacement=True), RandomSampler([1, 2])):
        assert refused(models.preflight(dense(), binary, (1, 8, 8), "binary", sampler=sampler))
    for name in ("dptrain.data.PoissonSampler", "dptrain.data.PatientLoader"):
        assert not refused(models.preflight(dense(), binary, (1, 8, 8), "binary", sampler=name))


def test_a_sampler_is_judged_by_what_it_is_and_not_by_what_it_is_called():
    impostor = type("PoissonSampler", (), {})()
    p = plan()
    loader = PatientLoader(cohort_of([1, 2]), p, FakeGrant())
    for sampler in (loader, PoissonSampler(2, p.sample_rate)):
        assert not refused(models.preflight(dense(), binary, (1, 8, 8), "binary", sampler=sampler))
    (finding,) = refused(models.preflight(dense(), binary, (1, 8, 8), "binary", sampler=impostor))
    assert "does not draw each patient independently" in finding.why
    assert "PatientLoader" in finding.remedy


def test_refusal_ends_with_exit_code_4_and_every_remedy():
    findings = models.preflight(
        dense(nn.BatchNorm1d(16)), nn.CrossEntropyLoss(), (1, 8, 8), "binary", sampler="Weighted"
    )
    with pytest.raises(CheckRefused) as caught:
        models.refuse(findings)
    assert caught.value.exit_code == 4
    for finding in refused(findings):
        assert finding.why in caught.value.message
        assert finding.remedy in caught.value.remedy
    models.refuse([finding for finding in findings if finding.status == "ok"])


def test_findings_show_as_a_table():
    from rich.console import Console

    findings = models.preflight(dense(nn.BatchNorm1d(16)), binary, (1, 8, 8), "binary")
    findings.append(models.Finding("x[red]y", "changed", "why", "do"))
    page = io.StringIO()
    models.print_findings(findings, console=Console(file=page, width=160))
    text = page.getvalue()
    assert "refused" in text.splitlines()[4]
    for word in ("BatchNorm1d '3'", "batchnorm=replace", "changed", "x[red]y"):
        assert word in text


def test_a_network_that_does_not_run_is_refused_with_the_shape():
    found = refused(tried(dense(), shape=(3, 8, 8)))
    assert "does not run" in found[0].why
    assert "[3, 8, 8]" in found[0].remedy


def test_outputs_that_are_no_tensor_are_refused_with_the_remedy():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    found = refused(tried(dense(Two())[:4]))
    assert "first_output" in found[0].remedy
    assert not refused(tried(models.first_output(nn.Sequential(*dense(), Two()))))


def test_several_tasks_pass():
    assert not refused(check_separable(models.small_cnn(3, 4), multiclass, (3, 16, 16), "multiclass", classes=4))
    multilabel = nn.BCEWithLogitsLoss(reduction="none")
    assert not refused(
        check_separable(
            models.cnn1d(1, 5), lambda o, y: multilabel(o, y.to(o)).mean(1), (1, 32), "multilabel", classes=5
        )
    )


def test_fixed_draws_belong_to_the_record():
    drop = nn.Dropout(0.5)
    x = torch.ones(3, 50)
    with FixedDraws([7, 8, 9]):
        together = drop(x)
    with FixedDraws([9, 7]):
        apart = drop(x[:2])
    with FixedDraws([9, 7], seed=1):
        other = drop(x[:2])
    assert torch.equal(together[2], apart[0])
    assert torch.equal(together[0], apart[1])
    assert not torch.equal(other, apart)
    assert 0.2 < (together == 0).float().mean() < 0.8
    with FixedDraws([1]):
        assert abs(torch.empty(10_000).normal_(3, 2).mean() - 3) < 0.1
        assert abs(torch.rand(10_000).mean() - 0.5) < 0.05
        assert abs(torch.empty(10_000).uniform_(2, 4).mean() - 3) < 0.05
    windows = torch.ones(6, 40)
    with FixedDraws([1, 2]):
        both = drop(windows)
    with FixedDraws([2]):
        one = drop(windows[:3])
    assert torch.equal(both[3:], one)


class Flattened(nn.Module):
    """A small network whose input or output another class changes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return self.inner(x)


class EightBit(Flattened):
    def forward(self, x):
        return self.inner(x / 255 if x.max() > 10 else x)


class Limited(Flattened):
    def forward(self, x):
        y = self.inner(x)
        return y - torch.relu(y.detach().abs().max() - 50)


class Guarded(Flattened):
    def forward(self, x):
        return self.inner(x if torch.isfinite(x).all() else torch.zeros_like(x))


class WithNothingOfTheMean(Flattened):
    def forward(self, x):
        return self.inner(x) + 0 * x.mean()


@pytest.mark.parametrize("network", [EightBit, Guarded, WithNothingOfTheMean])
def test_networks_that_look_at_extreme_neighbours_are_refused(network):
    """They passed beside tame ones, and moved a sum by up to 56 C."""
    torch.manual_seed(0)
    assert "beside patients whose pixels are" in refused(tried(network(), shape=(1, 8, 8)))[0].why


class KeepsTheLarge(Flattened):
    """One patient at a time it would run, and hand one patient's pixels on to the next."""

    kept = 0.0

    def forward(self, x):
        y = self.inner(x) + self.kept
        if x.max() > 300:
            self.kept = float(x[torch.isfinite(x)].mean())
        return y


def test_what_a_network_keeps_of_an_extreme_batch_is_found_in_the_next():
    torch.manual_seed(0)
    assert refused(tried(KeepsTheLarge(), shape=(1, 8, 8)))


@pytest.mark.parametrize("network", [EightBit, Limited, Guarded, WithNothingOfTheMean])
def test_what_no_trial_finds_is_not_proved_either(network):
    torch.manual_seed(0)
    image, label = models.made_up((1, 8, 8), "binary", 4, 2, 0)
    assert models.proof(Flattened(), binary, image.float(), label).together
    assert not models.proof(network(), binary, image.float(), label).together


class Rolled(nn.Module):
    """Moves rows and moves them back: right by itself, but rows do not lie with their records in between."""

    def __init__(self, by: int, least: int = 0) -> None:
        super().__init__()
        self.line, self.head, self.by, self.least = nn.Linear(4, 4), nn.Linear(4, 1), by, least

    def forward(self, x):
        by = self.by if len(x) >= self.least else 0
        return self.head(self.line(x.roll(by, 0)).tanh().roll(-by, 0))


@pytest.mark.parametrize(("by", "least"), [(8, 0), (1, 0), (9, 16), (8, 16)])
def test_rows_that_move_among_many_are_found(by, least):
    """The verifying weights repeated every eight patients, and the records were four."""
    image, label = models.made_up((4,), "binary", 18, 2, 0)
    network = Rolled(by, least)
    assert "own rows" in refused(check_rules(network, binary, image.float(), label))[0].why
    assert not models.proof(network, binary, image.float(), label).together


def test_a_network_that_is_another_under_the_engine_is_refused():
    """torch.func.functional_call with other tensors than the layer's own was ignored while the engine watched."""

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line, self.head = nn.Linear(4, 4), nn.Linear(4, 1)
            self.scale = nn.Parameter(torch.tensor(5.0))

        def forward(self, x):
            weights = {"weight": self.line.weight * self.scale, "bias": self.line.bias * 0}
            return self.head(torch.tanh(torch.func.functional_call(self.line, weights, x)))

    image, label = models.made_up((4,), "binary", 4, 2, 0)
    findings = check_rules(Called(), binary, image.float(), label)
    assert "another output while the engine watches" in refused(findings)[0].why
