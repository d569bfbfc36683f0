"""The trade-off curve: convex, decreasing, below the truth, and its readings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from dptrain import accounting
from dptrain.accounting import TradeOff
from dptrain.errors import ConfigError
from tests.accounting.exact import gaussian_delta, run

GRID = np.concatenate(([0.0], np.logspace(-6, 0, 400)))


def gaussian(mu: float) -> np.ndarray:
    return np.asarray(special.ndtr(special.ndtri(1 - GRID) - mu))


@pytest.mark.parametrize("mu", [0.1, 1.0, 3.0])
def test_pessimistic_and_tight_for_the_gaussian(mu: float) -> None:
    curve = accounting.tradeoff(run(1.0, 4 / mu, 16))
    truth = gaussian(mu)
    assert np.all(curve.beta(GRID) <= truth + 1e-12)
    assert np.all(curve.beta(GRID) >= truth - 2e-4)
    assert mu <= curve.mu <= mu * 1.001
    auc = special.ndtr(mu / math.sqrt(2))
    assert auc <= curve.auc <= auc + 2e-4
    advantage = gaussian_delta(mu, 0.0)
    assert advantage <= curve.advantage <= advantage + 1e-4
    for fpr in (0.001, 0.01, 0.1):
        truth_there = special.ndtr(special.ndtri(fpr) + mu)
        assert truth_there <= curve.tpr(fpr) <= truth_there + 2e-4
        assert curve.reconstruction(fpr) == curve.tpr(fpr)


def test_a_fault_in_the_curve_is_caught() -> None:
    """An interpolation of f between sampled points lies above a convex f: optimistic."""
    sparse = np.array([0.0, 0.05, 0.3, 1.0])
    fault = TradeOff(tuple(sparse), tuple(special.ndtr(special.ndtri(1 - sparse) - 1.0)))
    assert not np.all(fault.beta(GRID) <= gaussian(1.0) + 1e-12)
    assert fault.auc < accounting.tradeoff(run(1.0, 1.0, 1)).auc


@given(st.floats(0.01, 1.0), st.floats(0.7, 8.0), st.integers(1, 300))
@settings(max_examples=5, deadline=None)
def test_shape_and_agreement_with_delta(rate: float, noise: float, steps: int) -> None:
    mechanisms = run(rate, noise, steps)
    curve = accounting.tradeoff(mechanisms)
    x, y = np.array(curve.fpr), np.array(curve.fnr)
    assert x[0] == 0
    assert x[-1] == 1
    assert np.all(np.diff(x) >= 0)
    assert np.all(np.diff(y) <= 1e-15)
    keep = np.diff(x) > 1e-9
    slopes = (np.diff(y)[keep]) / (np.diff(x)[keep])
    assert np.all(np.diff(slopes) >= -1e-5 * np.abs(slopes[1:]) - 1e-6), "convex"
    assert np.all((y >= 0) & (y <= 1 - x + 1e-12))
    assert np.all(curve.beta(GRID) <= 1 - GRID + 1e-12)
    for epsilon in (0.0, 0.7):
        delta = accounting.pld_delta(mechanisms, epsilon)
        implied = float(np.max(curve.tpr(GRID) - math.exp(epsilon) * GRID))
        assert implied <= delta + 1e-4
        assert implied >= delta - 0.02
    assert curve.advantage == pytest.approx(accounting.pld_delta(mechanisms, 0.0), abs=1e-4)
    assert 0.5 <= curve.auc <= 0.5 + curve.advantage / 2 + curve.advantage * (1 - curve.advantage) / 2 + 1e-3


def test_bounds_every_threshold_attack_on_one_step_in_both_directions() -> None:
    rate, noise = 0.3, 0.8
    cuts = np.linspace(-6, 8, 400)
    out = special.ndtr(-cuts / noise)
    there = (1 - rate) * out + rate * special.ndtr(-(cuts - 1) / noise)
    curve = accounting.tradeoff(run(rate, noise, 1))
    assert np.all(there <= curve.tpr(out) + 1e-12)
    assert np.all(1 - out <= curve.tpr(1 - there) + 1e-12)
    assert np.max(there - curve.tpr(out)) > -5e-3, "and closely"


def test_points_for_a_plot() -> None:
    fpr, tpr = accounting.tradeoff(run(0.05, 1.0, 100)).points(50)
    assert len(fpr) == len(tpr) == 50
    assert (fpr[0], fpr[-1], tpr[-1]) == (0.0, 1.0, 1.0)
    assert np.all(np.diff(fpr) > 0)
    assert np.all(np.diff(tpr) >= 0)


def test_nothing_and_no_noise() -> None:
    nothing, naked = accounting.tradeoff([]), accounting.tradeoff(run(0.1, 0.0, 1))
    assert (nothing.auc, nothing.advantage, nothing.mu, nothing.tpr(0.2)) == (0.5, 0.0, 0.0, pytest.approx(0.2))
    assert (naked.auc, naked.advantage, naked.mu, naked.tpr(0.0)) == (1.0, 1.0, math.inf, 1.0)
    almost = accounting.tradeoff(run(0.1, 0.01, 10))
    assert (almost.auc, almost.tpr(0.0)) == (1.0, 1.0)


def test_impossible_rates_are_refused() -> None:
    curve = accounting.tradeoff(run(1.0, 2.0, 1))
    for bad in (math.nan, -0.1, 1.1, np.array([0.5, 2.0])):
        with pytest.raises(ConfigError):
            curve.beta(bad)
    with pytest.raises(ConfigError):
        curve.points(1)
