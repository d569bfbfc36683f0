"""What a configuration may build: classes of networks, listed factories, and no weights that nobody declared."""

from __future__ import annotations

from typing import Any

import monai.networks.nets.efficientnet as efficientnet
import pytest
import torch
from torch import nn

from dptrain import targets
from dptrain.errors import ConfigError
from dptrain.models.network import build_network
from dptrain.settings import load


def network_of(node: dict[str, Any], *words: str) -> Any:
    settings = load(["model=small_cnn", "data.image_shape=[3,32,32]", "model.batchnorm=replace", *words])
    object.__setattr__(settings.model, "network", node)
    return build_network(settings)


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.Module.apply",
        "torch.nn.Module.load_state_dict",
        "torch.nn.functional.relu",
        "torch.nn.init.constant_",
        "torch.nn.utils.fuse_conv_bn_weights",
        "monai.networks.nets.get_pretrained_resnet_medicalnet",
        "monai.networks.nets.drop_connect",
        "dptrain.models.made_up",
        "dptrain.models.ModelStore",
    ],
)
def test_only_networks_and_listed_factories_are_called(target: str) -> None:
    with pytest.raises(ConfigError):
        targets.locate(target)
    with pytest.raises(ConfigError):
        targets.instantiate({"_target_": target, "_partial_": True})


@pytest.mark.parametrize("target", [*sorted(targets.FACTORIES), "monai.networks.nets.UNet", "torch.nn.Linear"])
def test_every_listed_factory_exists(target: str) -> None:
    assert callable(targets.locate(target))


@pytest.mark.parametrize("name", ["EfficientNetBN", "EfficientNetBNFeatures"])
def test_a_network_that_fetches_weights_by_default_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights were fetched")

    monkeypatch.setattr(efficientnet.model_zoo, "load_url", fetched)
    node = {"_target_": f"monai.networks.nets.{name}", "model_name": "efficientnet-b0", "spatial_dims": 2}
    with pytest.raises(ConfigError) as caught:
        network_of(node)
    assert "'pretrained', which" in caught.value.message
    assert "+model.network.pretrained=false" in str(caught.value.remedy)
    if name == "EfficientNetBN":  # the remedy helps
        built = network_of({**node, "in_channels": 3, "num_classes": 1, "pretrained": False})
        assert built.weights_kind == "random"


class FromAFile(nn.Sequential):
    """A network whose weights do not follow the seed."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
        with torch.no_grad():
            self[1].weight.copy_(torch.arange(self[1].weight.numel()).reshape(2, -1) / 1e4)


def test_weights_that_do_not_follow_the_seed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "locate", lambda _: FromAFile)
    with pytest.raises(ConfigError, match="same values whatever the seed"):
        network_of({"_target_": "dptrain.models.FromAFile"})


def test_networks_with_constant_parts_are_built() -> None:
    for node in (
        {"_target_": "dptrain.models.linear_head", "in_features": 3072, "num_classes": 2},
        {"_target_": "monai.networks.nets.ViT", "in_channels": 3, "img_size": [32, 32], "patch_size": [8, 8],
         "hidden_size": 32, "mlp_dim": 32, "num_layers": 1, "num_heads": 2, "spatial_dims": 2,
         "classification": True, "num_classes": 2, "pos_embed_type": "sincos"},
    ):  # fmt: skip
        assert network_of(node).weights_kind == "random"


def test_arguments_that_are_left_from_another_network_are_named_with_the_words_that_remove_them() -> None:
    """A recipe that names another network inherits the arguments of the default one."""
    words = [
        "model=small_cnn",
        "data.issuer=clinic",
        "data.image_shape=[1,64,64]",
        "model.network._target_=monai.networks.nets.DenseNet121",
        "+model.network.spatial_dims=2",
        "+model.network.out_channels=1",
    ]
    with pytest.raises(ConfigError) as caught:
        build_network(load(words))
    remedy = str(caught.value.remedy)
    assert remedy == "Leave out: ~model.network.num_classes ~model.network.channels"
    mended = load([*words, *remedy.removeprefix("Leave out: ").split(), "model.batchnorm=replace"])
    assert build_network(mended).weights_kind == "random"


def test_checkpoints_of_wrapped_networks_start_a_run(tmp_path: Any) -> None:
    from dptrain.models import ModelStore

    line = nn.Linear(3, 2)
    network = nn.Sequential(line)
    for prefix in ("module.", "_module.", "_orig_mod."):
        torch.save({f"{prefix}{name}": value + 1 for name, value in network.state_dict().items()}, tmp_path / "w.pt")
        other = nn.Linear(3, 2)
        ModelStore(tmp_path / "w.pt").start(nn.Sequential(other))
        assert torch.equal(other.weight, line.weight + 1)
