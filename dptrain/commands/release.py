"""`dptrain release`."""

from __future__ import annotations

from dptrain.commands.command import Command
from dptrain.commands.places import PLACES, given
from dptrain.commands.report import LANG
from dptrain.terminal.words import Word, suggest
from dptrain.vocabulary import ITEMS


def items_of(text: str) -> tuple[str, ...]:
    """Comma-separated items, each one of ITEMS, in their order."""
    named = [word.strip() for word in text.split(",") if word.strip()]
    for word in named:
        if word not in ITEMS:
            raise ValueError(f"there is no item '{word}'. {suggest(word, ITEMS)}")
    if not named:
        raise ValueError("name at least one item")
    return tuple(item for item in ITEMS if item in named)


RELEASE = Command(
    name="release",
    line="record the controller's decision and publish",
    run="dptrain.commands.acts.release:release",
    about="""\
Records the controller's decision in the ledger, signed with the controller's key (passphrase from
DPTRAIN_PASSPHRASE or a prompt), and writes the public edition to FOLDER/report: report.html, report.pdf,
facts.json, registry.yaml, MODEL_CARD.md; and the privacy part of the model's metadata.""",
    words={
        "run": Word(str, "folder of the run"),
        "items": Word(items_of, f"what is released: {', '.join(ITEMS)}"),
        "recipient": Word(given, "who receives it"),
        "purpose": Word(given, "what it is for", None),
        "advice": Word(given, "advice of the data protection officer", None),
        "lang": LANG,
        **PLACES,
    },
    examples=(
        'dptrain release run=runs/demo items=model,metrics recipient="Klinikum Nord" purpose="triage study" \\',
        '    advice="no objection"',
    ),
    notes="""\
Items are separated by commas. `model` alone releases what the guarantee covers; metrics, groups and audit are
measured without noise and appear marked as not covered by epsilon. groups adds the group tables of what else is
named.""",
    codes=(3, 6),
)
