"""The run's own loop, loader, clipping and noise, one model after another or in as many processes as asked for."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dptrain.audit.reference.material import Material, Tick, score_outputs
from dptrain.audit.scores import Array
from dptrain.data import PatientLoader, Tensors
from dptrain.errors import quiet
from dptrain.plan import Plan
from dptrain.training.loop import fit
from dptrain.training.step import PrivateStep
from dptrain.vocabulary import Purpose

Step = TypeVar("Step", bound=PrivateStep)


class Roster:
    """So many patients, as the loader asks for them."""

    fingerprint = "reference material"  # copies in memory, of no cohort that a grant of the ledger names

    def __init__(self, count: int) -> None:
        self.patients = [_Place(str(i).encode()) for i in range(count)]

    def split(self, name: str) -> list[int]:
        del name
        return list(range(len(self.patients)))


@dataclass(frozen=True)
class _Place:
    key: bytes

    def excluded(self, keys: frozenset[bytes]) -> bool:
        return self.key in keys


@dataclass(frozen=True)
class ReferenceLeave:
    """Lets the engine train a model that charges nothing and is never kept: an audit's own purpose.

    It is only made inside an admitted audit (:mod:`dptrain.audit.run`); non-members are its excluded.
    """

    plan: Plan
    excluded: frozenset[bytes]
    run: str = "reference"
    purpose: str = Purpose.AUDIT
    cohort: str = "reference"
    fingerprint: str = Roster.fingerprint
    lease: int = 1 << 30

    @property
    def committed(self) -> int:
        return self.plan.steps

    @property
    def process(self) -> int:
        return os.getpid()

    def require(self, step: int | None = None, *, purpose: str | None = None, cohort: str | None = None) -> None:
        """Always granted."""

    def commit(self, through: int) -> None:
        """Nothing to pay."""

    def give_back(self) -> bool:
        """Nothing was reserved."""
        return False


def engine_loader(material: Material, member: np.ndarray) -> tuple[PatientLoader, ReferenceLeave]:
    """The run's own loader over the records that are trained on of the members [P bool], and its leave."""
    rows = torch.from_numpy(np.flatnonzero(material.trained))
    source: Any = Tensors(
        material.inputs[rows],
        material.labels[rows],
        material.patient[rows],
        Roster(material.patients),  # type: ignore[arg-type]
    )
    leave = ReferenceLeave(material.plan, frozenset(str(i).encode() for i in np.flatnonzero(~member)))
    chunk = max(256, material.plan.max_records_per_patient * material.plan.views)
    return PatientLoader(source, material.plan, leave, augment=material.augment, chunk=chunk), leave


def engine_step(
    material: Material,
    start: dict[str, Tensor] | None,
    device: str | torch.device,
    kind: type[Step],
) -> Step:
    """The run's own step (or a subclass of it) of a network with these starting weights; None: fresh ones."""
    module = copy.deepcopy(material.module)
    module.load_state_dict(material.start() if start is None else start)
    return kind(
        module,
        material.plan,
        loss=material.loss,
        optimizer=material.optimizer,
        ema=material.ema,
        device=device,
        rules=material.rules,
        names=material.names,
    )


def train_with_engine(
    material: Material,
    member: np.ndarray,
    start: dict[str, Tensor] | None = None,
    device: str | torch.device = "cpu",
) -> Array:
    """Train one model [P bool] with the run's own loop, loader, clipping and noise; its scores [R]."""
    loader, leave = engine_loader(material, member)
    step = engine_step(material, start, device, PrivateStep)
    model = fit(step, loader, leave, checked=True).model
    parts = []
    with torch.no_grad():
        for begin in range(0, len(material.inputs), 512):
            output = model(material.inputs[begin : begin + 512].to(device).float())[None]
            labels = material.labels[begin : begin + 512].to(device)
            parts.append(score_outputs(output, labels, material.task, material.loss))
    return np.asarray(np.concatenate(parts, axis=1)[0])


_shared: tuple[Material, str] | None = None


def _receive(material: Material, device: str) -> None:
    global _shared
    torch.set_num_threads(1)
    os.environ["DPTRAIN_QUIET"] = "1"
    quiet()
    _shared = material, device


def _work(job: tuple[int, np.ndarray, dict[str, Tensor]]) -> tuple[int, Array]:
    assert _shared is not None
    return job[0], train_with_engine(_shared[0], job[1], job[2], _shared[1])


def train_in_processes(
    material: Material,
    member: np.ndarray,
    *,
    processes: int = 1,
    device: str | torch.device = "cpu",
    tick: Tick = lambda _: None,
    keep: Callable[[int, Array], None] = lambda *_: None,
) -> Array:
    """As :func:`train_together`, with the engine, `processes` models at a time: scores [M, R].

    Args:
        keep: called with the number and the scores [R] of each model as it is done.
    """
    scores = np.full((len(member), len(material.inputs)), np.nan)
    if processes <= 1:
        for number, row in enumerate(member):
            scores[number] = train_with_engine(material, row, device=device)
            keep(number, scores[number])
            tick(material.plan.steps)
        return scores
    sent = dataclasses.replace(material, start=dict)  # starts are made here; closures do not travel
    with ProcessPoolExecutor(processes, get_context("spawn"), _receive, (sent, str(device))) as pool:
        jobs = [pool.submit(_work, (i, row, material.start())) for i, row in enumerate(member)]
        for job in as_completed(jobs):
            number, row_scores = job.result()
            scores[number] = row_scores
            keep(number, row_scores)
            tick(material.plan.steps)
    return scores
