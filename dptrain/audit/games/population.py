"""The population game: every reference model trains on a random half of the patients, and screens everyone."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from dptrain.audit import reference
from dptrain.audit.reference import Material
from dptrain.audit.results import People
from dptrain.audit.scores import Array
from dptrain.audit.work import Work
from dptrain.errors import ConfigError
from dptrain.leave import Leave
from dptrain.models.losses import loss_for_task
from dptrain.models.network import Network, build_network, device_of
from dptrain.plan import Plan
from dptrain.settings import AuditConfig, Settings
from dptrain.terminal.progress import progress
from dptrain.training import inputs
from dptrain.vocabulary import Labels, Split, task_spec

if TYPE_CHECKING:
    from dptrain.data import Cohort


def gather(
    settings: Settings, cohort: Cohort, grant: Leave, plan: Plan, config: AuditConfig
) -> tuple[Material, People]:
    """The training records and patients of a cohort, as the run trained on them.

    Patients whom the grant excludes are left out: the run never drew them.
    """
    network = build_network(settings)
    device = device_of(settings.training.device)
    module: nn.Module = network.trainable
    if inputs.in_memory(settings, network):
        prepared = inputs.prepare(settings, cohort, grant, splits=(Split.TRAIN,), network=network, device=device)
    else:
        unsplit = dataclasses.replace(network, frozen=None)
        prepared = inputs.prepare(settings, cohort, grant, splits=(Split.TRAIN,), network=unsplit, device=device)
        if network.frozen is not None:
            module = nn.Sequential(network.frozen, network.trainable)
    excluded = frozenset(grant.excluded)
    places = [p for p in cohort.split(Split.TRAIN) if not cohort.patients[p].excluded(excluded)]
    position = np.full(len(cohort.patients), -1)
    position[places] = np.arange(len(places))
    owner = position[prepared.patient.numpy()]
    rows = np.flatnonzero(owner >= 0)
    patient = torch.from_numpy(owner[rows])
    material = Material(
        inputs=prepared.inputs[torch.from_numpy(rows)],
        labels=prepared.label[torch.from_numpy(rows)],
        patient=patient,
        patients=len(places),
        trained=keep_back(owner[rows], len(places), config.new_scan),
        task=settings.data.task,
        loss=loss_for_task(settings.data.task),
        plan=plan,
        optimizer=settings.optimizer,
        ema=settings.training.ema,
        module=module,
        start=_starts(settings, network, module),
        augment=tuple(settings.data.augment),
        rules=network.rules,
        names=network.names(module),
    )
    return material, _people(cohort, places, prepared.record[rows], owner[rows], config.unit_column)


def keep_back(owner: np.ndarray, count: int, share: float) -> np.ndarray:
    """bool [R]: False for one record of each of a random `share` of the patients with several."""
    draw = np.random.default_rng(int.from_bytes(os.urandom(16), "little"))
    trained = np.ones(len(owner), dtype=bool)
    several = np.flatnonzero(np.bincount(owner, minlength=count) > 1)
    for person in several[draw.random(several.size) < share]:
        trained[draw.choice(np.flatnonzero(owner == person))] = False
    return trained


def _starts(settings: Settings, network: Network, module: nn.Module) -> Callable[[], dict[str, torch.Tensor]]:
    """Own starting weights for each model: what the run drew at random is drawn again, the rest is the same."""

    def rebuilt() -> dict[str, torch.Tensor]:
        other = dataclasses.replace(settings.training, seed=int.from_bytes(os.urandom(4), "little") >> 1)
        built = build_network(dataclasses.replace(settings, training=other))
        part: nn.Module = built.trainable
        if module is not network.trainable and built.frozen is not None:
            part = nn.Sequential(built.frozen, built.trainable)
        return {name: value.detach().clone() for name, value in part.state_dict().items()}

    if network.weights_kind == "random":
        return rebuilt
    # mostly given weights: rebuilding reads them again; the layers that differ between two builds are redrawn
    one, two = rebuilt(), rebuilt()
    moved = {name.rpartition(".")[0] for name in one if not torch.equal(one[name], two[name])}
    parts = dict(module.named_modules())
    if any(not callable(getattr(parts[name], "reset_parameters", None)) for name in moved):
        return rebuilt
    return reference.fresh_start(module, sorted(moved))


def _people(
    cohort: Cohort, places: list[int], record: np.ndarray, owner: np.ndarray, unit_column: str | None
) -> People:
    """Pseudonyms, classes and groups by patient."""
    count = len(places)
    names = cohort.config.classes
    first = np.full(count, -1)
    for row in range(len(owner) - 1, -1, -1):
        first[owner[row]] = row
    label = np.full(count, "all", dtype=object)
    kind = task_spec(cohort.config.task).labels
    if kind is Labels.CLASS:
        classes = cohort.labels[record].reshape(-1)
        low, high = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
        np.minimum.at(low, owner, classes)
        np.maximum.at(high, owner, classes)
        label = np.array(["mixed" if a != b else str(names[a]) for a, b in zip(low, high, strict=True)], dtype=object)
    elif kind is Labels.FINDINGS:
        positive = np.zeros(count, dtype=bool)
        np.logical_or.at(positive, owner, (np.nan_to_num(cohort.labels[record]) > 0.5).any(axis=1))
        label = np.where(positive, "any finding", "no finding").astype(object)
    columns = {
        name: np.asarray(values)[record[first]].astype(str)
        for name, values in cohort.groups.items()
        if not _many(np.asarray(values)[record[first]])
    }
    unit = None
    if unit_column is not None:
        if unit_column not in cohort.groups:
            raise ConfigError(
                f"audit.unit_column={unit_column} is none of the columns that this cohort reports by.",
                remedy=f"Allowed are those of data.columns.groups: {', '.join(cohort.groups) or 'none is set'}.",
            )
        unit = np.asarray(cohort.groups[unit_column])[record[first]].astype(str)
    return People([cohort.patients[p].key.hex()[:16] for p in places], label, columns, unit)


def _many(values: np.ndarray) -> bool:
    """More values than a table can hold: an age in years, a free text."""
    return len(np.unique(values.astype(str))) > 24


def choose_trainer(material: Material, config: AuditConfig, device: torch.device) -> tuple[str, str]:
    """`together` or `engine`, as set or the one measured faster; and why, where a reader would wonder (else "")."""
    if config.trainer != "auto":
        return config.trainer, ""
    way = reference.way_of(material.module, material.plan, bool(material.augment))
    if way != "stacked":
        return ("engine" if way == "engine" else "together"), ""
    if device.type == "cpu":  # benchmarks/results/audit.md: 0.6 times the models per minute
        return "engine", "on a CPU, networks like this one train faster with the run's own loop than as a stack"
    why = reference.unstackable(material)
    if why:
        return "engine", f"torch.func cannot run this network as a stack, so the run's own loop trains it: {why}"
    return "together", ""


def processes_of(config: AuditConfig, device: torch.device) -> int:
    """Engines at a time: as set, else one a core, or one on a GPU."""
    return config.processes or (1 if device.type == "cuda" else os.cpu_count() or 1)


def train_references(
    material: Material,
    member: np.ndarray,
    config: AuditConfig,
    work: Work | None,
    device: torch.device,
    label: str,
    name: str = "scores",
) -> Array:
    """Scores [M, R] of reference models, a stack at a time; stacks that are done are read, not trained again."""
    together = choose_trainer(material, config, device)[0] == "together"
    size = min(config.stack, len(member)) if together else 1
    scores = np.full((len(member), len(material.inputs)), np.nan)
    left: list[np.ndarray] = []
    with progress(len(member) * material.plan.steps, label) as bar:
        for number, start in enumerate(range(0, len(member), size)):
            rows = np.arange(start, min(start + size, len(member)))
            kept = work.load(f"{name}-{number:03d}") if work is not None else None
            if kept is not None and np.array_equal(kept["member"], member[rows]):
                scores[rows] = kept["scores"]
                bar.advance(len(rows) * material.plan.steps)
            else:
                left.append(rows)

        def keep(rows: np.ndarray, trained: Array) -> None:
            scores[rows] = trained
            if work is not None:
                work.save(f"{name}-{rows[0] // size:03d}", scores=trained, member=member[rows])

        if together:
            for rows in left:
                keep(rows, reference.train_together(material, member[rows], device=device, tick=bar.advance))
        elif left:
            reference.train_in_processes(
                material,
                member[np.concatenate(left)],
                processes=min(len(left), processes_of(config, device)),
                device=device,
                tick=bar.advance,
                keep=lambda number, trained: keep(left[number], trained[None]),
            )
    return scores
