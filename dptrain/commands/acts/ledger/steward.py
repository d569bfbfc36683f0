"""What the data steward does: register a cohort, withdraw a patient, lock, close.

The ledger knows nothing of images. `register` accepts a recipe and data settings, and turns them into patient keys
and record hashes; configuration and data are imported only then, so that `dptrain ledger lock` starts at once.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dptrain.commands.acts.ledger.desk import controller_of, opened
from dptrain.commands.command import Call
from dptrain.errors import EXIT_DONE, ConfigError, LedgerRefused
from dptrain.ledger.facts import PublicDeclaration
from dptrain.ledger.keys import Keys, normal_issuer
from dptrain.plain import Json
from dptrain.terminal import secrets
from dptrain.terminal.output import Output


@dataclass(frozen=True)
class ScanResult:
    """What registration learns from the data: keys and hashes, never pixels. `source`, `licence`: of public data."""

    name: str
    patients: Mapping[bytes, Sequence[bytes]]
    unit: str
    issuer: str
    cautions: tuple[str, ...] = ()
    source: str | None = None
    licence: str | None = None
    unread: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    binding: Json | None = None


def scan(words: Sequence[str], keys: Keys) -> ScanResult:
    """Read, check and hash every record that these settings name. Raises DataUnreadable with every fault."""
    from dptrain import data
    from dptrain.settings import load

    settings = load(words)
    cohort = data.scan(settings.data, keys)
    return ScanResult(
        name=settings.ledger.cohort or settings.data.name,
        patients=cohort.hashes(),
        unit=settings.data.unit,
        issuer=settings.data.issuer,
        cautions=tuple(settings.data.cautions),
        source=settings.data.source,
        licence=settings.data.licence,
        unread=cohort.unread,
        notes=tuple(cohort.notes),
        binding=data.binding_of(cohort),
    )


def register(call: Call) -> int:
    """Check and hash every record, and register the cohort."""
    out, values = Output(as_json=call.as_json), call.words
    ledger, keys = opened(values)
    controller = controller_of(keys) if values["public"] else None
    records = scan(call.settings, keys)
    for note in records.notes:
        out.say(f"Note: {note}.")
    for what, count in records.unread.items():
        out.say(f"Not read: {count:,} {what}.")
    source, licence = values["source"] or records.source, values["licence"] or records.licence
    if values["public"] and not (source and licence):
        raise ConfigError("a public cohort needs its source and its licence.", remedy="Give source=… licence=… .")
    public = PublicDeclaration(_one_line(source), _one_line(licence)) if values["public"] else None
    cautions = [_one_line(text) for text in (*records.cautions, values["caution"]) if text]
    name = values["cohort"] or records.name
    made = ledger.register(
        name,
        unit=records.unit,
        issuer=records.issuer,
        public_size=values["public_size"],
        patients=records.patients,
        owner=values["owner"],
        public=public,
        overlaps=values["overlaps"],
        cautions=cautions,
        binding=records.binding,
        controller=controller,
    )
    out.say(
        f"Registered '{made.name}', version {made.version}: N = {made.public_size} declared, unit {made.unit}, owner "
        f"{values['owner']}, fingerprint {made.fingerprint[:16]}…. Nothing was charged."
    )
    if public is not None:
        out.say(f"It is public ({public.source}; {public.licence}): its charges are recorded and gate nothing.")
    elif ledger.status(name).kind is None:
        use = next((word for word in call.settings if word.startswith("recipe=")), "recipe=…")
        out.say(f"Next: a budget (dptrain ledger budget cohort={name} epsilon=… {use} reason=…).")
    out.give(made)
    return EXIT_DONE


def _one_line(text: str | None) -> str:
    """Text of a configuration file, where a paragraph may have several lines."""
    return " ".join(str(text).split())


def withdraw(call: Call) -> int:
    """Leave a patient out."""
    out = Output(as_json=call.as_json)
    ledger, keys = opened(call.words)
    patient, issuer = call.words["patient"], normal_issuer(call.words["issuer"])
    with ledger.view() as (_, state):
        issuers = sorted({version.issuer for version in state.versions})
    if issuer not in issuers and not call.words["new_issuer"]:
        registered = f"Known: {', '.join(repr(name) for name in issuers)}." if issuers else "None is known yet."
        raise LedgerRefused(
            f"No registered cohort has ids of the issuer '{call.words['issuer']}': nobody was withdrawn.",
            remedy=f"{registered} To withdraw a patient before this issuer's first registration, add new_issuer=yes.",
        )
    if patient is None:
        if sys.stdin.isatty():
            patient = secrets.hidden("Patient id (not shown)")
        else:
            patient = sys.stdin.readline().strip()
    key = keys.patient_key(issuer, patient)
    known_id = ledger.in_a_cohort(key)
    ledger.withdraw(key)
    out.say(
        "Recorded. The patient is left out of every draw, evaluation and audit from now on; what was spent stays."
    )
    if known_id:
        out.say("This id is in one of the registered cohorts.")
    else:
        out.say(
            "This id is in no registered cohort: is it written as in the manifest? If a cohort is registered with it "
            "later, the patient is left out."
        )
    out.give({"withdrawn": True, "in_a_cohort": known_id})
    return EXIT_DONE


def lock(call: Call) -> int:
    """Lock by hand."""
    out = Output(as_json=call.as_json)
    ledger, _ = opened(call.words)
    ledger.lock(call.words["cohort"], reason=call.words["reason"])
    out.say(f"'{call.words['cohort']}' is locked. Only the controller can unlock it.")
    out.give({"cohort": call.words["cohort"], "locked": True})
    return EXIT_DONE


def close(call: Call) -> int:
    """Close a dead run."""
    out = Output(as_json=call.as_json)
    ledger, _ = opened(call.words)
    grant = ledger.resume(call.words["run"])
    receipt = grant.close("interrupted", grant.committed, note=call.words["reason"])
    if receipt is None:
        raise LedgerRefused("this run is no training.")
    out.say(
        f"Run '{receipt.run}' is closed: {receipt.steps_charged} of {receipt.steps_planned} steps stay charged "
        f"({call.words['reason']})."
    )
    out.give(receipt)
    return EXIT_DONE
