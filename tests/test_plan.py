"""The plan refuses what would make its promise false, and what runs is what is charged."""

from __future__ import annotations

import dataclasses
import hashlib
import json
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
        {"calibration_noise_multiplier": math.nan},
        {"calibration_noise_multiplier": math.inf},
        {"noise_multiplier": 0.5, "max_grad_norm": math.inf},
        {"delta": 1 / 2200 + 1e-9},
        {"max_records_per_patient": 0},
        {"version": 2},
        {"steps": True},
    ],
)
def test_a_plan_that_promises_nothing_is_refused(changes: dict) -> None:
    with pytest.raises(ConfigError):
        plan(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 0.0, "max_grad_norm": math.inf},
        {"noise_multiplier": 0.5},
        {"calibration_noise_multiplier": 0.0},
        {"expected_batch_size": 2200},
        {"expected_batch_size": 1},
        {"steps": 1, "views": 1, "max_records_per_patient": 1},
        {"delta": math.nextafter(1 / 2200, 0)},
        {"max_grad_norm": 5e-324},
    ],
)
def test_what_lies_on_the_border_is_a_plan(changes: dict) -> None:
    made = plan(**changes)
    assert {name: getattr(made, name) for name in changes} == changes


def test_little_noise_is_private_and_none_is_not() -> None:
    assert plan(noise_multiplier=0.5).private
    assert plan(calibration_noise_multiplier=0.5).private
    assert not plan(noise_multiplier=0.0).private


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


@pytest.mark.parametrize(
    "values",
    [
        *((rate, 1.0, 1) for rate in (0.0, -0.5, 1.5, math.nan, math.inf)),
        *((0.5, noise, 1) for noise in (-1.0, math.nan, math.inf, -math.inf)),
        *((0.5, 1.0, steps) for steps in (0, -1, 1.5)),
    ],
)
def test_a_mechanism_out_of_range_is_refused(values: tuple) -> None:
    with pytest.raises(ConfigError):
        Mechanism(*values)


def test_mechanisms_on_the_border_are_allowed() -> None:
    for values in ((1.0, 1.0, 1), (5e-324, 1.0, 1), (0.5, 0.0, 1), (0.5, 0.5, 1)):
        assert Mechanism(*values).sample_rate == values[0]


def test_the_default_delta_of_few_and_many() -> None:
    assert default_delta(1) == default_delta(10_000) == 1e-5
    assert default_delta(20_000) == 5e-6
    with pytest.raises(ConfigError):
        default_delta(0)


def test_all_that_is_released_is_charged_once() -> None:
    made = plan(calibration_noise_multiplier=10.0)
    training, calibration = made.mechanisms
    assert training == Mechanism(600 / 2200, 3.0, 200)
    assert (calibration.sample_rate, calibration.noise_multiplier, calibration.steps) == (1.0, 10.0, 1)
    assert plan().mechanisms == (training,)


def test_the_digest_is_that_of_the_sorted_json() -> None:
    text = json.dumps(plan().to_dict(), sort_keys=True)
    assert plan().digest == hashlib.sha256(text.encode()).hexdigest()
    assert plan().max_records_per_patient == 8
    assert plan().views == 1
