"""Small networks that suit private training: few parameters, GroupNorm, no layer that mixes records.

With noise on every parameter a smaller network often ends better; GroupNorm keeps gradients of like size.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dptrain.models.private import group_count


class BodyAndHead(nn.Module):
    """A network in two parts: `body` (a sequence of stages) makes features, `head` makes logits of them.

    The parts can be trained apart: see :func:`dptrain.models.split_frozen`. `last_blocks` says how many of
    the body's last stages are trained by `train="last_blocks"`.
    """

    def __init__(self, body: nn.Sequential, head: nn.Module, *, last_blocks: int = 1) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.last_blocks = last_blocks

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def linear_head(in_features: int, num_classes: int) -> nn.Module:
    """Logistic regression: [N, …] flattened to [N, in_features] -> [N, num_classes]; weights start at zero."""
    head = nn.Linear(in_features, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return BodyAndHead(nn.Sequential(nn.Flatten()), head, last_blocks=0)


def mlp(in_features: int, num_classes: int, hidden: Sequence[int] = (64, 32)) -> nn.Module:
    """Fully connected network for tables: [N, in_features] -> [N, num_classes]."""
    stages: list[nn.Module] = []
    width = in_features
    for size in hidden:
        stages.append(nn.Sequential(nn.Linear(width, size), nn.ReLU()))
        width = size
    return BodyAndHead(nn.Sequential(nn.Flatten(), *stages), nn.Linear(width, num_classes))


def _stage(conv: type[nn.Module], pool: nn.Module, inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        conv(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.GroupNorm(group_count(outputs), outputs),
        nn.ReLU(),
        pool,
    )


def small_cnn(in_channels: int = 1, num_classes: int = 1, channels: Sequence[int] = (16, 32, 64)) -> nn.Module:
    """Convolutional network for small images: [N, in_channels, H, W] with sides of 28 to 64 -> [N, num_classes].

    Each stage is a 3x3 convolution, GroupNorm, ReLU and a halving of the sides; then the mean over the image.
    """
    stages: list[nn.Module] = []
    width = in_channels
    for size in channels:
        stages.append(_stage(nn.Conv2d, nn.MaxPool2d(2), width, size, 3))
        width = size
    body = nn.Sequential(*stages, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    return BodyAndHead(body, nn.Linear(width, num_classes), last_blocks=2)


def cnn1d(
    in_channels: int = 1, num_classes: int = 1, channels: Sequence[int] = (16, 32, 64), kernel_size: int = 7
) -> nn.Module:
    """Convolutional network for signals such as ECG beats: [N, in_channels, length] -> [N, num_classes]."""
    stages: list[nn.Module] = []
    width = in_channels
    for size in channels:
        stages.append(_stage(nn.Conv1d, nn.MaxPool1d(2), width, size, kernel_size))
        width = size
    body = nn.Sequential(*stages, nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten()))
    return BodyAndHead(body, nn.Linear(width, num_classes), last_blocks=2)


def unet3d(
    in_channels: int = 1,
    out_channels: int = 2,
    channels: Sequence[int] = (8, 16, 32, 64),
    num_res_units: int = 1,
) -> nn.Module:
    """MONAI's residual U-Net for volumes: [N, in_channels, D, H, W] -> [N, out_channels, D, H, W].

    Sides must be divisible by 2 for every level after the first (32 and 48 suit the default). InstanceNorm
    without running statistics, so that it is fit for private training as it is.
    """
    from monai.networks.nets.unet import UNet

    return UNet(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        channels=tuple(channels),
        strides=(2,) * (len(channels) - 1),
        num_res_units=num_res_units,
        norm="INSTANCE",
    )


def sequential(modules: Sequence[nn.Module]) -> nn.Sequential:
    """Layers one after another, for configurations: torch's own Sequential takes no named arguments."""
    return nn.Sequential(*modules)


class FirstOutput(nn.Module):
    """A network that gives several outputs, of which the first is trained on (MONAI's ViT, for instance)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        output = self.network(x)
        while isinstance(output, tuple | list):
            output = output[0]
        first: Tensor = output
        return first


def first_output(network: nn.Module) -> nn.Module:
    """The network, reduced to the first of its outputs."""
    return FirstOutput(network)
