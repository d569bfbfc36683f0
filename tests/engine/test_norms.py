"""Norms of long gradients keep their digits: a norm that comes out too small lets a patient through the clip."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dptrain.engine import MARGIN
from dptrain.engine.conv import squared_norms


@pytest.mark.parametrize("length", [1, 1023, 1024, 1025, 4_000_001])
def test_float32_norms_are_exact_to_a_part_in_a_million(length: int) -> None:
    values = torch.randn(2, length, generator=torch.Generator().manual_seed(0)) * 0.01
    truth = values.double().square().sum(-1)
    assert ((squared_norms(values) - truth).abs() <= 1e-6 * truth).all()


def test_a_plain_float32_norm_would_not_do() -> None:
    values = torch.full((1, 30_000_000), 0.1)
    truth = float(values[0].double().square().sum())
    one_by_one = float(np.cumsum(values[0].square().numpy(), dtype=np.float32)[-1])
    assert truth - one_by_one > MARGIN * truth
    assert abs(float(squared_norms(values)) - truth) < 1e-6 * truth


def test_any_layout_is_taken() -> None:
    values = torch.randn(3000, 4).T
    assert torch.allclose(squared_norms(values), values.double().square().sum(-1), rtol=1e-6)
