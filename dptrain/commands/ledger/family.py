"""`dptrain ledger`: what its commands have in common."""

from __future__ import annotations

from collections.abc import Mapping

from dptrain.commands.command import Command, Takes
from dptrain.commands.places import PLACES
from dptrain.words import Word

COHORT = Word(str, "name of a registered cohort")
REASON = Word(str, "why, in a sentence; it is signed and shown")
JSON = {"--json": "the same for a program"}

LEDGER = Command(
    name="ledger",
    line="budgets, grants, charges, locks",
    run="",
    about="Who may use which patients, and what it cost them.",
    words=PLACES,
    flags=JSON,
    notes="The controller's passphrase comes from DPTRAIN_PASSPHRASE, or is asked for.",
    codes=(3,),
)


def ledger_command(
    name: str,
    line: str,
    *,
    run: str,
    words: Mapping[str, Word] | None = None,
    flags: Mapping[str, str] | None = None,
    takes: Takes = Takes.WORDS,
    examples: tuple[str, ...],
    codes: tuple[int, ...] = (),
) -> Command:
    """One of the ledger's commands: `run` is `module:function` below the acts; the places and --json come with it."""
    return Command(
        name=f"ledger {name}",
        line=line,
        run=f"dptrain.commands.acts.ledger.{run}",
        words={**(words or {}), **PLACES},
        takes=takes,
        flags={**JSON, **(flags or {})},
        examples=examples,
        codes=(3, *codes),
    )
