"""Roots of pooled features: a fixed function of one record; the head's prior."""

from __future__ import annotations

import math

import pytest
import torch

from dptrain.errors import ConfigError
from dptrain.models.pretrained import RootFeatures, pretrained_efficientnet_lite

pytest.importorskip("efficientnet_lite_pytorch")


def test_each_record_alone_is_centred_and_scaled() -> None:
    x = torch.rand(5, 40, generator=torch.Generator().manual_seed(0)) * 6
    whole = RootFeatures()(x)
    assert torch.allclose(whole.mean(1), torch.zeros(5), atol=1e-5)
    assert torch.allclose(whole.std(1, correction=0), torch.ones(5), atol=1e-3)
    assert torch.equal(RootFeatures()(x[2:3]), whole[2:3])
    x[0] *= 100
    assert torch.equal(RootFeatures()(x)[1:], whole[1:])


def test_gradients_are_finite_where_a_feature_is_nought() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    RootFeatures()(x + torch.tensor([0.0] * 7 + [1.0])).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_the_head_starts_at_the_public_prior() -> None:
    network = pretrained_efficientnet_lite(num_classes=3, pretrained=False, root_features=True, prior=0.1).eval()
    with torch.inference_mode():
        features = network.body(torch.rand(2, 1, 64, 64))
        logits = network.head(features)
    assert features.shape == (2, 1280)
    assert torch.allclose(features.mean(1), torch.zeros(2), atol=1e-4)
    assert torch.allclose(logits, torch.full((2, 3), math.log(0.1 / 0.9)))


@pytest.mark.parametrize("prior", [0.0, 1.0, -1.0])
def test_a_prior_is_a_probability(prior: float) -> None:
    with pytest.raises(ConfigError, match="prior"):
        pretrained_efficientnet_lite(prior=prior)
