"""The keys and the file: make them, replace them, copy them, bring them to a newer schema."""

from __future__ import annotations

from dptrain.commands.ledger.family import ledger_command
from dptrain.words import Word, yes_or_no

INIT = ledger_command(
    "init",
    "Make the site's keys (where there are none) and an empty ledger.",
    run="keys:init",
    examples=(
        "dptrain ledger init",
        "dptrain ledger init ledger.url=postgresql://ledger@db/dptrain ledger.keys=/etc/dptrain/keys",
    ),
)

KEYGEN = ledger_command(
    "keygen",
    "Make the site's keys only.",
    run="keys:keygen",
    examples=("dptrain ledger keygen ledger.keys=/etc/dptrain/keys",),
)

ROTATE = ledger_command(
    "rotate",
    "Replace a key (docs/ledger.md, Keys).",
    run="keys:rotate",
    words={
        "what": Word(str, "site, controller, secret or recovery"),
        "recovery": Word(yes_or_no, "yes: sign with the recovery code instead of the controller's key", False),
    },
    examples=("dptrain ledger rotate what=site", "dptrain ledger rotate what=controller recovery=yes"),
)

BACKUP = ledger_command(
    "backup",
    "Write a sound copy of a SQLite ledger.",
    run="keys:backup",
    words={"to": Word(str, "a file that does not exist yet")},
    examples=("dptrain ledger backup to=/backup/ledger-2026-05-03.sqlite",),
)

MIGRATE = ledger_command(
    "migrate",
    "Bring an older ledger to this program's schema (back it up first).",
    run="keys:migrate",
    examples=("dptrain ledger migrate",),
)
