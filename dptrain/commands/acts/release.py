"""`dptrain release`: the controller's decision, signed and published."""

from __future__ import annotations

import getpass
import os
import sys

from dptrain.commands.acts.report import with_run
from dptrain.commands.command import Call
from dptrain.commands.places import PLACES
from dptrain.errors import EXIT_DONE, LedgerRefused
from dptrain.ledger import open_ledger
from dptrain.report import release as releases


def release(call: Call) -> int:
    """Record the decision and write the public edition."""
    words = with_run(call.words, call.words["run"])
    decision = releases.Decision(words["items"], words["recipient"], words["purpose"], words["advice"])
    ledger, keys = open_ledger(*(words[name] for name in PLACES))
    controller = keys.controller(_passphrase())
    target = releases.release(words["run"], decision, words["lang"], ledger=ledger, controller=controller)
    print(f"decision recorded; public edition: {target}")
    print(f"  PDF   {target / 'report.pdf'}\n  HTML  {target / 'report.html'}\n  card  {target / 'MODEL_CARD.md'}")
    return EXIT_DONE


def _passphrase() -> str:
    passphrase = os.environ.get("DPTRAIN_PASSPHRASE")
    if passphrase is None:
        if not sys.stdin.isatty():
            raise LedgerRefused(
                "A release is signed with the controller's key, and no passphrase is given.",
                remedy="Set DPTRAIN_PASSPHRASE, or run this at a terminal.",
            )
        passphrase = getpass.getpass("controller's passphrase: ")
    return passphrase
