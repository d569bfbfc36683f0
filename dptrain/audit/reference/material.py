"""What reference models are trained on, their plan, their starts, and how their outputs are scored."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dptrain.audit.scores import Array, confidence, from_loss
from dptrain.models.losses import Loss
from dptrain.plan import Plan
from dptrain.settings import OptimizerConfig
from dptrain.vocabulary import Labels, Purpose, task_spec

Tick = Callable[[int], None]


@dataclass(frozen=True)
class Material:
    """What reference models are trained on and how.

    Args:
        inputs: [R, …] images or features; labels: [R], [R, C] or [R, 1, *space].
        patient: int64 [R], positions 0…patients−1.
        trained: bool [R]; records that are never trained on are scored all the same (the new-scan attack).
        task: binary, multiclass, multilabel or segmentation; loss: (output, label [N, …]) -> [N].
        plan: rate, clip, noise, steps, cap and normaliser of a reference training.
        optimizer, ema: as the run's.
        module: the trainable part (its weights are not used).
        start: -> state of freshly initialised weights; called once a model.
        augment: random transforms of the run; they need the engine.
        rules, names: how the engine forms some layers' patient gradients (:class:`dptrain.engine.PatientGradients`).
    """

    inputs: Tensor
    labels: Tensor
    patient: Tensor
    patients: int
    trained: np.ndarray
    task: str
    loss: Loss
    plan: Plan
    optimizer: OptimizerConfig
    ema: float
    module: nn.Module
    start: Callable[[], dict[str, Tensor]]
    augment: tuple[Any, ...] = ()
    rules: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


def half_plan(plan: Plan) -> Plan:
    """The plan of a cohort of half the size: the same rate, steps, clip and noise; half the normaliser.

    The normaliser is a whole number, and the size follows it, so that the rate is the run's and never above it (the
    ceilings are those of the run's mechanism): half of 3 in 100 is 2 in 67, not 2 in 50.
    """
    batch = max(1, round(plan.expected_batch_size / 2))
    size = math.ceil(batch * plan.public_size / plan.expected_batch_size)
    return dataclasses.replace(
        plan,
        public_size=size,
        expected_batch_size=batch,
        delta=min(plan.delta, 0.5 / size),
        declares=(Purpose.AUDIT,),
    )


def fresh_start(module: nn.Module, names: Sequence[str] | None = None) -> Callable[[], dict[str, Tensor]]:
    """Starts made by `reset_parameters` of the named layers (None: of all that have one); the rest stays."""

    def start() -> dict[str, Tensor]:
        torch.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
        twin = copy.deepcopy(module)
        for name, part in twin.named_modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset) and (names is None or name in names):
                reset()
        return {name: value.detach().clone() for name, value in twin.state_dict().items()}

    return start


def score_outputs(outputs: Tensor, labels: Tensor, task: str, loss: Loss) -> Array:
    """Scores [M, R] of outputs [M, R, …]: logit-scaled confidence, or the negative loss for segmentation."""
    if task_spec(task).labels is Labels.MASK:
        return from_loss(torch.stack([loss(output, labels) for output in outputs]).double().cpu().numpy())
    return confidence(outputs.double().cpu().numpy(), labels.cpu().numpy(), task)
