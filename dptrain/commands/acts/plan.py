"""`dptrain plan`: what a training would promise and cost."""

from __future__ import annotations

import dataclasses
import json
import math

from rich.console import Console
from rich.table import Table

from dptrain.commands.command import Call
from dptrain.errors import EXIT_DONE, ConfigError
from dptrain.settings import load
from dptrain.settings.overrides import trials
from dptrain.terminal.output import Output, decimals
from dptrain.training.planning import Outlook, outlook, patience, sweep_outlook


def plan(call: Call) -> int:
    """Plan; touches no data."""
    if "-m" in call.flags:
        return _plan_sweep(call)
    settings = load(call.settings)
    size = call.words["public_size"]
    with patience(settings.privacy, size):
        result = outlook(
            settings.privacy, public_size=size, unit=settings.data.unit, units=settings.data.units_per_person
        )
    if call.as_json:
        print(json.dumps(result.to_json(), indent=1, allow_nan=False))
    else:
        _print_plan(result)
    return EXIT_DONE


def _plan_sweep(call: Call) -> int:
    """Each trial of a sweep, and what all of them need together."""
    words = trials(call.settings)
    loaded = [load(list(one)) for one in words]
    if len({(settings.data.unit, settings.name) for settings in loaded}) > 1:
        raise ConfigError("a sweep over cohorts has no one budget.", remedy="Plan each cohort by itself.")
    common = set.intersection(*(set(one) for one in words))
    names = [" ".join(word for word in one if word not in common) or "the run" for one in words]
    cost = sweep_outlook(
        [(name, settings.privacy) for name, settings in zip(names, loaded, strict=True)],
        public_size=call.words["public_size"],
        unit=loaded[0].data.unit,
    )
    if call.as_json:
        print(json.dumps(dataclasses.asdict(cost), indent=1, allow_nan=False))
        return EXIT_DONE
    out = Output(as_json=False)
    rows = [
        (trial.words, f"{trial.epsilon:.3f}", f"{trial.plan.noise_multiplier:.4f}", str(trial.plan.steps))
        for trial in cost.trials
    ]
    out.table("The trials of this sweep", ("differs in", "epsilon", "noise", "steps"), rows, right=(1, 2, 3))
    out.say(f"Every trial is charged. Together, at delta {cost.delta:.3g}, {len(rows)} trials need")
    out.say(f"  a planned budget (just these runs, kind=planned) of epsilon {_up(cost.planned)}, by joint PLD")
    out.say(f"  an open budget (any runs) of epsilon {_up(cost.opened)}, by RDP, order {cost.order:g}")
    return EXIT_DONE


def _up(epsilon: float) -> str:
    """Three decimals, rounded up: what is asked for shall suffice."""
    return f"{math.ceil(1000 * epsilon) / 1000:.3f}"


def _print_plan(result: Outlook) -> None:
    console = Console()
    plan = result.plan
    console.print(
        f"[bold]{plan.steps} steps[/bold] of {plan.expected_batch_size} expected {plan.unit}s out of "
        f"{plan.public_size} (rate {plan.sample_rate:.4g}, {result.epochs:.1f} epochs), "
        f"clip {plan.max_grad_norm:g}, delta {plan.delta:.3g} (N·delta = {result.n_delta:.3g}), "
        f"one {plan.unit} added or removed"
    )
    table = Table(title="Two kinds of budget for the same promise", title_justify="left")
    for name in ("budget", "gate", "noise multiplier", "charged at the gate", "epsilon by PLD"):
        table.add_column(name, justify="left" if name in ("budget", "gate") else "right")
    for row in result.budgets:
        table.add_row(
            row.kind,
            row.gate,
            f"{row.noise_multiplier:.4f}",
            f"{row.gate_epsilon:.3f}",
            f"{row.pld_epsilon:.3f}",
        )
    console.print(table)
    console.print(result.advice)
    ceiling = Table(title="What an attacker could at most do, with the planned budget's noise", title_justify="left")
    ceiling.add_column("reading")
    ceiling.add_column("ceiling", justify="right")
    promised = result.promise
    for fpr in (1, 5, 10):
        ceiling.add_row(
            f"members found when {fpr} of 100 others are accused wrongly",
            f"{100 * promised[f'tpr_at_{fpr}pct_fpr']:.1f} of 100",
        )
    ceiling.add_row("area under the attack's ROC curve (0.5 = guessing)", f"{promised['auc_ceiling']:.3f}")
    ceiling.add_row("advantage over guessing", f"{promised['advantage']:.3f}")
    ceiling.add_row("reconstruction from a 1 % prior guess", f"{100 * promised['reconstruction']['0.01']:.1f} %")
    for k, value in promised["group_epsilon"].items():
        ceiling.add_row(f"epsilon of {k} {plan.unit}s together", decimals(value))
    console.print(ceiling)
    over = Table(title="epsilon by PLD", title_justify="left")
    over.add_column("step", justify="right")
    over.add_column("epsilon", justify="right")
    points = result.epsilon_over_steps
    for step, epsilon in points[:: max(1, len(points) // 8)]:
        over.add_row(str(step), f"{epsilon:.3f}")
    if points and (len(points) - 1) % max(1, len(points) // 8):
        over.add_row(str(points[-1][0]), f"{points[-1][1]:.3f}")
    console.print(over)
    if plan.calibration_noise_multiplier:
        both = decimals(promised["epsilon"])
        console.print(
            f"With the calibration (temperature, conformal sets), which is released once, epsilon is {both}."
        )
