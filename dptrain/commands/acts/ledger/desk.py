"""What the ledger's commands share: the ledger at its places, its controller, and one cohort in full."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dptrain.errors import LedgerRefused
from dptrain.ledger import requests
from dptrain.ledger.bodies import Body
from dptrain.ledger.decisions import decide
from dptrain.ledger.face import Ledger
from dptrain.ledger.keys import Controller, Keys
from dptrain.ledger.places import open_ledger
from dptrain.ledger.status import BudgetStatus, CohortStatus, epsilon_in_words, steps
from dptrain.terminal import secrets
from dptrain.terminal.output import Output, number
from dptrain.terminal.words import Words, suggest
from dptrain.vocabulary import BudgetKind

SHOWN_RUNS = 30


def opened(words: Words) -> tuple[Ledger, Keys]:
    """The ledger and the keys at the places that the words name."""
    return open_ledger(words["ledger.url"], words["ledger.keys"], words["ledger.witness"])


def controller_of(keys: Keys) -> Controller:
    """The controller, who signs."""
    return keys.controller(secrets.passphrase())


def decided(words: Words, ledger: Ledger, keys: Keys, body: Body, out: Output) -> bool:
    """Sign and record what was decided, or (`to`) write a request for it; whether it was recorded."""
    if words["to"] is None:
        decide(ledger, body, controller_of(keys))
        return True
    path = Path(words["to"])
    request = requests.draw_up(ledger, body)
    request.write(path)
    out.say(
        f"Nothing was recorded. The request is in {path}; it can be applied until {request.decision.last_day}.\n"
        f"Next, where a key is: dptrain ledger sign file={path}; then here: dptrain ledger apply file={path}"
    )
    out.give({"request": str(path), "last_day": request.decision.last_day})
    return False


def no_run(name: str, known: Iterable[str | None]) -> LedgerRefused:
    """The refusal for a run that the ledger does not know."""
    names = [run for run in known if run is not None]
    return LedgerRefused(
        f"The ledger knows no run '{name}'.", remedy=suggest(name, names) if names else "It has no runs yet."
    )


def state_of(status: CohortStatus) -> str:
    """A cohort's state in a word or two."""
    if status.locked:
        return "LOCKED"
    if status.kind is None:
        return "no budget"
    return "public" if status.public else "open"


def _bar(part: float, width: int = 24) -> str:
    filled = min(width, max(0, round(part * width)))
    return "█" * filled + "░" * (width - filled)


def show_one(status: CohortStatus, out: Output) -> None:
    """One cohort: what was granted, spent and left, its locks and cautions, and its newest runs."""
    out.say(f"{status.name}, version {status.version}: {state_of(status)}")
    out.say(f"  owner      {status.owner}")
    out.say(f"  declared   N = {status.public_size} {status.unit}s, ids of '{status.issuer}', add/remove adjacency")
    if status.public:
        out.say(f"  public     {status.source} ({status.licence}); charges are recorded and gate nothing")
    for budget in status.budgets:
        _show_budget(status, budget, out)
    if not status.budgets and not status.public:
        out.say(f"  granted    nothing yet (dptrain ledger budget cohort={status.name} epsilon=… recipe=… reason=…)")
    if status.locked:
        out.say(f"  locked     {status.lock_reason}")
    if status.overlaps:
        out.say(f"  overlaps   {', '.join(status.overlaps)} (their runs count here too)")
    for caution in status.cautions:
        out.say(f"  caution    {caution}")
    if status.runs:
        _show_runs(status, out)
    if status.head is not None:
        witness = "set" if status.witness else "none set: a rollback could not be detected"
        out.say(f"  head       entry {status.head.entries}, {status.head.hash[:16]}…; witness: {witness}")


def _show_budget(status: CohortStatus, budget: BudgetStatus, out: Output) -> None:
    """What was granted, spent and left of one budget, and the use that was declared or forecast."""
    granted = epsilon_in_words(status, budget.epsilon, budget=budget)
    out.say(f"  granted    {granted}, {budget.kind}, {budget.date[:10]}")
    out.say(f"             reason: {budget.reason}" + (f"; advice: {budget.advice}" if budget.advice else ""))
    what = "its RDP" if budget.kind == BudgetKind.OPEN else "its declared mechanisms"
    out.say(
        f"  used       {_bar(budget.share)} {budget.share:.1%} of {what}, which adds up run by run{_room(budget)}"
    )
    spent = f"epsilon = {number(budget.spent_epsilon)} of {number(budget.epsilon)}"
    out.say(f"  spent      {spent} (of all runs together, less than their sum)")
    out.say(
        f"  left       epsilon = {number(budget.remaining_epsilon)}"
        + (
            f" (locks below {number(budget.minimum_charge)})"
            if budget.kind == BudgetKind.OPEN
            else f": {len(budget.unused)} of {len(budget.planned)} declared mechanisms"
        )
    )
    for mechanism in dict.fromkeys(budget.planned):
        left = f": {budget.unused.count(mechanism)} left" if budget.kind == BudgetKind.PLANNED else " (forecast)"
        count = budget.planned.count(mechanism)
        out.say(
            f"             {count} × {mechanism.what}: rate {mechanism.sample_rate:.6g}, {mechanism.steps} steps,"
            f" noise_multiplier={mechanism.noise_multiplier!r}{left}"
        )


def _room(budget: BudgetStatus) -> str:
    """How many more runs fit, in the currency that adds up."""
    if budget.room is None:
        return ""
    return f"\n             room for {budget.room} more run{'' if budget.room == 1 else 's'} like the newest one"


def _show_runs(status: CohortStatus, out: Output) -> None:
    """The newest runs that count against a cohort."""
    shown = status.runs[-SHOWN_RUNS:]
    elsewhere = any(run.cohort != status.name for run in shown)
    rows = [
        (
            run.run,
            *((run.cohort,) if elsewhere else ()),
            run.date[:10],
            steps(run),
            _alone(run.epsilon_pld, private=run.private),
            f"{run.delta:.2g}",
            "" if run.share is None else f"{run.share:.1%}",
            number(run.epsilon_gate_after),
            run.status,
        )
        for run in shown
    ]
    earlier = len(status.runs) - len(shown)
    columns = ("date", "steps", "ε alone (PLD)", "at δ", "of its RDP", "ε after (gate)", "status")
    out.table(
        f"Runs (the newest {len(shown)}; {earlier} earlier ones: --json)" if earlier else "Runs",
        ("run", *(("on",) if elsewhere else ()), *columns),
        rows,
        right=range(2 + elsewhere, 7 + elsewhere),
    )


def _alone(epsilon: float | None, *, private: bool) -> str:
    if not private:
        return "∞"
    return "at close" if epsilon is None else number(epsilon)
