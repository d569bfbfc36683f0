"""`dptrain plan`, `check`, `train`, `evaluate`: words in, plain sentences and tables out."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dptrain.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_REFUSED_BY_CHECK,
    ConfigError,
    DptrainError,
    LedgerRefused,
)
from dptrain.plan import Plan
from dptrain.records import Run, RunFolder
from dptrain.records.run import Charge, Inherited, Privacy
from dptrain.settings import from_yaml, load, settings_of
from dptrain.settings.explain import GROUPS
from dptrain.terminal.output import decimals
from dptrain.terminal.words import Word, parse_words, suggest

if TYPE_CHECKING:
    from dptrain.training.run import Outcome

PLAN_HELP = """\
usage: dptrain plan public_size=N [privacy.…=… recipe=… --json]

What would a training promise, and what would it cost? Touches no data and no ledger.

  dptrain plan public_size=2215 privacy.expected_batch_size=600 privacy.steps=200 privacy.target_epsilon=3
  dptrain plan public_size=2215 recipe=chest_xray_pneumonia privacy.target_epsilon=1
  dptrain plan public_size=800 privacy.expected_batch_size=64 privacy.epochs=20 privacy.steps=null

public_size is the number of training patients that the steward declares (never a count of the private data)."""

CHECK_HELP = """\
usage: dptrain check [recipe=… model.…=… data.…=…]

Is this network, loss and pipeline fit for private training? Uses made-up data only; charges nothing.
Exit code 4 where something is refused.

  dptrain check recipe=chest_xray_pneumonia
  dptrain check model=densenet121 data.image_shape=[1,64,64]
  dptrain check model=densenet121 model.network._target_=monai.networks.nets.DenseNet169
  dptrain check model.network._target_=monai.networks.nets.resnet18 +model.network.spatial_dims=2 \\
      +model.network.n_input_channels=1 ~model.network.in_channels ~model.network.channels model.batchnorm=replace

An argument that only the named network takes is added with +, one that it does not take is removed with ~.
A layer that no fast rule fits (the check names it) is trained with +model.rules.LAYER=one-by-one."""

TRAIN_HELP = """\
usage: dptrain train [recipe=…] [group=option] [name=value …] [-m for a sweep] [--cfg job]

Train under a plan that the ledger has granted.

  dptrain train recipe=chest_xray_pneumonia privacy.target_epsilon=8
  dptrain train recipe=chest_xray_pneumonia debug=steps            a few steps, charged like any other
  dptrain train -m recipe=chest_xray_pneumonia privacy.target_epsilon=1,2,4    a sweep: every trial is charged
  dptrain train training.resume=runs/…                              go on after a crash; noise is never repeated
  dptrain train recipe=chest_xray_pneumonia --cfg job               print the configuration and stop

groups: data, model, privacy, optimizer, training, audit, ledger, report, recipe, debug
exit codes: 0 done · 2 configuration · 3 refused by the ledger · 4 refused by the check · 5 data unreadable
            130 interrupted: the charge is closed, unless the last lines say how to go on"""

EVALUATE_HELP = """\
usage: dptrain evaluate run=FOLDER [split=test] [ledger.url=… ledger.keys=…]

Score a finished run again. A new request: refused (exit code 3) once the cohort is locked.

  dptrain evaluate run=runs/demo
  dptrain evaluate run=runs/demo split=validation"""


def _help(argv: Sequence[str], text: str) -> bool:
    if any(word in ("-h", "--help") for word in argv):
        print(text)
        return True
    return False


def plan_main(argv: list[str]) -> int:
    """`dptrain plan`."""
    if _help(argv, PLAN_HELP):
        return EXIT_DONE
    as_json = "--json" in argv
    words = [word for word in argv if word != "--json"]
    mine = [word for word in words if _is_plan_word(word)]
    spec = {"public_size": Word(int, "the number of training patients declared public, e.g. public_size=2215")}
    size = parse_words(mine, spec)["public_size"]
    settings = load([word for word in words if word not in mine])
    from dptrain.training.planning import forecast

    result = forecast(
        settings.privacy, public_size=size, unit=settings.data.unit, units=settings.data.units_per_person
    )
    if as_json:
        print(json.dumps(result, indent=1, allow_nan=False))
    else:
        _print_plan(result)
    return EXIT_DONE


def _is_plan_word(word: str) -> bool:
    """Whether a word is this command's own (or a typo of it), and not a group or a dotted setting."""
    name, equals, _ = word.partition("=")
    return bool(equals) and name not in (*GROUPS, "name") and "." not in name and name[:1] not in "+~-"


def _print_plan(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    plan = result["plan"]
    console.print(
        f"[bold]{plan['steps']} steps[/bold] of {plan['expected_batch_size']} expected {plan['unit']}s out of "
        f"{plan['public_size']} (rate {result['sample_rate']:.4g}, {result['epochs']:.1f} epochs), "
        f"clip {plan['max_grad_norm']:g}, delta {plan['delta']:.3g} (N·delta = {result['n_delta']:.3g}), "
        f"one {plan['unit']} added or removed"
    )
    table = Table(title="Two kinds of budget for the same promise", title_justify="left")
    for name in ("budget", "gate", "noise multiplier", "charged at the gate", "epsilon by PLD"):
        table.add_column(name, justify="left" if name in ("budget", "gate") else "right")
    for row in result["budgets"]:
        table.add_row(
            row["kind"],
            row["gate"],
            f"{row['noise_multiplier']:.4f}",
            f"{row['gate_epsilon']:.3f}",
            f"{row['pld_epsilon']:.3f}",
        )
    console.print(table)
    console.print(result["advice"])
    ceiling = Table(title="What an attacker could at most do, with the planned budget's noise", title_justify="left")
    ceiling.add_column("reading")
    ceiling.add_column("ceiling", justify="right")
    promised = result["promise"]
    for fpr in (1, 5, 10):
        ceiling.add_row(
            f"members found when {fpr} of 100 others are accused wrongly",
            f"{100 * promised[f'tpr_at_{fpr}pct_fpr']:.1f} of 100",
        )
    ceiling.add_row("area under the attack's ROC curve (0.5 = guessing)", f"{promised['auc_ceiling']:.3f}")
    ceiling.add_row("advantage over guessing", f"{promised['advantage']:.3f}")
    ceiling.add_row("reconstruction from a 1 % prior guess", f"{100 * promised['reconstruction']['0.01']:.1f} %")
    for k, value in promised["group_epsilon"].items():
        ceiling.add_row(f"epsilon of {k} {plan['unit']}s together", decimals(value))
    console.print(ceiling)
    over = Table(title="epsilon by PLD", title_justify="left")
    over.add_column("step", justify="right")
    over.add_column("epsilon", justify="right")
    points = result["epsilon_over_steps"]
    for step, epsilon in points[:: max(1, len(points) // 8)]:
        over.add_row(str(step), f"{epsilon:.3f}")
    if points and (len(points) - 1) % max(1, len(points) // 8):
        over.add_row(str(points[-1][0]), f"{points[-1][1]:.3f}")
    console.print(over)
    if plan["calibration_noise_multiplier"]:
        whole = decimals(promised["epsilon"])
        console.print(
            f"With the calibration (temperature, conformal sets), which is released once, epsilon is {whole}."
        )


def check_main(argv: list[str]) -> int:
    """`dptrain check`."""
    if _help(argv, CHECK_HELP):
        return EXIT_DONE
    settings = load(argv)
    from dptrain import models
    from dptrain.training.session import check

    findings = check(settings)
    models.print_findings(findings)
    print("The data were not looked at: the check uses made-up images of data.image_shape.")
    return EXIT_REFUSED_BY_CHECK if any(finding.status == "refused" for finding in findings) else EXIT_DONE


def train_main(argv: list[str]) -> int:
    """`dptrain train`: Hydra composes, sweeps (`-m`) and prints (`--cfg job`); each trial is one run."""
    if _help(argv, TRAIN_HELP):
        return EXIT_DONE
    from dptrain.sweep import compose_and_run, is_sweep

    os.environ["DPTRAIN_COMMAND"] = shlex.join(["dptrain", "train", *argv])
    if is_sweep(argv):
        rows: list[dict[str, Any]] = []
        try:
            compose_and_run("train", argv, sweep_job, rows)
        finally:
            code = _end_sweep(rows)
        return code
    ended: list[int | BaseException] = []

    def job(config: Any) -> None:
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


def run_job(config: Any) -> int:
    """One training."""
    from dptrain.training.run import train

    outcome = train(settings_of(config), command=os.environ.get("DPTRAIN_COMMAND", "dptrain train"))
    _print_outcome(outcome)
    return EXIT_INTERRUPTED if outcome.interrupted else EXIT_DONE


def sweep_job(config: Any) -> int:
    """One trial of a sweep: one that is refused is written down, and the others go on."""
    from dptrain.errors import quiet
    from dptrain.sweep import job_settings, job_words, sweep_id, write_outcome

    quiet()
    row = {"trial": job_words(), "code": EXIT_INTERRUPTED, "message": "it did not end", "run": None}
    row["sweep"] = sweep_id()
    try:
        settings = job_settings(config)
        folder = Path(settings.training.resume or settings.training.run or ".")
        row["run"] = str(folder.resolve())  # this job's working directory need not be the sweep's
        row["resumed"] = bool(settings.training.resume)
        write_outcome(row)  # before the charge: whatever ends this trial, the sweep knows where it was
        from dptrain.training.run import train

        outcome = train(settings, command=os.environ.get("DPTRAIN_COMMAND", "dptrain train"))
    except DptrainError as error:
        write_outcome({**row, "code": error.exit_code, "message": error.message})
        print(f"trial {row['trial']}: {error}", file=sys.stderr)
        return error.exit_code
    _print_outcome(outcome)
    if outcome.interrupted:
        write_outcome({**row, "message": "interrupted"})
        raise KeyboardInterrupt
    write_outcome({**row, "code": EXIT_DONE, "message": ""})
    return EXIT_DONE


def _end_sweep(rows: list[dict[str, Any]]) -> int:
    """A table of the trials, what those that were charged cost together, and 3 where the ledger refused one."""
    from rich.console import Console
    from rich.table import Table

    from dptrain.training.planning import sweep_cost

    if not rows:
        return EXIT_DONE
    table = Table(title="The trials of this sweep", title_justify="left")
    for name in ("trial", "epsilon (PLD)", "spent after (gate)", "ended"):
        table.add_column(name, justify="left" if name in ("trial", "ended") else "right")
    facts = {row["run"]: found for row in rows if (found := _charged(row)) is not None}
    common = set.intersection(*(set(row["trial"].split()) for row in rows))
    for row in rows:
        trial = " ".join(word for word in row["trial"].split() if word not in common) or row["trial"]
        one = facts.get(row["run"])
        numbers = ("", "")
        if one is not None and one.privacy is not None and one.gate is not None:
            numbers = (decimals(one.privacy.epsilon), decimals(one.gate.spent_after))
        place = "" if row["run"] is None else os.path.relpath(row["run"])
        ended = place if row["code"] == EXIT_DONE else row["message"].splitlines()[0]
        if row["code"] != EXIT_DONE and one is not None:
            ended += f" (charged: {place})"
        table.add_row(trial, *numbers, ended)
    Console().print(table)
    lost = [row["run"] for row in rows if row["code"] == EXIT_DONE and row["run"] not in facts]
    try:
        if lost:
            raise ConfigError(f"no facts of a trial that ended lie in {', '.join(lost)}.")
        together = sweep_cost([_with_charge(one, RunFolder(place).config) for place, one in facts.items()])
    except DptrainError as error:  # each run.json says already that it is one of several
        print(f"what the sweep cost together is not known: {error}", file=sys.stderr)
        together = None
    if together is not None:
        print(
            f"charged trials: {together.trials}; together they cost epsilon "
            f"{decimals(together.epsilon_total)} (joint PLD)"
        )
        for place, one in facts.items():
            if one.sweep is None or one.sweep.id == rows[0]["sweep"]:
                RunFolder(place).amend(sweep=dataclasses.replace(together, id=rows[0]["sweep"]))
    codes = [row["code"] for row in rows]
    return LedgerRefused.exit_code if LedgerRefused.exit_code in codes else max(codes, default=EXIT_DONE)


def _charged(row: dict[str, Any]) -> Run | None:
    """The facts of a trial that was charged, ended or not; another run's folder is none of its own."""
    if row["run"] is None or not RunFolder(row["run"]).facts.exists():
        return None
    run = RunFolder(row["run"]).read()
    own = (None if run.sweep is None else run.sweep.id) == row["sweep"]
    return run if own or row["resumed"] else None


def _with_charge(run: Run, config: Path) -> Run:
    """Facts with what the run costs; one that has not ended is charged its whole plan, and what it starts from."""
    if run.privacy is not None:
        return run
    from dptrain.ledger import open_ledger
    from dptrain.training.facts import inherited

    settings, plan = from_yaml(config), Plan.from_dict(run.plan)
    before: tuple[Inherited, ...] = ()
    if settings.model.weights is not None:
        ledger, _ = open_ledger(settings.ledger.url, settings.ledger.keys, settings.ledger.witness)
        before = tuple(inherited(ledger.run(name)) for name in ledger.run(str(run.id)).inherited)
    mechanisms = tuple(map(Charge.of_mechanism, plan.mechanisms))
    return dataclasses.replace(run, privacy=Privacy(delta=plan.delta, mechanisms=mechanisms, inherited=before))


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


def evaluate_main(argv: list[str]) -> int:
    """`dptrain evaluate`."""
    if _help(argv, EVALUATE_HELP):
        return EXIT_DONE
    spec = {
        "run": Word(str, "the run folder"),
        "split": Word(_split, "test, validation, calibration or train", "test"),
        "ledger.url": Word(str, "the ledger's path or URL", None),
        "ledger.keys": Word(str, "the keys' folder", None),
        "ledger.witness": Word(str, "a file or URL with a witness head", None),
    }
    words = parse_words(argv, spec)
    from dptrain.training.run import evaluate_run

    places = {name: words[f"ledger.{name}"] for name in ("url", "keys", "witness")}
    path = evaluate_run(words["run"], split=words["split"], ledger=places)
    print(f"metrics (restricted, not covered by epsilon): {path}")
    return EXIT_DONE


def _split(text: str) -> str:
    allowed = ("train", "calibration", "validation", "test")
    if text not in allowed:
        raise ValueError(suggest(text, allowed))
    return text
