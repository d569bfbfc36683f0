"""`dptrain release`: the controller's signed decision on what of a run leaves the house, and the public edition."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dptrain.errors import EXIT_DONE, EXIT_USAGE, ConfigError, GuaranteeBroken, LedgerRefused
from dptrain.files import utc_now, write_json
from dptrain.records import RunFolder
from dptrain.records.run import ITEMS, Released
from dptrain.report import facts as facts_module
from dptrain.report.build import MANIFEST, build
from dptrain.report.commands import LANG, LEDGER_WORDS, standing, with_run
from dptrain.report.shapes import Facts
from dptrain.terminal import secrets
from dptrain.terminal.words import Word, parse_words, suggest

if TYPE_CHECKING:
    from dptrain.ledger import Controller, Ledger

USAGE = f"""\
usage: dptrain release run=FOLDER items=ITEMS recipient=NAME [purpose=TEXT] [advice=TEXT] [lang=en|de]

Records the controller's decision in the ledger, signed with the controller's key (passphrase from
DPTRAIN_PASSPHRASE or a prompt), and writes the public edition to FOLDER/report: report.html, report.pdf,
facts.json, registry.yaml, MODEL_CARD.md; and the privacy part of the model's metadata.

items: of {", ".join(ITEMS)}, separated by commas. `model` alone releases what the guarantee covers; metrics,
groups and audit are measured without noise and appear marked as not covered by epsilon. groups adds the group
tables of what else is named.
advice: what the data protection officer advised.

example:
  dptrain release run=runs/demo items=model,metrics recipient="Klinikum Nord" purpose="triage study" \\
      advice="no objection"
"""


def items_of(text: str) -> tuple[str, ...]:
    """Comma-separated items, each one of ITEMS, in their order."""
    named = [word.strip() for word in text.split(",") if word.strip()]
    for word in named:
        if word not in ITEMS:
            raise ValueError(f"there is no item '{word}'. {suggest(word, ITEMS)}")
    if not named:
        raise ValueError("name at least one item")
    return tuple(item for item in ITEMS if item in named)


def said(text: str) -> str:
    """A text that says something."""
    if not text.strip():
        raise ValueError("it is empty")
    return text.strip()


WORDS = {
    "run": Word(str, "folder of the run"),
    "items": Word(items_of, f"what is released: {', '.join(ITEMS)}"),
    "recipient": Word(said, "who receives it"),
    "purpose": Word(said, "what it is for", None),
    "advice": Word(said, "advice of the data protection officer", None),
    "lang": LANG,
    **LEDGER_WORDS,
}


def release_main(argv: list[str]) -> int:
    """Run `dptrain release …`; returns the exit code."""
    if not argv or "--help" in argv or "-h" in argv:
        print(USAGE)
        return EXIT_DONE if argv else EXIT_USAGE
    from dptrain.ledger import open_ledger

    words = parse_words(argv, WORDS)
    words = with_run(words, words["run"])
    ledger, keys = open_ledger(*(words[name] for name in LEDGER_WORDS))
    target = release(words, ledger, keys.controller(secrets.passphrase()))
    print(f"decision recorded; public edition: {target}")
    print(f"  PDF   {target / 'report.pdf'}\n  HTML  {target / 'report.html'}\n  card  {target / 'MODEL_CARD.md'}")
    return EXIT_DONE


def release(words: dict[str, Any], ledger: Ledger, controller: Controller) -> Any:
    """Check, record, publish; returns the folder of the public edition.

    Raises:
        ConfigError: the run is still running, its record is torn, or something named was never measured.
        GuaranteeBroken: the audit says so, and `audit` is not among the items.
    """
    place = RunFolder(words["run"])
    run = place.read()
    facts = facts_module.read(place.path)
    _refuse(facts, words)
    status = standing(ledger, place.path)
    if status is None:
        raise LedgerRefused(
            f"The ledger does not know run '{facts.run.id}'; there is nothing to sign.",
            remedy="Name the ledger in which the run was granted: ledger.url=…",
        )
    date = utc_now()
    entry = ledger.record_release(
        str(run.id),
        items=list(words["items"]),
        recipient=words["recipient"],
        purpose=words["purpose"],
        advice=words["advice"],
        controller=controller,
    )
    decision = Released(
        items=words["items"],
        recipient=words["recipient"],
        purpose=words["purpose"],
        advice=words["advice"],
        controller=status.owner,
        date=date,
        entry=f"{entry.seq} ({entry.hash.hex()})",
    )
    place.amend(released=decision)
    target = build(place.path, words["lang"], "public", ledger=status)
    _bundle(place)
    if (place.restricted_report / MANIFEST).exists():
        build(place.path, words["lang"], ledger=status)
    place.note_access(f"released: {', '.join(words['items'])}")
    return target


def _refuse(facts: Facts, words: dict[str, Any]) -> None:
    if facts.run.status not in ("complete", "interrupted"):
        raise ConfigError(
            f"The run is {facts.run.status or 'of unknown state'}: only a finished run can be released.",
            remedy="Resume it, or let it end.",
        )
    changed = [name for name, row in facts.integrity.items() if row.match is not True]
    if changed:
        raise ConfigError(
            f"{' and '.join(changed)} do not match the record of the run.",
            remedy="Restore the files that the run wrote. `dptrain report verify` says more.",
        )
    for item, piece in (("metrics", "utility"), ("audit", "audit")):
        if item in words["items"] and getattr(facts, piece) is None:
            raise ConfigError(
                f"'{item}' cannot be released: this run has none.", remedy="Leave it out, or measure it."
            )
    if "guarantee_broken" in facts.warnings and "audit" not in words["items"]:
        raise GuaranteeBroken(
            "The audit's lower bound passes the promised epsilon: a public edition that states this epsilon in "
            "silence would be false.",
            remedy="Find the cause first. To publish all the same, name `audit` among the items, so that it says so.",
        )


def _bundle(place: RunFolder) -> None:
    """Add the privacy part to the bundle's metadata, where there is a bundle."""
    from dptrain.report.cards import bundle_privacy

    path = place.model / "configs" / "metadata.json"
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(metadata, dict):
        metadata["privacy"] = bundle_privacy(facts_module.public(facts_module.read(place.path)))
        write_json(path, metadata)
