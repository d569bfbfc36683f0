"""`train` and `evaluate`: one run from settings to a finished folder, and scores of a run's test patients."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dptrain import accounting, data, models, records
from dptrain.data import PatientLoader
from dptrain.errors import ConfigError, LedgerRefused
from dptrain.files import file_sha256, utc_now, utc_today, whole_or_nothing, write_json
from dptrain.ledger import Grant, Ledger
from dptrain.ledger.facts import GateFacts
from dptrain.ledger.state import RunState
from dptrain.models.check import check
from dptrain.models.losses import loss_for_task
from dptrain.models.network import Network, build_network, device_of
from dptrain.plan import Plan
from dptrain.records import RunFolder
from dptrain.records.bound import facts_sha256
from dptrain.records.run import Head, Resume, Weights
from dptrain.settings import Settings, to_yaml
from dptrain.terminal.progress import progress
from dptrain.training import facts as make
from dptrain.training import scoring
from dptrain.training.bundle import write_bundle
from dptrain.training.calibration import Calibration, fit_calibration
from dptrain.training.inputs import Run, in_memory, load_run, prepare
from dptrain.training.interrupts import Watch, watched
from dptrain.training.loop import Checkpoints, FitResult, choose_way, fit
from dptrain.training.planning import check_chunk, open_status, plan_for
from dptrain.training.step import PrivateStep, State, StepLog, build_optimizer
from dptrain.vocabulary import Purpose, RunStatus, Split, task_spec

Say = Callable[[str], None]


@dataclass
class Outcome:
    """What `train` did: the run folder, its public facts, and whether it was stopped early."""

    folder: RunFolder
    facts: records.Run
    interrupted: bool


def train(settings: Settings, *, command: str = "dptrain train", say: Say = print) -> Outcome:
    """Plan, check, read, reserve, train, calibrate, keep, close and evaluate one run.

    Raises:
        ConfigError: settings that make no plan. LedgerRefused: no budget, a locked cohort, unknown weights.
        CheckRefused: a network or pipeline that would break the guarantee (nothing was charged).
        DataUnreadable: every fault of the manifest (nothing was charged).
    """
    resumed = load_run(settings.training.resume) if settings.training.resume else None
    if resumed is not None:
        settings = _resumed_settings(settings, resumed)
    with watched(say) as watch:
        return Training(settings, resumed, command=command, say=say, watch=watch).run()


def _resumed_settings(settings: Settings, resumed: Run) -> Settings:
    """The run's own settings, with the places of the ledger as they are given now."""
    if resumed.facts.status not in UNFINISHED:
        raise ConfigError(
            f"{resumed.folder.path} is {resumed.facts.status}: there is nothing to resume.",
            remedy="A run that ended cleanly has closed its charge; start a new one.",
        )
    own, typed = resumed.settings, settings.ledger
    ledger = own.ledger.placed({"url": typed.url, "keys": typed.keys, "witness": typed.witness})
    return replace(own, training=replace(own.training, resume=settings.training.resume), ledger=ledger)


UNFINISHED = (RunStatus.RUNNING, RunStatus.CRASHED)


class Training:
    """One run, a method a stage. :meth:`run` takes them in order.

    | stage | reads | the charge afterwards |
    |---|---|---|
    | open | settings, the ledger's public status | none |
    | check | made-up data | none |
    | read | the cohort, to hash it | none |
    | reserve, or resume | | **open**; what a reservation holds goes back if nothing is paid |
    | train | the training patients, lease by lease | **open**, paid through the last lease |
    | calibrate | the calibration patients, once | **open** |
    | save_and_close | | closed; the model is kept and run.json says so |
    | evaluate | the test patients, under a leave of its own | closed |

    What fails before `reserve` costs nothing. What fails after `save_and_close` takes neither model nor charge back:
    `dptrain evaluate` completes such a run. Where a process dies in between, `training.resume` goes on; where the
    ledger had closed the run by then, :meth:`settle` writes the facts that are missing.
    """

    ledger: Ledger
    plan: Plan
    network: Network
    cohort: data.Cohort
    grant: Grant
    folder: RunFolder
    facts: records.Run
    result: FitResult

    def __init__(self, settings: Settings, resumed: Run | None, *, command: str, say: Say, watch: Watch) -> None:
        self.settings, self.resumed, self.command, self.say, self.watch = settings, resumed, command, say, watch
        self.identity = uuid.uuid4().hex[:16] if resumed is None else str(resumed.facts.id)
        self.device = device_of(settings.training.device)
        self.start: State | None = None
        self.calibration: Calibration | None = None

    def run(self) -> Outcome:
        """All stages, in order."""
        self.open()
        closed = None if self.resumed is None else closed_run(self.ledger, self.resumed)
        self.check()
        if closed is not None:
            self.settle(closed)
            interrupted = closed.status == RunStatus.INTERRUPTED
            if self.settings.training.evaluate and not interrupted and Purpose.EVALUATE not in closed.did:
                self.read()
                self.evaluate()
            return Outcome(self.folder, self.facts, interrupted)
        self.read()
        if self.resumed is None:
            self.reserve()
        else:
            self.resume(self.resumed)
        self.train()
        if not self.result.interrupted:
            self.calibrate()
        self.save_and_close()
        if self.settings.training.evaluate and not self.result.interrupted:
            self.evaluate()
        return Outcome(self.folder, self.facts, self.result.interrupted)

    # --- no charge ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """The ledger, where the cohort stands, and the one plan."""
        self.ledger, self.keys, self.status = open_status(self.settings)
        self.plan = self.resumed.plan if self.resumed is not None else plan_for(self.settings, self.status)

    def check(self) -> None:
        """Network, loss, pipeline and plan fit together. Raises CheckRefused or ConfigError."""
        settings = self.settings
        self.network = build_network(settings)
        check_chunk(settings)
        findings = check(settings, self.network)
        models.refuse(findings)
        for finding in findings:
            if finding.status == "changed":
                self.say(f"changed: {finding.what}")

    def read(self) -> None:
        """Hash the cohort. Raises DataUnreadable with every fault of the manifest."""
        if self.resumed is None:
            self.ledger.require_open(self.status.name)  # refused before an image is read
        self.say(f"reading and hashing {self.settings.data.name}")
        self.cohort = data.scan(self.settings.data, self.keys)
        data.require_binding(self.cohort, self.ledger.binding(self.status.name, self.cohort.fingerprint))
        if self.settings.training.evaluate and not self.cohort.split(Split.TEST):
            raise ConfigError(
                "the test split holds no patient.", remedy="Set data.split so that it does, or evaluate=false."
            )

    # --- the charge opens -----------------------------------------------------------------------------------------

    def reserve(self) -> None:
        """Make the folder, reserve the plan in the ledger, and write the first facts."""
        settings, status = self.settings, self.status
        folder = RunFolder(settings.training.run or _run_name(settings))
        folder.create()  # before the charge: a place that cannot be written costs nothing
        try:
            with whole_or_nothing(folder.config) as file:
                file.write(to_yaml(settings))
            grant = self.ledger.reserve(
                self.plan,
                status.name,
                run=self.identity,
                fingerprint=self.cohort.fingerprint,
                weights=self.network.weights,
                lease=settings.training.lease,
            )
        except BaseException:
            if _reserved(self.ledger, self.identity):  # the answer was lost, the reservation was not
                self.say(
                    f"the reservation stands: give it back with\n  dptrain ledger close run={self.identity} reason=…"
                )
            else:
                folder.discard()
            raise
        self._hold(grant, folder)
        facts = make.base(self.identity, utc_today(), settings, self.plan, status, self.command, str(self.device))
        gate = make.gate(grant.gate, status, spent_before=grant.gate.spent_before)
        self._begin(replace(facts, gate=gate))

    def resume(self, resumed: Run) -> None:
        """Take the run's charge up again, past the steps that were paid and lost."""
        grant = self.ledger.resume(self.identity)
        _same_weights(self.ledger.run(self.identity).weights, self.network)
        self.start = self._resume_state(resumed.folder, grant)
        self._hold(grant, resumed.folder)
        lost = Resume(crashes=self.start.crashes, steps_lost=self.start.steps_lost)
        self._begin(replace(resumed.facts, resume=lost, status=RunStatus.RUNNING))

    def _hold(self, grant: Grant, folder: RunFolder) -> None:
        self.grant, self.folder = grant, folder
        self.watch.grant, self.watch.folder = grant, folder

    def _begin(self, facts: records.Run) -> None:
        self.facts = replace(facts, config_sha256=file_sha256(self.folder.config))
        self.folder.write(self.facts)
        self.folder.note_access("train")
        self.say(_plan_line(self.plan, self.status.kind))

    def _resume_state(self, folder: RunFolder, grant: Grant) -> State:
        """The checkpoint moved past the steps that were paid and lost; without one, the starting weights."""
        settings, plan = self.settings, self.plan
        if folder.checkpoint.exists():
            state = State.load(folder.checkpoint)
        else:
            model = self.network.trainable
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            average = {name: p.detach().clone() for name, p in trained.items()} if settings.training.ema else None
            optimizer = build_optimizer(list(trained.values()), settings.optimizer)
            state = State(0, model.state_dict(), optimizer.state_dict(), average, plan.digest)
        lost = grant.committed - state.step
        state.step = grant.committed
        state.crashes += 1
        state.steps_lost += lost
        self.say(
            f"resumed at step {grant.committed} of {plan.steps}: the crash cost {lost} steps that were paid for and "
            "are not repeated; noise and draws are fresh"
        )
        return state

    # --- the charge is open ---------------------------------------------------------------------------------------

    def train(self) -> None:
        """The steps of the plan, each lease paid before its first."""
        loader, plan = self._loader(), self.plan
        step = self._step()
        slow = choose_way(step, loader)  # before a step is paid: a refusal here gives the reservation back
        if slow is not None:
            self.say(f"one patient at a time, exact, but slower: {slow}")
        with _Logs(self.folder, plan, self.start) as logs:
            self.watch.stepping = True

            def on_step(entry: StepLog) -> bool:
                logs.write(entry)
                return self.watch.asked

            try:
                self.result = fit(
                    step,
                    loader,
                    self.grant,
                    start=self.start,
                    on_step=on_step,
                    checkpoints=Checkpoints(self.folder.checkpoint, self.settings.training.checkpoint_steps),
                    checked=True,
                )
            finally:
                self.watch.stepping = False
        self._note()

    def _note(self) -> None:
        """What the controller alone is told: steps that drew nobody, and records that counted as zero."""
        log = self.result.log
        empty = sum(entry.restricted.get("patients") == 0 for entry in log)
        if 2 * empty > len(log):
            self.folder.note(
                f"{empty} of {len(log)} steps drew nobody: most or all patients have withdrawn or are spent in other "
                "cohorts, so that the model is noise. See: dptrain ledger show cohort=… --steward"
            )
        if self.cohort.odd:
            self.folder.note(f"{len(self.cohort.odd)} records could not be read and counted as zero.")

    def _loader(self) -> PatientLoader:
        settings, grant = self.settings, self.grant
        chunk, first = settings.training.chunk, 0 if self.start is None else self.start.step
        if in_memory(settings, self.network):
            prepared = prepare(
                settings, self.cohort, grant, splits=(Split.TRAIN,), network=self.network, device=self.device
            )
            return PatientLoader(prepared.tensors(), self.plan, grant, chunk=chunk, start=first)
        augment = settings.data.augment
        return PatientLoader(self.cohort, self.plan, grant, augment=augment, chunk=chunk, start=first)

    def _step(self) -> PrivateStep:
        settings, network = self.settings, self.network
        model = network.trainable
        if network.frozen is not None and not in_memory(settings, network):
            model = nn.Sequential(network.frozen.to(self.device), network.trainable)
        return PrivateStep(
            model,
            self.plan,
            loss=loss_for_task(settings.data.task),
            optimizer=settings.optimizer,
            ema=settings.training.ema,
            device=self.device,
            precision=settings.training.precision,
            rules=network.rules,
            names=network.names(model),
            together=network.way.together,
        )

    def calibrate(self) -> None:
        """The calibration's one release, where the plan has one.

        It is paid for once, so its noise is never drawn again, wherever one resumes: the ledger knows of it before
        the draw; what a crash left without a result is paid and lost.
        """
        if self.plan.calibration_noise_multiplier is None or not task_spec(self.settings.data.task).calibrates:
            return
        self.calibration = self._kept_calibration()
        if self.calibration is not None:
            return
        if self.ledger.run(self.identity).calibrated:
            self.say(
                "the calibration was begun before, and this folder holds no result: it is paid, and not drawn again"
            )
            return
        self.grant.begin_calibration()
        self.calibration = self._draw_calibration(self.plan.calibration_noise_multiplier)
        write_json(self.folder.restricted / "calibration.json", self.calibration.to_dict())

    def _kept_calibration(self) -> Calibration | None:
        kept = self.folder.restricted / "calibration.json"
        return Calibration(**json.loads(kept.read_text(encoding="utf-8"))) if kept.exists() else None

    def _draw_calibration(self, noise_multiplier: float) -> Calibration:
        """One noisy histogram over the calibration patients."""
        config = self.settings.data
        record, patient = scoring.of_split(self.cohort, Split.CALIBRATION, self.grant.excluded)
        logits, label = scoring.outputs_of(self.cohort, record, self.grant, self.network, self.device, alone=True)
        if len(record) == 0:
            shape = (0,) if task_spec(config.task).one_logit else (0, len(config.classes))
            logits, label = torch.zeros(shape), torch.zeros(shape)
        return fit_calibration(
            logits.double().numpy(),
            label.numpy(),
            patient,
            config.task,
            noise_multiplier=noise_multiplier,
            generator=self.plan.generator,
        )

    # --- the charge closes ----------------------------------------------------------------------------------------

    def save_and_close(self) -> None:
        """Keep the model, write what the run promised, and close the charge with the hashes of both."""
        standing = self.ledger.run(self.identity)
        inherited = [self.ledger.run(name) for name in standing.inherited]
        private = self.plan.private and all(Plan.from_dict(earlier.plan).private for earlier in inherited)
        calibration = self.calibration.to_dict() if self.calibration else None
        write_bundle(self.folder, self.network.whole, self.settings, calibration, private=private)
        steps = self.result.state.step
        paid = standing.steps if standing.planned else standing.committed
        self.facts = self._promised(inherited, ran=steps, paid=paid)
        self.folder.write(self.facts)
        receipt = self.grant.close(
            RunStatus.INTERRUPTED if self.result.interrupted else RunStatus.COMPLETE,
            steps_run=steps,
            model=models.ModelStore(self.folder.weights).sha256(),
            facts=facts_sha256(self.folder.read_facts()),
        )
        assert receipt is not None  # a training's grant always gives one
        self._end(self.ledger.run(self.identity), receipt.gate, Head(**receipt.head.to_dict()))

    def settle(self, closed: RunState) -> None:
        """Write the last facts of a run that the ledger holds closed: its process died before it could.

        Raises LedgerRefused where the facts in the folder are not those that the close names.
        """
        assert self.resumed is not None
        self.folder, self.facts = self.resumed.folder, self.resumed.facts
        self.calibration = self._kept_calibration()
        _same_weights(closed.weights, self.network)
        if closed.facts is None:  # closed by a version that bound none
            earlier = [self.ledger.run(name) for name in closed.inherited]
            self.facts = self._promised(earlier, ran=closed.steps_run or 0, paid=closed.steps_charged)
        elif facts_sha256(self.folder.read_facts()) != closed.facts:
            raise LedgerRefused(
                f"{self.folder.facts} is not what the run stated when the ledger closed it: it was changed since.",
                remedy="Bring back the file as the run wrote it.",
            )
        self.say(f"the ledger closed run {self.identity} ({closed.status}): its last facts are written now")
        standing = self.ledger.evidence(self.identity)
        assert standing.gate is not None  # it is closed
        self._end(closed, standing.gate, Head(**standing.head.to_dict()))

    def _promised(self, inherited: list[RunState], *, ran: int, paid: int) -> records.Run:
        """The facts with what is known before the close, which binds them (:mod:`dptrain.records.bound`)."""
        settings, plan, network, facts = self.settings, self.plan, self.network, self.facts
        return replace(
            facts,
            privacy=make.privacy(
                plan,
                settings.privacy.target_epsilon,
                run=ran - (facts.resume.steps_lost or 0),
                paid=paid,
                inherited=[make.inherited(earlier) for earlier in inherited],
                units=settings.data.units_per_person,
            ),
            weights=Weights(
                source=network.weights_kind,
                sha256=network.weights.sha256 if network.weights else None,
                note=network.weights_note,
            ),
            model=make.model_facts(self.folder, network.whole, network.trainable, settings, network.changes),
            calibration=self.calibration.to_dict() if self.calibration else None,
            not_covered=make.not_covered(plan, network.weights_kind, network.weights_note),
            checks=make.checks(plan, witness=self.status.witness),
        )

    def _end(self, closed: RunState, gate: GateFacts, head: Head) -> None:
        """What the close decided, and the checkpoint away. Until it stands in the facts, the ledger's close does."""
        facts, status = self.facts, self.status
        self.folder.checkpoint.unlink(missing_ok=True)
        self.facts = replace(
            facts,
            finished=(closed.closed or utc_now())[:10],  # to the day: how long it took follows the number of records
            status=closed.status,
            gate=make.gate(gate, status, spent_before=None if facts.gate is None else facts.gate.spent_before),
            ledger=make.ledger(closed.seq, head, status.witness),
        )
        self.folder.write(self.facts)

    # --- the charge is closed -------------------------------------------------------------------------------------

    def evaluate(self) -> None:
        """Score the test patients, as the plan declared. Whatever fails here, the run stands as it is."""
        try:
            with self.ledger.admit(
                self.status.name, purpose=Purpose.EVALUATE, run=self.identity, fingerprint=self.cohort.fingerprint
            ) as leave:
                if not self.cohort.split(Split.TEST, excluded=leave.excluded):
                    return
                metrics, predictions = scoring.score(
                    self.settings, self.cohort, leave, self.network, self.device, self.calibration
                )
                written = scoring.write(self.folder, metrics, predictions)
                leave.close(RunStatus.COMPLETE, results=self.folder.hashes(*written))
        except BaseException:
            self.say(
                f"run {self.identity} is complete: its model is kept and its charge is closed; only the evaluation "
                f"did not end. Complete it with\n  dptrain evaluate run={self.folder.path}"
            )
            raise


def closed_run(ledger: Ledger, run: Run) -> RunState | None:
    """What the ledger holds of a run whose facts say that it has not ended: None while it is open there.

    Raises:
        LedgerRefused: closed without the model that lies in the folder: it can neither go on nor be evaluated.
    """
    state = ledger.run(str(run.facts.id))
    if state.status == RunStatus.OPEN:
        return None
    kept = models.ModelStore(run.folder.weights)
    if state.model is None or not kept.exists or kept.sha256() != state.model:
        raise LedgerRefused(
            f"The run '{state.id}' was closed ({state.status}) without the model that lies in {run.folder.path}: it "
            "can neither go on nor be evaluated.",
            remedy="Reserve a new run.",
        )
    return state


class _Logs:
    """Where the numbers of a training's steps go: public and restricted TensorBoard, the restricted log, the bar."""

    def __init__(self, folder: RunFolder, plan: Plan, start: State | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.plan = plan
        self.public = SummaryWriter(str(folder.tensorboard))
        self.restricted = SummaryWriter(str(folder.restricted_tensorboard))
        for path in folder.restricted_tensorboard.rglob("*"):
            os.chmod(path, 0o700 if path.is_dir() else 0o600)
        os.chmod(folder.restricted_tensorboard, 0o700)
        descriptor = os.open(folder.training_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.log = os.fdopen(descriptor, "a", encoding="utf-8")
        self.progress = progress(plan.steps, "training")
        self.first = 0 if start is None else start.step

    def __enter__(self) -> _Logs:
        self.bar = self.progress.__enter__()
        self.bar.advance(self.first)
        return self

    def write(self, entry: StepLog) -> None:
        """One step."""
        self.bar.advance(1)
        for name, value in entry.public.items():
            # the time of a step tells how many patients it drew: the public log carries none
            self.public.add_scalar(f"training/{name}", value, entry.step, walltime=float(entry.step))
        for name, value in entry.restricted.items():
            self.restricted.add_scalar(f"training/{name}", value, entry.step)
        self.log.write(json.dumps({"step": entry.step, **entry.restricted, **entry.public}) + "\n")

    def __exit__(self, *error: Any) -> None:
        if self.plan.private:
            for at, epsilon in accounting.epsilon_over_steps(self.plan.mechanisms[:1], self.plan.delta):
                self.public.add_scalar("privacy/epsilon", epsilon, at, walltime=float(at))
        self.public.close()
        self.restricted.close()
        self.progress.__exit__(*error)
        self.log.close()


def _same_weights(reserved: dict[str, Any] | None, network: Network) -> None:
    """Refuse to go on from other starting weights than those that were reserved."""
    given = None if network.weights is None else {"sha256": network.weights.sha256, "run": network.weights.run}
    if given != reserved:
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


def _reserved(ledger: Ledger, identity: str) -> bool:
    try:
        return ledger.run(identity).status == RunStatus.OPEN
    except LedgerRefused:
        return False


def evaluate_run(
    path: str | Path, *, split: str = Split.TEST, ledger: dict[str, str | None] | None = None, say: Say = print
) -> Path:
    """Score a finished run. What the plan declared and no evaluation has completed belongs to the run; anything else
    is a new request to the ledger: refused on a locked cohort (exit code 3)."""
    run = load_run(path)
    settings = replace(run.settings, ledger=run.settings.ledger.placed(ledger or {}))
    store, keys, status = open_status(settings)
    _only_public(split, status.public)
    if run.facts.status in UNFINISHED:
        run = _settled(run, store, say)
    cohort = data.scan(settings.data, keys)
    data.require_binding(cohort, store.binding(status.name, cohort.fingerprint))
    with store.admit(
        status.name, purpose=Purpose.EVALUATE, run=str(run.facts.id), fingerprint=cohort.fingerprint
    ) as grant:
        _only_public(split, grant.public)  # the data may be of an earlier version
        network = build_network(settings)
        kept = None if run.facts.model is None else run.facts.model.sha256
        models.ModelStore(run.folder.weights).restore(network.whole, sha256=kept)
        calibration = Calibration(**run.facts.calibration) if run.facts.calibration else None
        device = device_of(settings.training.device)
        metrics, predictions = scoring.score(settings, cohort, grant, network, device, calibration, split)
        written = scoring.write(run.folder, metrics, predictions, split)
        grant.close(RunStatus.COMPLETE, results=run.folder.hashes(*written))
    run.folder.note_access(f"evaluate {split}")
    return written[0]


def _settled(run: Run, ledger: Ledger, say: Say) -> Run:
    """The run with the facts that its process died before writing. Raises ConfigError while the run is open."""
    closed = closed_run(ledger, run)
    if closed is None:
        raise ConfigError(f"{run.folder.path} has not finished.", remedy="Resume it with training.resume=… first.")
    training = Training(run.settings, run, command="dptrain evaluate", say=say, watch=Watch())
    training.open()
    training.check()
    training.settle(closed)
    return load_run(run.folder.path)


def _only_public(split: str, public: bool) -> None:
    """Refuse un-noised scores of the patients whom epsilon protects."""
    if split in (Split.TRAIN, Split.CALIBRATION) and not public:
        raise LedgerRefused(
            f"Scores of the {split} patients would be un-noised and outside of epsilon, which protects just them: "
            "only cohorts declared public may have them.",
            remedy="Use split=test or split=validation.",
        )
