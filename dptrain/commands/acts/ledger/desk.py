"""What the ledger's commands share: the ledger at its places, passphrases, tables and JSON, one cohort in full."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from getpass import getpass
from typing import Any

from dptrain.errors import ConfigError, LedgerRefused
from dptrain.ledger.keys import Controller, Keys
from dptrain.ledger.ledger import Ledger
from dptrain.ledger.places import open_ledger
from dptrain.ledger.status import CohortStatus, promise, steps
from dptrain.words import suggest

SHOWN_RUNS = 30


class Output:
    """Where results go: one JSON object, or sentences and tables."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def say(self, text: str) -> None:
        """A line for people only."""
        if not self.as_json:
            print(text)

    def give(self, values: Any) -> None:
        """A result for programs only."""
        if self.as_json:
            print(json.dumps(values, indent=1, default=_plain, allow_nan=False))

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int]
    ) -> None:
        """A table for people only."""
        if self.as_json:
            return
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        wide = None if sys.stdout.isatty() else 140
        Console(width=wide, highlight=False).print(table)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(type(value).__name__)


def opened(words: Mapping[str, Any]) -> tuple[Ledger, Keys]:
    """The ledger and the keys at the places that the words name."""
    return open_ledger(words["ledger.url"], words["ledger.keys"], words["ledger.witness"])


def passphrase(*, new: bool = False) -> str:
    """The controller's passphrase, from DPTRAIN_PASSPHRASE or asked for; a new one is asked for twice."""
    given = os.environ.get("DPTRAIN_PASSPHRASE")
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise LedgerRefused(
            "The controller's passphrase is needed.", remedy="Set DPTRAIN_PASSPHRASE, or run this at a terminal."
        )
    first = getpass("Controller's passphrase: ")
    if new and getpass("Once more: ") != first:
        raise ConfigError("the two passphrases differ.")
    return first


def controller_of(keys: Keys) -> Controller:
    """The controller, who signs."""
    return keys.controller(passphrase())


def recovery_code() -> str:
    """The recovery code, from DPTRAIN_RECOVERY or asked for."""
    given = os.environ.get("DPTRAIN_RECOVERY")
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise LedgerRefused("The recovery code is needed.", remedy="Set DPTRAIN_RECOVERY, or run this at a terminal.")
    return getpass("Recovery code: ")


def new_passphrase() -> str:
    """The passphrase of a new controller's key, from DPTRAIN_NEW_PASSPHRASE or asked for twice."""
    given = os.environ.get("DPTRAIN_NEW_PASSPHRASE")
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise LedgerRefused("The new passphrase is needed.", remedy="Set DPTRAIN_NEW_PASSPHRASE.")
    first = getpass("New passphrase: ")
    if getpass("Once more: ") != first:
        raise ConfigError("the two passphrases differ.")
    return first


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


def number(value: float | None) -> str:
    """Four digits; nothing for None."""
    return "" if value is None else f"{value:.4g}"


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
        out.say(f"  granted    {promise(status, budget.epsilon, budget=budget)}, {budget.kind}, {budget.date[:10]}")
        out.say(f"             reason: {budget.reason}" + (f"; advice: {budget.advice}" if budget.advice else ""))
        part = budget.spent_epsilon / budget.epsilon
        out.say(f"  spent      epsilon = {number(budget.spent_epsilon)}  {_bar(part)} {part:.1%} of epsilon")
        out.say(
            f"  left       epsilon = {number(budget.remaining_epsilon)}"
            + (
                f" (locks below {number(budget.minimum_charge)})"
                if budget.kind == "open"
                else f": {len(budget.unused)} of {len(budget.planned)} declared mechanisms"
            )
        )
        for mechanism in dict.fromkeys(budget.planned):
            left = f": {budget.unused.count(mechanism)} left" if budget.kind == "planned" else " (forecast)"
            count = budget.planned.count(mechanism)
            out.say(
                f"             {count} × {mechanism.what}: rate {mechanism.sample_rate:.6g}, {mechanism.steps} steps,"
                f" noise_multiplier={mechanism.noise_multiplier!r}{left}"
            )
    if not status.budgets and not status.public:
        out.say(f"  granted    nothing yet (dptrain ledger budget cohort={status.name} epsilon=… recipe=… reason=…)")
    if status.locked:
        out.say(f"  locked     {status.lock_reason}")
    if status.overlaps:
        out.say(f"  overlaps   {', '.join(status.overlaps)} (their runs count here too)")
    for caution in status.cautions:
        out.say(f"  caution    {caution}")
    shown = status.runs[-SHOWN_RUNS:]
    if shown:
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
    if status.head is not None:
        witness = "set" if status.witness else "none set: a rollback could not be detected"
        out.say(f"  head       entry {status.head.entries}, {status.head.hash[:16]}…; witness: {witness}")


def _alone(epsilon: float | None, *, private: bool) -> str:
    if not private:
        return "∞"
    return "at close" if epsilon is None else number(epsilon)
