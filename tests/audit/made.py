"""Small material for reference models."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dptrain.audit.reference import Material, fresh_start
from dptrain.models.losses import loss_for_task
from dptrain.plan import Plan
from dptrain.settings import OptimizerConfig


def make_plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "public_size": 40,
        "expected_batch_size": 20,
        "steps": 3,
        "noise_multiplier": 0.0,
        "max_grad_norm": 0.5,
        "delta": 1e-5,
        "max_records_per_patient": 8,
    }
    return Plan(**{**values, **changes})


def make_material(
    *,
    module: nn.Module | None = None,
    shape: tuple[int, ...] = (12,),
    task: str = "binary",
    outputs: int = 1,
    patients: int = 40,
    most: int = 4,
    plan: Plan | None = None,
    optimizer: OptimizerConfig | None = None,
    ema: float = 0.0,
    seed: int = 0,
    inputs: Tensor | None = None,
    labels: Tensor | None = None,
    patient: Tensor | None = None,
) -> Material:
    rng = np.random.default_rng(seed)
    if patient is None:
        patient = torch.from_numpy(np.repeat(np.arange(patients), rng.integers(1, most + 1, patients)))
    records = patient.numel()
    if inputs is None:
        inputs = torch.from_numpy(rng.normal(size=(records, *shape))).float()
    if labels is None:
        if task == "multilabel":
            labels = torch.from_numpy(rng.integers(0, 2, (records, outputs))).float()
        elif task == "segmentation":
            labels = torch.from_numpy(rng.integers(0, outputs, (records, 1, *shape[1:])))
        else:
            labels = torch.from_numpy(rng.integers(0, 2 if task == "binary" else outputs, records))
    module = module or nn.Linear(shape[0], outputs)
    return Material(
        inputs=inputs,
        labels=labels,
        patient=patient,
        patients=patients,
        trained=np.ones(records, dtype=bool),
        task=task,
        loss=loss_for_task(task),
        plan=plan or make_plan(),
        optimizer=optimizer or OptimizerConfig(name="sgd", lr=1.0),
        ema=ema,
        module=module,
        start=fresh_start(module),
    )
