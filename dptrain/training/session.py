"""What training, audit and inference share: the network in its parts, the check, a cohort's records as tensors."""

from __future__ import annotations

import copy
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dptrain import data, models, records
from dptrain.data import Cohort, Tensors
from dptrain.engine import PatientGradients
from dptrain.errors import CheckRefused, ConfigError
from dptrain.files import file_sha256
from dptrain.ledger import CohortStatus, Grant, Keys, Ledger, WeightsSource, open_ledger
from dptrain.models.preflight import first_line, shaken
from dptrain.plan import Plan
from dptrain.records import RunFolder
from dptrain.settings import DataConfig, Settings, from_yaml
from dptrain.settings.data import shape_of
from dptrain.terminal.progress import progress
from dptrain.terminal.words import suggest
from dptrain.training import losses
from dptrain.training.planning import make_plan
from dptrain.vocabulary import Purpose, Split

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class Network:
    """The network whole, and in its parts, which share its parameters.

    frozen gives features without gradients, or is None; trainable goes from there (or from the image) to the
    output. weights_kind is random, package, public or ledger. rules: names of trainable parameters of the whole,
    each with the way that model.rules chose for it.
    """

    whole: nn.Module
    frozen: nn.Module | None
    trainable: nn.Module
    changes: list[Any]
    weights: WeightsSource | None
    weights_kind: str
    weights_note: str
    rules: dict[str, str] = field(default_factory=dict)

    def names(self, part: nn.Module) -> dict[str, str]:
        """Name of a parameter in a part of the network -> its name in the whole."""
        called: dict[int, str] = {}
        for name, parameter in self.whole.named_parameters(remove_duplicate=False):
            called.setdefault(id(parameter), name)
        inside = part.named_parameters(remove_duplicate=False)
        return {name: called[id(parameter)] for name, parameter in inside if id(parameter) in called}


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


def device_of(name: str) -> torch.device:
    """auto: CUDA where there is one. Raises ConfigError for cuda without a GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.device=cuda, but torch sees no GPU.", remedy="Use training.device=cpu or auto.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


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


def build_network(settings: Settings) -> Network:
    """Build, load starting weights, make fit for private training, and split off what stays frozen."""
    _no_hidden_weights(settings.model.network)
    torch.manual_seed(settings.training.seed)
    network = models.build(settings.model)
    brought = {str(sha): part for part in network.modules() if (sha := getattr(part, "weights_sha256", None))}
    if len(brought) > 1 or (brought and settings.model.weights is not None):
        raise ConfigError(
            "the network brings weights from more than one place.", remedy="Start from one declared file."
        )
    source: WeightsSource | None = None
    kind, note = "random", "random weights"
    if settings.model.weights is not None:
        source, note = _starting_weights(network, Path(settings.model.weights))
        kind = "ledger" if source.run else "public"
    elif brought:
        sha, part = next(iter(brought.items()))
        source = WeightsSource(sha256=sha)
        kind, note = "package", str(getattr(part, "weights_note", "weights of an installed package"))
    network, changes = models.make_private(network, batchnorm=settings.model.batchnorm)  # type: ignore[arg-type]
    frozen, trainable = models.split_frozen(network, train=settings.model.train)  # type: ignore[arg-type]
    rules = _rules(network, settings.model.rules)
    return Network(network, frozen, trainable, changes, source, kind, note, rules)


def _rules(network: nn.Module, rules: Mapping[str, str]) -> dict[str, str]:
    """model.rules by trainable parameter. Raises ConfigError for a name that the network or its training has not."""
    chosen: dict[str, str] = {}
    every = list(network.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    for name, parameter in every:
        first.setdefault(id(parameter), name)
    for name, rule in rules.items():
        inside = [(full, p) for full, p in every if f"{full}.".startswith(f"{name}.")]
        if not inside:
            owners = {full.rpartition(".")[0] for full, p in every if p.requires_grad} - {""}
            near = suggest(name, sorted({*owners, *first.values()}))
            if near.startswith("Valid names"):
                near = f"Some of its layers: {', '.join(sorted(owners)[:8])}." if owners else ""
            raise ConfigError(f"model.rules.{name}: the network has no such layer or parameter.", remedy=near)
        trained = {first[id(p)]: rule for _, p in inside if p.requires_grad}
        if not trained:
            raise ConfigError(
                f"model.rules.{name}: nothing of it is trained, so there is no gradient to form.",
                remedy=f"Leave it out (~model.rules.{name}), or train it (model.train=all).",
            )
        chosen |= trained
    return chosen


_WEIGHTS = re.compile(r"pretrained|weights|checkpoint|state_dict|_(path|dir|file)$")


def _no_hidden_weights(node: Any) -> None:
    """Refuse arguments by which a network would load weights that the ledger never sees (contract 10).

    Our own networks declare what they bring; all others start at random or from model.weights.
    """
    if isinstance(node, list | tuple):
        for item in node:
            _no_hidden_weights(item)
    if not isinstance(node, dict):
        return
    ours = str(node.get("_target_", "")).startswith("dptrain.models.")
    for name, value in node.items():
        if not ours and value and _WEIGHTS.search(str(name)):
            raise ConfigError(
                f"model.network: '{name}' would load weights that nobody declared.",
                remedy="Leave it out and name the file in model.weights=…, after `dptrain ledger weights`.",
            )
        _no_hidden_weights(value)


def _starting_weights(network: nn.Module, path: Path) -> tuple[WeightsSource, str]:
    """Load a declared file, or the model of a run folder, into the network."""
    if path.is_dir():
        run = RunFolder(path)
        identity = str(run.read().id)
        sha = models.load_weights(network, run.weights)
        return WeightsSource(sha256=sha, run=identity), f"model of run {identity}"
    sha = models.load_weights(network, path)
    return WeightsSource(sha256=sha), f"file {path.name}"


def check(settings: Settings, network: Network | None = None) -> list[models.Finding]:
    """The pre-flight check: network, loss, pipeline and gradient rules, on made-up data only.

    Returns every finding; :func:`dptrain.models.refuse` raises for the refused ones.
    """
    findings: list[models.Finding] = []
    if network is None:
        try:
            network = build_network(settings)
        except CheckRefused as error:  # said in the table, beside what else would be refused
            findings.append(
                models.Finding(
                    "network", "refused", f"{error.message} Below: what else there is.", error.remedy or ""
                )
            )
            other = replace(settings, model=replace(settings.model, batchnorm="replace"))
            network = build_network(other)
            network.changes = []
    loss = losses.loss_for_task(settings.data.task)
    pipeline, transforms = _pipeline(settings.data)
    findings += pipeline
    findings += models.preflight(
        network.whole,
        loss,
        shape_of(settings.data),
        settings.data.task,
        classes=len(settings.data.classes),
        transforms=transforms,
    )
    if not any(finding.what == "separability" and finding.status == "refused" for finding in findings):
        findings += _tried(settings, network, loss)
    if settings.data.same_pixels == "merge":
        why = (
            "ids that share a picture, directly or through others, are one unit: epsilon is that of the linked group"
        )
        findings.append(models.Finding("unit of privacy", "changed", why, "Drop pictures that many ids have."))
    return findings + _changes(network.changes)


def _pipeline(config: DataConfig) -> tuple[list[models.Finding], list[Any]]:
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
                findings.append(models.Finding(what, "refused", error.message, error.remedy or ""))
    return findings, built


def _tried(settings: Settings, network: Network, loss: nn.Module) -> list[models.Finding]:
    """What the engine says to a step of made-up patients, through the frozen part as in training."""
    image, label = models.made_up(
        shape_of(settings.data),
        settings.data.task,
        4,
        len(settings.data.classes),
        0,
    )
    image = image.float()
    if network.frozen is not None:
        with torch.no_grad():
            image = copy.deepcopy(network.frozen).eval()(image)
    why = "one patient at a time, as set: exact, at the cost of one more backward pass for each patient of a chunk"
    findings = [models.Finding(f"model.rules.{name}", "ok", why) for name in settings.model.rules]
    part = network.trainable
    return findings + check_rules(part, loss, image, label, rules=network.rules, names=network.names(part))


def check_rules(
    model: nn.Module,
    loss: Any,
    image: Tensor,
    label: Tensor,
    *,
    rules: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
) -> list[models.Finding]:
    """Take one clipped sum of made-up patients with the engine itself, and see what it refuses or warns of.

    In float64, where no rounding makes an honest network look like one that mixes patients; in float32 for networks
    or losses that know no float64.

    Args:
        model: the part that is trained; a copy is tried.
        loss: (output, label) -> [N].
        image: made-up inputs of that part, of four records: one patient has two of them.
        label: their labels.
        rules, names: as :class:`dptrain.engine.PatientGradients` takes them.
    """
    what = "gradient rules"
    patient = torch.tensor([0, 1, 1, 2])

    def attempt(dtype: torch.dtype) -> list[str]:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            twin = shaken(model).to(dtype)
            engine = PatientGradients(twin, max_grad_norm=1.0, rules=rules, names=names, measure=False, verify=True)
            output = twin(image.to(dtype) if image.is_floating_point() else image)
            engine.clipped_sum(loss(output, label), patient, 4)
        return [str(one.message) for one in said if "one patient at a time" in str(one.message)]

    try:
        try:
            slow = attempt(torch.float64)
        except CheckRefused:
            raise
        except (RuntimeError, TypeError):
            slow = attempt(torch.float32)
    except CheckRefused as error:
        return [models.Finding(what, "refused", error.message, error.remedy or "")]
    except Exception as error:
        why = f"a step of made-up patients fails: {type(error).__name__}: {first_line(error)}"
        return [models.Finding(what, "refused", why, "Check the network, data.image_shape and the task.")]
    return [models.Finding(what, "ok", text) for text in slow]


def _changes(changes: list[Any]) -> list[models.Finding]:
    """One row for all layers that were changed alike."""
    alike: dict[tuple[str, str, str], list[Any]] = {}
    for change in changes:
        before, after = (text.partition("(")[0] for text in (change.before, change.after))
        alike.setdefault((before, after, change.why), []).append(change)
    return [
        models.Finding(
            str(same[0]) if len(same) == 1 else f"{before} -> {after}: {len(same)} layers ({why})",
            "changed",
            "made fit for private training",
        )
        for (before, after, why), same in alike.items()
    ]


def open_status(settings: Settings) -> tuple[Ledger, Keys, CohortStatus]:
    """The ledger, the keys, and where the cohort stands. Raises LedgerRefused for a cohort it does not know."""
    ledger, keys = open_ledger(settings.ledger.url, settings.ledger.keys, settings.ledger.witness)
    return ledger, keys, ledger.status(settings.ledger.cohort or settings.name)


def plan_for(settings: Settings, status: CohortStatus) -> Plan:
    """The plan that these settings and this cohort's budget make."""
    declares = (Purpose.EVALUATE,) if settings.training.evaluate else ()
    if settings.audit.declare:
        declares = (*declares, "audit")
    return make_plan(
        settings.privacy, public_size=status.public_size, unit=status.unit, declares=declares, gate=status
    )


def load_inputs(
    cohort: Cohort,
    records: NDArray[np.int64],
    grant: Grant,
    frozen: nn.Module | None,
    device: torch.device,
    *,
    label: str = "reading images",
    batch: int = 64,
) -> tuple[Tensor, Tensor]:
    """Images [R, C, …] of these records, or what the frozen part makes of them, and their labels, on the CPU.

    The frozen part sees `batch` rows every time, the last ones made up with zeros: kernels may choose another
    order of sums for another number of rows, and a patient's features must not tell, in their last bits, how many
    other records there are.
    """
    images: list[Tensor] = []
    labels: list[Tensor] = []
    if frozen is not None:
        frozen = frozen.to(device).eval()
    with progress(len(records), label) as bar, torch.inference_mode():
        for start in range(0, len(records), batch):
            part, truth = data.load_tensors(cohort, records[start : start + batch].tolist(), grant)
            if frozen is not None:
                rows = len(part)
                whole = torch.cat([part, part.new_zeros(batch - rows, *part.shape[1:])]) if rows < batch else part
                part = frozen(whole.to(device)).float().cpu()[:rows]
            images.append(part)
            labels.append(truth)
            bar.advance(len(part))
    if not images:
        return torch.zeros(0), torch.zeros(0)
    return torch.cat(images).clone(), torch.cat(labels).clone()


def prepare(
    settings: Settings,
    cohort: Cohort,
    grant: Grant,
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
    inputs, label = load_inputs(cohort, record, grant, network.frozen, device, label=f"{what} ({'+'.join(splits)})")
    return Prepared(cohort, inputs, label, patient, record, network, losses.loss_for_task(settings.data.task))


def in_memory(settings: Settings, network: Network) -> bool:
    """Whether inputs are the same at every step, so that they are computed once."""
    if settings.data.augment:
        return False
    return settings.training.cache_features if network.frozen is not None else True
