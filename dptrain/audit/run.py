"""The audit of a training: reference models, attacks, confirmation, canaries, and the files it leaves.

Everything here reads the cohort under a grant of the ledger whose purpose is `audit`; it charges nothing, and
everything it writes lies below `restricted/audit/` (folders 0700, files 0600).
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from torch import nn

from dptrain import accounting, data
from dptrain.audit import bounds, masks, patients, reference, statistics
from dptrain.audit.canaries import canary_scores, kinds_of, plant
from dptrain.audit.reference import Material
from dptrain.audit.results import SCHEMA, People, Summary, number_of, summarise
from dptrain.audit.scores import Array
from dptrain.errors import ConfigError
from dptrain.files import make_folder, utc_now, whole_or_nothing, write_json
from dptrain.models import ModelStore
from dptrain.models.losses import loss_for_task
from dptrain.models.network import build_network, device_of
from dptrain.plan import Plan
from dptrain.records import RunFolder
from dptrain.settings import AuditConfig, Settings, to_yaml
from dptrain.settings.kept import changed
from dptrain.terminal.progress import progress
from dptrain.training import inputs
from dptrain.training.planning import open_status, plan_for
from dptrain.vocabulary import Labels, Purpose, RunStatus, Split, task_spec

if TYPE_CHECKING:
    from dptrain.data import Cohort
    from dptrain.ledger import Grant

Say = Callable[[str], None]


@dataclass(frozen=True)
class Promise:
    """What a patient was promised; `epsilon` is infinite where nothing was."""

    epsilon: float
    delta: float
    curve: Any | None

    def tpr(self) -> Callable[[float], float] | None:
        """The promised trade-off, FPR -> largest TPR."""
        curve = self.curve
        return None if curve is None else lambda fpr: float(curve.tpr(fpr))


def promise_of(plan: Plan) -> Promise:
    """Epsilon at the plan's delta and the trade-off curve of everything that the plan releases."""
    if not plan.private:
        return Promise(math.inf, plan.delta, None)
    epsilon = accounting.pld_epsilon(plan.mechanisms, plan.delta)
    return Promise(epsilon, plan.delta, accounting.tradeoff(plan.mechanisms))


@dataclass(frozen=True)
class Result:
    """What the audit left: the folder, audit.json's content, and whether the guarantee is broken."""

    folder: RunFolder
    audit: dict[str, Any]
    broken: str | None


def audit_run(path: str | Path, words: list[str], *, say: Say = print) -> Result:
    """Audit a finished run. `words`: overrides of audit.*, ledger.*, data.root, training.device
    and training.chunk.

    Raises:
        ConfigError: no run, a run without reproducible configuration, or one that has not finished.
        LedgerRefused: a changed manifest, or a locked cohort without permission.
    """
    run = inputs.load_run(path)
    if run.facts.status == RunStatus.RUNNING:
        raise ConfigError(f"{run.folder.path} has not finished.", remedy="Resume it with training.resume=… first.")
    settings = override(run.settings, words)
    run.folder.note_access("audit")
    identity = str(run.facts.id)
    held = finished(run.folder, asked(settings, run.plan, identity))
    if held is not None:
        return _again(held, say)
    return _audit(settings, run.plan, identity, run.folder, say)


def audit_settings(settings: Settings, *, say: Say = print) -> Result:
    """Audit what a recipe's training would do, without a run: its plan is made as `train` would make it."""
    _, _, status = open_status(settings)
    plan = plan_for(settings, status)
    # no time in it: the same command finds what it left
    place = settings.training.run or f"runs/audit-{settings.name}-{asked(settings, plan, '')[:12]}"
    folder = RunFolder(place)
    if folder.facts.exists():
        raise ConfigError(f"{place} holds a run.", remedy=f"Audit it with run={place}, or name another training.run.")
    folder.path.mkdir(parents=True, exist_ok=True)
    with whole_or_nothing(folder.config) as file:
        file.write(to_yaml(settings))
    identity = "audit-" + hashlib.sha256(f"{plan.digest}{os.path.abspath(place)}".encode()).hexdigest()[:16]
    return _audit(settings, plan, identity, folder, say)


# settings that do not change what is measured: where things lie, and how the work is cut up
NOT_MEASURED = {
    "data": ("root", "folder"),
    "training": ("run", "resume", "device", "chunk", "lease", "checkpoint_steps", "evaluate"),
    "audit": ("declare", "processes"),
}
# settings of the audit that decide which reference models are trained; the others are about their scores only
TRAINED_BY = ("models", "new_scan", "trainer", "stack", "game", "confirm_models")


def configuration(settings: Settings) -> dict[str, Any]:
    """Everything that decides what an audit measures: the settings without places, and the starting weights."""
    told: dict[str, Any] = yaml.safe_load(to_yaml(settings))
    for part in ("ledger", "report"):
        told.pop(part, None)
    for part, names in NOT_MEASURED.items():
        told[part] = {name: value for name, value in told[part].items() if name not in names}
    if settings.model.weights is not None:
        weights = ModelStore.of(settings.model.weights)
        told["weights"] = weights.sha256() if weights.exists else None
    return told


def _digest(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def asked(settings: Settings, plan: Plan, identity: str) -> str:
    """One number for an audit: two that have it ask the same question of the same training."""
    return _digest([configuration(settings), plan.digest, identity])


def finished(folder: RunFolder, number: str, fingerprint: str | None = None) -> Result | None:
    """The result of the same audit, if it was finished before (of the same cohort, where `fingerprint` is given)."""
    try:
        audit = json.loads((folder.audit / "audit.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(audit, dict) or audit.get("schema") != SCHEMA or audit.get("asked_sha256") != number:
        return None
    if fingerprint is not None and audit.get("cohort_sha256") != _digest(fingerprint):
        return None
    return Result(folder, audit, _broken(audit))


def _again(held: Result, say: Say) -> Result:
    say(
        f"this audit was finished at {held.audit['created']}; nothing is trained, nothing is asked of the ledger "
        f"(for another one, change a setting or remove {held.folder.audit / 'audit.json'})"
    )
    return held


def _broken(audit: dict[str, Any]) -> str | None:
    """The sentence of a broken guarantee, from audit.json."""
    canary, promised = audit["canary"], audit["promised"]["epsilon"]
    if not canary or not canary["broken"]:
        return None
    bound = bounds.LowerBound(
        epsilon=canary["epsilon_lower"],
        method=canary["method"],
        confidence=canary["confidence"],
        canaries=canary["count"],
        trainings=canary["trainings"],
        promised=math.inf if promised is None else promised,
        curve=canary["beyond_curve"],
        broken=True,
    )
    return bounds.broken_sentence(bound, audit["unit"])


# what a word may start with that changes where things lie and how to audit, and nothing of the training
ALLOWED = ("audit.", "ledger.", "data.root=", "training.device=", "training.chunk=")


def override(settings: Settings, words: list[str]) -> Settings:
    """A run's settings with where things lie and how to audit changed; nothing that changes the training."""
    for word in words:
        if "=" not in word or not word.startswith(ALLOWED):
            raise ConfigError(
                f"'{word}' cannot be set for the audit of a run: it would audit another training.",
                remedy=f"Allowed are {', '.join(f'{name}…' for name in ALLOWED)}.",
            )
    return changed(settings, words)


def _audit(settings: Settings, plan: Plan, identity: str, folder: RunFolder, say: Say) -> Result:
    begun = time.monotonic()
    config = settings.audit
    ledger, keys, status = open_status(settings)
    say(f"reading and hashing {settings.data.name}")
    cohort = data.scan(settings.data, keys)
    number = asked(settings, plan, identity)
    held = finished(folder, number, cohort.fingerprint)
    if held is not None:
        return _again(held, say)
    grant = ledger.admit(status.name, purpose=Purpose.AUDIT, run=identity, fingerprint=cohort.fingerprint)
    ended = RunStatus.INTERRUPTED
    try:
        make_folder(folder.restricted, private=True)
        make_folder(folder.audit, private=True)
        material, people = prepare(settings, cohort, grant, plan, config)
        need = statistics.models_needed(material.patients, config.false_discovery_rate, patients.FOLDS)
        if config.models < need:
            say(f"{config.models} reference models are too few for verdicts by {plan.unit}: {need} are needed")
        promise = promise_of(plan)
        work = Work(folder.audit / "work", settings, material, plan, cohort.fingerprint)
        member = work.member(config.models, material.patients)
        population = dataclasses.replace(material, plan=reference.half_plan(plan))
        device = device_of(settings.training.device)
        trainer, why = choose_trainer(material, config, device)
        config = dataclasses.replace(config, trainer=trainer)
        if why:
            say(why)
        scores = train_references(population, member, config, work, device, "training reference models")
        say("attacking")
        summary = summarise(
            scores,
            member,
            material.patient.numpy(),
            people,
            config,
            trained=material.trained,
            tpr=promise.tpr(),
            auc_ceiling=1.0 if promise.curve is None else float(promise.curve.auc),
            task=material.task,
        )
        if config.game == "release":
            whole = dataclasses.replace(material, plan=plan)
            summary.audit["confirmed"] = confirm(whole, scores, member, summary, config, work, device)
        bound = canary_bound(dataclasses.replace(material, plan=plan), promise, config, device=device, work=work)
        audit = {
            "schema": SCHEMA,
            "created": utc_now(),
            "game": config.game,
            "attack": config.attack,
            "verdicts_by": patients.TEST,
            **summary.audit,
            "promised": _promised(promise),
            "canary": None if bound is None else _canary(bound[0], bound[1]),
            "masks_sha256": masks.digest(member),
            "plan_sha256": plan.digest,
            "unit": plan.unit,
            "trainer": trainer,
            "asked_sha256": number,
            "cohort_sha256": _digest(cohort.fingerprint),
            "seconds": round(time.monotonic() - begun, 1),
        }
        told = folder.audit / "audit.json"
        told.unlink(missing_ok=True)  # it stands for the whole: gone before the others change, written when they are
        _write_rows(folder.audit / "patients.csv", summary)
        with whole_or_nothing(folder.audit / "scores.npz", "wb") as file:
            np.savez_compressed(
                file,
                scores=scores.astype(np.float32),
                member=member,
                patient=material.patient.numpy(),
                trained=material.trained,
            )
        write_json(told, audit)
        work.remove()
        ended = RunStatus.COMPLETE
    finally:
        grant.close(ended, steps_run=0)
    return Result(folder, audit, _broken(audit))


# --- what the references are trained on -------------------------------------------------------------------------


def prepare(
    settings: Settings, cohort: Cohort, grant: Grant, plan: Plan, config: AuditConfig
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
        whole = dataclasses.replace(network, frozen=None)
        prepared = inputs.prepare(settings, cohort, grant, splits=(Split.TRAIN,), network=whole, device=device)
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
    return material, _people(cohort, places, prepared.record[rows], owner[rows])


def keep_back(owner: np.ndarray, count: int, share: float) -> np.ndarray:
    """bool [R]: False for one record of each of a random `share` of the patients with several."""
    draw = np.random.default_rng(int.from_bytes(os.urandom(16), "little"))
    trained = np.ones(len(owner), dtype=bool)
    several = np.flatnonzero(np.bincount(owner, minlength=count) > 1)
    for who in several[draw.random(several.size) < share]:
        trained[draw.choice(np.flatnonzero(owner == who))] = False
    return trained


def _starts(settings: Settings, network: Any, module: nn.Module) -> Callable[[], dict[str, torch.Tensor]]:
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


def _people(cohort: Cohort, places: list[int], record: np.ndarray, owner: np.ndarray) -> People:
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
    return People([cohort.patients[p].key.hex()[:16] for p in places], label, columns)


def _many(values: np.ndarray) -> bool:
    """More values than a table can hold: an age in years, a free text."""
    return len(np.unique(values.astype(str))) > 24


# --- reference models, resumable --------------------------------------------------------------------------------


class Work:
    """Masks and scores of an unfinished audit. Another cohort, plan or configuration does not find them.

    What only reads scores (the attack, the tolerance, how many are confirmed) may change in between.
    """

    def __init__(self, folder: Path, settings: Settings, material: Material, plan: Plan, fingerprint: str) -> None:
        self.folder = folder
        told = configuration(settings)
        told["audit"] = {name: value for name, value in told["audit"].items() if name in TRAINED_BY}
        self.key = _digest([fingerprint, plan.digest, told, material.patients])
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stamp = folder / "key"
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != self.key:
            self.clear()
            with whole_or_nothing(stamp, private=True) as file:
                file.write(self.key)
        kept = self.load("kept")
        if kept is None:
            self.save("kept", trained=material.trained)
        else:  # the records kept back were chosen when the audit began
            material.trained[:] = kept["trained"]

    def clear(self) -> None:
        for file in self.folder.iterdir():
            file.unlink()

    def remove(self) -> None:
        """Everything is in the results: forget the work."""
        self.clear()
        self.folder.rmdir()

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        path = self.folder / f"{name}.npz"
        if not path.exists():
            return None
        with np.load(path) as held:
            return {key: held[key] for key in held.files}

    def save(self, name: str, **arrays: Any) -> None:
        with whole_or_nothing(self.folder / f"{name}.npz", "wb", private=True) as file:
            np.savez(file, **arrays)

    def member(self, models: int, count: int) -> np.ndarray:
        """The masks: drawn when the audit began, the same ones after a resume."""
        held = self.load("masks")
        if held is None:
            self.save("masks", member=masks.draw(models, count))
            held = self.load("masks")
        assert held is not None
        return held["member"]

    def canaries(self, planted: Material, member: np.ndarray, own: int) -> tuple[Material, np.ndarray]:
        """The canaries and their masks: made when they were first planted, the same ones after a resume.

        Args:
            own: records of the cohort; the canaries' follow them.
        """
        held = self.load("canaries")
        if held is None or held["member"].shape != member.shape:
            for file in self.folder.glob("canary-*.npz"):  # scores of other canaries
                file.unlink()
            self.save(
                "canaries", inputs=planted.inputs[own:].numpy(), labels=planted.labels[own:].numpy(), member=member
            )
            return planted, member
        same = dataclasses.replace(
            planted,
            inputs=torch.cat([planted.inputs[:own], torch.from_numpy(held["inputs"])]),
            labels=torch.cat([planted.labels[:own], torch.from_numpy(held["labels"])]),
        )
        return same, held["member"]


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
            held = work.load(f"{name}-{number:03d}") if work is not None else None
            if held is not None and np.array_equal(held["member"], member[rows]):
                scores[rows] = held["scores"]
                bar.advance(len(rows) * material.plan.steps)
            else:
                left.append(rows)

        def keep(rows: np.ndarray, found: Array) -> None:
            scores[rows] = found
            if work is not None:
                work.save(f"{name}-{rows[0] // size:03d}", scores=found, member=member[rows])

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
                keep=lambda number, found: keep(left[number], found[None]),
            )
    return scores


# --- the release game -------------------------------------------------------------------------------------------


def confirm(
    material: Material,
    scores: Array,
    member: np.ndarray,
    summary: Summary,
    config: AuditConfig,
    work: Work | None,
    device: torch.device,
) -> dict[str, Any] | None:
    """Release game: the whole cohort with and without one patient, on fresh models, for the most exposed.

    The attack is fitted on the population's models, so it owes nothing to the fresh ones: no winner's curse.
    The models with everybody are shared by all candidates; Benjamini–Yekutieli allows for that.
    Writes into the rows of the patients tried whether they were confirmed, and their fresh AUC. None, and a line in
    `withheld`, where there are too few fresh models to confirm anybody.
    """
    order = np.argsort(-np.nan_to_num(summary.area.auc, nan=0.0), kind="stable")
    top = [int(i) for i in order if summary.exposed[i]][: config.confirm]
    result: dict[str, Any] = {"game": "release", "tested": len(top), "confirmed": 0, "auc": []}
    if not top:
        return result
    half = config.confirm_models // 2
    need = 2 * statistics.confirming(len(top), config.false_discovery_rate)
    if 2 * half < need:  # not even a patient recognised without an error could be confirmed
        summary.audit["withheld"].append({"what": "confirmed", "have": 2 * half, "need": need})
        return None
    games = np.ones((half * (1 + len(top)), material.patients), dtype=bool)
    for number, who in enumerate(top):
        games[half * (1 + number) : half * (2 + number), who] = False
    fresh = train_references(material, games, config, work, device, "confirming on fresh models", "confirm")
    good, told = patients.measurable(scores)
    own = material.trained & told
    evidence = patients.pooled_evidence(
        scores[good][:, own],
        member[good],
        fresh[:, own],
        material.patient.numpy()[own],
        attack=config.attack,
        task=material.task,
    )
    p = np.empty(len(top))
    for number, who in enumerate(top):
        rows = np.r_[0:half, half * (1 + number) : half * (2 + number)]
        rows = rows[np.isfinite(evidence[rows, who])]  # a fresh model may diverge, too
        area = statistics.stratified_auc(
            evidence[rows][:, [who]], games[rows][:, [who]], np.zeros(len(rows), dtype=int)
        )
        low, high = statistics.auc_interval(area)
        p[number] = statistics.auc_p_values(area)[0]
        result["auc"].append({"auc": number_of(area.auc[0]), "low": number_of(low[0]), "high": number_of(high[0])})
    adjusted = statistics.benjamini_hochberg(p, arbitrary_dependence=True)
    confirmed = adjusted <= config.false_discovery_rate
    result["confirmed"] = int(np.sum(confirmed))
    for number, who in enumerate(top):
        summary.rows[who].update(confirmed=bool(confirmed[number]), fresh_auc=result["auc"][number]["auc"])
    return result


# --- the promise ------------------------------------------------------------------------------------------------


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
    bound = bounds.lower_bound(
        canary_scores(scores, planted, count),
        member[:, -count:],
        promised=promise.epsilon,
        delta=promise.delta,
        confidence=config.confidence,
        tpr=promise.tpr(),
        kinds=kinds_of(count, trainings),
    )
    return bound, kind


def _canary(bound: bounds.LowerBound, kind: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "count": bound.canaries,
        "trainings": bound.trainings,
        "epsilon_lower": bound.epsilon,
        "confidence": bound.confidence,
        "method": bound.method,
        "beyond_curve": bound.curve,
        "broken": bound.broken,
    }


def _promised(promise: Promise) -> dict[str, Any]:
    if promise.curve is None:
        return {"epsilon": None, "infinite": True, "delta": promise.delta, "tradeoff": None}
    fpr, tpr = promise.curve.points(101)
    return {
        "epsilon": promise.epsilon,
        "infinite": False,
        "delta": promise.delta,
        "tradeoff": {"fpr": [float(v) for v in fpr], "tpr": [float(v) for v in tpr]},
    }


def _write_rows(path: Path, summary: Summary) -> None:
    """patients.csv: one line a patient, pseudonymised."""
    with whole_or_nothing(path, private=True) as file:
        if summary.rows:
            writer = csv.DictWriter(file, list(summary.rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(summary.rows)
