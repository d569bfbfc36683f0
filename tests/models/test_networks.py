"""Networks made fit: what is replaced, frozen, split and loaded, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dptrain import models
from dptrain.errors import CheckRefused, ConfigError
from dptrain.models.private import group_count
from dptrain.settings import ModelConfig


class Residual(nn.Module):
    """BatchNorm, an in-place residual, and one layer registered twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.again = self.norm
        self.inner = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16, affine=False), nn.ReLU(inplace=True))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.norm(self.conv(x))
        y = self.again(self.inner(x))
        y += x
        return self.head(y.mean((2, 3)))


def test_groupnorm_keeps_affine_weights_and_shared_layers():
    net = Residual()
    nn.init.normal_(net.norm.weight)
    nn.init.normal_(net.norm.bias)
    weight, bias = net.norm.weight.detach().clone(), net.norm.bias.detach().clone()
    net, changes = models.make_private(net, batchnorm="replace")  # type: ignore[assignment]
    assert isinstance(net.norm, nn.GroupNorm)
    assert net.again is net.norm
    assert torch.equal(net.norm.weight, weight)
    assert torch.equal(net.norm.bias, bias)
    assert not net.inner[1].affine
    assert net.inner[2].inplace
    assert [change.name for change in changes] == ["norm", "inner.1"]
    assert "affine weights kept" in str(changes[0])
    assert net(torch.rand(1, 2, 4, 4)).shape == (1, 3)


def test_a_network_that_is_itself_a_batchnorm():
    net, changes = models.make_private(nn.BatchNorm1d(12))
    assert isinstance(net, nn.GroupNorm)
    assert len(changes) == 1


@pytest.mark.parametrize(("channels", "groups"), [(64, 16), (32, 8), (12, 3), (7, 1), (3, 1), (1280, 32), (8, 2)])
def test_groups_never_hold_a_single_channel(channels, groups):
    assert group_count(channels) == groups
    out = nn.GroupNorm(group_count(channels), channels)(torch.rand(2, channels, 1, 1))
    assert out.abs().max() > 0  # a group of one value would be normalised to nothing


def test_batchnorm_is_refused_where_it_may_not_be_changed():
    with pytest.raises(CheckRefused, match="norm") as caught:
        models.make_private(Residual(), batchnorm="refuse")
    assert caught.value.exit_code == 4
    assert "batchnorm=replace" in caught.value.remedy
    with pytest.raises(ConfigError):
        models.make_private(Residual(), batchnorm="maybe")  # type: ignore[arg-type]


def test_frozen_batchnorm_stays_in_evaluation_mode():
    net = Residual()
    net.train()
    net(torch.rand(8, 2, 6, 6) * 3)  # statistics from elsewhere
    net.eval()
    x = torch.rand(4, 2, 6, 6)
    before = net(x)
    net, changes = models.make_private(net, batchnorm="freeze")  # type: ignore[assignment]
    assert all(change.after == "FrozenBatchNorm" for change in changes)
    net.train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    torch.testing.assert_close(net(x), before)
    torch.testing.assert_close(net(x[:1]), before[:1])
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def test_instancenorm_loses_its_running_statistics():
    net, changes = models.make_private(
        nn.Sequential(nn.InstanceNorm2d(3, affine=True, track_running_stats=True), nn.InstanceNorm2d(3))
    )
    assert not net[0].track_running_stats
    assert net[0].affine
    assert len(changes) == 1


def test_pretrained_weights_load_and_are_reproducible():
    config = ModelConfig(network={"_target_": "dptrain.models.pretrained_efficientnet_lite", "num_classes": 2})
    torch.manual_seed(1)
    first = models.build(config)
    torch.manual_seed(2)
    second = models.build(config)
    assert first.weights_sha256 == "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    assert models.make_private(first, batchnorm="refuse")[1] == []
    x = torch.rand(2, 1, 64, 64)
    assert first.body(x).shape == (2, 1280)
    assert torch.equal(first.train()(x), first.eval()(x))


def test_pretrained_features_equal_those_of_the_package():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    from dptrain.models.pretrained import weight_file

    reference = package.EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(models.ModelStore.of(weight_file()).read())
    reference.eval()
    ours = models.pretrained_efficientnet_lite(in_channels=3).train()
    colour = torch.rand(1, 3, 224, 224)
    scaled = colour * 2 - 1  # the Lite weights were trained on values in -1…1
    with torch.no_grad():
        torch.testing.assert_close(ours.body(colour), reference.extract_features(scaled).mean((2, 3)))
        grey = models.pretrained_efficientnet_lite(in_channels=1)
        same = colour[:, :1].expand(-1, 3, -1, -1)
        torch.testing.assert_close(grey.body(colour[:, :1]), ours.body(same))
    with pytest.raises(ConfigError, match="channels"):
        models.pretrained_efficientnet_lite(in_channels=2)
    with pytest.raises(ConfigError, match="variant"):
        models.pretrained_efficientnet_lite("lite9")


def networks():
    from monai.networks import nets

    yield models.pretrained_efficientnet_lite(num_classes=2, pretrained=False), (1, 32, 32)
    yield models.small_cnn(1, 2), (1, 28, 28)
    yield models.cnn1d(1, 5), (1, 64)
    yield models.mlp(9, 2), (9,)
    yield models.linear_head(9, 2), (9,)
    yield nets.resnet18(spatial_dims=2, n_input_channels=1, num_classes=3), (1, 32, 32)
    yield nets.DenseNet(2, 1, 3, init_features=8, growth_rate=4, block_config=(2, 2)), (1, 32, 32)
    yield nets.EfficientNetBN("efficientnet-b0", False, True, 2, 1, 3), (1, 32, 32)
    vit = nets.ViT(1, 32, 16, 24, 24, 2, 2, classification=True, num_classes=3, spatial_dims=2)
    yield models.first_output(vit), (1, 32, 32)
    yield nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 2)), (9,)


@pytest.mark.parametrize("train", ["head", "last_blocks", "all"])
def test_frozen_part_then_trained_part_is_the_whole_network(train):
    for network, shape in networks():
        net, _ = models.make_private(network)
        torch.manual_seed(0)
        for parameter in net.parameters():
            if not parameter.any():
                nn.init.normal_(parameter)
        x = torch.rand(2, *shape)
        whole = net.eval()(x)
        frozen, trained = models.split_frozen(net, train)
        features = x if frozen is None else frozen.train()(x)
        assert torch.allclose(trained.eval()(features), whole), type(net).__name__
        learned = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
        assert learned, type(net).__name__
        assert {id(p) for p in trained.parameters() if p.requires_grad} == {
            id(p) for p in net.parameters() if p.requires_grad
        }
        if train == "all":
            assert len(learned) == len(list(net.parameters()))
        if frozen is not None:
            assert not features.requires_grad
            assert not any(module.training for module in frozen.modules())
            assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_last_blocks_lie_between_head_and_all():
    sizes = []
    for train in ("head", "last_blocks", "all"):
        net = models.pretrained_efficientnet_lite(pretrained=False)
        models.split_frozen(net, train)
        sizes.append(sum(p.numel() for p in net.parameters() if p.requires_grad))
    assert sizes[0] == 1281 < sizes[1] < sizes[2]


def test_a_network_without_a_known_head_says_so():
    with pytest.raises(ConfigError, match="last layer"):
        models.split_frozen(models.unet3d(), "head")
    frozen, net = models.split_frozen(models.unet3d(), "last_blocks")
    assert frozen is None
    flags = [parameter.requires_grad for parameter in net.parameters()]
    assert any(flags)
    assert not all(flags)


def test_a_network_with_several_outputs_names_the_wrapper():
    from monai.networks import nets

    net = nets.ViT(1, 32, 16, 24, 24, 2, 2, classification=True, num_classes=3, spatial_dims=2)
    frozen, _ = models.split_frozen(net, "head")
    with pytest.raises(ConfigError, match="several outputs") as caught:
        frozen(torch.rand(1, 1, 32, 32))  # type: ignore[misc]
    assert "first_output" in caught.value.remedy


def test_weights_load_from_safetensors_and_torch_files(tmp_path):
    made = models.small_cnn(1, 2)
    save_file(made.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in made.state_dict().items()}}, tmp_path / "w.pt")
    hashes = []
    for name in ("w.safetensors", "w.pt"):
        net = models.small_cnn(1, 2)
        hashes.append(models.ModelStore(tmp_path / name).start(net))
        assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), made.state_dict().values()))
    assert hashes[0] == models.ModelStore(tmp_path / "w.safetensors").sha256() != hashes[1]
    with pytest.raises(ConfigError, match="declared"):
        models.ModelStore(tmp_path / "w.pt").start(net, sha256="0" * 64)


def test_a_head_for_other_classes_starts_fresh_and_nothing_else_may_differ(tmp_path):
    made = models.small_cnn(1, 10)
    save_file(made.state_dict(), tmp_path / "w.safetensors")
    net = models.small_cnn(1, 2)
    models.ModelStore(tmp_path / "w.safetensors").start(net)
    assert torch.equal(net.body[0][0].weight, made.body[0][0].weight)
    with pytest.raises(ConfigError, match=r"do not fit.*of another shape"):
        models.ModelStore(tmp_path / "w.safetensors").start(models.small_cnn(3, 10))
    with pytest.raises(ConfigError, match="unknown"):
        models.ModelStore(tmp_path / "w.safetensors").start(models.mlp(4, 10))


def test_weights_with_batchnorm_go_into_groupnorm_and_back(tmp_path):
    public = Residual()
    nn.init.normal_(public.norm.weight)
    save_file(
        {k: v for k, v in public.state_dict().items() if not k.startswith("again.")}, tmp_path / "bn.safetensors"
    )
    net = Residual()
    models.ModelStore(tmp_path / "bn.safetensors").start(net)
    private, _ = models.make_private(net)
    assert torch.equal(private.norm.weight, public.norm.weight)  # type: ignore[arg-type]
    torch.save(private.state_dict(), tmp_path / "gn.pt")
    again = Residual()
    models.ModelStore(tmp_path / "gn.pt").start(again)
    with pytest.raises(CheckRefused, match="without running statistics"):
        models.make_private(again, batchnorm="freeze")
    again, _ = models.make_private(again)  # type: ignore[assignment]
    assert torch.equal(again.norm.weight, public.norm.weight)


class Evil:
    def __reduce__(self):
        return (print, ("code from a weight file ran",))


def test_a_weight_file_runs_no_code(tmp_path, capsys):
    torch.save({"state_dict": {"a": Evil()}}, tmp_path / "evil.pt")
    with pytest.raises(ConfigError, match="more than tensors"):
        models.ModelStore(tmp_path / "evil.pt").start(models.mlp(4, 2))
    assert "ran" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match="cannot be read"):
        models.ModelStore(tmp_path / "absent.pt").start(models.mlp(4, 2))
    (tmp_path / "short.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match="cannot be read"):
        models.ModelStore(tmp_path / "short.safetensors").start(models.mlp(4, 2))


@pytest.mark.parametrize("target", ["os.system", "torch.load", "torch.nn.modules.os.system", "dptrain.ledger.Ledger"])
def test_only_networks_are_built(target):
    with pytest.raises(ConfigError):
        models.build({"_target_": target})


def test_what_is_no_network_is_refused():
    with pytest.raises(ConfigError, match="no network"):
        models.build(ModelConfig())
    with pytest.raises(ConfigError, match="neither a class of networks"):
        models.build({"_target_": "dptrain.models.ModelStore", "file": __file__})
    net = models.build(
        {
            "_target_": "dptrain.models.sequential",
            "modules": [{"_target_": "torch.nn.Flatten"}, {"_target_": "torch.nn.LazyLinear", "out_features": 2}],
        }
    )
    assert isinstance(net[1], nn.LazyLinear)


def test_unet3d_keeps_the_shape():
    assert models.unet3d(1, 3)(torch.rand(1, 1, 16, 16, 16)).shape == (1, 3, 16, 16, 16)
