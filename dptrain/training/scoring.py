"""Outputs of a trained network on a split's records, and the metrics made of them. Un-noised: restricted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dptrain.data import Cohort
from dptrain.errors import ConfigError
from dptrain.files import whole_or_nothing, write_json
from dptrain.leave import Leave
from dptrain.models.network import Network
from dptrain.records import Metrics, RunFolder
from dptrain.records.metrics import Conformal
from dptrain.settings import Settings
from dptrain.training.calibration import Calibration, margins, true_margins
from dptrain.training.evaluate import evaluate_classification, evaluate_segmentation
from dptrain.training.inputs import load_inputs
from dptrain.vocabulary import Activation, Labels, Split, task_spec


def outputs_of(
    cohort: Cohort,
    record: NDArray[np.int64],
    leave: Leave,
    network: Network,
    device: torch.device,
    *,
    alone: bool = False,
) -> tuple[Tensor, Tensor]:
    """Outputs of the whole network for these records and their labels, on the CPU, in float32.

    alone: each record has a pass of its own, so that no output follows from other records (what runs in evaluation is
    not what was proved of training), and the output is NaN where that pass fails.
    """
    rows = 1 if alone else 64
    inputs, label = load_inputs(cohort, record, leave, network.frozen, device, batch=rows)
    model = network.trainable.to(device).eval()
    parts: list[Tensor | None] = []
    with torch.inference_mode():
        for start in range(0, len(inputs), rows):
            try:
                parts.append(model(inputs[start : start + rows].to(device)).float().cpu())
            except Exception:
                if not alone:
                    raise
                parts.append(None)
    if not parts:
        return torch.zeros(0), label
    usual = (1, task_spec(cohort.config.task).outputs(len(cohort.config.classes)))
    shape = next((part.shape for part in parts if part is not None), usual)
    return torch.cat([torch.full(shape, torch.nan) if part is None else part for part in parts]), label


def of_split(cohort: Cohort, split: str, excluded: frozenset[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(record, patient) positions of a split's records, without the patients that the ledger leaves out."""
    pairs = [(r, p) for p in cohort.split(split, excluded=excluded) for r in cohort.patients[p].records]
    array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def score(
    settings: Settings,
    cohort: Cohort,
    leave: Leave,
    network: Network,
    device: torch.device,
    calibration: Calibration | None,
    split: str = Split.TEST,
) -> tuple[Metrics, dict[str, np.ndarray]]:
    """Metrics of a split and the predictions behind them, by pseudonym. Un-noised: restricted."""
    record, patient = of_split(cohort, split, leave.excluded)
    if len(record) == 0:
        raise ConfigError(f"the {split} split holds no patient.", remedy="Set data.split so that it does.")
    logits, label = outputs_of(cohort, record, leave, network, device)
    fine = logits.reshape(len(logits), -1).isfinite().all(dim=1)
    if fine.all() or not fine.any():  # of nobody who can be scored, nothing is left but zeros
        logits = torch.nan_to_num(logits, nan=0.0, posinf=0.0, neginf=0.0)
    else:  # one patient's data stop nothing (contract 13): what has no score is in no metric
        kept = fine.numpy()
        record, patient, logits, label = record[kept], patient[kept], logits[fine], label[fine]
    groups = {column: [values[r] for r in record] for column, values in cohort.groups.items()}
    names = np.array([cohort.patients[p].key.hex()[:12] for p in patient])
    task, classes = settings.data.task, list(settings.data.classes)
    spec = task_spec(task)
    if spec.labels is Labels.MASK:
        dice = dice_scores(logits, label)
        metrics = evaluate_segmentation(dice, patient, groups, classes=classes, split=split)
        return metrics, {"patient": names, "record": record, "dice": dice}
    temperature = calibration.temperature if calibration else 1.0
    scaled = logits.double() / temperature
    probability = (scaled.softmax(1) if spec.activation is Activation.SOFTMAX else scaled.sigmoid()).numpy()
    if spec.one_logit:
        probability = probability.reshape(-1)
    truth = label.numpy()
    metrics = evaluate_classification(probability, truth, patient, groups, task=task, classes=classes, split=split)
    if calibration is not None:
        conformal = conformal_report(scaled.numpy(), truth, patient, task, calibration)
        metrics = replace(metrics, temperature=calibration.temperature, conformal=conformal)
    return metrics, {"patient": names, "record": record, "label": truth, "probability": probability}


def conformal_report(
    scaled: NDArray[np.float64],
    label: np.ndarray,
    patient: NDArray[np.int64],
    task: str,
    calibration: Calibration,
) -> Conformal:
    """How often the sets hold the truth, and how large they are: means over patients of the mean over their records.

    Each patient counts once, as in the histogram that the sets were fitted to: the promise is for a new patient's
    record, not for a record of a cohort in which those who come often are also those who are hard to judge.
    """
    inside = (margins(scaled, task) >= calibration.threshold).sum(axis=-1).reshape(len(scaled), -1)
    covered = (true_margins(scaled, label, task) >= calibration.threshold).reshape(len(scaled), -1)
    position = np.unique(patient, return_inverse=True)[1]
    weight = 1.0 / np.bincount(position)[position]
    return Conformal(
        miscoverage=calibration.miscoverage,
        threshold=calibration.threshold,
        coverage=float(np.average(covered.mean(axis=1), weights=weight)),
        set_size=float(np.average(inside.mean(axis=1), weights=weight)),
    )


def dice_scores(logits: Tensor, label: Tensor) -> NDArray[np.float64]:
    """Dice of each structure in each record: logits [R, C+1, *space], label [R, 1, *space] -> [R, C].

    NaN where neither prediction nor truth holds the structure.
    """
    predicted = logits.argmax(1).flatten(1)
    truth = label.reshape(predicted.shape)
    columns = []
    for structure in range(1, logits.shape[1]):
        a, b = predicted == structure, truth == structure
        total = a.sum(1) + b.sum(1)
        columns.append(torch.where(total > 0, 2.0 * (a & b).sum(1) / total.clamp(min=1), torch.nan))
    return torch.stack(columns, 1).double().numpy()


def write(
    folder: RunFolder, metrics: Metrics, predictions: dict[str, np.ndarray], split: str = Split.TEST
) -> tuple[Path, Path]:
    """Write metrics and predictions (pseudonym, record, label, score) below `restricted/`; where they lie.

    Those of another split than test have it in their names (`metrics-<split>.json`).
    """
    place = folder.metrics if split == Split.TEST else folder.metrics.with_name(f"metrics-{split}.json")
    write_json(place, metrics.to_json())
    arrays: dict[str, Any] = predictions
    target = folder.predictions if split == Split.TEST else folder.predictions.with_name(f"predictions-{split}.npz")
    with whole_or_nothing(target, "wb") as file:
        np.savez_compressed(file, **arrays)
    return place, target
