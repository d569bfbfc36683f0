"""What must be found is found, and gone at epsilon 1; broken trainers are accused, the correct one is not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from dptrain import accounting
from dptrain.audit import masks, patients, reference, statistics
from dptrain.audit.games.canaries import canary_bound, canary_scores, plant
from dptrain.audit.games.release import confirm
from dptrain.audit.promise import promise_of
from dptrain.audit.reference import Material, train_together
from dptrain.audit.results import People, summarise
from dptrain.models.nets import mlp
from dptrain.settings import AuditConfig, OptimizerConfig
from tests.audit.made import make_material, make_plan

PATIENTS = 120
MISLABELLED, BLANK, COPIES = (3, 4, 5), 6, 7
PLANTED = (*MISLABELLED, BLANK, COPIES)


def planted(noise: float, clip: float) -> Material:
    """Two noisy classes; three wrong labels, one empty image, one unlike the others (rightly labelled) thirty times.

    Thirty copies of a usual image do not stand out: a patient's gradient is the mean over the records, so that they
    weigh as one (AUC 0.6, ranks 40 to 55, in two audits).
    """
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 4, PATIENTS)
    counts[COPIES] = 30
    patient = np.repeat(np.arange(PATIENTS), counts)
    cls = np.arange(PATIENTS) % 2
    centre = rng.normal(size=20)
    own = rng.normal(size=(PATIENTS, 20))[patient]
    x = 0.7 * own + 0.7 * rng.normal(size=own.shape) + np.where(cls[patient, None] == 1, centre, -centre)
    y = cls[patient].copy()
    for p in MISLABELLED:
        y[patient == p] = 1 - y[patient == p]
    x[patient == BLANK] = 0.0
    unlike = rng.normal(size=20)
    unlike -= centre * (unlike @ centre) / (centre @ centre)  # says nothing for either class
    x[patient == COPIES] = 1.5 * np.sqrt(20) * unlike / np.linalg.norm(unlike)
    plan = make_plan(public_size=60, expected_batch_size=15, steps=200, noise_multiplier=noise, max_grad_norm=clip)
    return make_material(
        module=mlp(20, 1, (24,)),
        patients=PATIENTS,
        plan=plan,
        inputs=torch.from_numpy(x).float(),
        labels=torch.from_numpy(y),
        patient=torch.from_numpy(patient),
        optimizer=OptimizerConfig(name="sgd", lr=1.0 if noise == 0 else 0.5),
    )


def ranks(auc: np.ndarray) -> np.ndarray:
    """The patients, the most recognisable first."""
    return np.argsort(-auc, kind="stable")


def everybody(count: int) -> People:
    return People([f"{i:016x}" for i in range(count)], np.full(count, "all"), {})


def test_planted_patients_rank_on_top_without_privacy_and_are_confirmed() -> None:
    material = planted(0.0, 1e6)
    member = masks.draw(48, PATIENTS)
    scores = train_together(material, member)
    summary = summarise(scores, member, material.patient.numpy(), everybody(PATIENTS), AuditConfig())
    # AUCs of the planted: 1.00 in six audits; of the next: at most 0.93
    assert set(ranks(summary.area.auc)[: len(PLANTED)]) == set(PLANTED)
    assert summary.traced[list(PLANTED)].all()
    config = AuditConfig(confirm=2, confirm_models=24, stack=96)
    found = confirm(material, scores, member, summary, config, None, torch.device("cpu"))
    assert (found.tested, found.confirmed) == (2, 2)
    named = {int(row["patient"], 16) for row in summary.rows if row["confirmed"]}
    assert len(named) == 2
    assert named <= set(PLANTED)


def test_planted_patients_are_lost_in_the_crowd_at_epsilon_one() -> None:
    noise = accounting.calibrate_noise(1.0, 1e-5, 0.25, 200)
    material = planted(noise, 1.0)
    assert accounting.pld_epsilon(material.plan.mechanisms, 1e-5) <= 1.0
    member = masks.draw(48, PATIENTS)
    scores = train_together(material, member)
    owner = material.patient.numpy()
    evidence, fold = patients.crossfit(scores, member, owner)
    auc = statistics.stratified_auc(evidence, member, fold).auc
    q = statistics.benjamini_hochberg(patients.p_values(scores, member, owner, fold))
    assert np.sum(q <= 0.05) <= 2
    assert np.mean(auc[list(PLANTED)]) < 0.68
    order = ranks(auc)
    assert not set(PLANTED) <= set(order[:20])  # by chance alone once in 10,000 audits
    assert len(set(PLANTED) & set(order[: len(PLANTED)])) < 4
    ceiling = accounting.tradeoff(material.plan.mechanisms)
    fpr, tpr = statistics.pooled_roc(evidence, member)
    assert (tpr <= ceiling.tpr(fpr) + 0.05).all()


# --- broken trainers ----------------------------------------------------------------------------------------

CONFIG = AuditConfig(canaries=40, canary_trainings=96)
DELTA = 1e-7  # where it is larger, so many coins prove little at the level of exit code 6


def head(noise: float) -> Material:
    plan = make_plan(
        public_size=400, expected_batch_size=200, steps=40, noise_multiplier=noise, max_grad_norm=1.0, delta=DELTA
    )
    return make_material(
        module=nn.Linear(512, 1),
        shape=(512,),
        patients=300,
        plan=plan,
        optimizer=OptimizerConfig(name="sgd", lr=0.5),
    )


@pytest.fixture(scope="module")
def noise() -> float:
    """Noise multiplier of epsilon 1 for the head's plan."""
    return accounting.calibrate_noise(1.0, DELTA, 0.5, 40)


def test_the_correct_trainer_is_not_accused(noise: float) -> None:
    material = head(noise)
    promise = promise_of(material.plan)
    for _ in range(4):
        found = canary_bound(material, promise, CONFIG, trainer="together")
        assert found is not None
        assert not found[0].broken


def with_fault(monkeypatch: pytest.MonkeyPatch, change) -> None:
    correct = reference.train_together
    monkeypatch.setattr(
        reference, "train_together", lambda material, member, **rest: correct(*change(material, member), **rest)
    )


def less_noise(material: Material, member: np.ndarray) -> tuple[Material, np.ndarray]:
    """An eighth: a quarter is what the residual test finds (test_residual), and canaries in two audits of three."""
    plan = dataclasses.replace(material.plan, noise_multiplier=material.plan.noise_multiplier / 8)
    return dataclasses.replace(material, plan=plan), member


def no_clipping(material: Material, member: np.ndarray) -> tuple[Material, np.ndarray]:
    plan = dataclasses.replace(
        material.plan, noise_multiplier=material.plan.noise_multiplier / 1e6, max_grad_norm=1e6
    )
    return dataclasses.replace(material, plan=plan), member


def clipped_by_record(material: Material, member: np.ndarray) -> tuple[Material, np.ndarray]:
    """Every record is a person of its own to the trainer, while whole patients come and go."""
    records = len(material.patient)
    alone = dataclasses.replace(material, patient=torch.arange(records), patients=records)
    return alone, member[:, material.patient.numpy()]


@pytest.mark.parametrize("change", [less_noise, no_clipping, clipped_by_record])
def test_broken_trainers_are_accused(noise: float, monkeypatch: pytest.MonkeyPatch, change) -> None:
    material = head(noise)
    promise = promise_of(material.plan)
    with_fault(monkeypatch, change)
    accused = 0
    for _ in range(3):
        found = canary_bound(material, promise, CONFIG, trainer="together")
        assert found is not None
        accused += found[0].broken
    assert accused >= 2


def test_one_training_of_the_engine_finds_that_nothing_was_private() -> None:
    """A promise of epsilon 1 sold with a training without noise: one run of the real loop suffices.

    The draws are real: the more canaries, the further the bound lies beyond what was promised.
    """
    plan = make_plan(public_size=400, expected_batch_size=100, steps=20, noise_multiplier=0.0, max_grad_norm=1.0)
    material = make_material(
        module=nn.Linear(4096, 1),
        shape=(4096,),
        patients=100,
        plan=plan,
        optimizer=OptimizerConfig(name="sgd", lr=0.5),
    )
    promise = dataclasses.replace(promise_of(plan), epsilon=1.0, delta=DELTA)
    found = canary_bound(material, promise, AuditConfig(canaries=800, canary_trainings=1, processes=1))
    assert found is not None
    assert found[0].broken
    assert found[0].method.startswith("one run")


def test_canaries_are_the_last_patients_and_have_their_own_records() -> None:
    material = make_material(most=3)
    two, kind = plant(material, 6, trainings=16)
    assert kind == "gradient-aligned and mislabelled"
    assert two.patients == 46
    assert (np.bincount(two.patient.numpy())[-6:] == 8).all()
    torch.testing.assert_close(two.inputs[: len(material.inputs)], material.inputs)
    scores = np.tile(two.patient.numpy()[None].astype(float), (2, 1))
    np.testing.assert_allclose(canary_scores(scores, two, 6), [np.arange(40, 46.0)] * 2)
    one, kind = plant(material, 6, trainings=1)
    assert kind == "gradient-aligned"
    for norms in one.inputs[-48:].norm(dim=1).split(24):  # three of each length, eight records each
        torch.testing.assert_close(norms, norms[:1].expand(24), rtol=1e-4, atol=0)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_canaries_fill_the_clip_whatever_the_inputs_scale(scale: float) -> None:
    """Too long an input is known by heart at once, too short a one does not fill the clip: both hide a fault."""
    material = make_material(module=nn.Linear(256, 1), shape=(256,), plan=make_plan(max_grad_norm=0.5))
    material = dataclasses.replace(material, inputs=scale * material.inputs)
    planted_material, _ = plant(material, 8, trainings=1)
    x = planted_material.inputs[-64:-32]  # the short half
    residual = (torch.sigmoid(material.module(x)).squeeze(1) - planted_material.labels[-64:-32]).abs()
    norms = residual * (x.square().sum(1) + 1).sqrt()
    if scale == 1e-2:  # the bias alone fills one clip; a record of this cohort cannot do more
        assert norms.min() > 0.4
    else:
        assert 2 < norms.median() / 0.5 < 14
