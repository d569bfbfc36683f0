"""Reference models trained together are trained exactly; nothing random is shared between them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dptrain.audit import reference
from dptrain.audit.games.population import choose_trainer, train_references
from dptrain.audit.reference import Material, stack, together, train_in_processes, train_together, way_of
from dptrain.audit.reference.stack import Draws
from dptrain.engine import noise
from dptrain.errors import ConfigError
from dptrain.models.losses import loss_for_task
from dptrain.models.nets import cnn1d, linear_head, mlp, small_cnn
from dptrain.settings import AuditConfig, OptimizerConfig
from tests.audit.faults import realised_normaliser
from tests.audit.made import make_material, make_plan


def mean_gradient(material: Material, member: np.ndarray, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """One patient at a time in float64: the sum of clipped gradients of a full draw over the normaliser, no noise."""
    module = copy.deepcopy(material.module).double()
    named = dict(module.named_parameters())
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(weights[name])
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    for p in np.flatnonzero(member):
        rows = torch.nonzero(material.patient == p).squeeze(1)  # type: ignore[call-overload]
        loss = material.loss(module(material.inputs[rows].double()), material.labels[rows].double()).mean()
        gradient = torch.autograd.grad(loss, list(named.values()))
        norm = torch.sqrt(sum((g**2).sum() for g in gradient))  # type: ignore[arg-type]
        factor = min(1.0, material.plan.max_grad_norm / float(norm))
        for name, g in zip(total, gradient, strict=True):
            total[name] += factor * g
    return {name: value / material.plan.expected_batch_size for name, value in total.items()}


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference of two gradients over the largest value of the first."""
    gap = max(float((a[name] - b[name].double()).abs().max()) for name in a)
    return gap / max(float(value.abs().max()) for value in a.values())


def near_a_kink(material: Material, member: np.ndarray, weights: dict[str, Tensor]) -> bool:
    """Whether weights that differ in the last digits of float32 have another gradient: no rounding is right there."""
    generator = torch.Generator().manual_seed(0)
    moves = {name: torch.randn(w.shape, generator=generator).double() * 3e-6 for name, w in weights.items()}
    here, up, down = (
        mean_gradient(material, member, {n: w.double() * (1 + sign * moves[n]) for n, w in weights.items()})
        for sign in (0, 1, -1)
    )
    return max(apart(here, up), apart(here, down)) > 1e-4


class DoubleLoss(nn.Module):
    """The task's loss without its cast to float32."""

    def __init__(self, task: str) -> None:
        super().__init__()
        self.task = task

    def forward(self, output: Tensor, label: Tensor) -> Tensor:
        if self.task == "segmentation":
            return loss_for_task(self.task)(output, label)
        if self.task == "multiclass":
            return nn.functional.cross_entropy(output, label.long(), reduction="none")
        shaped = label.reshape(output.shape).to(output.dtype)
        values = nn.functional.binary_cross_entropy_with_logits(output, shaped, reduction="none")
        return values.reshape(len(output), -1).mean(1)


def volume_net(classes: int) -> nn.Module:
    """A classifier of volumes."""
    body = (nn.Conv3d(1, 3, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(3, classes))


def mask_net(convolution: type[nn.Module], classes: int) -> nn.Module:
    """Two layers that give a class to every pixel or voxel."""
    return nn.Sequential(convolution(1, 4, 3, padding=1), nn.ReLU(), convolution(4, classes, 1))


class Asking(nn.Module):
    """A network that looks at its values, which vmap forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).flatten(2).mean(2)
        return y * 2 if float(y.sum()) > 0 else y


CASES = {
    "linear binary": (lambda: nn.Linear(12, 1), (12,), "binary", 1),
    "linear no bias": (lambda: nn.Linear(12, 3, bias=False), (12,), "multiclass", 3),
    "linear labels": (lambda: nn.Linear(12, 4), (12,), "multilabel", 4),
    "linear head": (lambda: linear_head(12, 2), (3, 4), "multiclass", 2),
    "mlp": (lambda: mlp(12, 3, (7, 5)), (12,), "multiclass", 3),
    "cnn": (lambda: small_cnn(1, 1, (4, 4)), (1, 8, 8), "binary", 1),
    "cnn labels": (lambda: small_cnn(1, 3, (4, 4)), (1, 8, 8), "multilabel", 3),
    "volume": (lambda: volume_net(2), (1, 5, 6, 4), "multiclass", 2),
    "mask": (lambda: mask_net(nn.Conv2d, 3), (1, 6, 6), "segmentation", 3),
    "mask of a volume": (lambda: mask_net(nn.Conv3d, 2), (1, 4, 5, 3), "segmentation", 2),
    "signal": (lambda: cnn1d(1, 2, (3, 4), 3), (1, 16), "multiclass", 2),
}


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize(
    ("name", "momentum", "ema", "schedule"), [("sgd", 0.9, 0.0, "constant"), ("adam", 0.0, 0.9, "cosine")]
)
def test_the_stack_equals_one_patient_at_a_time(
    case: str, name: str, momentum: float, ema: float, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, shape, task, outputs = CASES[case]
    module = make()
    material = make_material(
        module=module,
        shape=shape,
        task=task,
        outputs=outputs,
        patients=12,
        plan=make_plan(public_size=12, expected_batch_size=12),
        optimizer=OptimizerConfig(name=name, lr=0.1, momentum=momentum, weight_decay=0.01, schedule=schedule),
        ema=ema,
    )
    material = dataclasses.replace(material, loss=DoubleLoss(task))
    seeds = iter(range(1, 100))

    def start() -> dict[str, Tensor]:
        torch.manual_seed(next(seeds))
        twin = make()
        if case == "linear head":  # zeros in every model would hide a mix-up
            for parameter in twin.parameters():
                nn.init.normal_(parameter, std=0.3)
        return {name: value.detach().clone() for name, value in twin.state_dict().items()}

    taken: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    finals: list[dict[str, Tensor]] = []
    update, score = stack.Stack.update, together.score

    def watched(models: stack.Stack, gradients: list[Tensor]) -> None:
        before = {n: w.detach().clone() for n, w in models.by_name().items()}
        taken.append((before, {n: g.detach().clone() for n, g in zip(models.names, gradients, strict=True)}))
        update(models, gradients)

    monkeypatch.setattr(stack.Stack, "update", watched)
    monkeypatch.setattr(together, "score", lambda m, final, device: finals.append(final) or score(m, final, device))
    member = np.random.default_rng(1).random((3, 12)) < 0.5
    train_together(dataclasses.replace(material, start=start), member)
    assert len(taken) == material.plan.steps
    compared = 0
    for number in range(3):
        for before, gradients in taken:
            weights = {n: w[number] for n, w in before.items()}
            if near_a_kink(material, member[number], weights):
                continue
            compared += 1
            expected = mean_gradient(material, member[number], weights)
            assert apart(expected, {n: g[number] for n, g in gradients.items()}) < 2e-5
        expected = alone(material, {n: w[number] for n, w in taken[0][0].items()}, number, [g for _, g in taken])
        for key, value in expected.items():
            torch.testing.assert_close(finals[0][key][number], value, rtol=1e-5, atol=1e-6)
    assert compared >= 5


def alone(
    material: Material, start: dict[str, Tensor], number: int, gradients: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Where the run's optimiser and average bring one model that takes these steps by itself.

    The steps are those that the stack took: Adam divides by a gradient's own size, so that the last digit of a
    gradient near zero would decide a whole step.
    """
    from dptrain.training.step import build_optimizer, learning_rate

    module = copy.deepcopy(material.module)
    named = dict(module.named_parameters())
    module.load_state_dict({**module.state_dict(), **start})
    optimizer = build_optimizer(list(module.parameters()), material.optimizer)
    average = {name: p.detach().clone() for name, p in named.items()}
    for step, gradient in enumerate(gradients):
        for name, parameter in named.items():
            parameter.grad = gradient[name][number].clone()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(material.optimizer, step, material.plan.steps)
        optimizer.step()
        decay = min(material.ema, (step + 1) / (step + 10))
        for name, parameter in named.items():
            average[name].lerp_(parameter.detach(), 1 - decay)
    return average if material.ema else {name: p.detach() for name, p in named.items()}


def test_scores_are_those_of_the_model() -> None:
    material = make_material(module=mlp(12, 3), task="multiclass", outputs=3)
    layers = {n: torch.stack([p.detach()] * 2) for n, p in material.module.named_parameters()}
    scores = together.score(material, layers, torch.device("cpu"))
    with torch.no_grad():
        p = material.module(material.inputs).softmax(1)[torch.arange(len(material.inputs)), material.labels]
    np.testing.assert_allclose(scores[1], torch.logit(p).numpy(), atol=1e-4)


def test_draws_are_poisson_and_capped() -> None:
    plan = make_plan(public_size=40, expected_batch_size=10, max_records_per_patient=3)
    material = make_material(plan=plan, most=6)
    member = torch.zeros(200, 40, dtype=torch.bool)
    member[:, :20] = True
    draws = Draws(material, member, torch.device("cpu"))
    weights = torch.stack([draws.weights() for _ in range(20)]).reshape(4000, -1)
    owner = draws.owner
    per_patient = torch.zeros(4000, 40).index_add_(1, owner, weights)
    assert torch.isin(per_patient.round(decimals=4), torch.tensor([0.0, 1.0])).all()
    assert not per_patient[:, 20:].any()
    assert per_patient[:, :20].mean() == pytest.approx(0.25, abs=0.01)
    assert per_patient.sum(1).var() == pytest.approx(20 * 0.25 * 0.75, rel=0.1)
    chosen = torch.zeros(4000, 40).index_add_(1, owner, (weights > 0).float())
    assert chosen.max() == 3
    many = int(torch.nonzero(torch.bincount(owner) > 4)[0])
    used = (weights[:, owner == many] > 0).float().mean(0)
    assert float(used.max() - used.min()) < 0.05


def test_no_two_models_share_draws_noise_or_start() -> None:
    """The structural test for one reused seed: models with the same patients must differ in everything random."""
    plan = make_plan(noise_multiplier=1.0, steps=1)
    material = make_material(plan=plan)
    member = np.ones((6, 40), dtype=bool)
    one = Draws(material, torch.from_numpy(member), torch.device("cpu"))
    two = Draws(material, torch.from_numpy(member), torch.device("cpu"))
    weights = [*(one.weights() > 0), *(one.weights() > 0), *(two.weights() > 0)]
    assert len({row.numpy().tobytes() for row in weights}) == len(weights)
    noise = torch.cat([one.noise(torch.zeros(6, 500), 1.0), two.noise(torch.zeros(6, 500), 1.0)])
    correlation = torch.corrcoef(noise) - torch.eye(12)
    assert correlation.abs().max() < 0.25
    starts = [material.start()["weight"] for _ in range(4)]
    assert len({s.numpy().tobytes() for s in starts}) == 4
    scores = train_together(material, member)
    assert np.abs(np.corrcoef(scores) - np.eye(6)).max() < 0.999


@pytest.mark.parametrize("trainer", ["together", "engine"])
def test_nobody_in_the_training_leaves_noise_of_the_promised_size(trainer: str) -> None:
    check_noise(trainer)


@pytest.mark.parametrize("trainer", ["together", "engine"])
def test_the_normaliser_does_not_follow_the_batch(trainer: str) -> None:
    check_normaliser(trainer)


def check_noise(trainer: str) -> None:
    """The structural test for noise that is scaled down or reused: an empty cohort trains on noise alone."""
    plan = make_plan(noise_multiplier=2.0, max_grad_norm=0.5, steps=4, expected_batch_size=20)
    module = nn.Linear(400, 1, bias=False)
    nn.init.zeros_(module.weight)
    material = make_material(
        module=module,
        shape=(400,),
        plan=plan,
        inputs=torch.eye(400),
        patient=torch.arange(400) % 40,
        labels=torch.ones(400),
    )
    material = dataclasses.replace(material, start=lambda: {"weight": torch.zeros(1, 400)})
    nobody = np.zeros((4, 40), dtype=bool)
    scores = train_together(material, nobody) if trainer == "together" else train_in_processes(material, nobody)
    expected = 2.0 * 0.5 / 20 * np.sqrt(4)
    assert scores.std() == pytest.approx(expected, rel=0.1)
    assert np.abs(np.corrcoef(scores) - np.eye(4)).max() < 0.25


def check_normaliser(trainer: str) -> None:
    """The structural test for a normaliser that follows the draws: twice the patients move twice as far."""
    moved = []
    for count in (10, 20):
        plan = make_plan(steps=1, public_size=40, expected_batch_size=40, max_grad_norm=0.1)
        module = nn.Linear(3, 1, bias=False)
        material = make_material(
            module=module,
            shape=(3,),
            plan=plan,
            inputs=torch.ones(40, 3),
            labels=torch.ones(40),
            patient=torch.arange(40),
        )
        material = dataclasses.replace(material, start=lambda: {"weight": torch.zeros(1, 3)})
        member = (np.arange(40) < count)[None]
        scores = train_together(material, member) if trainer == "together" else train_in_processes(material, member)
        moved.append(float(scores[0, 0]))
    assert moved[0] == pytest.approx(10 * 0.1 * np.sqrt(3) / 40, rel=5e-3)
    assert moved[1] == pytest.approx(2 * moved[0], rel=1e-3)


def one_seed_for_all_trainings(patch: pytest.MonkeyPatch) -> None:
    """Every source of noise gets the same bits."""

    def reused(kind: str) -> Callable[[np.ndarray], None]:
        bits = np.random.SFC64(0)

        def fill(words: np.ndarray) -> None:
            words.view(np.uint64)[:] = bits.random_raw(len(words))

        return fill

    patch.setattr(noise, "new_bits", reused)


def one_noise_for_the_stack(patch: pytest.MonkeyPatch) -> None:
    correct = Draws.noise
    patch.setattr(Draws, "noise", lambda draws, like, scale: correct(draws, like[:1], scale).expand_as(like))


def stack_divides_by_those_drawn(patch: pytest.MonkeyPatch) -> None:
    correct = stack.noisy_mean

    def realised(sums: Any, draws: Draws, plan: Any) -> list[Tensor]:
        factor = plan.expected_batch_size / draws.member.sum(dim=1).float()  # everybody is drawn in this test
        return [value * factor.reshape(-1, *[1] * (value.dim() - 1)) for value in correct(sums, draws, plan)]

    patch.setattr(stack, "noisy_mean", realised)


@pytest.mark.parametrize(
    ("fault", "check", "trainer"),
    [
        (one_seed_for_all_trainings, check_noise, "engine"),
        (one_noise_for_the_stack, check_noise, "together"),
        (realised_normaliser, check_normaliser, "engine"),
        (stack_divides_by_those_drawn, check_normaliser, "together"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_structural_tests_catch_what_scores_hardly_show(
    fault: Callable[[pytest.MonkeyPatch], None], check: Callable[[str], None], trainer: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        with pytest.raises(AssertionError):
            check(trainer)


def test_engine_and_stack_agree_without_noise() -> None:
    material = make_material(
        plan=make_plan(public_size=40, expected_batch_size=40, steps=5),
        optimizer=OptimizerConfig(name="sgd", lr=0.5, momentum=0.9),
    )
    state = material.start()
    material = dataclasses.replace(material, start=lambda: state)
    member = np.random.default_rng(2).random((2, 40)) < 0.5
    np.testing.assert_allclose(train_together(material, member), train_in_processes(material, member), atol=3e-3)


def test_records_kept_back_are_scored_but_not_trained() -> None:
    material = make_material(plan=make_plan(public_size=40, expected_batch_size=40, steps=2))
    state = material.start()
    kept = material.trained.copy()
    kept[::3] = False
    some = dataclasses.replace(material, start=lambda: state, trained=kept)
    changed = material.inputs.clone()
    changed[~torch.from_numpy(kept)] += 100
    other = dataclasses.replace(some, inputs=changed)
    member = np.ones((1, 40), dtype=bool)
    one, two = train_together(some, member), train_together(other, member)
    np.testing.assert_allclose(one[:, kept], two[:, kept], atol=1e-6)
    assert one.shape == (1, len(kept))


def test_a_patient_that_is_not_finite_spoils_nobody() -> None:
    material = make_material(plan=make_plan(public_size=40, expected_batch_size=40, steps=2))
    inputs = material.inputs.clone()
    inputs[0] = float("nan")
    scores = train_together(dataclasses.replace(material, inputs=inputs), np.ones((2, 40), dtype=bool))
    assert np.isfinite(scores[:, 1:]).all()


@pytest.mark.parametrize(("batch", "size"), [(15, 60), (3, 100), (1, 100), (20, 40), (7, 61), (600, 2215), (40, 40)])
def test_half_of_a_plan_draws_no_more_often_than_the_whole(batch: int, size: int) -> None:
    """The ceilings are the whole plan's: a higher rate would let an honest attack pass them."""
    plan = make_plan(public_size=size, expected_batch_size=batch)
    half = reference.half_plan(plan)
    assert half.sample_rate <= plan.sample_rate
    assert half.sample_rate == pytest.approx(plan.sample_rate, rel=0.02)
    assert half.expected_batch_size == max(1, round(batch / 2))
    assert dataclasses.replace(half, public_size=size, expected_batch_size=batch, declares=plan.declares) == plan


def test_ways() -> None:
    plan = make_plan()
    assert way_of(nn.Linear(3, 2), plan) == "linear"
    assert way_of(linear_head(3, 2), plan) == "linear"
    assert way_of(mlp(3, 2), plan) == "dense"
    assert way_of(small_cnn(), plan) == "stacked"
    assert way_of(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)), plan) == "engine"
    assert way_of(nn.Linear(3, 2), plan, augmented=True) == "engine"
    assert way_of(mlp(3, 2, (2000, 2000)), plan) == "dense"
    shared = nn.Linear(3, 3)
    assert way_of(nn.Sequential(shared, shared), plan) == "stacked"


def asking_material() -> Material:
    return make_material(module=Asking(), shape=(1, 6, 6), task="multiclass", outputs=2, patients=12)


def test_a_network_that_vmap_cannot_run_goes_to_the_engine() -> None:
    material = asking_material()
    assert way_of(material.module, material.plan) == "stacked"
    with pytest.raises(ConfigError, match=r"audit\.trainer=engine"):
        train_together(material, np.ones((2, 12), dtype=bool))
    trainer, why = choose_trainer(material, AuditConfig(), torch.device("cuda"))
    assert trainer == "engine"
    assert "torch.func" in why
    scores = train_references(material, np.ones((2, 12), dtype=bool), AuditConfig(processes=1), None, CPU, "here")
    assert np.isfinite(scores).all()


CPU = torch.device("cpu")


def test_the_trainer_is_the_one_measured_faster() -> None:
    """Small CNNs are slower as a stack on a CPU (benchmarks/audit), many times faster on a GPU."""
    cnn = make_material(module=small_cnn(1, 2, (4, 4)), shape=(1, 8, 8), task="multiclass", outputs=2)
    assert choose_trainer(cnn, AuditConfig(), CPU)[0] == "engine"
    assert choose_trainer(cnn, AuditConfig(), torch.device("cuda"))[0] == "together"
    assert choose_trainer(cnn, AuditConfig(trainer="together"), CPU)[0] == "together"
    for module in (nn.Linear(12, 1), mlp(12, 1)):
        assert choose_trainer(make_material(module=module), AuditConfig(), CPU)[0] == "together"
