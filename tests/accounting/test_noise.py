"""Calibration meets its target, for certain, with hardly any noise to spare."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dptrain import accounting
from dptrain.accounting.noise import _round_up
from dptrain.errors import ConfigError
from tests.accounting.exact import gaussian_epsilon, run


@given(st.floats(0.2, 20.0), st.sampled_from([1e-6, 1e-5]), st.floats(0.01, 1.0), st.integers(1, 1000))
@settings(max_examples=5, deadline=None)
def test_never_exceeds_the_target(target: float, delta: float, rate: float, steps: int) -> None:
    noise = accounting.calibrate_noise(target, delta, rate, steps)
    assert accounting.pld_epsilon(run(rate, noise, steps), delta) <= target
    assert accounting.pld_epsilon(run(rate, noise * (1 - 1e-3), steps), delta) > target


@given(st.floats(0.2, 20.0), st.floats(0.005, 1.0), st.integers(1, 5000), st.sampled_from([2.5, 7.25, 18.0]))
@settings(max_examples=30, deadline=None)
def test_never_exceeds_the_target_at_a_fixed_order(target: float, rate: float, steps: int, order: float) -> None:
    delta = 1e-5
    if accounting.rdp_budget(target, delta, order) < 1e-6:
        return
    noise = accounting.calibrate_noise(target, delta, rate, steps, accountant="rdp", order=order)
    spent = float(accounting.rdp(run(rate, noise, steps), [order])[0])
    assert accounting.rdp_epsilon(spent, order, delta) <= target
    assert spent <= accounting.rdp_budget(target, delta, order) * (1 + 1e-9)
    less = float(accounting.rdp(run(rate, noise * (1 - 1e-3), steps), [order])[0])
    assert accounting.rdp_epsilon(less, order, delta) > target


def test_the_gaussian_mechanism_against_its_closed_form() -> None:
    noise = accounting.calibrate_noise(1.0, 1e-5, 1.0, 1)
    assert gaussian_epsilon(1 / noise, 1e-5) <= 1.0
    assert gaussian_epsilon(1 / (noise * (1 - 1e-3)), 1e-5) > 1.0
    assert noise == pytest.approx(3.730632, rel=1e-3), "the analytic Gaussian mechanism's value"


def test_other_releases_come_on_top() -> None:
    also = run(1.0, 10.0, 1)
    alone = accounting.calibrate_noise(3.0, 1e-5, 0.05, 200)
    noise = accounting.calibrate_noise(3.0, 1e-5, 0.05, 200, also=also)
    assert noise > alone
    assert accounting.pld_epsilon([*also, *run(0.05, noise, 200)], 1e-5) <= 3.0
    with pytest.raises(ConfigError):
        accounting.calibrate_noise(0.1, 1e-5, 0.05, 200, also=also)
    with pytest.raises(ConfigError):
        accounting.calibrate_noise(0.1, 1e-5, 0.05, 200, also=run(1.0, 0.0, 1))


def test_the_tighter_account_needs_less_noise() -> None:
    by_pld = accounting.calibrate_noise(3.0, 1e-5, 0.05, 200)
    by_rdp = accounting.calibrate_noise(3.0, 1e-5, 0.05, 200, accountant="rdp")
    at_an_order = accounting.calibrate_noise(3.0, 1e-5, 0.05, 200, accountant="rdp", order=12.0)
    assert by_pld < by_rdp < at_an_order


def test_no_target_needs_no_noise() -> None:
    assert accounting.calibrate_noise(math.inf, 1e-5, 0.05, 200) == 0.0


def test_impossible_values_are_refused() -> None:
    good = {"target_epsilon": 3.0, "delta": 1e-5, "sample_rate": 0.1, "steps": 10}
    for bad in (
        {"target_epsilon": math.nan},
        {"target_epsilon": 0.0},
        {"target_epsilon": -1.0},
        {"delta": 0.0},
        {"delta": 1.0},
        {"delta": math.nan},
        {"sample_rate": 0.0},
        {"sample_rate": 1.5},
        {"steps": 0},
        {"accountant": "moments"},
        {"order": 3.0},
        {"accountant": "rdp", "order": 1.0},
        {"accountant": "rdp", "order": 1.0625, "target_epsilon": 0.5},  # useless at this order
    ):
        with pytest.raises(ConfigError):
            accounting.calibrate_noise(**{**good, **bad})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("noise", "rounded"),
    [(0.912341, 0.91235), (1, 1), (1.00001, 1.0001), (12.345001, 12.346), (99999.5, 1e5), (0.012345001, 0.012346)],
)
def test_noise_is_rounded_upwards_to_five_digits(noise: float, rounded: float) -> None:
    assert _round_up(noise) == pytest.approx(rounded, rel=1e-12)
    assert _round_up(noise) >= noise
