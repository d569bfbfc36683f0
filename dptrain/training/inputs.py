"""What a training or an audit takes: a run read back from its folder, and a cohort's records as tensors."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dptrain import data, records
from dptrain.data import Cohort, Tensors
from dptrain.errors import ConfigError
from dptrain.files import file_sha256
from dptrain.leave import Leave
from dptrain.models.losses import loss_for_task
from dptrain.models.network import Network, build_network, device_of
from dptrain.plan import Plan
from dptrain.records import RunFolder
from dptrain.settings import Settings, from_yaml
from dptrain.terminal.progress import progress
from dptrain.vocabulary import Split


@dataclass
class Prepared:
    """A cohort's records as tensors, for training or for reference models of an audit.

    inputs: [R, …] images, or features of the frozen part. label: [R] or [R, C] or [R, 1, *space].
    patient: [R], position of each record's patient in `cohort.patients`. record: [R], position in
    `cohort.records`.
    """

    cohort: Cohort
    inputs: Tensor
    label: Tensor
    patient: Tensor
    record: NDArray[np.int64]
    network: Network
    loss: nn.Module

    def tensors(self) -> Tensors:
        """As a source for :class:`dptrain.data.PatientLoader`."""
        return Tensors(self.inputs, self.label, self.patient, self.cohort)


@dataclass
class Run:
    """A finished or interrupted run, read back from its folder."""

    folder: RunFolder
    facts: records.Run
    settings: Settings
    plan: Plan


def load_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run folder. Raises ConfigError where facts or configuration are missing or do not match."""
    place = RunFolder(folder)
    facts = place.read()
    if not place.config.is_file():
        raise ConfigError(
            f"{place.config} is missing: the run cannot be reproduced.",
            remedy="Bring back the file that the run wrote, or name another run.",
        )
    if file_sha256(place.config) != facts.config_sha256:
        raise ConfigError(
            f"{place.config} is not the configuration that this run was made with: its hash is not "
            f"{str(facts.config_sha256)[:12]}…, that of {place.facts.name}.",
            remedy="Bring back the file as the run wrote it, or name another run.",
        )
    return Run(place, facts, from_yaml(place.config), Plan.from_dict(facts.plan))


def load_inputs(
    cohort: Cohort,
    records: NDArray[np.int64],
    grant: Leave,
    frozen: nn.Module | None,
    device: torch.device,
    *,
    label: str = "reading images",
    batch: int = 64,
) -> tuple[Tensor, Tensor]:
    """Images [R, C, …] of these records, or what the frozen part makes of them, and their labels, on the CPU.

    The frozen part sees `batch` rows every time, the last ones made up with zeros: kernels may choose another
    order of sums for another number of rows, and a patient's features must not tell, in their last bits, how many
    other records there are. A record that cannot be read any more, or on which the frozen part fails, is NaN:
    its patient counts as zero.
    """
    images: list[Tensor] = []
    labels: list[Tensor] = []
    if frozen is not None:
        frozen = frozen.to(device).eval()
    with progress(len(records), label) as bar, torch.inference_mode():
        for start in range(0, len(records), batch):
            part, truth = data.load_available(cohort, records[start : start + batch].tolist(), grant)
            if frozen is not None:
                rows = len(part)
                filled = torch.cat([part, part.new_zeros(batch - rows, *part.shape[1:])]) if rows < batch else part
                part = _features(frozen, filled, device)[:rows]
            images.append(part)
            labels.append(truth)
            bar.advance(len(part))
    if not images:
        return torch.zeros(0), torch.zeros(0)
    return torch.cat(images).clone(), torch.cat(labels).clone()


def _features(frozen: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """What the frozen part makes of a batch; where it fails, each record among zeros, NaN where that fails too."""
    try:
        together: Tensor = frozen(images.to(device)).float().cpu()
        return together
    except Exception:
        nothing = frozen(torch.zeros_like(images).to(device)).float().cpu()[0]  # fails where no record can work
    each = []
    for image in images:
        alone = torch.zeros_like(images)
        alone[0] = image
        features = torch.full_like(nothing, torch.nan)
        with suppress(Exception):
            features = frozen(alone.to(device)).float().cpu()[0]
        each.append(features)
    return torch.stack(each)


def prepare(
    settings: Settings,
    cohort: Cohort,
    grant: Leave,
    *,
    splits: tuple[str, ...] = (Split.TRAIN,),
    network: Network | None = None,
    device: torch.device | None = None,
) -> Prepared:
    """Read the records of the named splits into memory, through the frozen part where there is one.

    Excluded patients (withdrawn, or spent elsewhere) stay among the rows; the loader never draws them.
    Raises LedgerRefused where the grant is closed or of another cohort.
    """
    grant.require()
    network = network or build_network(settings)
    device = device or device_of(settings.training.device)
    wanted = {position for split in splits for position in cohort.split(split)}
    pairs = [(p, r) for p in sorted(wanted) for r in cohort.patients[p].records]
    record = np.array([r for _, r in pairs], dtype=np.int64)
    patient = torch.tensor([p for p, _ in pairs], dtype=torch.long)
    what = "computing features" if network.frozen is not None else "reading images"
    said = f"{what} ({'+'.join(splits)})"
    batch = 64 if network.way.together else 1
    inputs, label = load_inputs(cohort, record, grant, network.frozen, device, label=said, batch=batch)
    return Prepared(cohort, inputs, label, patient, record, network, loss_for_task(settings.data.task))


def in_memory(settings: Settings, network: Network) -> bool:
    """Whether inputs are the same at every step, so that they are computed once."""
    if settings.data.augment:
        return False
    return settings.training.cache_features if network.frozen is not None else True
