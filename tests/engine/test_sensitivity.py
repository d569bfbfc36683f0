"""One patient moves a sum by at most C, whatever the pixels and labels: faults that were found, and a search."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.hostile import KINDS, search
from dptrain.engine import MARGIN, PatientGradients, bounds
from dptrain.engine.chunks import NOBODY, filled
from dptrain.errors import CheckRefused

ROWS = 16


def clipped(
    engine: PatientGradients, x: Tensor, away: Tensor, owner: Tensor, rows: int = ROWS
) -> tuple[Tensor, Tensor]:
    """The sum of the only parameter, and the norms, for output gradients `away`, in a chunk of `rows`."""
    x, away, patient = filled(x, rows), filled(away, rows), filled(owner, rows, NOBODY)
    losses = (engine.model(x) * away).flatten(1).sum(1)
    result = engine.clipped_sum(losses, patient, int(owner.max()) + 1)
    (value,) = result.sums.values()
    return value.double(), result.norms


@pytest.mark.parametrize("kind", KINDS)
def test_no_hostile_patient_moves_a_sum_by_more_than_the_clip(kind: str) -> None:
    """The first 500 of the search in benchmarks/hostile.py, which goes on to 20,000."""
    seen = search(kind, 500)
    assert seen.violations == [], seen
    assert seen.largest > 0.9  # the search moves sums at all


@pytest.mark.parametrize("big", [2.0**8, 2.0**13, 2.0**20, 2.0**40, 2.0**60])
@pytest.mark.parametrize(
    ("layer", "shape", "out"),
    [
        (nn.Linear(64, 64, bias=False), (64,), (64,)),
        (nn.Conv2d(64, 64, 1, bias=False), (64, 2, 2), (64, 2, 2)),
        (nn.Conv2d(64, 64, 3, padding=1, bias=False), (64, 2, 2), (64, 2, 2)),
    ],
    ids=["linear", "1x1", "3x3"],
)
def test_rows_that_cancel_absorb_nobody_else(
    layer: nn.Module, shape: tuple[int, ...], out: tuple[int, ...], big: float
) -> None:
    """Two views whose large gradients cancel: their norm is zero, and they took everybody else's part with them."""
    torch.manual_seed(1)
    engine = PatientGradients(layer, max_grad_norm=1.0, usual=1, measure=False)
    one, away = torch.randn(1, *shape), torch.randn(1, *out)
    x, s = (
        2 * one / one.norm() * torch.ones(10, *[1] * len(shape)),
        2 * away / away.norm() * torch.ones(10, *[1] * len(out)),
    )
    without, _ = clipped(engine, x, s, torch.arange(10))
    loud, push = torch.randn(1, *shape).sign() * big, torch.full((1, *out), big)
    for place in (0, 5, 10):
        rows = torch.cat([x[:place], loud, loud, x[place:]])
        gradients = torch.cat([s[:place], push, -push, s[place:]])
        owner = torch.cat([torch.arange(place), torch.tensor([place, place]), torch.arange(place, 10) + 1])
        moved, norms = clipped(engine, rows, gradients, owner)
        assert norms[place] == 0
        assert float((moved - without).norm()) < 1e-4
    engine.detach()
    assert float(without.norm()) > 9


@pytest.mark.parametrize(("outputs", "clip"), [(4096, 1e-2), (512, 1e-3), (65536, 1e-2)])
def test_norms_that_float32_cannot_hold_are_taken_in_float64(outputs: int, clip: float) -> None:
    """Huge activations and tiny output gradients: the products of either side are out of float32's reach."""
    layer = nn.Linear(4, outputs, bias=False)
    engine = PatientGradients(layer, max_grad_norm=clip, measure=False)
    x, away = torch.full((2, 4), 8e18), torch.full((2, outputs), 2.6e-23)
    x[1] = away[1] = 0.1
    both, norms = clipped(engine, x, away, torch.arange(2))
    alone, _ = clipped(engine, x[1:], away[1:], torch.zeros(1, dtype=torch.int64))
    engine.detach()
    assert float(norms[0]) == pytest.approx(2 * 8e18 * 2.6e-23 * outputs**0.5, rel=1e-6)
    assert float((both - alone).norm()) <= clip


def test_a_factor_that_float32_cannot_hold_clips_to_no_more() -> None:
    """A gradient so large that its factor would be a subnormal number of few digits."""
    layer = nn.Linear(4096, 1, bias=False)
    engine = PatientGradients(layer, max_grad_norm=1e-3, measure=False)
    for size in (1e36, 3e38):
        moved, norms = clipped(
            engine, torch.full((1, 4096), size), torch.ones(1, 1), torch.zeros(1, dtype=torch.int64)
        )
        assert bool(torch.isfinite(norms).all())
        assert 0.998e-3 < float(moved.norm()) <= 1e-3
    engine.detach()


def test_at_a_kink_the_others_do_not_follow_how_many_there_are() -> None:
    """Activations whose sign hangs by the last digit: for three rows and for four, kernels round otherwise."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(256, 64, bias=False), nn.ReLU(), nn.Linear(64, 2, bias=False))
    with torch.no_grad():
        net[0].weight[1:] = 0
    weight = net[0].weight[0].detach().double()
    generator = torch.Generator().manual_seed(3)
    engine = PatientGradients(net, max_grad_norm=1.0, usual=1, measure=False)
    for _ in range(40):
        x = torch.rand(3, 256, generator=generator).double() + 0.1
        x = (x - (x @ weight / (weight @ weight))[:, None] * weight).float()  # on the kink
        found = []
        for others in (0, 1, 9):
            rows = filled(torch.cat([x, x[:1].expand(others, -1)]), ROWS)
            patient = filled(torch.arange(3 + others), ROWS, NOBODY)
            target = torch.zeros(ROWS, dtype=torch.int64)
            losses = 1000 * nn.functional.cross_entropy(net(rows), target, reduction="none")
            found.append(engine.clipped_sum(losses, patient, 3 + others).norms[:3])
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])
    engine.detach()


def test_rows_of_nobody_count_nothing() -> None:
    """Whatever they hold, and whatever the others' numbers of records."""
    torch.manual_seed(0)
    engine = PatientGradients(nn.Linear(4, 3, bias=False), max_grad_norm=0.1, measure=False)
    for owner in ([0, 1, 2], [0, 0, 1], [1, 0, 0], [0, 0, 0]):
        x, away, patient = torch.randn(3, 4), torch.randn(3, 3), torch.tensor(owner)
        expected, norms = clipped(engine, x, away, patient, rows=3)
        for junk in (0.0, 7.0, float("nan")):
            more = torch.cat([x, torch.full((5, 4), junk)]), torch.cat([away, torch.full((5, 3), junk)])
            whom = torch.cat([patient, torch.full((5,), NOBODY)])
            losses = (engine.model(more[0]) * more[1]).sum(1)
            result = engine.clipped_sum(losses, whom, int(patient.max()) + 1)
            assert torch.allclose(result.sums["weight"].double(), expected, atol=1e-6)
            assert torch.allclose(result.norms, norms)
            assert result.nonfinite == 0
    engine.detach()


# --- the shares of η ----------------------------------------------------------------------------------------------


def test_the_shares_fit_into_the_margin() -> None:
    assert bounds.NORMS + bounds.FACTORS + bounds.SUMS <= MARGIN
    assert 4 * torch.finfo(torch.float32).eps <= bounds.FACTORS


@pytest.mark.parametrize("length", [1, 7, 64, 1000, 30_000])
def test_rounding_of_float32_products_stays_within_its_bound(length: int) -> None:
    """Of ordinary numbers and of those that all round one way."""
    generator = torch.Generator().manual_seed(length)
    for make in (torch.randn, torch.rand):
        a, b = (make(40, length, generator=generator) for _ in range(2))
        found = torch.bmm(a.unsqueeze(1), b.unsqueeze(2)).flatten().double()
        truth = (a.double() * b.double()).sum(1)
        room = bounds.product_error(length, torch.float32) * (a.double() * b.double()).abs().sum(1)
        assert bool(((found - truth).abs() <= room).all())


def test_bounds_do_not_fail_together_with_what_they_bound() -> None:
    inner = bounds.Inner((4, 4096), terms=1, rows=16)
    for one, two in ((8e18, 2.6e-23), (2.6e-23, 8e18), (1e20, 1e20), (3e38, 1.0)):
        lost = inner.lost((torch.tensor([one], dtype=torch.float64), torch.tensor([two], dtype=torch.float64)))
        assert float(lost) == float("inf")
    lost = inner.lost((torch.tensor([1.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)))
    assert float(lost) < 1e-30


@pytest.mark.parametrize("clip", [1e-14, 1e30])
def test_clips_out_of_reach_are_refused(clip: float) -> None:
    with pytest.raises(CheckRefused, match="reach"):
        PatientGradients(nn.Linear(2, 2), max_grad_norm=clip)
