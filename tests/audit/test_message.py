"""One message: pictures come back without noise, clipped or not, and do not with it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from dptrain import accounting
from dptrain.audit.games import message
from dptrain.audit.games.likeness import correlations, likeness, nearest_other, psnr, ssim
from dptrain.audit.games.message import HONEST, IMPRINT, Prior
from dptrain.audit.scores import Array
from dptrain.plan import Plan
from tests.audit.made import make_plan

SIDE = 32
PLAN = make_plan(public_size=2000, expected_batch_size=600, steps=200, noise_multiplier=1.0, max_grad_norm=0.1)


def made_up(count: int, seed: int = 0) -> Array:
    """Smooth pictures that are alike, of different brightness."""
    rng = np.random.default_rng(seed)
    common = gaussian_filter(np.random.default_rng(99).normal(size=(SIDE, SIDE)), 4)
    own = np.stack([gaussian_filter(rng.normal(size=(SIDE, SIDE)), 2) for _ in range(count)])
    light = rng.normal(0.5, 0.1, size=(count, 1, 1))
    return np.clip(light + common + own / 2, 0, 1).astype(np.float32)


LINE, OTHERS = made_up(40), made_up(300, seed=1)


def noisy(epsilon: float) -> Plan:
    noise = accounting.calibrate_noise(epsilon, PLAN.delta, PLAN.sample_rate, PLAN.steps)
    return dataclasses.replace(PLAN, noise_multiplier=noise)


@pytest.mark.parametrize("clip", [False, True])
def test_without_noise_the_picture_comes_back_clipped_or_not(clip: bool) -> None:
    plan = message.unprotected(PLAN, clip=clip)
    for target in range(5):
        (found,) = message.play(plan, LINE, np.array([target]), OTHERS)
        assert found.likeness.ssim >= 0.99
        assert found.likeness.rank == 1
        assert found.likeness.recovered
        assert found.likeness.ssim > max(found.likeness.nearest_other, found.likeness.guess, found.likeness.shuffled)


@pytest.mark.parametrize("epsilon", [8.0, 1000.0])
@pytest.mark.parametrize(("coordinator", "count"), [(HONEST, 1), (HONEST, 4), (IMPRINT, 16)])
def test_with_noise_no_picture_comes_back(epsilon: float, coordinator: str, count: int) -> None:
    targets = np.arange(count)
    found = message.play(noisy(epsilon), LINE, targets, OTHERS, coordinator=coordinator)
    assert not any(one.likeness.recovered for one in found)
    assert max(one.likeness.ssim for one in found) < 0.2


def test_an_imprint_holds_most_of_a_sum() -> None:
    plan = message.unprotected(PLAN, clip=True)
    found = message.play(plan, LINE, np.arange(32), OTHERS, coordinator=IMPRINT)
    assert np.mean([one.likeness.recovered for one in found]) >= 0.8


def test_whom_the_message_does_not_hold_is_not_found() -> None:
    plan = message.unprotected(PLAN, clip=False)
    (found,) = message.play(plan, LINE, np.array([3]), OTHERS)
    other = likeness(found.picture, 7, LINE, guess=OTHERS.mean(axis=0), shuffled=3)
    assert not other.recovered
    assert other.rank > 1
    assert other.shuffled > 0.99


def test_an_empty_sum_tells_of_nobody() -> None:
    dark = np.zeros((2, SIDE, SIDE), dtype=np.float32)
    plan = message.unprotected(PLAN, clip=True)
    found = message.play(plan, np.concatenate([dark, LINE[:3]]), np.array([0, 1]), OTHERS, coordinator=IMPRINT)
    assert not any(one.likeness.recovered for one in found)


def test_structural_similarity_is_that_of_another_library() -> None:
    from monai.metrics import SSIMMetric

    metric = SSIMMetric(spatial_dims=2, data_range=1.0, kernel_type="gaussian", win_size=11, kernel_sigma=1.5)
    for one, two in ((0, 1), (2, 2), (3, 8)):
        want = metric(torch.from_numpy(LINE[one])[None, None], torch.from_numpy(LINE[two])[None, None])
        assert ssim(LINE[one], LINE[two]) == pytest.approx(float(torch.as_tensor(want)), abs=2e-3)
    assert ssim(LINE[0], LINE[0]) == pytest.approx(1)
    assert psnr(LINE[0], LINE[0] + 0.1) == pytest.approx(20, abs=1e-3)


def test_correlations_bear_flat_and_infinite_pictures() -> None:
    odd = np.stack([np.zeros((4, 4)), np.full((4, 4), np.nan), np.full((4, 4), 1e30), np.eye(4)])
    table = correlations(odd, odd)
    assert np.isfinite(table).all()
    assert table[3, 3] == pytest.approx(1)
    assert not table[0].any()
    assert nearest_other(0, LINE) != 0


def test_a_prior_gives_the_posterior_mean() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6)) + 3
    prior = Prior.of(pictures, rank=5)
    covariance = prior.components.T @ np.diag(prior.variances) @ prior.components
    covariance += prior.rest * (np.eye(6) - prior.components.T @ prior.components)
    np.testing.assert_allclose(covariance, np.cov(pictures.T), rtol=1e-6)
    seen = rng.normal(size=6)
    want = prior.mean + covariance @ np.linalg.solve(covariance + 0.5 * np.eye(6), seen - prior.mean)
    np.testing.assert_allclose(prior.posterior(seen, 0.5), want, rtol=1e-8)
    np.testing.assert_allclose(prior.posterior(seen, math.inf), prior.mean)


def test_with_a_prior_noise_still_looks_like_a_picture_but_like_nobodys() -> None:
    """The trap: structural similarity is that of the mean picture, and the right patient is not found."""
    prior = Prior.of(OTHERS)
    found = [message.play(noisy(8.0), LINE, np.array([t]), OTHERS, prior=prior)[0].likeness for t in range(20)]
    assert np.mean([one.ssim for one in found]) == pytest.approx(np.mean([one.guess for one in found]), abs=0.1)
    assert not any(one.recovered for one in found)
    assert np.mean([one.rank for one in found]) > 5
