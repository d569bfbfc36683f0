"""`dptrain release`: the controller's decision, signed and published."""

from __future__ import annotations

from dataclasses import fields

from dptrain.commands.acts.report import with_run
from dptrain.commands.command import Call
from dptrain.commands.places import PLACES
from dptrain.errors import EXIT_DONE
from dptrain.ledger import open_ledger
from dptrain.report import release as releases
from dptrain.terminal import secrets


def release(call: Call) -> int:
    """Record the decision and write the public edition."""
    words = with_run(call.words, call.words["run"])
    decision = releases.Decision(**{field.name: words[field.name] for field in fields(releases.Decision)})
    ledger, keys = open_ledger(*(words[name] for name in PLACES))
    controller = keys.controller(secrets.passphrase())
    target = releases.release(words["run"], decision, words["lang"], ledger=ledger, controller=controller)
    print(f"decision recorded; public edition: {target}")
    print(f"  PDF   {target / 'report.pdf'}\n  HTML  {target / 'report.html'}\n  card  {target / 'MODEL_CARD.md'}")
    return EXIT_DONE
