"""The keys and the file: make them, replace them, copy them, bring them to a newer schema."""

from __future__ import annotations

from dptrain.commands.command import Command
from dptrain.commands.ledger.family import JSON
from dptrain.commands.places import PLACES
from dptrain.terminal.words import OneOf, Word, yes_or_no

KEYS = ("site", "controller", "secret", "recovery")

INIT = Command(
    name="ledger init",
    line="Make the site's keys (where there are none) and an empty ledger.",
    run="dptrain.commands.acts.ledger.keys:init",
    words=PLACES,
    flags=JSON,
    examples=(
        "dptrain ledger init",
        "dptrain ledger init ledger.url=postgresql://ledger@db/dptrain ledger.keys=/etc/dptrain/keys",
    ),
    codes=(3,),
)

KEYGEN = Command(
    name="ledger keygen",
    line="Make the site's keys only, or an approver's own key.",
    run="dptrain.commands.acts.ledger.keys:keygen",
    words={"approver": Word(str, "a file that does not exist yet: make one approver's key in it", None), **PLACES},
    flags=JSON,
    examples=("dptrain ledger keygen ledger.keys=/etc/dptrain/keys", "dptrain ledger keygen approver=dpo.json"),
    codes=(3,),
)

ROTATE = Command(
    name="ledger rotate",
    line="Replace a key (docs/ledger.md, Keys).",
    run="dptrain.commands.acts.ledger.keys:rotate",
    words={
        "what": Word(OneOf(KEYS), f"which key: {', '.join(KEYS)}"),
        "recovery": Word(yes_or_no, "yes: sign with the recovery code instead of the controller's key", False),
        **PLACES,
    },
    flags=JSON,
    examples=("dptrain ledger rotate what=site", "dptrain ledger rotate what=controller recovery=yes"),
    codes=(3,),
)

BACKUP = Command(
    name="ledger backup",
    line="Write a sound copy of a SQLite ledger.",
    run="dptrain.commands.acts.ledger.keys:backup",
    words={"to": Word(str, "a file that does not exist yet"), **PLACES},
    flags=JSON,
    examples=("dptrain ledger backup to=/backup/ledger-2026-05-03.sqlite",),
    codes=(3,),
)

MIGRATE = Command(
    name="ledger migrate",
    line="Bring an older ledger to this program's schema (back it up first).",
    run="dptrain.commands.acts.ledger.keys:migrate",
    words=PLACES,
    flags=JSON,
    examples=("dptrain ledger migrate",),
    codes=(3,),
)
