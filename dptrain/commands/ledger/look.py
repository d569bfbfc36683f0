"""Looking: where the cohorts stand, what was entered, whether it is sound, and the head for somebody else to keep."""

from __future__ import annotations

from dptrain.commands.ledger.family import ledger_command
from dptrain.words import Word


def count(text: str) -> int:
    """A whole number, 1 or more. Raises ValueError for any other text."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("it must be a whole number, 1 or more")
    return int(text)


SHOW = ledger_command(
    "show",
    "Where the cohorts stand.",
    run="look:show",
    words={"cohort": Word(str, "one cohort, with its runs (default: all)", None)},
    flags={"--steward": "counts for the steward alone: who is left out, and why"},
    examples=("dptrain ledger show", "dptrain ledger show cohort=chest --json"),
)

HISTORY = ledger_command(
    "history",
    "The entries, newest last.",
    run="look:history",
    words={
        "cohort": Word(str, "only this cohort", None),
        "run": Word(str, "only this run", None),
        "last": Word(count, "so many entries, 1 or more", 30),
    },
    examples=("dptrain ledger history cohort=chest last=50",),
)

VERIFY = ledger_command(
    "verify",
    "Read everything again and name the first bad entry (exit code 3 if there is one).",
    run="look:verify",
    examples=("dptrain ledger verify ledger.witness=/mnt/dpo/heads.jsonl",),
)

HEADS = ledger_command(
    "heads",
    "The newest entry, signed: whoever keeps it can prove a later rollback.",
    run="look:heads",
    words={"to": Word(str, "append the signed head to this file, for somebody else to keep", None)},
    examples=("dptrain ledger heads to=/mnt/dpo/heads.jsonl",),
)
