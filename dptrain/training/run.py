"""`train` and `evaluate`: one run from settings to a finished folder, and scores of a run's test patients."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dptrain import accounting, data, models, records
from dptrain.data import Cohort, PatientLoader
from dptrain.errors import ConfigError, LedgerRefused
from dptrain.files import file_sha256, utc_now, whole_or_nothing, write_json
from dptrain.ledger import Grant, Ledger
from dptrain.plan import Plan
from dptrain.records import RunFolder
from dptrain.records.run import Resume, Weights
from dptrain.settings import Settings, to_yaml
from dptrain.terminal.progress import progress
from dptrain.training import facts as make
from dptrain.training import losses
from dptrain.training.bundle import write_bundle
from dptrain.training.calibration import Calibration, fit_calibration, margins, true_margins
from dptrain.training.evaluate import evaluate_classification, evaluate_segmentation
from dptrain.training.loop import Checkpoints, FitResult, fit
from dptrain.training.session import (
    Network,
    Run,
    build_network,
    check,
    device_of,
    in_memory,
    load_inputs,
    load_run,
    open_status,
    plan_for,
    prepare,
)
from dptrain.training.step import PrivateStep, State, StepLog, build_optimizer
from dptrain.vocabulary import Activation, Labels, Purpose, RunStatus, Split, task_spec

Say = Callable[[str], None]


@dataclass
class Outcome:
    """What `train` did: the run folder, its public facts, and whether it was stopped early."""

    folder: RunFolder
    facts: records.Run
    interrupted: bool


def train(settings: Settings, *, command: str = "dptrain train", say: Say = print) -> Outcome:
    """Plan, check, read, reserve, train, calibrate, evaluate and keep one run.

    Raises:
        ConfigError: settings that make no plan. LedgerRefused: no budget, a locked cohort, unknown weights.
        CheckRefused: a network or pipeline that would break the guarantee (nothing was charged).
        DataUnreadable: every fault of the manifest (nothing was charged).
    """
    resumed = load_run(settings.training.resume) if settings.training.resume else None
    if resumed is not None:
        ledger_settings, resume = settings.ledger, settings.training.resume
        settings = resumed.settings
        settings.training.resume = resume
        for name in ("url", "keys", "witness"):
            if getattr(ledger_settings, name) is not None:
                setattr(settings.ledger, name, getattr(ledger_settings, name))
        if resumed.facts.status not in (RunStatus.RUNNING, RunStatus.CRASHED):
            raise ConfigError(
                f"{resumed.folder.path} is {resumed.facts.status}: there is nothing to resume.",
                remedy="A run that ended cleanly has closed its charge; start a new one.",
            )
    with _watched(say) as watch:
        return _train(settings, resumed, command, say, watch)


def _train(settings: Settings, resumed: Run | None, command: str, say: Say, watch: _Watch) -> Outcome:
    ledger, keys, status = open_status(settings)
    plan = resumed.plan if resumed is not None else plan_for(settings, status)
    device = device_of(settings.training.device)
    network = build_network(settings)
    findings = check(settings, network)
    models.refuse(findings)
    for finding in findings:
        if finding.status == "changed":
            say(f"changed: {finding.what}")
    largest = plan.max_records_per_patient * plan.views
    if settings.training.chunk < largest:
        raise ConfigError(
            f"training.chunk={settings.training.chunk} cannot hold one patient: the record cap "
            f"{plan.max_records_per_patient} times {plan.views} views makes {largest}.",
            remedy="Raise training.chunk, or lower privacy.max_records_per_patient or privacy.views.",
        )
    identity = uuid.uuid4().hex[:16] if resumed is None else str(resumed.facts.id)
    if resumed is None:
        ledger.require_open(status.name)  # refused before an image is read
    say(f"reading and hashing {settings.data.name}")
    cohort = data.scan(settings.data, keys)

    if settings.training.evaluate and not cohort.split(Split.TEST):
        raise ConfigError(
            "the test split holds no patient.", remedy="Set data.split so that it does, or evaluate=false."
        )
    if resumed is None:
        folder = RunFolder(settings.training.run or _run_name(settings))
        folder.create()  # before the charge: a place that cannot be written costs nothing
        try:
            with whole_or_nothing(folder.config) as file:
                file.write(to_yaml(settings))
            grant = ledger.reserve(
                plan,
                status.name,
                run=identity,
                fingerprint=cohort.fingerprint,
                weights=network.weights,
                lease=settings.training.lease,
            )
        except BaseException:
            if _reserved(ledger, identity):  # the answer was lost, the reservation was not
                say(f"the reservation stands: give it back with\n  dptrain ledger close run={identity} reason=…")
            else:
                folder.discard()
            raise
        watch.grant, watch.folder = grant, folder
        facts = make.base(identity, utc_now(), settings, plan, status, command, str(device))
        spent_before: float | None = grant.gate.spent_before
        facts = replace(facts, gate=make.gate(grant.gate, status, spent_before=spent_before))
        start = None
    else:
        folder, facts = resumed.folder, resumed.facts
        grant = ledger.resume(identity)
        _same_weights(ledger.run(identity).weights, network)
        start = _resume_state(folder, grant, plan, network, settings, say)
        spent_before = None if facts.gate is None else facts.gate.spent_before
        resume = Resume(crashes=start.crashes, steps_lost=start.steps_lost)
        facts = replace(facts, resume=resume, status=RunStatus.RUNNING)
        watch.grant, watch.folder = grant, folder
    facts = replace(facts, config_sha256=file_sha256(folder.config))
    folder.write(facts)
    folder.note_access("train")
    say(_plan_line(plan, status.kind))

    loader = _loader(settings, cohort, grant, plan, network, device, start)
    result = _fit(settings, network, loader, plan, grant, folder, device, start, watch)
    calibration = None
    calibrates = plan.calibration_noise_multiplier is not None and task_spec(settings.data.task).calibrates
    if calibrates and not result.interrupted:
        begun = ledger.run(identity).calibrated
        calibration = _calibrate_once(folder, settings, cohort, grant, plan, network, device, begun, say)
    metrics = None
    if settings.training.evaluate and not result.interrupted and cohort.split(Split.TEST, excluded=grant.excluded):
        metrics, predictions = score(settings, cohort, grant, network, device, calibration)
        write_json(folder.metrics, metrics)
        save_predictions(folder, predictions)
    before = [ledger.run(name) for name in grant.inherited]
    private = plan.private and all(Plan.from_dict(earlier.plan).private for earlier in before)
    write_bundle(folder, network.whole, settings, calibration.to_dict() if calibration else None, private=private)
    model = make.model_facts(folder, network.whole, network.trainable, settings, network.changes)
    receipt = grant.close(
        "interrupted" if result.interrupted else "complete",
        steps_run=result.state.step,
        model=model.sha256,
        did=(Purpose.EVALUATE,) if metrics is not None else (),
    )
    assert receipt is not None  # a training's grant always gives one
    folder.checkpoint.unlink(missing_ok=True)
    facts = replace(
        facts,
        finished=utc_now(),
        status=RunStatus.INTERRUPTED if result.interrupted else RunStatus.COMPLETE,
        privacy=make.privacy(
            plan,
            settings.privacy.target_epsilon,
            run=result.state.step - result.state.steps_lost,
            paid=receipt.steps_charged,
            inherited=[make.inherited(earlier) for earlier in before],
            units=settings.data.units_per_person,
        ),
        gate=make.gate(receipt.gate, status, spent_before=spent_before),
        ledger=make.ledger(grant, receipt.head, status.witness),
        weights=Weights(
            source=network.weights_kind,
            sha256=network.weights.sha256 if network.weights else None,
            note=network.weights_note,
        ),
        model=model,
        calibration=calibration.to_dict() if calibration else None,
        not_covered=make.not_covered(plan, network.weights_kind, network.weights_note),
        checks=make.checks(plan, witness=status.witness),
    )
    folder.write(facts)
    return Outcome(folder, facts, result.interrupted)


def _same_weights(reserved: dict[str, Any] | None, network: Network) -> None:
    """Refuse to go on from other starting weights than those that were reserved."""
    now_ = None if network.weights is None else {"sha256": network.weights.sha256, "run": network.weights.run}
    if now_ != reserved:
        raise LedgerRefused(
            "The starting weights are not those that this run was granted for: the file changed since.",
            remedy="Put the earlier file back, or start a new run.",
        )


def _run_name(settings: Settings) -> str:
    return f"runs/{settings.name}-{utc_now().replace(':', '').replace('-', '')}-{os.urandom(2).hex()}"


def _plan_line(plan: Plan, kind: str | None) -> str:
    if not plan.private:
        return f"no privacy (epsilon is infinite): {plan.steps} steps, {plan.expected_batch_size} {plan.unit}s a step"
    return (
        f"{plan.steps} steps, {plan.expected_batch_size} of {plan.public_size} {plan.unit}s expected a step, "
        f"noise multiplier {plan.noise_multiplier:.3f}, clip {plan.max_grad_norm:g}, delta {plan.delta:.2g} "
        f"({kind} budget)"
    )


def _resume_state(
    folder: RunFolder, grant: Grant, plan: Plan, network: Network, settings: Settings, say: Say
) -> State:
    """The checkpoint moved past the steps that were paid and lost; without one, the starting weights."""
    if folder.checkpoint.exists():
        state = State.load(folder.checkpoint)
    else:
        model = network.trainable
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        average = {name: p.detach().clone() for name, p in trained.items()} if settings.training.ema else None
        optimizer = build_optimizer(list(trained.values()), settings.optimizer)
        state = State(0, model.state_dict(), optimizer.state_dict(), average, plan.digest)
    lost = grant.committed - state.step
    state.step = grant.committed
    state.crashes += 1
    state.steps_lost += lost
    say(
        f"resumed at step {grant.committed} of {plan.steps}: the crash cost {lost} steps that were paid for and are "
        "not repeated; noise and draws are fresh"
    )
    return state


def _loader(
    settings: Settings,
    cohort: Cohort,
    grant: Grant,
    plan: Plan,
    network: Network,
    device: torch.device,
    start: State | None,
) -> PatientLoader:
    first = 0 if start is None else start.step
    if in_memory(settings, network):
        prepared = prepare(settings, cohort, grant, splits=(Split.TRAIN,), network=network, device=device)
        return PatientLoader(prepared.tensors(), plan, grant, chunk=settings.training.chunk, start=first)
    augment = settings.data.augment
    return PatientLoader(cohort, plan, grant, augment=augment, chunk=settings.training.chunk, start=first)


def _fit(
    settings: Settings,
    network: Network,
    loader: PatientLoader,
    plan: Plan,
    grant: Grant,
    folder: RunFolder,
    device: torch.device,
    start: State | None,
    watch: _Watch,
) -> FitResult:
    from torch.utils.tensorboard import SummaryWriter

    model = network.trainable
    if network.frozen is not None and not in_memory(settings, network):
        model = nn.Sequential(network.frozen.to(device), network.trainable)
    public, restricted = SummaryWriter(str(folder.tensorboard)), SummaryWriter(str(folder.restricted_tensorboard))
    for path in folder.restricted_tensorboard.rglob("*"):
        os.chmod(path, 0o700 if path.is_dir() else 0o600)
    os.chmod(folder.restricted_tensorboard, 0o700)
    descriptor = os.open(folder.training_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as log, progress(plan.steps, "training") as bar:
        if start is not None:
            bar.advance(start.step)

        def on_step(entry: StepLog) -> bool:
            bar.advance(1)
            for name, value in entry.public.items():
                # the time of a step tells how many patients it drew: the public log carries none
                public.add_scalar(f"training/{name}", value, entry.step, walltime=float(entry.step))
            for name, value in entry.restricted.items():
                restricted.add_scalar(f"training/{name}", value, entry.step)
            log.write(json.dumps({"step": entry.step, **entry.restricted, **entry.public}) + "\n")
            return watch.asked

        watch.stepping = True
        try:
            step = PrivateStep(
                model,
                plan,
                loss=losses.loss_for_task(settings.data.task),
                optimizer=settings.optimizer,
                ema=settings.training.ema,
                device=device,
                precision=settings.training.precision,
                rules=network.rules,
                names=network.names(model),
            )
            result = fit(
                step,
                loader,
                grant,
                start=start,
                on_step=on_step,
                checkpoints=Checkpoints(folder.checkpoint, settings.training.checkpoint_steps),
                checked=True,
            )
        finally:
            watch.stepping = False
            if plan.private:
                for at, epsilon in accounting.epsilon_over_steps(plan.mechanisms[:1], plan.delta):
                    public.add_scalar("privacy/epsilon", epsilon, at, walltime=float(at))
            public.close()
            restricted.close()
    return result


def _reserved(ledger: Ledger, identity: str) -> bool:
    try:
        return ledger.run(identity).status == RunStatus.OPEN
    except LedgerRefused:
        return False


@dataclass
class _Watch:
    """What an interruption must know: whether steps are running, and what is held."""

    asked: bool = False
    stepping: bool = False
    grant: Grant | None = None
    folder: RunFolder | None = None


@contextmanager
def _watched(say: Say) -> Iterator[_Watch]:
    """Ctrl-C or SIGTERM ends the training after the current step, at once where none runs or at the second one.

    A run that fails or ends at once gives back its reservation if it paid nothing; else it says how to go on.
    """
    watch = _Watch()

    def on_signal(_number: int, _frame: object) -> None:
        if watch.asked or not watch.stepping:
            raise KeyboardInterrupt
        watch.asked = True
        say("ending after this step (Ctrl-C again to stop at once)")

    before = {}
    with suppress(ValueError):  # not the main thread
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, on_signal)
    try:
        yield watch
    except BaseException as error:
        _let_go(watch, error, say)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _let_go(watch: _Watch, error: BaseException, say: Say) -> None:
    """Give back what an ended run holds, or say that its charge stays open and what to do about it."""
    grant, folder = watch.grant, watch.folder
    if grant is None or folder is None or (grant.closed and grant.committed):
        return
    with suppress(Exception):  # the error on its way says more
        if grant.closed or grant.give_back():
            folder.facts.unlink(missing_ok=True)
            folder.access_log.unlink(missing_ok=True)
            folder.discard()
            say("nothing was paid: the reservation is given back")
            return
    if not isinstance(error, LedgerRefused):  # which has a remedy of its own
        say(
            f"run {grant.run} is still open ({grant.committed} steps paid). Go on with\n"
            f"  dptrain train training.resume={folder.path}\n"
            f"or close it with\n  dptrain ledger close run={grant.run} reason=…"
        )


def _logits(
    cohort: Cohort,
    record: NDArray[np.int64],
    grant: Grant,
    network: Network,
    device: torch.device,
    *,
    fixed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Outputs of the whole network for these records and their labels, on the CPU, in float32.

    fixed: the network sees as many rows every time, the last ones made up with zeros, so that no bit of a record's
    output tells how many others there are.
    """
    inputs, label = load_inputs(cohort, record, grant, network.frozen, device)
    model = network.trainable.to(device).eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(inputs), 64):
            part = inputs[start : start + 64]
            rows = len(part)
            if fixed:
                part = torch.cat([part, part.new_zeros(64 - rows, *part.shape[1:])])
            parts.append(model(part.to(device)).float().cpu()[:rows])
    return (torch.cat(parts) if parts else torch.zeros(0)), label


def _of_split(cohort: Cohort, split: str, excluded: frozenset[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(record, patient) positions of a split's records, without the patients that the ledger leaves out."""
    pairs = [(r, p) for p in cohort.split(split, excluded=excluded) for r in cohort.patients[p].records]
    array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _calibrate_once(
    folder: RunFolder,
    settings: Settings,
    cohort: Cohort,
    grant: Grant,
    plan: Plan,
    network: Network,
    device: torch.device,
    begun: bool,
    say: Say,
) -> Calibration | None:
    """The calibration's one release. It is paid for once, so its noise is never drawn again, wherever one resumes.

    The ledger knows of it before the draw; what a crash left without a result is paid and lost.
    """
    kept = folder.restricted / "calibration.json"
    if kept.exists():
        return Calibration(**json.loads(kept.read_text(encoding="utf-8")))
    if begun:
        say("the calibration was begun before, and this folder holds no result: it is paid, and not drawn again")
        return None
    grant.begin_calibration()
    found = _calibrate(settings, cohort, grant, plan, network, device)
    write_json(kept, found.to_dict())
    return found


def _calibrate(
    settings: Settings, cohort: Cohort, grant: Grant, plan: Plan, network: Network, device: torch.device
) -> Calibration:
    """One noisy histogram over the calibration patients."""
    assert plan.calibration_noise_multiplier is not None
    record, patient = _of_split(cohort, Split.CALIBRATION, grant.excluded)
    logits, label = _logits(cohort, record, grant, network, device, fixed=True)
    if len(record) == 0:
        shape = (0,) if task_spec(settings.data.task).one_logit else (0, len(settings.data.classes))
        logits, label = torch.zeros(shape), torch.zeros(shape)
    return fit_calibration(
        logits.double().numpy(),
        label.numpy(),
        patient,
        settings.data.task,
        noise_multiplier=plan.calibration_noise_multiplier,
        generator=plan.generator,
    )


def score(
    settings: Settings,
    cohort: Cohort,
    grant: Grant,
    network: Network,
    device: torch.device,
    calibration: Calibration | None,
    split: str = Split.TEST,
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Metrics of a split and the predictions behind them, by pseudonym. Un-noised: restricted."""
    record, patient = _of_split(cohort, split, grant.excluded)
    if len(record) == 0:
        raise ConfigError(f"the {split} split holds no patient.", remedy="Set data.split so that it does.")
    logits, label = _logits(cohort, record, grant, network, device)
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
        metrics["temperature"] = calibration.temperature
        metrics["conformal"] = conformal_report(scaled.numpy(), truth, patient, task, calibration)
    return metrics, {"patient": names, "record": record, "label": truth, "probability": probability}


def conformal_report(
    scaled: NDArray[np.float64],
    label: NDArray[Any],
    patient: NDArray[np.int64],
    task: str,
    calibration: Calibration,
) -> dict[str, float]:
    """How often the sets hold the truth, and how large they are: means over patients of the mean over their records.

    Each patient counts once, as in the histogram that the sets were fitted to: the promise is for a new patient's
    record, not for a record of a cohort in which those who come often are also those who are hard to judge.
    """
    inside = (margins(scaled, task) >= calibration.threshold).sum(axis=-1).reshape(len(scaled), -1)
    covered = (true_margins(scaled, label, task) >= calibration.threshold).reshape(len(scaled), -1)
    position = np.unique(patient, return_inverse=True)[1]
    weight = 1.0 / np.bincount(position)[position]
    return {
        "miscoverage": calibration.miscoverage,
        "threshold": calibration.threshold,
        "coverage": float(np.average(covered.mean(axis=1), weights=weight)),
        "set_size": float(np.average(inside.mean(axis=1), weights=weight)),
    }


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


def save_predictions(folder: RunFolder, predictions: dict[str, NDArray[Any]], split: str = Split.TEST) -> None:
    """`restricted/predictions.npz` (another split: `predictions-<split>.npz`): pseudonym, record, label, score."""
    arrays: dict[str, Any] = predictions
    target = folder.predictions if split == Split.TEST else folder.predictions.with_name(f"predictions-{split}.npz")
    with whole_or_nothing(target, "wb") as file:
        np.savez_compressed(file, **arrays)


def evaluate_run(path: str | Path, *, split: str = Split.TEST, ledger: dict[str, str | None] | None = None) -> Path:
    """Score a finished run again. A new request to the ledger: refused on a locked cohort (exit code 3)."""
    run = load_run(path)
    settings = run.settings
    for name, value in (ledger or {}).items():
        if value is not None:
            setattr(settings.ledger, name, value)
    if run.facts.status == RunStatus.RUNNING:
        raise ConfigError(f"{run.folder.path} has not finished.", remedy="Resume it with training.resume=… first.")
    store, keys, status = open_status(settings)
    _only_public(split, status.public)
    cohort = data.scan(settings.data, keys)
    identity = str(run.facts.id)
    with store.admit(status.name, purpose=Purpose.EVALUATE, run=identity, fingerprint=cohort.fingerprint) as grant:
        _only_public(split, grant.public)  # the data may be of an earlier version
        network = build_network(settings)
        load_trained(network, run.folder)
        calibration = Calibration(**run.facts.calibration) if run.facts.calibration else None
        device = device_of(settings.training.device)
        metrics, predictions = score(settings, cohort, grant, network, device, calibration, split)
    target = run.folder.metrics if split == Split.TEST else run.folder.metrics.with_name(f"metrics-{split}.json")
    write_json(target, metrics)
    save_predictions(run.folder, predictions, split)
    run.folder.note_access(f"evaluate {split}")
    return target


def _only_public(split: str, public: bool) -> None:
    """Refuse un-noised scores of the patients whom epsilon protects."""
    if split in (Split.TRAIN, Split.CALIBRATION) and not public:
        raise LedgerRefused(
            f"Scores of the {split} patients would be un-noised and outside of epsilon, which protects just them: "
            "only cohorts declared public may have them.",
            remedy="Use split=test or split=validation.",
        )


def load_trained(network: Network, folder: RunFolder) -> None:
    """Put a run's final weights into a freshly built network."""
    from safetensors.torch import load_file

    if not folder.weights.is_file():
        raise ConfigError(f"{folder.weights} is missing: the run kept no model.")
    network.whole.load_state_dict(load_file(str(folder.weights)))
