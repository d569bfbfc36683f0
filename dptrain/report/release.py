"""A release: the controller's signed decision on what of a run leaves the house, and the public edition.

Checked, rendered, signed, moved, in this order. What cannot be rendered is not signed; what was signed and not yet
moved, because the process died in between, is completed by the same command, without a second signature.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from dptrain.errors import ConfigError, GuaranteeBroken, LedgerRefused
from dptrain.files import file_sha256, json_bytes, make_folder, whole_or_nothing
from dptrain.records import RunFolder
from dptrain.records.run import Released
from dptrain.report import binding as ties
from dptrain.report import facts as facts_module
from dptrain.report.build import MANIFEST, build, write_faces
from dptrain.report.cards import bundle_privacy
from dptrain.report.faces import render
from dptrain.report.judgement import person_checks
from dptrain.report.language import Language
from dptrain.report.shapes import AuditFacts, Facts
from dptrain.vocabulary import CLOSED, ITEMS, Edition

if TYPE_CHECKING:
    from dptrain.ledger import Controller, Ledger
    from dptrain.ledger.evidence import Evidence

UNSIGNED = "to be signed"


@dataclass(frozen=True)
class Decision:
    """What the controller decides: which items (of :data:`dptrain.vocabulary.ITEMS`) go to whom, and what for.

    `advice`: what the data protection officer advised; or `without_advice`: why there is none. `accept_exposed`: up
    to which share of exposed patients (0 to 1); or `without_audit`: why there is no audit. `accepted`: the
    assumptions that no program can check, by name (:data:`dptrain.report.judgement.PERSON_CHECKS`).
    """

    items: tuple[str, ...]
    recipient: str
    purpose: str | None = None
    advice: str | None = None
    without_advice: str | None = None
    accept_exposed: float | None = None
    without_audit: str | None = None
    accepted: tuple[str, ...] = ()


def standing(ledger: Ledger | None, folder: str | Path) -> Evidence | None:
    """What the ledger says of a folder's run, where it knows that run."""
    if ledger is None:
        return None
    try:
        return ledger.evidence(str(RunFolder(folder).read().id))
    except (ConfigError, LedgerRefused):
        return None


def release(folder: str | Path, decision: Decision, lang: str, *, ledger: Ledger, controller: Controller) -> Path:
    """Check, render, record, publish; returns the folder of the public edition.

    Raises:
        ConfigError: the run is still running, its record is torn, something named was never measured, or the decision
            does not say what it must.
        GuaranteeBroken: the audit says so, and `audit` is not among the items.
        LedgerRefused: the ledger does not know the run, holds something else of it, or this is not the controller's
            key; or an earlier decision is signed and not yet published.
    """
    from dptrain.ledger.facts import ReleaseTerms

    place = RunFolder(folder)
    run = place.read()
    evidence = ledger.evidence(str(run.id))
    pending = _pending(evidence, run.released)
    if pending is not None:
        _same_decision(pending, decision, place)
        return _publish(place, lang, ledger)
    facts = facts_module.read(place.path, ledger=evidence)
    refuse(facts, decision)
    provisional = Released(
        **{name: getattr(decision, name) for name in ties.DECIDED},
        controller=evidence.version.owner,
        date=facts.made,
        entry=UNSIGNED,
    )
    _rendered(place, evidence, provisional, lang)  # whatever cannot be said is found before it is signed
    terms = ReleaseTerms(
        **{field.name: getattr(decision, field.name) for field in fields(decision)},
        hashes=_hashes(place, decision.items, facts),
        assessment=file_sha256(place.assessment) if place.assessment.exists() else None,
    )
    ledger.record_release(str(run.id), terms, controller)
    return _publish(place, lang, ledger)


def _pending(evidence: Evidence, stated: Released | None) -> Released | None:
    """A decision that is signed and not yet in the folder."""
    newest = ties.released(evidence)
    return None if newest is None or (stated is not None and stated.entry == newest.entry) else newest


def _same_decision(pending: Released, decision: Decision, place: RunFolder) -> None:
    if all(getattr(pending, name) == getattr(decision, name) for name in ties.DECIDED):
        return
    words = [f"run={place.path}", f"items={','.join(pending.items)}"]
    raise LedgerRefused(
        f"Entry {pending.entry} of the ledger holds a decision that this folder does not show yet: "
        f"{', '.join(pending.items)} to {pending.recipient}.",
        remedy=f"Publish that one first, in the words in which it was signed: dptrain release {' '.join(words)} …",
    )


# --- may it be released? --------------------------------------------------------------------------------------------


def refuse(facts: Facts, decision: Decision) -> None:
    """The gate: raises for whatever forbids this decision (see :func:`release`)."""
    if facts.run.status not in CLOSED:
        raise ConfigError(
            f"The run is {facts.run.status or 'of unknown state'}: only a finished run can be released.",
            remedy="Resume it, or let it end.",
        )
    _refuse_changed(facts)
    _refuse_unmeasured(facts, decision)
    if "guarantee_broken" in facts.warnings and "audit" not in decision.items:
        raise GuaranteeBroken(
            "The audit's lower bound passes the promised epsilon: a public edition that states this epsilon in "
            "silence would be false.",
            remedy="Find the cause first. To publish all the same, name `audit` among the items, so that it says so.",
        )
    _refuse_risk(facts, decision)
    _refuse_unsaid(facts, decision)


def _refuse_changed(facts: Facts) -> None:
    english = Language("en")
    # files of an earlier release may have changed with the assessment: what matters of them is compared by itself
    differs = [name for name in facts.binding.differs if name != "released"]
    if differs:
        names = english.listing([english(f"claim.{name}") for name in differs])
        raise LedgerRefused(
            f"The ledger says otherwise about: {names}.",
            remedy="Restore the files that the run wrote. `dptrain report verify` says more.",
        )
    changed = [name for name, row in facts.integrity.items() if row.match is not True]
    if changed:
        raise ConfigError(
            f"{' and '.join(changed)} do not match the record of the run.",
            remedy="Restore the files that the run wrote. `dptrain report verify` says more.",
        )
    if "model" in facts.binding.open:
        raise LedgerRefused(
            "The run was closed without the hash of its model: nobody can say that this file is it.",
            remedy="Train anew; a run of this version names its model when it is closed.",
        )


def _refuse_unmeasured(facts: Facts, decision: Decision) -> None:
    named = set(decision.items)
    for item in named - set(ITEMS):
        raise ConfigError(f"there is no item '{item}'.", remedy=f"Allowed are {', '.join(ITEMS)}.")
    for item, piece in (("metrics", facts.utility), ("audit", facts.audit)):
        if item in named and piece is None:
            raise ConfigError(
                f"'{item}' cannot be released: this run has none.", remedy="Leave it out, or measure it."
            )
    if "groups" in named and not named & {"metrics", "audit"}:
        raise ConfigError(
            "'groups' are the tables by group of what else is named: alone it names nothing.",
            remedy="Name metrics or audit as well, or leave groups out.",
        )
    if "audit" in named and "audit" not in facts.binding.agrees:
        raise LedgerRefused(
            "'audit' cannot be released: no entry of the ledger carries the hash of this audit.",
            remedy="Measure it again with `dptrain audit`, whose end is recorded with its hash; or leave it out.",
        )


def _refuse_risk(facts: Facts, decision: Decision) -> None:
    """Without an audit that is bound and complete, or with more patients exposed than are signed for."""
    why = _no_audit(facts)
    if why is not None:
        if decision.without_audit is None:
            raise ConfigError(
                f"Nothing is released without an audit: {why}.",
                remedy="Audit it (dptrain audit run=…), or say why not, for every edition: without_audit='…'.",
            )
        return
    if decision.without_audit is not None:
        raise ConfigError("without_audit is said of a run that has an audit.", remedy="Leave it out.")
    audit = facts.audit
    share = None if audit is None else audit.exposed.share
    if share is not None and share > (decision.accept_exposed or 0.0):
        raise ConfigError(
            f"The audit calls {share:.2%} of the patients exposed, more than the decision accepts.",
            remedy=f"Strengthen the protection, or sign for it: accept_exposed={_up(share)}.",
        )


def _up(share: float) -> float:
    """A share with four decimals that is no smaller."""
    return min(1.0, -(-share * 10_000 // 1) / 10_000)


def _no_audit(facts: Facts) -> str | None:
    """Why there is no audit that a release can rest on; None where there is one."""
    audit: AuditFacts | None = facts.audit
    if audit is None:
        return "this run has none"
    if "audit" not in facts.binding.agrees:
        return "no entry of the ledger carries the hash of the one that lies in the folder"
    if audit.exposed.count is None:
        return "it had too few reference models for verdicts on patients"
    return None


def _refuse_unsaid(facts: Facts, decision: Decision) -> None:
    if not decision.purpose:
        raise ConfigError("A release needs its purpose.", remedy="Say what it is for: purpose='…'.")
    if bool(decision.advice) == bool(decision.without_advice):
        raise ConfigError(
            "A release needs the data protection officer's advice, or the reason why there is none.",
            remedy="Give one of them: advice='…' or without_advice='…'.",
        )
    boxes = [row.id for row in person_checks(facts.checks)]
    missing = [name for name in boxes if name not in decision.accepted]
    if missing:
        raise ConfigError(
            f"Assumptions that no program can check are open: {', '.join(missing)}.",
            remedy=f"Check them (the report says what each means), then accept them: accepted={','.join(boxes)}",
        )
    unknown = [name for name in decision.accepted if name not in boxes]
    if unknown:
        raise ConfigError(f"there is no open assumption '{unknown[0]}'.", remedy=f"Allowed are {', '.join(boxes)}.")


# --- what is signed, and what is published --------------------------------------------------------------------------


def _hashes(place: RunFolder, items: tuple[str, ...], facts: Facts) -> dict[str, str]:
    """The files that leave the house, and those that the public edition is made of."""
    paths = [place.config]
    if "metrics" in items or ("groups" in items and facts.utility is not None):
        paths.append(place.metrics)
    if "audit" in items:
        paths.append(place.audit_json)
    if "model" in items:
        paths += [path for path in sorted(place.model.rglob("*")) if path.is_file() and path != place.metadata]
    hashes = place.hashes(*paths)
    content = _metadata(place, facts) if "model" in items else None
    if content is not None:
        hashes[place.name_of(place.metadata)] = hashlib.sha256(content).hexdigest()
    return hashes


def _metadata(place: RunFolder, facts: Facts) -> bytes | None:
    """The bundle's metadata with their privacy part, where there is a bundle."""
    try:
        metadata = json.loads(place.metadata.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(metadata, dict):
        return None
    return json_bytes({**metadata, "privacy": bundle_privacy(facts_module.public(facts))})


def _rendered(place: RunFolder, evidence: Evidence, decision: Released, lang: str) -> tuple[Facts, dict[str, bytes]]:
    """The public edition under a decision: facts and faces."""
    facts = facts_module.read(place.path, ledger=evidence, released=decision)
    edition = facts_module.public(facts)
    return facts, render(edition, lang)


def _publish(place: RunFolder, lang: str, ledger: Ledger) -> Path:
    """Make everything that the newest decision shows, beside where it will lie; then move it there.

    run.json is written last: until then the decision counts as not published, and the same command does it again.
    """
    evidence = ledger.evidence(str(place.read().id))
    decision = ties.released(evidence)
    assert decision is not None  # it is signed
    if "model" in decision.items:
        content = _metadata(place, facts_module.read(place.path, ledger=evidence))
        if content is not None:
            with whole_or_nothing(place.metadata, "wb") as file:
                file.write(content)
    _, faces = _rendered(place, evidence, decision, lang)
    staged = place.restricted / "release"
    shutil.rmtree(staged, ignore_errors=True)
    make_folder(staged, private=True)
    write_faces(staged / "report", faces, Edition.PUBLIC, lang, private=False)
    _move(staged / "report", place.report, aside=staged / "earlier")
    if "model" in decision.items and place.restricted_model.exists():
        _open_up(place.restricted_model)
        _move(place.restricted_model, place.released_model, aside=staged / "earlier-model")
    place.amend(released=decision)
    shutil.rmtree(staged, ignore_errors=True)
    if (place.restricted_report / MANIFEST).exists():
        build(place.path, lang, ledger=evidence)
    place.note_access(f"released: {', '.join(decision.items)}")
    return place.report


def _move(source: Path, target: Path, *, aside: Path) -> None:
    """Put a folder in the place of another."""
    if target.exists():
        os.replace(target, aside)
    os.replace(source, target)


def _open_up(folder: Path) -> None:
    """Modes of what everybody may read."""
    for path in (*folder.rglob("*"), folder):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
