"""The pre-flight check of a run: network, loss, pipeline and gradient rules, on made-up data only."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dptrain import data
from dptrain.engine import PatientGradients
from dptrain.errors import CheckRefused, ConfigError
from dptrain.models.draws import FixedDraws
from dptrain.models.losses import Loss, loss_for_task
from dptrain.models.network import Network, build_network
from dptrain.models.preflight import Finding, first_line, made_up, preflight, shaken
from dptrain.models.private import Change
from dptrain.models.ways import Way, proof
from dptrain.settings import DataConfig, Settings
from dptrain.settings.data import shape_of

#: Findings after whose refusal a step of made-up patients would only fail again.
UNTRIED = ("inputs of the network", "outputs of the network", "separability")


def check(settings: Settings, network: Network | None = None) -> list[Finding]:
    """The pre-flight check: network, loss, pipeline and gradient rules, on made-up data only.

    Returns every finding; :func:`dptrain.refuse` raises for the refused ones.
    """
    findings: list[Finding] = []
    if network is None:
        try:
            network = build_network(settings)
        except CheckRefused as error:  # said in the table, beside what else would be refused
            findings.append(
                Finding("network", "refused", f"{error.message} Below: what else there is.", error.remedy or "")
            )
            other = replace(settings, model=replace(settings.model, batchnorm="replace"))
            network = build_network(other)
            network.changes = []
    loss = loss_for_task(settings.data.task)
    pipeline, transforms = _pipeline(settings.data)
    findings += pipeline
    findings += preflight(
        network.whole,
        loss,
        shape_of(settings.data),
        settings.data.task,
        classes=len(settings.data.classes),
        transforms=transforms,
    )
    if not any(finding.what in UNTRIED and finding.status == "refused" for finding in findings):
        image, label = tried_on(shape_of(settings.data), settings.data.task, len(settings.data.classes))
        network.way = proof(network.whole, loss, image[:2], label[:2])
        findings.append(of_way(network.way))
        findings += _tried(settings, network, loss, image, label)
    if settings.data.same_pixels == "merge":
        why = (
            "ids that share a picture, directly or through others, are one unit: epsilon is that of the linked group"
        )
        findings.append(Finding("unit of privacy", "changed", why, "Drop pictures that many ids have."))
    return findings + _changes(network.changes)


def _pipeline(config: DataConfig) -> tuple[list[Finding], list[Any]]:
    """The transforms as the data would build them, and what it would refuse."""
    findings, built = [], []
    for name, nodes, random in (
        ("data.transforms", config.transforms, False),
        ("data.augment", config.augment, True),
    ):
        for node in nodes:
            try:
                built += data.transforms.build([node], random=random)
            except (ConfigError, CheckRefused) as error:
                target = node.get("_target_", "") if isinstance(node, Mapping) else type(node).__name__
                what = f"{name}: {str(target).rpartition('.')[2]}"
                findings.append(Finding(what, "refused", error.message, error.remedy or ""))
    if not findings:
        for name, fault in data.label_images.try_pipeline(config):
            findings.append(Finding(f"{name}: labels", "refused", f"{fault.cause}.", fault.remedy))
    return findings, built


def of_way(way: Way) -> Finding:
    """What the check says of how patients may run."""
    if way.together:
        return Finding("batch code", "ok", f"proved: {way.why}")
    why = f"not proved to keep records apart ({way.why}): one patient at a time, exact, but slower"
    return Finding(f"batch code: {why}", "changed", "made fit for private training")


def tried_on(shape: Sequence[int], task: str, classes: int) -> tuple[Tensor, Tensor]:
    """Made-up records to try the engine on: 18, since some networks reorder large batches alone; 6 of large size."""
    records = 18 if math.prod(shape) <= 1 << 18 else 6
    image, label = made_up(shape, task, records, classes, 0)
    return image.float(), label


def _tried(settings: Settings, network: Network, loss: nn.Module, image: Tensor, label: Tensor) -> list[Finding]:
    """What the engine says to a step of made-up patients, through the frozen part as in training."""
    if network.frozen is not None:
        with torch.no_grad():
            image = copy.deepcopy(network.frozen).eval()(image)
    why = "one patient at a time, as set: exact, at the cost of one more backward pass for each patient of a chunk"
    findings = [Finding(f"model.rules.{name}", "ok", why) for name in settings.model.rules]
    part, together = network.trainable, network.way.together
    names = network.names(part)
    for records in (4, len(image)):  # sequences that are as long as the batch are met in one of them at least
        said = check_rules(
            part, loss, image[:records], label[:records], rules=network.rules, names=names, together=together
        )
        if said:
            return findings + said
    return findings


def check_rules(
    model: nn.Module,
    loss: Loss,
    image: Tensor,
    label: Tensor,
    *,
    rules: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
    together: bool = True,
) -> list[Finding]:
    """Take one clipped sum of made-up patients with the engine itself, and see what it refuses or warns of.

    In float64, where no rounding makes an honest network look like one that mixes patients; in float32 for networks
    or losses that know no float64.

    Args:
        model: the part that is trained; a copy is tried.
        loss: (output, label) -> [N].
        image: made-up inputs of that part, of three records or more: one patient has two of them.
        label: their labels.
        rules, names: as :class:`dptrain.engine.PatientGradients` takes them.
        together: patients run in one pass; else all of it is one patient's.
    """
    what = "gradient rules"
    patient = torch.arange(len(image)).sub(1).clamp(min=0) if together else torch.zeros(len(image)).long()

    def attempt(dtype: torch.dtype) -> list[str]:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            twin = shaken(model).to(dtype)
            given = image.to(dtype) if image.is_floating_point() else image
            records = range(len(image))
            with FixedDraws(records), torch.no_grad():
                plain = twin(given)
            engine = PatientGradients(twin, max_grad_norm=1.0, rules=rules, names=names, measure=False, verify=True)
            with FixedDraws(records):
                output = twin(given)
            if not _alike(plain, output):
                raise CheckRefused(
                    "the network gives another output while the engine watches it: it replaces its parameters in a "
                    "way that the engine does not see, and would be trained as another network than is kept.",
                    remedy="Call layers themselves, not through torch.func.functional_call with other tensors.",
                )
            engine.clipped_sum(loss(output, label), patient, int(patient.max()) + 1)
        return [str(one.message) for one in said if "one patient at a time" in str(one.message)]

    try:
        try:
            slow = attempt(torch.float64)
        except CheckRefused:
            raise
        except (RuntimeError, TypeError):
            slow = attempt(torch.float32)
    except CheckRefused as error:
        return [Finding(what, "refused", error.message, error.remedy or "")]
    except Exception as error:
        why = f"a step of made-up patients fails: {type(error).__name__}: {first_line(error)}"
        return [Finding(what, "refused", why, "Check the network, data.image_shape and the task.")]
    return [Finding(what, "ok", text) for text in slow]


def _alike(plain: object, watched: object) -> bool:
    if not (isinstance(plain, Tensor) and isinstance(watched, Tensor)):
        return True
    close = 1e-9 if plain.dtype == torch.float64 else 1e-3
    size = float(plain.abs().max()) if plain.numel() else 0.0
    return plain.shape == watched.shape and torch.allclose(plain, watched.detach(), rtol=close, atol=close * size)


def _changes(changes: list[Change]) -> list[Finding]:
    """One row for all layers that were changed alike."""
    alike: dict[tuple[str, str, str], list[Change]] = {}
    for change in changes:
        before, after = (text.partition("(")[0] for text in (change.before, change.after))
        alike.setdefault((before, after, change.why), []).append(change)
    return [
        Finding(
            str(same[0]) if len(same) == 1 else f"{before} -> {after}: {len(same)} layers ({why})",
            "changed",
            "made fit for private training",
        )
        for (before, after, why), same in alike.items()
    ]
