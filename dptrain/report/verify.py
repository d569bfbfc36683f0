"""Does a report still describe its run? Every tie that can be checked, and what no longer matches.

Files against the manifest; facts against the run folder; every face against the facts (made anew where the same
versions are at hand); hashes of model and configuration; ε against the mechanisms that were charged; the
signature of the ledger's head; and, where the ledger can be reached, everything that a page says it holds, as the
ledger stood when the page was made.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dptrain.errors import ConfigError, DptrainError
from dptrain.plain import Json
from dptrain.records import RunFolder
from dptrain.records.run import Charge
from dptrain.report import facts as facts_module
from dptrain.report.build import MANIFEST, MANIFEST_SCHEMA, makers
from dptrain.report.faces import render
from dptrain.report.judgement import judged
from dptrain.report.language import Language
from dptrain.report.shapes import FACTS_SCHEMA, Facts
from dptrain.vocabulary import Edition

if TYPE_CHECKING:
    from dptrain.ledger import Ledger
    from dptrain.ledger.evidence import Evidence

MOST_SHOWN = 8
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Tie:
    """One comparison. ok: True, False, or None where it could not be made. ledger: with the ledger."""

    what: str
    ok: bool | None
    why: str = ""
    ledger: bool = False


def verify(folder: str | Path, *, ledger: Ledger | None = None) -> list[Tie]:
    """Check every edition below a run folder. Raises ConfigError where there is no report at all."""
    place = RunFolder(folder)
    editions = [path for path in (place.restricted_report, place.report) if (path / MANIFEST).exists()]
    loose = [path for path in (place.restricted_report, place.report) if path not in editions and path.is_dir()]
    if not editions and not any(any(path.iterdir()) for path in loose):
        raise ConfigError(f"{place.path} holds no report.", remedy=f"Write one: dptrain report run={place.path}")
    ties = [Tie(f"{path.name}/{MANIFEST}", False, "missing or unreadable") for path in loose if any(path.iterdir())]
    evidence, beginning = _evidence(place, ledger)
    run = facts_module.read(place.path, ledger=evidence)
    for path in editions:
        ties += _edition(path, place, run, ledger if evidence is not None else None)
    ties += _bundle(place, run)
    ties += _run(run)
    return [*ties, _head(run), *beginning, *_claims(run)]


def _evidence(place: RunFolder, ledger: Ledger | None) -> tuple[Evidence | None, list[Tie]]:
    """What the ledger says of the run; where it says nothing, why."""
    what = "ledger: knows the run"
    if ledger is None:
        return None, [Tie(what, None, "the ledger cannot be reached from here", ledger=True)]
    try:
        return ledger.evidence(str(place.read().id)), [Tie(what, True, ledger=True)]
    except DptrainError as error:
        return None, [Tie(what, False, error.message, ledger=True)]


def _claims(run: Facts) -> list[Tie]:
    """Everything that a page says the ledger holds, by name."""
    english, binding = Language("en"), run.binding
    if binding.ledger != "reached":
        return []
    verdicts = [
        *((name, True, "") for name in binding.agrees),
        *((name, False, "not what the ledger's entries name") for name in binding.differs),
        *((name, None, "its entry carries no hash") for name in binding.open),
    ]
    return [Tie(f"ledger: {english(f'claim.{name}')}", ok, why, ledger=True) for name, ok, why in verdicts]


def _edition(path: Path, place: RunFolder, run: Facts, ledger: Ledger | None) -> list[Tie]:
    name = f"{path.parent.name}/{path.name}" if path.parent.name == "restricted" else path.name
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files, lang = dict(manifest["files"]), str(manifest["lang"])
    except (OSError, ValueError, KeyError, TypeError):
        return [Tie(f"{name}/{MANIFEST}", False, "missing or unreadable")]
    ties = []
    for file, stated in files.items():
        found = facts_module.hash_or_none(path / Path(file).name)
        why = "" if found == stated else "missing" if found is None else "changed since it was written"
        ties.append(Tie(f"{name}/{file}: as it was written", found == stated, why))
    try:
        facts = json.loads((path / "facts.json").read_text(encoding="utf-8"))
        if not isinstance(facts, dict) or facts.get("schema") != FACTS_SCHEMA:
            raise ValueError
    except (OSError, ValueError):
        return [*ties, Tie(f"{name}/facts.json", False, "unreadable, or of an unknown schema")]
    ties += _against_run(f"{name}/facts.json", facts, place, run, ledger)
    ties.append(_manifest(f"{name}/{MANIFEST}", manifest, facts, private=path == place.restricted_report))
    if manifest.get("made_with") != makers():
        return [
            *ties,
            Tie(f"{name}: faces say what the facts say", None, "made by other versions; hashes compared only"),
        ]
    ties += _against_facts(path, name, facts, lang)
    return ties


def _manifest(name: str, manifest: Json, facts: Json, *, private: bool) -> Tie:
    """What the manifest says beside the hashes."""
    edition = Edition.CONTROLLER if private else Edition.PUBLIC
    made_with = manifest.get("made_with")
    sound = (
        manifest.get("schema") == MANIFEST_SCHEMA
        and manifest.get("edition") == facts.get("edition") == edition
        and isinstance(made_with, dict)
        and made_with.get("dptrain") == facts.get("program")
    )
    return Tie(f"{name}: schema, edition and program", sound, "" if sound else "not those of this edition")


def _against_run(name: str, facts: Json, place: RunFolder, run: Facts, ledger: Ledger | None) -> list[Tie]:
    """The facts as written against those that the folder gives now, with the ledger as it stood when they were made.

    Where the ledger cannot be reached, what came from it is left aside, and said to be.
    """
    written = Facts.of(facts)
    now, ties = written.ledger.now, []
    compared = written.binding.ledger == "reached" and now is not None
    if compared and ledger is not None:
        tie, fresh = _as_of(name, written, place, ledger)
        if fresh is None:
            return [tie]
        ties.append(tie)
    else:
        fresh = facts_module.read(place.path, made=written.made) if ledger is not None else run
        if compared:
            ties.append(Tie(f"{name}: what it took from the ledger", None, "the ledger cannot be reached from here"))
    if facts.get("edition") == Edition.PUBLIC:
        fresh = facts_module.public(fresh)
    if compared and ledger is None:
        fresh = judged(
            replace(
                fresh,
                binding=written.binding,
                ledger=replace(fresh.ledger, now=now),
                budget=replace(fresh.budget, history=written.budget.history),
            )
        )
    stated = {**fresh.to_json(), "made": facts.get("made"), "program": facts.get("program")}
    different = differences(facts, stated)
    shown = ", ".join(different[:MOST_SHOWN]) + (" …" if len(different) > MOST_SHOWN else "")
    return [*ties, Tie(f"{name}: says what the run says", not different, f"differs: {shown}" if different else "")]


def _as_of(name: str, written: Facts, place: RunFolder, ledger: Ledger) -> tuple[Tie, Facts | None]:
    """What the folder gives with the ledger as it stood at the head that a page names, if it had that head."""
    from dptrain.ledger import SignedHead

    what = f"{name}: the ledger's head when it was made"
    now = written.ledger.now
    try:
        assert now is not None
        head = SignedHead.from_dict({**now.to_json(), "site": written.ledger.site})
        evidence = ledger.evidence(str(written.run.id), at=head.entries, made=head.time)
    except (ValueError, DptrainError) as error:
        why = error.message if isinstance(error, DptrainError) else "no signed head"
        return Tie(what, False, why, ledger=True), None
    sound = evidence.holds(head) and head.time == written.made
    fresh = facts_module.read(place.path, ledger=evidence, made=written.made)
    fresh = replace(fresh, ledger=replace(fresh.ledger, now=now))
    return Tie(what, sound, "" if sound else "not in this ledger, or not signed by it", ledger=True), fresh


def differences(a: object, b: object, path: str = "") -> list[str]:
    """Dotted paths at which two JSON values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = []
        for key in sorted({*a, *b}, key=str):
            inner = f"{path}.{key}" if path else str(key)
            found += differences(a[key], b[key], inner) if key in a and key in b else [inner]
        return found
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [place for i, (x, y) in enumerate(zip(a, b)) for place in differences(x, y, f"{path}[{i}]")]
    return [] if a == b else [path]


def _against_facts(path: Path, name: str, facts: Json, lang: str) -> list[Tie]:
    try:
        faces = render(Facts.of(facts), lang)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, DptrainError):
        return [Tie(f"{name}: faces say what the facts say", False, "no report can be made from these facts")]
    ties = []
    for file, content in faces.items():
        if file == "facts.json":
            continue
        found = facts_module.hash_or_none(path / file)
        same = found == hashlib.sha256(content).hexdigest()
        ties.append(
            Tie(f"{name}/{file}: says what the facts say", same, "" if same else "differs from what the facts give")
        )
    return ties


def _bundle(place: RunFolder, run: Facts) -> list[Tie]:
    """The privacy part of the bundle's metadata, where it was written."""
    from dptrain.report.cards import bundle_privacy

    path = place.metadata
    if not path.exists():
        return []
    try:
        stated = json.loads(path.read_text(encoding="utf-8")).get("privacy")
    except (OSError, ValueError, AttributeError):
        return [Tie("model/configs/metadata.json", False, "unreadable")]
    if stated is None:
        return []
    different = differences(stated, bundle_privacy(facts_module.public(run)))
    what = "model/configs/metadata.json: privacy says what the run says"
    return [Tie(what, not different, f"differs: {', '.join(different[:MOST_SHOWN])}" if different else "")]


def _run(run: Facts) -> list[Tie]:
    ties = []
    for name, row in run.integrity.items():
        why = {None: "file or stated hash missing", False: "the file was changed after the run", True: ""}[row.match]
        ties.append(Tie(f"{name}: hash as stated in run.json", row.match is True, why))
    return [*ties, _epsilon(run)]


def _epsilon(run: Facts) -> Tie:
    """ε worked out again from the mechanisms that were charged: public numbers alone."""
    what, privacy = "run.json: ε follows from the charged mechanisms", run.privacy
    rows = [row for one in privacy.inherited for row in one.mechanisms] + [*privacy.mechanisms]
    if not rows or privacy.delta is None:
        return Tie(what, None, "no mechanisms stated")
    try:
        mechanisms = [Charge.of(row.to_json()).mechanism() for row in rows]
    except (DptrainError, TypeError):
        return Tie(what, False, "the stated mechanisms are not valid")
    if any(mechanism.noise_multiplier == 0 for mechanism in mechanisms):
        return Tie(what, privacy.infinite is True, "" if privacy.infinite else "without noise ε is infinite")
    from dptrain.accounting import pld_epsilon

    found = pld_epsilon(mechanisms, privacy.delta)
    stated = math.inf if privacy.infinite else privacy.epsilon
    if stated is None or not math.isclose(found, stated, rel_tol=TOLERANCE):
        return Tie(what, False, f"stated {stated}, worked out {found:.6g}")
    return Tie(what, True)


def _head(run: Facts) -> Tie:
    """The signature of the head at the end of the training; whose key it is, the ledger knows."""
    from dptrain.ledger import SignedHead

    what = "ledger head: signature"
    try:
        head = SignedHead.from_dict({**run.ledger.head.to_json(), "site": run.ledger.site})
    except ValueError:
        return Tie(what, False, "no signed head in run.json")
    return Tie(what, head.valid(), "" if head.valid() else "not signed by the named key")
