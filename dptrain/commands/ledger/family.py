"""`dptrain ledger`: what its commands have in common."""

from __future__ import annotations

from dptrain.commands.command import Command
from dptrain.commands.places import PLACES
from dptrain.terminal.words import Word

COHORT = Word(str, "name of a registered cohort")
REASON = Word(str, "why, in a sentence; it is signed and shown")
TO = Word(str, "write a request to this file, to be signed on other machines (dptrain ledger sign)", None)
LAST_DAY = Word(str, "YYYY-MM-DD; afterwards it counts no more (default: no end)", None)
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
