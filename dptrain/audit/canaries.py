"""Planted patients whose presence is as easy to see as the mechanism allows."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import torch

from dptrain.audit.reference import Material

KINDS = ("aligned", "mislabelled")


def plant(material: Material, count: int) -> tuple[Material, np.ndarray]:
    """The material with `count` more patients, half of each kind, and the kind of each as a position in KINDS.

    *aligned*: as many records as a patient may contribute, all the same made-up input: a random direction,
    twice as long as the usual record, so that the gradient of the first layer points along it and fills the
    clip at every draw. (Records that are clipped one by one would add up to as many clips.)

    *mislabelled*: one record, a copy of a random record of the cohort with a wrong label.

    The canaries are the last patients, and their records the last records.
    """
    generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
    copies = max(1, min(material.plan.max_records_per_patient, 8))
    aligned = count - count // 2
    usual = material.inputs[torch.randperm(len(material.inputs), generator=generator)[:512]].flatten(1).float()
    length = 2 * torch.nan_to_num(usual).norm(dim=1).median().clamp(min=1e-6)
    shape = material.inputs.shape[1:]
    direction = torch.randn(aligned, usual.shape[1], generator=generator)
    direction = direction / direction.norm(dim=1, keepdim=True) * length
    inputs = [direction.reshape(aligned, *shape).repeat_interleave(copies, dim=0).to(material.inputs.dtype)]
    source = torch.randint(len(material.inputs), (count,), generator=generator)
    labels = [material.labels[source[:aligned]].repeat_interleave(copies, dim=0)]
    owner = [torch.arange(aligned).repeat_interleave(copies)]
    wrong = source[aligned:]
    inputs.append(material.inputs[wrong])
    labels.append(_wrong(material.labels[wrong], material, generator))
    owner.append(torch.arange(aligned, count))
    extra = torch.cat(owner)
    planted = dataclasses.replace(
        material,
        inputs=torch.cat([material.inputs, *inputs]),
        labels=torch.cat([material.labels, *labels]),
        patient=torch.cat([material.patient, material.patients + extra]),
        patients=material.patients + count,
        trained=np.concatenate([material.trained, np.ones(len(extra), dtype=bool)]),
    )
    return planted, np.repeat([0, 1], [aligned, count - aligned])


def _wrong(labels: torch.Tensor, material: Material, generator: torch.Generator) -> torch.Tensor:
    """Labels that are not the true ones."""
    if material.task == "binary":
        return 1 - labels
    if material.task == "multilabel":
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
