"""The plan refuses what would make its promise false, and what runs is what is charged."""

from __future__ import annotations

import dataclasses
import math

import pytest

from dptrain.errors import ConfigError
from dptrain.plan import Mechanism, Plan, default_delta


def plan(**changes: object) -> Plan:
    values: dict = {
        "public_size": 2200,
        "expected_batch_size": 600,
        "steps": 200,
        "noise_multiplier": 3.0,
        "max_grad_norm": 1.0,
        "delta": 1e-5,
    }
    return Plan(**{**values, **changes})


def test_default_delta_is_the_design_s() -> None:
    assert default_delta(100) == 1e-5
    assert default_delta(1_000_000) == pytest.approx(1e-7)


@pytest.mark.parametrize(
    "changes",
    [
        {"delta": 1 / 2200},
        {"delta": 0.0},
        {"delta": math.nan},
        {"expected_batch_size": 2201},
        {"expected_batch_size": 0},
        {"expected_batch_size": 1.5},
        {"steps": 0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"max_grad_norm": 0.0},
        {"max_grad_norm": math.nan},
        {"max_grad_norm": math.inf},
        {"generator": "mersenne"},
        {"declares": ("publish",)},
        {"views": 0},
        {"calibration_noise_multiplier": -2.0},
        {"version": 2},
        {"steps": True},
    ],
)
def test_a_plan_that_promises_nothing_is_refused(changes: dict) -> None:
    with pytest.raises(ConfigError):
        plan(**changes)


def test_delta_at_one_over_n_says_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"1/N") as error:
        plan(delta=0.01)
    assert "1e-05" in str(error.value)


def test_the_plan_cannot_be_changed_and_its_charge_follows_its_fields() -> None:
    one = plan(calibration_noise_multiplier=10.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.noise_multiplier = 0.1  # type: ignore[misc]
    assert one.mechanisms == (Mechanism(600 / 2200, 3.0, 200), Mechanism(1.0, 10.0, 1, "calibration"))
    assert not plan(noise_multiplier=0.0, max_grad_norm=math.inf).private
    assert not plan(calibration_noise_multiplier=0.0).private


def test_a_plan_survives_json_and_unknown_fields_do_not() -> None:
    one = plan(declares=("evaluate", "audit"))
    assert Plan.from_dict(one.to_dict()) == one
    assert Plan.from_dict(one.to_dict()).digest == one.digest
    assert plan(steps=201).digest != one.digest
    with pytest.raises(ConfigError):
        Plan.from_dict({**one.to_dict(), "refund": 1})
    values = one.to_dict()
    del values["delta"]
    with pytest.raises(ConfigError):
        Plan.from_dict(values)
