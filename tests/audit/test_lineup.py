"""The line-up: exact evidence, the right bound, a planted fault that passes it, and nothing where nothing leaks."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from torch import nn

from dptrain import accounting
from dptrain.audit.games import lineup
from dptrain.audit.games.likeness import rank_p_value
from dptrain.audit.games.lineup import KNOWN, SECRET, Trial
from dptrain.errors import ConfigError
from dptrain.settings import OptimizerConfig
from dptrain.training import step
from tests.audit.made import make_material, make_plan


def small(noise: float, *, patients: int = 30, **changes: Any) -> Any:
    values = {"public_size": patients, "expected_batch_size": patients // 3, "steps": 12, "noise_multiplier": noise}
    return make_material(
        patients=patients,
        shape=(40,),
        most=2,
        plan=make_plan(**(values | changes)),
        optimizer=OptimizerConfig(name="sgd", lr=0.1),
    )


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in module.named_parameters()}


def trials_of(material: Any, candidates: np.ndarray, count: int, draws: str = SECRET) -> list[Trial]:
    targets = np.random.default_rng(3).integers(len(candidates), size=count)
    return [lineup.play(material, candidates, int(target), draws=draws) for target in targets]


def test_evidence_is_the_ratio_of_the_mixture_to_the_noise() -> None:
    plan = make_plan(expected_batch_size=12, noise_multiplier=0.7, max_grad_norm=0.5)
    rng = np.random.default_rng(0)
    rest, v = rng.normal(size=4) * 0.4, rng.normal(size=(6, 4)) * 0.3
    scale, q = (0.7 * 0.5) ** 2, 12 / 40
    absent = multivariate_normal(np.zeros(4), scale * np.eye(4)).pdf(rest)
    present = np.array([multivariate_normal(row, scale * np.eye(4)).pdf(rest) for row in v])
    projected = v @ rest - (v**2).sum(1) / 2
    got = lineup.log_ratios(projected, plan, SECRET, present=False)
    np.testing.assert_allclose(got, np.log((q * present + (1 - q) * absent) / absent), rtol=1e-10)
    taken = lineup.log_ratios(projected, plan, KNOWN, present=True)
    np.testing.assert_allclose(taken, np.log(present / absent), rtol=1e-10)
    assert not lineup.log_ratios(projected, plan, KNOWN, present=False).any()


def test_candidates_gradients_are_those_of_plain_autograd() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def loss(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return nn.functional.softplus((1 - 2.0 * label) * output[:, 0])

    patient = torch.tensor([0, 0, 1, 2, 2, 2])
    inputs, labels = 30 * torch.randn(6, 5).double(), torch.tensor([0, 1, 1, 0, 0, 1])
    inputs[2] /= 1e4
    crowd = lineup.Candidates(inputs, labels, patient, 3, loss, clip=0.5)
    got = torch.cat(list(crowd.gradients(module, weights_of(module))))
    for number in range(3):
        rows = patient == number
        mean = loss(module(inputs[rows]), labels[rows]).mean()
        want = torch.cat([g.flatten() for g in torch.autograd.grad(mean, list(module.parameters()))])
        want = want * min(1.0, 0.5 / float(want.norm()))
        torch.testing.assert_close(got[number], want, rtol=1e-9, atol=1e-12)


def test_few_candidates_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    material = small(1.0)
    crowd = lineup._candidates(material, np.arange(9), "cpu")
    weights = weights_of(material.module)
    at_once = torch.cat(list(crowd.gradients(material.module, weights)))
    monkeypatch.setattr(lineup, "FLOATS", 1)
    pieces = list(crowd.gradients(material.module, weights))
    assert len(pieces) > 3
    torch.testing.assert_close(torch.cat(pieces), at_once)


@pytest.mark.parametrize("rate", [10, 30])
def test_without_noise_everybody_is_named(rate: int) -> None:
    material = small(0.0, expected_batch_size=rate)
    trials = trials_of(material, lineup.choose(material, 12), 12)
    assert all(trial.rank == 1 for trial in trials if trial.taken)
    assert sum(trial.taken > 0 for trial in trials) >= 8


def test_where_nothing_leaks_ranks_are_those_of_chance() -> None:
    material = small(3000.0)
    ranks = np.array([trial.rank for trial in trials_of(material, lineup.choose(material, 5), 60)])
    assert 1e-4 < rank_p_value(ranks, 5) < 1 - 1e-4


def test_success_is_above_chance_and_below_the_bound() -> None:
    noise = accounting.calibrate_noise(8.0, 1e-5, 1 / 3, 12)
    material, who = lineup.plant(small(noise), 20)
    result = lineup.summarise(trials_of(material, who, 60), 20, material.plan, SECRET, 0.95)
    assert result.p_value < 1e-3
    assert result.bound is not None
    assert result.low < result.bound
    assert not result.above
    assert result.refutable


def less_noise(monkeypatch: pytest.MonkeyPatch, factor: float = 8.0) -> None:
    correct = step.PatientOptimizer  # type: ignore[attr-defined]

    def broken(optimizer: Any, *, noise_multiplier: float, **rest: Any) -> Any:
        return correct(optimizer, noise_multiplier=noise_multiplier / factor, **rest)

    monkeypatch.setattr(step, "PatientOptimizer", broken)


def no_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    correct = step.PatientGradients  # type: ignore[attr-defined]

    def broken(model: nn.Module, *, max_grad_norm: float, **rest: Any) -> Any:
        gradients = correct(model, max_grad_norm=1e6 * max_grad_norm, **rest)
        honest = gradients.clipped_sum

        def claims(*arguments: Any) -> Any:
            return dataclasses.replace(honest(*arguments), max_grad_norm=max_grad_norm)

        gradients.clipped_sum = claims  # type: ignore[assignment]
        return gradients

    monkeypatch.setattr(step, "PatientGradients", broken)


@pytest.mark.parametrize("fault", [less_noise, no_clipping])
def test_a_fault_of_the_engine_passes_the_bound_at_epsilon_8(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What canary tests cannot show at this epsilon (their bound saturates)."""
    noise = accounting.calibrate_noise(8.0, 1e-5, 1 / 3, 12)
    material, who = lineup.plant(small(noise), 20)
    fault(monkeypatch)
    result = lineup.summarise(trials_of(material, who, 30), 20, material.plan, SECRET, 0.95)
    assert result.above
    assert result.successes > 25


def test_the_bound_is_the_gaussian_one_without_sampling() -> None:
    plan = make_plan(expected_batch_size=40, steps=9, noise_multiplier=2.0)
    exact = norm.cdf(norm.ppf(1 / 100) + math.sqrt(9) / 2)
    got = lineup.bound_of(plan, 100, [], SECRET)
    assert got is not None
    assert exact <= got <= exact + 2e-3
    assert lineup.bound_of(plan, 100, [Trial(1, 9)], KNOWN) == pytest.approx(exact)
    assert lineup.bound_of(make_plan(), 100, [], SECRET) is None


def test_known_draws_have_their_own_larger_bound() -> None:
    plan = make_plan(expected_batch_size=4, steps=50, noise_multiplier=1.0)
    secret = lineup.bound_of(plan, 100, [], SECRET)
    known = lineup.bound_of(plan, 100, [Trial(1, 5), Trial(1, 7)], KNOWN)
    assert secret is not None
    assert known is not None
    assert known > secret


def test_known_draws_are_told_better(monkeypatch: pytest.MonkeyPatch) -> None:
    material = small(2.0)
    result = lineup.summarise(
        trials_of(material, lineup.choose(material, 8), 8, KNOWN), 8, material.plan, KNOWN, 0.95
    )
    assert result.bound is not None
    assert result.trials == 8


def test_a_large_epsilon_needs_a_large_line_up() -> None:
    noise = accounting.calibrate_noise(20.0, 1e-5, 0.1, 100)
    plan = make_plan(public_size=1000, expected_batch_size=100, steps=100, noise_multiplier=noise)
    curve = accounting.tradeoff(plan.mechanisms)
    size = lineup.size_for(plan, 10**6)
    assert curve.reconstruction(1 / size) <= 0.5 < curve.reconstruction(1 / 100)
    assert lineup.size_for(plan, 250) == 100
    strict = dataclasses.replace(plan, noise_multiplier=10 * noise)
    assert lineup.size_for(strict, 10**6) == 100


def test_the_null_of_ranks_is_exact() -> None:
    sums = np.array([sum(ranks) for ranks in itertools.product(range(1, 5), repeat=3)])
    for ranks in ([1, 1, 1], [1, 2, 3], [4, 4, 4], [2, 2, 4]):
        assert rank_p_value(np.array(ranks), 4) == pytest.approx(np.mean(sums <= sum(ranks)), abs=1e-12)


def test_candidates_are_patients_within_the_cap() -> None:
    material = small(1.0, max_records_per_patient=1)
    records = np.bincount(material.patient.numpy())
    assert set(records[lineup.choose(material, 5)]) == {1}
    with pytest.raises(ConfigError, match="line-up"):
        lineup.choose(material, 31)
    with pytest.raises(ConfigError, match="right angles"):
        lineup.plant(material, 21)


def test_canaries_fill_the_clip_at_right_angles() -> None:
    material, who = lineup.plant(small(1.0), 10)
    module = material.module
    module.load_state_dict(material.start())
    crowd = lineup._candidates(material, who, "cpu")
    gradients = torch.cat(list(crowd.gradients(module, weights_of(module))))
    angles = gradients @ gradients.T / gradients.norm(dim=1) / gradients.norm(dim=1)[:, None]
    assert float((angles - torch.eye(10)).abs().max()) < 0.2
    torch.testing.assert_close(gradients.norm(dim=1), torch.full((10,), material.plan.max_grad_norm))
