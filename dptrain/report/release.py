"""A release: the controller's signed decision on what of a run leaves the house, and the public edition."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dptrain.errors import ConfigError, GuaranteeBroken, LedgerRefused
from dptrain.files import utc_now, write_json
from dptrain.ledger.facts import ReleaseTerms
from dptrain.records import RunFolder
from dptrain.records.run import Released
from dptrain.report import facts as facts_module
from dptrain.report.build import MANIFEST, build
from dptrain.report.shapes import Facts
from dptrain.vocabulary import CLOSED

if TYPE_CHECKING:
    from dptrain.ledger import CohortStatus, Controller, Ledger


@dataclass(frozen=True)
class Decision:
    """What the controller decides: which items (of :data:`dptrain.vocabulary.ITEMS`) go to whom, and what for.

    `advice` is what the data protection officer advised.
    """

    items: tuple[str, ...]
    recipient: str
    purpose: str | None = None
    advice: str | None = None


def standing(ledger: Ledger | None, folder: str | Path) -> CohortStatus | None:
    """The status of a run's cohort, where the ledger knows that run."""
    if ledger is None:
        return None
    try:
        run = RunFolder(folder).read()
        status = ledger.status(str(run.cohort.name))
    except (ConfigError, LedgerRefused):
        return None
    return status if any(charge.run == run.id for charge in status.runs) else None


def release(folder: str | Path, decision: Decision, lang: str, *, ledger: Ledger, controller: Controller) -> Path:
    """Check, record, publish; returns the folder of the public edition.

    Raises:
        ConfigError: the run is still running, its record is torn, or something named was never measured.
        GuaranteeBroken: the audit says so, and `audit` is not among the items.
        LedgerRefused: the ledger does not know the run, or this is not the controller's key.
    """
    place = RunFolder(folder)
    run = place.read()
    facts = facts_module.read(place.path)
    _refuse(facts, decision.items)
    status = standing(ledger, place.path)
    if status is None:
        raise LedgerRefused(
            f"The ledger does not know run '{facts.run.id}'; there is nothing to sign.",
            remedy="Name the ledger in which the run was granted: ledger.url=…",
        )
    date = utc_now()
    terms = ReleaseTerms(
        items=tuple(decision.items),
        recipient=decision.recipient,
        purpose=decision.purpose,
        advice=decision.advice,
    )
    entry = ledger.record_release(str(run.id), terms, controller)
    released = Released(
        items=decision.items,
        recipient=decision.recipient,
        purpose=decision.purpose,
        advice=decision.advice,
        controller=status.owner,
        date=date,
        entry=f"{entry.seq} ({entry.hash.hex()})",
    )
    place.amend(released=released)
    target = build(place.path, lang, "public", ledger=status)
    _bundle(place)
    if (place.restricted_report / MANIFEST).exists():
        build(place.path, lang, ledger=status)
    place.note_access(f"released: {', '.join(decision.items)}")
    return target


def _refuse(facts: Facts, items: Sequence[str]) -> None:
    if facts.run.status not in CLOSED:
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
        if item in items and getattr(facts, piece) is None:
            raise ConfigError(
                f"'{item}' cannot be released: this run has none.", remedy="Leave it out, or measure it."
            )
    if "guarantee_broken" in facts.warnings and "audit" not in items:
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
