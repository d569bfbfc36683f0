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


def checks_of(text: str) -> tuple[str, ...]:
    """Comma-separated names of assumptions."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def share_of(text: str) -> float:
    """A share between 0 and 1."""
    share = float(text)
    if not 0 <= share <= 1:
        raise ValueError("it is no share between 0 and 1")
    return share


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
        "without_advice": Word(given, "why there is no such advice (printed in every edition)", None),
        "accept_exposed": Word(share_of, "share of exposed patients that is accepted, 0 to 1 (default: none)", None),
        "without_audit": Word(given, "why there is no audit (printed in every edition)", None),
        "accepted": Word(checks_of, "assumptions that no program can check, by name, as the refusal lists them", ()),
        "lang": LANG,
        **PLACES,
    },
    examples=(
        'dptrain release run=runs/demo items=model,metrics recipient="Klinikum Nord" purpose="triage study" \\',
        '    advice="no objection" accept_exposed=0.01 accepted=unit,size,weights,constants,access,basis,keys,copies',
    ),
    notes="""\
Items are separated by commas. `model` alone releases what the guarantee covers; metrics, groups and audit are
measured without noise and appear marked as not covered by epsilon. groups adds the group tables of what else is
named.
Refused are: a model, facts, metrics or audit whose hashes are not those of the ledger's entries; a run without an
audit that reaches verdicts, unless without_audit says why; more exposed patients than accept_exposed; a release
without purpose or without advice (or without_advice), or with open assumptions that are not accepted by name.
Until the release the model lies in FOLDER/restricted/model, then in FOLDER/model. A release that was signed and
whose process then died is completed by the same command.""",
    codes=(3, 6),
)
