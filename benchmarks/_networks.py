"""MONAI's networks in small sizes: the table that `benchmarks.coverage` goes through.

Widths, depths and image sizes are cut so that the table runs in minutes; every kind of layer, block and
connection of the network stays. Dropout and stochastic depth are on wherever the network has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Entry:
    """A network: name, spatial dimensions, shape of one record (channels first), how to build it."""

    network: str
    dims: int
    shape: tuple[int, ...]
    build: Callable[[], nn.Module]
    listed: bool  # named in the goal; the others are further networks of monai.networks.nets
    note: str = ""


def entries() -> Iterator[Entry]:
    """Every network of the table, listed ones first."""
    yield from _listed()
    yield from _further()


def _listed() -> Iterator[Entry]:
    from monai.networks import nets

    def entry(name: str, dims: int, side: int, build: Callable[[], nn.Module], note: str = "") -> Entry:
        return Entry(name, dims, (1, *(side,) * dims), build, True, note)

    small: dict[str, Any] = {"in_channels": 1, "out_channels": 2}
    stages = {"channels": (8, 16, 32), "strides": (2, 2)}
    quarter = [16, 32, 64, 128]
    features = (8, 8, 16, 32, 64, 8)
    for d in (2, 3):
        side = 32 if d == 2 else 16

        def resnet(block: str, layers: list[int], d: int = d) -> nn.Module:
            return nets.ResNet(block, layers, quarter, spatial_dims=d, n_input_channels=1, num_classes=3)

        yield entry("ResNet-18", d, side, lambda r=resnet: r("basic", [2, 2, 2, 2]), "quarter width")
        yield entry("ResNet-50", d, side, lambda r=resnet: r("bottleneck", [3, 4, 6, 3]), "quarter width")
        yield entry(
            "DenseNet121",
            d,
            32,
            lambda d=d: nets.DenseNet121(d, 1, 3, init_features=16, growth_rate=8, dropout_prob=0.1),
            "quarter width",
        )
        se = {"spatial_dims": d, "in_channels": 1, "num_classes": 3, "dropout_prob": 0.2}
        yield entry("SEResNet50", d, side, lambda se=se: nets.SEResNet50(layers=(1, 2, 1, 1), **se), "5 of 16 blocks")
        yield entry("SENet154", d, side, lambda se=se: nets.SENet154(layers=(1, 1, 1, 1), **se), "4 of 50 blocks")
        yield entry(
            "EfficientNet-B0",
            d,
            64 if d == 2 else 32,
            lambda d=d: nets.EfficientNetBN(
                "efficientnet-b0", pretrained=False, spatial_dims=d, in_channels=1, num_classes=3
            ),
        )
        yield entry(
            "ViT",
            d,
            side,
            lambda d=d, s=side: nets.ViT(
                1, s, 8, 48, 64, 4, 4, classification=True, num_classes=3, dropout_rate=0.1, spatial_dims=d,
                qkv_bias=True,
            ),
            "4 of 12 blocks",
        )  # fmt: skip
        yield entry("UNet", d, side, lambda d=d: nets.UNet(d, **small, **stages, num_res_units=2, dropout=0.1))
        yield entry("BasicUNet", d, 32, lambda d=d: nets.BasicUNet(d, 1, 2, features, dropout=0.1))
        yield entry("BasicUNetPlusPlus", d, 32, lambda d=d: nets.BasicUNetPlusPlus(d, 1, 2, features, dropout=0.1))
        yield entry(
            "DynUNet",
            d,
            side,
            lambda d=d: nets.DynUNet(
                d, 1, 2, (3, 3, 3, 3), (1, 2, 2, 2), (2, 2, 2), filters=(8, 16, 24, 32), dropout=0.1,
                norm_name=("INSTANCE", {"affine": True}), deep_supervision=True, deep_supr_num=2, res_block=True,
            ),
        )  # fmt: skip
        yield entry("SegResNet", d, side, lambda d=d: nets.SegResNet(d, 8, 1, 2, dropout_prob=0.1))
        yield entry("AttentionUnet", d, side, lambda d=d: nets.AttentionUnet(d, 1, 2, **stages, dropout=0.1))
        swin = {"drop_rate": 0.1, "attn_drop_rate": 0.1, "dropout_path_rate": 0.2, "window_size": 4}
        yield Entry(
            "SwinUNETR",
            d,
            (1, 64, *(64 if d == 2 else 32,) * (d - 1)),  # instance norm needs two places where the maps are smallest
            lambda d=d, s=swin: nets.SwinUNETR(**small, feature_size=12, spatial_dims=d, **s),
            True,
        )
        yield entry(
            "UNETR",
            d,
            side if d == 3 else 32,
            lambda d=d, s=side: nets.UNETR(
                1, 2, s, feature_size=8, hidden_size=48, mlp_dim=64, num_heads=4, dropout_rate=0.1, spatial_dims=d
            ),
        )
        yield entry(
            "FlexibleUNet",
            d,
            64 if d == 2 else 32,
            lambda d=d: nets.FlexibleUNet(
                1, 2, "efficientnet-b0", decoder_channels=(32, 24, 16, 8, 8), spatial_dims=d
            ),
        )
        yield entry("VNet", d, side, lambda d=d: nets.VNet(d, 1, 2, dropout_dim=d))
        yield entry("HighResNet", d, side if d == 2 else 12, lambda d=d: nets.HighResNet(d, 1, 2, dropout_prob=0.1))
        yield entry(
            "AutoEncoder",
            d,
            side,
            lambda d=d: nets.AutoEncoder(d, 1, 1, (8, 16, 32), (2, 2, 2), num_res_units=1, inter_channels=[16, 16]),
        )
    for d in (2, 3):
        side = 32 if d == 2 else 16
        yield entry(
            "AHNet",
            d,
            128 if d == 2 else 32,
            lambda d=d: nets.AHNet((1, 1, 1, 1), d, 1, 2, psp_block_num=3 if d == 2 else 1),
            "4 of 16 blocks",
        )
        yield Entry(
            "MedNeXt",
            d,
            (1, 32, *(side,) * (d - 1)),
            lambda d=d: nets.MedNeXt(
                d, 8, 1, 2, kernel_size=3, deep_supervision=True, use_residual_connection=True,
                blocks_down=(1, 1, 1, 1), blocks_bottleneck=1, blocks_up=(1, 1, 1, 1), global_resp_norm=True,
            ),
            True,
            "9 blocks",
        )  # fmt: skip
        yield entry(
            "Classifier",
            d,
            side,
            lambda d=d, s=side: nets.Classifier((1, *(s,) * d), 3, (8, 16, 32), (2, 2, 2), dropout=0.1),
        )
    yield entry(
        "ResNet-18",
        1,
        256,
        lambda: nets.ResNet("basic", [2, 2, 2, 2], quarter, spatial_dims=1, n_input_channels=1, num_classes=3),
        "quarter width",
    )
    yield entry(
        "DenseNet121",
        1,
        256,
        lambda: nets.DenseNet121(1, 1, 3, init_features=16, growth_rate=8, dropout_prob=0.1),
        "quarter width",
    )


def _further() -> Iterator[Entry]:
    from monai.networks import nets
    from monai.networks.nets.resnet import resnet18

    def entry(
        name: str, dims: int, side: int, build: Callable[[], nn.Module], note: str = "", channels: int = 1
    ) -> Entry:
        return Entry(name, dims, (channels, *(side,) * dims), build, False, note)

    for d in (2, 3):
        side = 32 if d == 2 else 16
        yield entry(
            "SEResNeXt50",
            d,
            side,
            lambda d=d: nets.SEResNext50(layers=(1, 1, 1, 1), spatial_dims=d, in_channels=1, num_classes=3),
            "5 of 16 blocks",
        )
        yield entry(
            "SegResNetDS", d, side, lambda d=d: nets.SegResNetDS(d, 8, 1, 2, blocks_down=(1, 2, 2), dsdepth=2)
        )
        yield entry(
            "SegResNetDS2", d, side, lambda d=d: nets.SegResNetDS2(d, 8, 1, 2, blocks_down=(1, 2, 2), dsdepth=2)
        )
        yield entry(
            "SegResNetVAE",
            d,
            side,
            lambda d=d, s=side: nets.SegResNetVAE(
                [s] * d, spatial_dims=d, init_filters=8, in_channels=1, out_channels=2
            ),
            "first output only: the second averages the batch",
        )
        yield entry(
            "ViTAutoEnc",
            d,
            side // 2,
            lambda d=d, s=side // 2: nets.ViTAutoEnc(1, s, 4, 1, 8, 48, 64, 3, 4, dropout_rate=0.1, spatial_dims=d),
            "3 of 12 blocks",
        )
        yield entry(
            "MaskedAutoEncoderViT",
            d,
            side,
            lambda d=d, s=side: nets.MaskedAutoEncoderViT(
                1, s, 8, 48, 64, 3, 4, 0.5, 24, 48, 2, 4, dropout_rate=0.1, spatial_dims=d
            ),
            "3 of 12 blocks",
        )
        yield entry(
            "VarAutoEncoder",
            d,
            side,
            lambda d=d, s=side: nets.VarAutoEncoder(d, (1, *(s,) * d), 1, 6, (8, 16), (2, 2), num_res_units=1),
        )
        yield entry(
            "Regressor",
            d,
            side,
            lambda d=d, s=side: nets.Regressor((1, *(s,) * d), (2,), (8, 16), (2, 2), dropout=0.1),
        )
        yield entry("Discriminator", d, side, lambda d=d, s=side: nets.Discriminator((1, *(s,) * d), (8, 16), (2, 2)))
        yield entry("Critic", d, side, lambda d=d, s=side: nets.Critic((1, *(s,) * d), (8, 16), (2, 2)))
        yield entry("PatchDiscriminator", d, 32, lambda d=d: nets.PatchDiscriminator(d, 8, 1, num_layers_d=2))
        yield entry("RegUNet", d, side, lambda d=d: nets.RegUNet(d, 1, 8, 2, out_channels=d), "", 1)
        yield entry(
            "VoxelMorphUNet",
            d,
            side,
            lambda d=d: nets.VoxelMorphUNet(d, 2, 8, (8, 8, 16, 16, 16, 16, 8, 8), (8, 8), dropout=0.1),
            "",
            2,
        )
        yield entry(
            "AutoencoderKL",
            d,
            side,
            lambda d=d: nets.AutoencoderKL(
                d, 1, 1, (1, 1), (8, 16), (False, True), latent_channels=3, norm_num_groups=4
            ),
        )
        yield entry("EfficientNetBNFeatures", d, 64 if d == 2 else 32, lambda d=d: _efficientnet_features(d))
        yield entry(
            "SwinUNETR v2",
            d,
            64 if d == 2 else 32,
            lambda d=d: nets.SwinUNETR(
                1, 2, feature_size=12, spatial_dims=d, use_v2=True, window_size=4, norm_name="batch"
            ),
        )
    yield entry("ResNetFeatures-18", 3, 32, lambda: nets.ResNetFeatures("resnet18", False, 3, 1))
    yield entry("Quicknat", 2, 32, lambda: nets.Quicknat(3, 1, 8, drop_out=0.1, norm="BATCH", adn_ordering="NDA"))
    yield entry("DiNTS", 3, 32, lambda: _dints())
    yield Entry("FullyConnectedNet", 0, (12,), lambda: nets.FullyConnectedNet(12, 3, (16, 8), dropout=0.1), False)
    yield Entry(
        "VarFullyConnectedNet", 0, (12,), lambda: nets.VarFullyConnectedNet(12, 12, 4, (8,), (8,), dropout=0.1), False
    )
    yield Entry(
        "MILModel",
        2,
        (3, 1, 32, 32),
        lambda: nets.MILModel(3, "att_trans", False, _bag_encoder(resnet18), 512, trans_blocks=1, trans_dropout=0),
        False,
        "bags of 3 images, no dropout",
    )


def _efficientnet_features(dims: int) -> nn.Module:
    from monai.networks import nets

    return nets.EfficientNetBNFeatures("efficientnet-b0", pretrained=False, spatial_dims=dims, in_channels=1)


def _bag_encoder(resnet18: Callable[..., nn.Module]) -> nn.Module:
    net = resnet18(spatial_dims=2, n_input_channels=1, num_classes=3)
    net.fc = nn.Identity()
    return net


def _dints() -> nn.Module:
    from monai.networks import nets

    space = nets.TopologyInstance(channel_mul=0.25, num_blocks=3, num_depths=2, spatial_dims=3)
    return nets.DiNTS(space, 1, 2, spatial_dims=3)
