"""The batch dimension is followed through every operation; what mixes records, or may, is not proved."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dptrain import models
from dptrain.engine.chunks import ChunkShape, enough_rows, filled
from dptrain.models.losses import loss_for_task
from dptrain.models.tracing import trace
from dptrain.models.ways import gradient_code, last_digits, proof


class Net(nn.Module):
    """Layers around one function of the features [N, 8]."""

    table: Tensor

    def __init__(self, inner: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 8), nn.Linear(8, 1)
        self.scale = nn.Parameter(torch.ones(8))
        self.inner = inner
        self.register_buffer("table", torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self, torch.tanh(self.first(x.flatten(1)))))


def of(inner: Callable[[Net, Tensor], Tensor]) -> models.Way:
    torch.manual_seed(0)
    return proof(Net(inner), loss_for_task("binary"), torch.rand(6, 12), torch.ones(6))


def by_value(net: Net, x: Tensor) -> Tensor:
    return x / 255 if x.max() > 10 else x


def guarded(net: Net, x: Tensor) -> Tensor:
    return x if torch.isfinite(x).all() else torch.zeros_like(x)


def larger_batches(net: Net, x: Tensor) -> Tensor:
    return x.roll(8, 0) if len(x) >= 16 else x


def written(net: Net, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:-1] = x[1:]
    return out


def own_attention(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


def unfolded_without_gradients(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        folded = x.T.reshape(-1) * 2
    return x + folded.view(x.shape[0], 8)


MIXING: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "a branch on values": by_value,
    "a branch on all values": guarded,
    "a branch on the number of records": larger_batches,
    "nothing of the mean": lambda net, x: x + 0 * x.mean(),
    "nothing of the mean over records": lambda net, x: x + 0 * x.mean(0),
    "the largest of the batch": lambda net, x: x - torch.relu(x.detach().abs().max() - 50),
    "rolled": lambda net, x: x.roll(1, 0),
    "rolled as one": lambda net, x: x.roll(1),
    "rolled both ways": lambda net, x: x.roll(8, 0).tanh().roll(-8, 0),
    "turned over": lambda net, x: x.flip(0),
    "the first record": lambda net, x: x + x[:1],
    "one record": lambda net, x: x + x[0],
    "all but the last": lambda net, x: torch.cat([x[1:], x[:1]]),
    "halves": lambda net, x: torch.cat(x.chunk(2)[::-1]),
    "softmax over records": lambda net, x: x.softmax(0),
    "sums so far": lambda net, x: x.cumsum(0),
    "norms of records": lambda net, x: F.normalize(x, dim=0),
    "the number of records": lambda net, x: x * x.shape[0],
    "divided by the number of records": lambda net, x: x / len(x),
    "records attend to records": lambda net, x: (x @ x.T).softmax(1) @ x,
    "folded the other way": lambda net, x: x.T.reshape(-1, 8),
    "folded behind places and taken out as if before": lambda net, x: (
        x.view(-1, 4, 2).transpose(0, 1).reshape(-1, 2).view(x.shape[0], 4, 2).flatten(1)
    ),
    "added to another order": lambda net, x: (
        x.view(-1, 4, 2).transpose(0, 1).reshape(-1, 2) + x.view(-1, 4, 2).reshape(-1, 2)
    ).view(x.shape[0], 8),
    "folded into what comes before": lambda net, x: x.unsqueeze(0).expand(3, -1, -1).reshape(-1, 3, 8).mean(1),
    "strided": lambda net, x: x.reshape(2, -1, 8).transpose(0, 1).reshape(-1, 8),
    "batch norm": lambda net, x: F.batch_norm(x, None, None, training=True),
    "chosen rows": lambda net, x: x[torch.arange(len(x)).flip(0)],
    "sorted": lambda net, x: x.sort(0).values,
    "written into rows": written,
    "einsum": lambda net, x: torch.einsum("ni,mi->ni", x, x),
    "as weights": lambda net, x: F.linear(x, x[:8].T @ x[:8]),
    "counted": lambda net, x: x + torch.arange(len(x))[:, None],
    "folded where no gradients are taken": unfolded_without_gradients,
    "shared random numbers": lambda net, x: x * torch.rand(1),
    "shared random places": lambda net, x: x[:, torch.randperm(8)],
    "random numbers of Python": lambda net, x: x * random.random(),
    "random numbers of NumPy": lambda net, x: x * float(np.random.normal()),  # noqa: NPY002
    "dropout of a weight": lambda net, x: x + F.dropout(net.scale, 0.5, training=True),
    "a difference of neighbours": lambda net, x: x - F.pad(x, (0, 0, 1, 0))[:-1],
}

KEPT_APART: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "elementwise": lambda net, x: torch.where(x > 0, x.clamp(max=3), x.exp()) * net.scale + x.detach(),
    "in place": lambda net, x: x.clone().mul_(2).add_(net.scale).relu_(),
    "own sums": lambda net, x: x - x.mean(1, keepdim=True) + x.softmax(1) * x.amax(1, keepdim=True),
    "norms": lambda net, x: F.layer_norm(F.normalize(x, dim=1), (8,)) + F.group_norm(x, 2),
    "folded and back": lambda net, x: x.view(-1, 2, 4).flatten(0, 1).tanh().view(x.shape[0], 8),
    "own attention": lambda net, x: own_attention(x.view(-1, 1, 4, 2)).flatten(1),
    "turned and back": lambda net, x: x.view(-1, 2, 4).permute(2, 1, 0).tanh().permute(2, 1, 0).flatten(1),
    "folded behind places and back": lambda net, x: (
        x.view(-1, 4, 2).transpose(0, 1).reshape(-1, 2).tanh().view(4, x.shape[0], 2).transpose(0, 1).reshape(-1, 8)
    ),
    "a token": lambda net, x: torch.cat([net.scale.expand(x.shape[0], 1, 8), x.unsqueeze(1)], 1).mean(1),
    "a table": lambda net, x: x + net.table[torch.tensor([0, 3])].sum(0),
    "a record's own numbers": lambda net, x: x + F.embedding(x.argmax(1) % 5, net.table),
    "products": lambda net, x: torch.einsum("ni,ij->nj", x, net.table.T @ net.table) + x @ torch.eye(8),
    "made for each": lambda net, x: x + torch.zeros(x.shape[0], 8) + torch.rand(x.shape[0], 1),
    "places": lambda net, x: x[:, [3, 2, 1, 0, 7, 6, 5, 4]].roll(1, 1).flip(1),
    "a weight that is dropped out with chance 0": lambda net, x: x + F.dropout(net.scale, 0.0, training=True),
    "a weight that would be dropped out in training": lambda net, x: x + F.dropout(net.scale, 0.5, training=False),
    "dropped out": lambda net, x: F.dropout(x, 0.3, training=True),
    "convolved": lambda net, x: F.conv1d(x.unsqueeze(1), net.scale[:3].view(1, 1, 3), padding=1).squeeze(1),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_records_or_may_is_not_proved(name: str) -> None:
    found = of(MIXING[name])
    assert not found.together, found


@pytest.mark.parametrize("name", KEPT_APART)
def test_what_keeps_records_apart_is_proved(name: str) -> None:
    found = of(KEPT_APART[name])
    assert found.together, found


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    from monai.networks import nets

    return {
        "resnet18": (nets.resnet18(spatial_dims=2, n_input_channels=1, num_classes=1), (1, 32, 32)),
        "unet": (nets.UNet(2, 1, 2, (4, 8, 16), (2, 2)), (1, 16, 16)),
        "segresnet": (nets.SegResNet(2, 8, 1, 2), (1, 16, 16)),
        "dynunet": (nets.DynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2]), (1, 16, 16)),
        "unetr": (nets.UNETR(1, 2, (16, 16), 4, 16, 32, 2, spatial_dims=2), (1, 16, 16)),
        "small_cnn": (models.small_cnn(), (1, 28, 28)),
        "mlp": (models.mlp(12, 1), (12,)),
    }


@pytest.mark.parametrize("name", ["resnet18", "unet", "segresnet", "dynunet", "unetr", "small_cnn", "mlp"])
def test_networks_of_the_field_are_proved(name: str) -> None:
    network, shape = networks()[name]
    network, _ = models.make_private(network)
    task = "binary" if name in ("resnet18", "small_cnn", "mlp") else "segmentation"
    image, label = models.made_up(shape, task, 2, 2, 0)
    found = trace(network.train(), loss_for_task(task), image.float(), label)
    assert found.proved, found
    assert found.operations > 5


def test_code_in_the_backward_pass_is_no_part_of_a_proof() -> None:
    class Mean(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g.mean(0, keepdim=True).expand_as(g)

    def hooked(net: Net, x: Tensor) -> Tensor:
        x.register_hook(lambda g: g / g.norm())
        return x

    given = torch.rand(4, 12), torch.ones(4)
    assert "Mean" in str(gradient_code(Net(lambda net, x: Mean.apply(x)), loss_for_task("binary"), *given))
    assert "hooks" in str(gradient_code(Net(hooked), loss_for_task("binary"), *given))
    net = Net(lambda net, x: x)
    net.last.register_full_backward_hook(lambda module, g, _: g)
    assert "last has a hook" in str(gradient_code(net, loss_for_task("binary"), *given))
    assert gradient_code(Net(lambda net, x: x), loss_for_task("binary"), *given) is None


def test_frozen_parts_are_followed_too() -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(12, 8))
    for layer, proved in ((nn.Tanh(), True), (nn.Softmax(0), False)):
        network = models.BodyAndHead(nn.Sequential(body, layer), nn.Linear(8, 1))
        models.split_frozen(network, train="head")
        assert proof(network, loss_for_task("binary"), torch.rand(4, 12), torch.ones(4)).together == proved


# --- last digits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_patient", [1, 3])
def test_last_digits_do_not_follow_the_others(of_patient: int) -> None:
    """The fixed shape does what it is for, on the processor at hand."""
    torch.manual_seed(0)
    image, label = models.made_up((1, 12, 12), "binary", 16, 2, 0)
    shape = ChunkShape(16, of_patient, 1)
    way = last_digits(models.small_cnn(1, 1, (4, 8)), loss_for_task("binary"), image.float(), label, shape)
    assert way.together, way


def test_kernels_that_follow_the_place_are_found() -> None:
    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(12, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.line(x) * (1 + 1e-6 * torch.arange(len(x))[:, None])

    image, label = models.made_up((12,), "binary", 8, 2, 0)
    way = last_digits(Uneven(), loss_for_task("binary"), image.float(), label, ChunkShape(8, 1, 1))
    assert not way.together
    assert "at another place" in way.why


def test_the_shape_of_a_chunk_is_public() -> None:
    assert enough_rows(64, 200, 1, 1) == 64
    assert enough_rows(64, 9, 1, 1) == 16
    assert enough_rows(64, 9, 8, 2) == 32
    assert enough_rows(64, 1, 40, 4) == 40
    assert filled(torch.ones(2, 3), 4).tolist() == [[1] * 3, [1] * 3, [0] * 3, [0] * 3]
    assert filled(torch.ones(2), 2, -1).tolist() == [1, 1]


@pytest.mark.parametrize("rows", [4, 6])
def test_chunks_are_copies_of_one_layout(rows: int) -> None:
    """Full ones too: a network that writes into its input must not change what is run again where a chunk fails."""
    image = torch.rand(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    chunk = filled(image, rows)
    assert chunk.is_contiguous()
    assert torch.equal(chunk[:4], image)
    assert chunk.untyped_storage().data_ptr() != image.untyped_storage().data_ptr()
