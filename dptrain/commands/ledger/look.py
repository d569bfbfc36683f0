"""Looking: where the cohorts stand, what was entered, whether it is sound, and the head for somebody else to keep."""

from __future__ import annotations

from dptrain.commands.command import Command
from dptrain.commands.ledger.family import JSON
from dptrain.commands.places import PLACES
from dptrain.terminal.words import Word


def count(text: str) -> int:
    """A whole number, 1 or more. Raises ValueError for any other text."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("it must be a whole number, 1 or more")
    return int(text)


SHOW = Command(
    name="ledger show",
    line="Where the cohorts stand.",
    run="dptrain.commands.acts.ledger.look:show",
    words={"cohort": Word(str, "one cohort, with its runs (default: all)", None), **PLACES},
    flags={**JSON, "--steward": "counts for the steward alone: who is left out, and why"},
    examples=("dptrain ledger show", "dptrain ledger show cohort=chest --json"),
    codes=(3,),
)

HISTORY = Command(
    name="ledger history",
    line="The entries, newest last.",
    run="dptrain.commands.acts.ledger.look:history",
    words={
        "cohort": Word(str, "only this cohort", None),
        "run": Word(str, "only this run", None),
        "last": Word(count, "so many entries, 1 or more", 30),
        **PLACES,
    },
    flags=JSON,
    examples=("dptrain ledger history cohort=chest last=50",),
    codes=(3,),
)

VERIFY = Command(
    name="ledger verify",
    line="Read everything again and name the first bad entry (exit code 3 if there is one).",
    run="dptrain.commands.acts.ledger.look:verify",
    words=PLACES,
    flags=JSON,
    examples=("dptrain ledger verify ledger.witness=/mnt/dpo/heads.jsonl",),
    codes=(3,),
)

HEADS = Command(
    name="ledger heads",
    line="The newest entry, signed: whoever keeps it can prove a later rollback.",
    run="dptrain.commands.acts.ledger.look:heads",
    words={"to": Word(str, "append the signed head to this file, for somebody else to keep", None), **PLACES},
    flags=JSON,
    examples=("dptrain ledger heads to=/mnt/dpo/heads.jsonl",),
    codes=(3,),
)
