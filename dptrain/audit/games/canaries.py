"""Planted patients whose presence is as easy to see as the mechanism allows."""

from __future__ import annotations

import copy
import dataclasses
import math
import os

import numpy as np
import torch

from dptrain.audit import bounds, masks
from dptrain.audit.bounds import FEW_TRAININGS
from dptrain.audit.games.population import train_references
from dptrain.audit.level import level
from dptrain.audit.promise import Promise
from dptrain.audit.reference import Material
from dptrain.audit.work import Work
from dptrain.records.audit import Canary
from dptrain.settings import AuditConfig
from dptrain.vocabulary import Labels, task_spec

FILLED = 8.0  # a canary's gradient in clips
TRIED = 8  # canaries whose gradients set the length


def plant(material: Material, count: int, trainings: int) -> tuple[Material, str]:
    """The material with `count` more patients, and what kind they are.

    Each has as many records as a patient may contribute, up to eight, all the same: records that are clipped
    one by one, instead of as one patient, would add up to as many clips.

    *gradient-aligned*: a made-up input, a random direction, so that the gradient of the first layer points along
    it. Its length makes the gradient :data:`FILLED` times as long as the clip on a fresh network: it then fills the
    clip at every draw and is too short for the network to know it by heart after the first (finds too little noise,
    records clipped one by one). With few trainings every second half (:func:`kinds_of`) is twice as long as the
    usual record instead, which stands out where nobody is clipped.

    *mislabelled*: a random record of the cohort with a wrong label. They differ from each other, so they are
    only planted (as every second canary) where there are enough trainings to compare with.

    The canaries are the last patients, and their records the last records.
    """
    generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
    copies = max(1, min(material.plan.max_records_per_patient, 8))
    mixed = trainings >= FEW_TRAININGS
    aligned = count - count // 2 if mixed else count
    usual = material.inputs[torch.randperm(len(material.inputs), generator=generator)[:512]].flatten(1).float()
    length = 2 * torch.nan_to_num(usual).norm(dim=1).median().clamp(min=1e-6)
    shape = material.inputs.shape[1:]
    direction = torch.randn(aligned, usual.shape[1], generator=generator)
    direction = (direction / direction.norm(dim=1, keepdim=True)).reshape(aligned, *shape)
    source = torch.randint(len(material.inputs), (count,), generator=generator)
    lengths = torch.full((aligned,), float(length))
    if math.isfinite(material.plan.max_grad_norm):
        short = filling_length(material, direction[:TRIED], material.labels[source[:aligned][:TRIED]], float(length))
        kinds = kinds_of(count, trainings)
        lengths[: aligned if kinds is None else int(np.sum(kinds == 0))] = short
    direction = direction * lengths.reshape(-1, *[1] * len(shape))
    inputs = [direction.repeat_interleave(copies, dim=0).to(material.inputs.dtype)]
    labels = [material.labels[source[:aligned]].repeat_interleave(copies, dim=0)]
    owner = [torch.arange(aligned).repeat_interleave(copies)]
    wrong = source[aligned:]
    inputs.append(material.inputs[wrong].repeat_interleave(copies, dim=0))
    labels.append(_wrong(material.labels[wrong], material, generator).repeat_interleave(copies, dim=0))
    owner.append(torch.arange(aligned, count).repeat_interleave(copies))
    extra = torch.cat(owner)
    planted = dataclasses.replace(
        material,
        inputs=torch.cat([material.inputs, *inputs]),
        labels=torch.cat([material.labels, *labels]),
        patient=torch.cat([material.patient, material.patients + extra]),
        patients=material.patients + count,
        trained=np.concatenate([material.trained, np.ones(len(extra), dtype=bool)]),
    )
    return planted, "gradient-aligned and mislabelled" if mixed else "gradient-aligned"


def kinds_of(count: int, trainings: int) -> np.ndarray | None:
    """Which canaries of a training are alike [count]; None where each is compared with itself alone."""
    return None if trainings >= FEW_TRAININGS else (np.arange(count) >= count - count // 2).astype(int)


def filling_length(material: Material, direction: torch.Tensor, labels: torch.Tensor, longest: float) -> float:
    """The shortest length of a canary's input whose gradient is FILLED times the clip on a fresh network.

    Where none up to `longest` is, the one with the longest gradient. (Median of a few canaries. Lengths are tried
    from below: an input that is far too long is known by heart or hopeless, and its gradient tells nothing.)
    """
    module = copy.deepcopy(material.module)
    module.load_state_dict(material.start())
    module.eval()
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    best, largest = longest, -1.0
    for length in np.geomspace(1e-5, 1, 31) * longest:
        losses = material.loss(module((float(length) * direction).float()), labels)
        norms = []
        for loss in losses:
            parts = torch.autograd.grad(loss, weights, retain_graph=True)
            norms.append(math.sqrt(sum(float(part.square().sum()) for part in parts)))
        norm = float(np.median(norms))
        if norm > largest:
            best, largest = float(length), norm
        if norm >= FILLED * material.plan.max_grad_norm:
            break
    return best


def _wrong(labels: torch.Tensor, material: Material, generator: torch.Generator) -> torch.Tensor:
    """Labels that are not the true ones."""
    spec = task_spec(material.task)
    if spec.one_logit:
        return 1 - labels
    if spec.labels is Labels.FINDINGS:
        return torch.where(torch.isnan(labels), labels, 1 - labels)
    classes = max(2, int(material.labels.max()) + 1)
    return (labels + torch.randint(1, classes, labels.shape, generator=generator)) % classes


def canary_scores(scores: np.ndarray, material: Material, count: int) -> np.ndarray:
    """Mean score of each canary's records, [T, count], from scores [T, R] of a planted material."""
    first = material.patients - count
    owner = material.patient.numpy() - first
    chosen = owner >= 0
    total = np.zeros((scores.shape[0], count))
    np.add.at(total.T, owner[chosen], scores[:, chosen].T)
    return np.asarray(total / np.bincount(owner[chosen], minlength=count))


def canary_bound(
    material: Material,
    promise: Promise,
    config: AuditConfig,
    *,
    trainer: str = "engine",
    device: str | torch.device = "cpu",
    work: Work | None = None,
) -> tuple[bounds.LowerBound, str] | None:
    """A lower bound on epsilon from planted patients, and what kind they were.

    Every canary is in or out of each training by a fair coin; the trainings use the run's whole plan and, with
    `trainer` engine, the code that made the promise.
    """
    count, trainings = config.canaries, config.canary_trainings
    if count < 2 or trainings < 1:
        return None
    planted, kind = plant(material, count, trainings)
    member = np.ones((trainings, planted.patients), dtype=bool)
    member[:, -count:] = masks.draw(trainings, count)
    if work is not None:
        planted, member = work.canaries(planted, member, len(material.inputs))
    scores = train_references(
        planted,
        member,
        dataclasses.replace(config, trainer=trainer),
        work,
        torch.device(device),
        "training with canaries",
        "canary",
    )
    confidence, kinds = 1 - level("canaries", config.confidence), kinds_of(count, trainings)
    coins = member[:, -count:]
    bound = bounds.lower_bound(
        canary_scores(scores, planted, count),
        coins,
        promised=promise.epsilon,
        delta=promise.delta,
        confidence=confidence,
        tpr=promise.tpr(),
        kinds=kinds,
    )
    most = bounds.provable(coins, delta=promise.delta, confidence=confidence, kinds=kinds)
    return dataclasses.replace(bound, provable=most), kind


def canary_json(bound: bounds.LowerBound, kind: str) -> Canary:
    """As audit.json has it."""
    return Canary(
        kind=kind,
        count=bound.canaries,
        trainings=bound.trainings,
        epsilon_lower=bound.epsilon,
        confidence=bound.confidence,
        method=bound.method,
        beyond_curve=bound.curve,
        broken=bound.broken,
        provable=None if math.isnan(bound.provable) else bound.provable,
    )
