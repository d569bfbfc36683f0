"""A projection from public images: fixed, one record at a time, and part of the hash of the starting weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.projection import principal, save
from dptrain.errors import ConfigError
from dptrain.models import pretrained
from dptrain.models.pretrained import Projection, pretrained_efficientnet_lite, read_projection

pytest.importorskip("efficientnet_lite_pytorch")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the projection `made` of 12 public vectors."""
    features = torch.randn(12, 1280, generator=torch.Generator().manual_seed(0))
    save(tmp_path / "made.safetensors", *principal(features, 8), "made-up images (CC0)")
    monkeypatch.setattr(pretrained, "PROJECTIONS", tmp_path)
    return tmp_path


def test_directions_are_orthogonal_and_what_is_projected_keeps_the_length_of_the_features() -> None:
    features = torch.randn(50, 64, generator=torch.Generator().manual_seed(1)) * torch.linspace(3, 0.1, 64)
    mean, basis = principal(features, 6)
    gram = basis.T @ basis
    assert torch.allclose(gram, gram[0, 0] * torch.eye(6), atol=1e-3)
    projected = Projection(mean, basis)(features)
    assert projected.norm(dim=1).mean() == pytest.approx(8.0, rel=1e-4)
    assert projected.var(0)[0] > projected.var(0)[-1]
    assert torch.allclose(Projection(mean, basis)(features[2:3]), projected[2:3], atol=1e-5)


def test_the_projection_is_frozen_and_its_hash_and_source_are_declared(made: Path) -> None:
    plain = pretrained_efficientnet_lite(num_classes=3, root_features=True)
    network = pretrained_efficientnet_lite(num_classes=3, root_features=True, projection="made").eval()
    assert network.head.in_features == 8
    assert not [name for name, _ in network.named_parameters() if "basis" in name or "mean" in name]
    assert network.weights_sha256 not in (None, plain.weights_sha256)
    assert "made-up images (CC0)" in str(network.weights_note)
    with torch.inference_mode():
        assert network(torch.rand(2, 1, 64, 64)).shape == (2, 3)
    before = network.weights_sha256
    features = torch.randn(12, 1280, generator=torch.Generator().manual_seed(3))
    save(made / "made.safetensors", *principal(features, 8), "made-up images (CC0)")
    other = pretrained_efficientnet_lite(num_classes=3, root_features=True, projection="made")
    assert other.weights_sha256 != before


def test_a_projection_needs_its_name_and_the_features_it_was_made_for(made: Path) -> None:
    with pytest.raises(ConfigError, match="unknown") as caught:
        read_projection("other")
    assert "made" in str(caught.value.remedy)
    with pytest.raises(ConfigError, match="root features"):
        pretrained_efficientnet_lite(projection="made", pretrained=False)


def test_a_mean_alone_is_taken_off_and_all_features_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mean = torch.randn(1280, generator=torch.Generator().manual_seed(4))
    save(tmp_path / "centre.safetensors", mean, None, "made-up images (CC0)")
    monkeypatch.setattr(pretrained, "PROJECTIONS", tmp_path)
    plain = pretrained_efficientnet_lite(root_features=True).eval()
    network = pretrained_efficientnet_lite(root_features=True, projection="centre").eval()
    image = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        difference = plain.body(image) - network.body(image)
    assert network.head.in_features == 1280
    assert torch.allclose(difference, mean.half().float().expand(2, -1), atol=1e-5)
    assert network.weights_sha256 not in (None, plain.weights_sha256)


@pytest.mark.parametrize(("name", "width"), [("chest_xray", 128), ("adult_chest_xray_mean", 1280)])
def test_the_packaged_projections_say_what_public_images_they_are_made_of(name: str, width: int) -> None:
    made, _, note = read_projection(name)
    assert made.width == width
    assert "doi" in note or "https://" in note
