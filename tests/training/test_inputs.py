"""Features of the frozen part: a patient's do not depend, to the last bit, on how many others there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dptrain import data
from dptrain.models.check import check
from dptrain.plan import Plan
from dptrain.training.inputs import load_inputs

from .conftest import PUBLIC_SIZE, Site


class Ragged(nn.Module):
    """The planted fault: a kernel whose last bits follow the number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(x))
        return x.flatten(1) * (1 + len(x) * 2.0**-20)


def _frozen(kind: str) -> nn.Module:
    if kind == "planted":
        return Ragged()
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, stride=2), nn.ReLU(), nn.Conv2d(24, 48, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 64)
    ).eval()


@pytest.mark.parametrize("kind", ["planted", "convolutions"])
def test_one_patient_more_changes_no_bit_of_another_patient_s_features(
    make_site: Callable[..., Site], kind: str
) -> None:
    site = make_site(public=True)
    cohort = data.scan(site.settings().data, site.keys)
    plan = Plan(
        public_size=PUBLIC_SIZE, expected_batch_size=20, steps=1, noise_multiplier=0.0, max_grad_norm=1.0, delta=1e-5
    )
    frozen = _frozen(kind)
    with site.ledger.reserve(plan, "tiny", run="features", fingerprint=cohort.fingerprint) as grant:
        rows = np.array([r for patient in cohort.patients for r in patient.records], dtype=np.int64)
        gone = set(cohort.patients[3].records)
        fewer = np.array([r for r in rows if r not in gone], dtype=np.int64)
        assert len(rows) % 64 != len(fewer) % 64
        device = torch.device("cpu")
        with_all, _ = load_inputs(cohort, rows, grant, frozen, device)
        without, _ = load_inputs(cohort, fewer, grant, frozen, device)
    kept = torch.from_numpy(np.isin(rows, fewer))
    assert torch.equal(with_all[kept], without)
    if isinstance(frozen, Ragged):
        assert set(frozen.rows) == {64}


def test_the_check_says_that_linked_ids_are_one_unit(make_site: Callable[..., Site]) -> None:
    site = make_site()
    assert not [f for f in check(site.settings()) if f.what == "unit of privacy"]
    found = [f for f in check(site.settings("data.same_pixels=merge")) if f.what == "unit of privacy"]
    assert [f.status for f in found] == ["changed"]
    assert "directly or through others" in found[0].why


class Touchy(nn.Module):
    """Fails on one pixel's value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x == 7).any()):
            raise ValueError("a pixel is 7.0")
        return x.flatten(1) * 2


@pytest.mark.parametrize("batch", [1, 4])
def test_a_record_that_the_frozen_part_fails_on_is_nan_and_the_others_are_as_ever(
    monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    images, label = torch.rand(6, 1, 3, 3), torch.ones(6)
    images[2, 0, 0, 0] = 7.0
    monkeypatch.setattr(data, "load_available", lambda _, some, __: (images[some], label[some]))
    none: Any = None
    found, _ = load_inputs(none, np.arange(6), none, Touchy(), torch.device("cpu"), batch=batch)
    others = [0, 1, 3, 4, 5]
    assert bool(found[2].isnan().all())
    assert torch.equal(found[others], images[others].flatten(1) * 2)
