"""The released weights: the missing record returns from a converged head, and from a private one it does not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import nn

from dptrain import accounting
from dptrain.audit.games import weights
from dptrain.audit.games.likeness import likeness
from dptrain.settings import OptimizerConfig
from tests.audit.made import make_material, make_plan
from tests.audit.test_message import SIDE, made_up

PICTURES = made_up(120)
FLAT = PICTURES.reshape(len(PICTURES), -1)
LABELS = (np.random.default_rng(5).random(len(PICTURES)) < expit(8 * (FLAT.mean(axis=1) - FLAT.mean()))).astype(int)


def test_convergence_is_that_of_another_optimiser() -> None:
    x, y = FLAT[:60, :20].astype(np.float64), LABELS[:60]

    def objective(values: np.ndarray) -> float:
        z = x @ values[:-1] + values[-1]
        return float(np.sum(np.logaddexp(0, z) - y * z) + 0.3 * values[:-1] @ values[:-1] / 2)

    want = minimize(objective, np.zeros(21), method="BFGS", options={"gtol": 1e-8}).x
    weight, bias = weights.converge(x, y, 0.3)
    np.testing.assert_allclose([*weight, bias], want, atol=2e-4)


def test_the_missing_picture_returns_from_a_converged_head() -> None:
    head = weights.converge(FLAT, LABELS, 1.0)
    assert head[0].dtype == np.float32
    for target in range(12):
        rest = np.delete(np.arange(len(FLAT)), target)
        picture = weights.invert(head, FLAT[rest], LABELS[rest], 1.0).reshape(SIDE, SIDE)
        like = likeness(picture, target, PICTURES, guess=PICTURES[rest].mean(axis=0), shuffled=(target + 1) % 12)
        assert like.ssim >= 0.99
        assert like.recovered


def test_a_private_head_does_not_give_it_away() -> None:
    noise = accounting.calibrate_noise(8.0, 1e-5, 1 / 3, 30)
    plan = make_plan(public_size=120, expected_batch_size=40, steps=30, noise_multiplier=noise)
    material = weights.head_material(FLAT, LABELS, plan, OptimizerConfig(lr=0.5), 0.0)
    head = weights.private_head(material)
    for target in range(8):
        rest = np.delete(np.arange(len(FLAT)), target)
        picture = weights.invert(head, FLAT[rest], LABELS[rest], 1.0).reshape(SIDE, SIDE)
        like = likeness(picture, target, PICTURES, guess=PICTURES[rest].mean(axis=0), shuffled=(target + 1) % 12)
        assert not like.recovered
        assert like.ssim < like.guess + 0.05  # it looks like the mean picture, and like nobody's


@pytest.mark.parametrize("private", [False, True])
def test_a_shadow_reconstructor(private: bool) -> None:
    """Without protection it tells the stranger from the weights; under noise it gives the mean picture."""
    pictures = made_up(200)
    bright = pictures.mean(axis=(1, 2))
    labels = (bright > np.median(bright)).astype(int)
    strangers = np.flatnonzero(labels)[:60]
    plan = make_plan(public_size=200, expected_batch_size=40, steps=8, noise_multiplier=4.0)
    material = make_material(
        module=nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8), nn.Tanh(), nn.Linear(8, 1)),
        patients=200,
        inputs=torch.from_numpy(pictures[:, None]),
        labels=torch.from_numpy(labels),
        patient=torch.arange(200),
        plan=plan if private else weights.everybody(plan),
        optimizer=OptimizerConfig(lr=0.2),
    )
    seen = weights.shadows(material, strangers.tolist())
    known = pictures[strangers[:50]].astype(np.float64)
    reconstruct = weights.learn(seen[:50], known)
    likes = [
        likeness(reconstruct(seen[n]), int(strangers[n]), pictures, guess=known.mean(axis=0), shuffled=0)
        for n in range(50, 60)
    ]
    gain, ranks = np.mean([like.ssim - like.guess for like in likes]), [like.rank for like in likes]
    if private:
        assert gain < 0.05
        assert np.mean(ranks) > 20
    else:
        assert gain > 0.1
        assert np.median(ranks) == 1


def test_shadows_that_are_there_are_not_trained_again() -> None:
    material = make_material(plan=make_plan(steps=1))
    given = np.arange(13.0)
    found = weights.shadows(material, [3, 4], keep=lambda number, make: given + number)
    np.testing.assert_array_equal(found, [given, given + 1])


def test_without_protection_nothing_is_left_to_chance() -> None:
    material = make_material(plan=weights.everybody(make_plan()))
    start = material.start()
    member = np.ones(material.patients, dtype=bool)
    one, two = (weights.train(dataclasses.replace(material), member, start) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
