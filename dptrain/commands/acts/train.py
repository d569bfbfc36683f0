"""`dptrain train`: one run, or the trials of a sweep and what they cost together."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from dptrain.commands.acts.sweep import compose_and_run, is_sweep, job_settings, job_words, write_outcome
from dptrain.commands.command import Call
from dptrain.errors import EXIT_DONE, EXIT_INTERRUPTED, ConfigError, DptrainError, LedgerRefused, quiet
from dptrain.ledger import open_ledger
from dptrain.plain import Json
from dptrain.plan import Plan
from dptrain.records import Run, RunFolder
from dptrain.records.run import Charge, Inherited, Privacy
from dptrain.records.shape import Record
from dptrain.settings import from_yaml, settings_of
from dptrain.terminal.output import decimals
from dptrain.training import run as runs
from dptrain.training.facts import inherited
from dptrain.training.planning import sweep_cost
from dptrain.training.run import Outcome
from dptrain.training.sweeps import sweep_id

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train(call: Call) -> int:
    """Hydra composes, sweeps (`-m`) and prints (`--cfg job`); each trial is one run."""
    argv = call.settings
    os.environ["DPTRAIN_COMMAND"] = shlex.join(["dptrain", "train", *argv])
    if is_sweep(argv):
        rows: list[Json] = []
        try:
            compose_and_run("train", argv, sweep_job, rows)
        finally:
            code = end_sweep([Trial.of(row) for row in rows])
        return code
    ended: list[int | BaseException] = []

    def job(config: DictConfig) -> None:
        """Keeps the error from Hydra, which would print every override to the terminal."""
        try:
            ended.append(run_job(config))
        except Exception as error:
            ended.append(error)

    compose_and_run("train", argv, job)
    for end in ended:
        if isinstance(end, BaseException):
            raise end
        return end
    return EXIT_DONE


def run_job(config: DictConfig) -> int:
    """One training."""
    outcome = runs.train(settings_of(config), command=os.environ.get("DPTRAIN_COMMAND", "dptrain train"))
    _print_outcome(outcome)
    return EXIT_INTERRUPTED if outcome.interrupted else EXIT_DONE


@dataclass(frozen=True, kw_only=True)
class Trial(Record):
    """How one training of a sweep ended. words: by which it differs; run: its folder, once it has one."""

    words: str = ""
    code: int = EXIT_INTERRUPTED
    message: str = "it did not end"
    run: str | None = None
    sweep: str | None = None
    resumed: bool = False


def sweep_job(config: DictConfig) -> int:
    """One trial of a sweep: one that is refused is written down, and the others go on."""
    quiet()
    trial = Trial(words=job_words(), sweep=sweep_id())
    try:
        settings = job_settings(config)
        folder = Path(settings.training.resume or settings.training.run or ".")
        place = str(folder.resolve())  # this job's working directory need not be the sweep's
        trial = replace(trial, run=place, resumed=bool(settings.training.resume))
        write_outcome(trial)  # before the charge: whatever ends this trial, the sweep knows where it was
        outcome = runs.train(settings, command=os.environ.get("DPTRAIN_COMMAND", "dptrain train"))
    except DptrainError as error:
        write_outcome(replace(trial, code=error.exit_code, message=error.message))
        print(f"trial {trial.words}: {error}", file=sys.stderr)
        return error.exit_code
    _print_outcome(outcome)
    if outcome.interrupted:
        write_outcome(replace(trial, message="interrupted"))
        raise KeyboardInterrupt
    write_outcome(replace(trial, code=EXIT_DONE, message=""))
    return EXIT_DONE


def end_sweep(trials: Sequence[Trial]) -> int:
    """A table of the trials, what those that were charged cost together, and 3 where the ledger refused one."""
    if not trials:
        return EXIT_DONE
    charged = {trial.run: run for trial in trials if trial.run is not None and (run := _charged(trial)) is not None}
    _print_trials(trials, charged)
    lost = [trial.run or "" for trial in trials if trial.code == EXIT_DONE and trial.run not in charged]
    try:
        if lost:
            raise ConfigError(f"no facts of a trial that ended lie in {', '.join(lost)}.")
        together = sweep_cost([_with_charge(run, RunFolder(place).config) for place, run in charged.items()])
    except DptrainError as error:  # each run.json says already that it is one of several
        print(f"what the sweep cost together is not known: {error}", file=sys.stderr)
        together = None
    if together is not None:
        print(
            f"charged trials: {together.trials}; together they cost epsilon "
            f"{decimals(together.epsilon_total)} (joint PLD)"
        )
        for place, run in charged.items():
            if run.sweep is None or run.sweep.id == trials[0].sweep:
                RunFolder(place).amend(sweep=replace(together, id=trials[0].sweep))
    codes = [trial.code for trial in trials]
    return LedgerRefused.exit_code if LedgerRefused.exit_code in codes else max(codes, default=EXIT_DONE)


def _print_trials(trials: Sequence[Trial], charged: Mapping[str, Run]) -> None:
    """One line a trial: by which of its words it differs, what it promises, and how it ended."""
    table = Table(title="The trials of this sweep", title_justify="left")
    table.add_column("differs in", overflow="fold", ratio=3)  # what sets trials apart is never cut
    for name in ("epsilon\n(PLD)", "spent after\n(gate)"):
        table.add_column(name, justify="right")
    table.add_column("ended", overflow="fold", ratio=2)
    common = set.intersection(*(set(trial.words.split()) for trial in trials))
    for trial in trials:
        differing = [word for word in trial.words.split() if word not in common]
        words = "\n".join(differing) or trial.words
        run = None if trial.run is None else charged.get(trial.run)
        numbers = ("", "")
        if run is not None and run.privacy is not None and run.gate is not None:
            numbers = (decimals(run.privacy.epsilon), decimals(run.gate.spent_after))
        place = "" if trial.run is None else os.path.relpath(trial.run)
        ended = place if trial.code == EXIT_DONE else trial.message.splitlines()[0]
        if trial.code != EXIT_DONE and run is not None:
            ended += f" (charged: {place})"
        table.add_row(words, *numbers, ended)
    Console().print(table)


def _charged(trial: Trial) -> Run | None:
    """The facts of a trial that was charged, ended or not; another run's folder is none of its own."""
    if trial.run is None or not RunFolder(trial.run).facts.exists():
        return None
    run = RunFolder(trial.run).read()
    own = (None if run.sweep is None else run.sweep.id) == trial.sweep
    return run if own or trial.resumed else None


def _with_charge(run: Run, config: Path) -> Run:
    """Facts with what the run costs; one that has not ended is charged its whole plan, and what it starts from."""
    if run.privacy is not None:
        return run
    settings, plan = from_yaml(config), Plan.from_dict(run.plan)
    before: tuple[Inherited, ...] = ()
    if settings.model.weights is not None:
        ledger, _ = open_ledger(settings.ledger.url, settings.ledger.keys, settings.ledger.witness)
        before = tuple(inherited(ledger.run(name)) for name in ledger.run(str(run.id)).inherited)
    mechanisms = tuple(map(Charge.of_mechanism, plan.mechanisms))
    return replace(run, privacy=Privacy(delta=plan.delta, mechanisms=mechanisms, inherited=before))


def _print_outcome(outcome: Outcome) -> None:
    privacy, gate, cohort = outcome.facts.privacy, outcome.facts.gate, outcome.facts.cohort
    assert privacy is not None  # it ended
    assert gate is not None
    unit = privacy.unit
    if privacy.infinite:
        print(f"\nNo privacy: epsilon is infinite ({unit} unit, public cohort).")
    else:
        print(
            f"\nepsilon {privacy.epsilon:.3f} at delta {privacy.delta:.3g} for one {unit} added or removed "
            f"({privacy.accountant}; {privacy.steps_charged} steps charged, {privacy.steps_run} run)"
        )
    if not cohort.public:
        print(
            f"{cohort.name}: {decimals(gate.spent_after)} of epsilon "
            f"{decimals(gate.budget_epsilon)} spent ({gate.accountant}), {decimals(gate.remaining)} left"
            + (": locked" if gate.locked else "")
        )
    if outcome.interrupted:
        print("interrupted: the model so far is kept and the charge is closed")
    print(f"run folder: {outcome.folder.path}")
    if outcome.folder.metrics.exists():
        print(f"test metrics (restricted): {outcome.folder.metrics}")
