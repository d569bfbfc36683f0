"""Does a report still describe its run? Every tie that can be checked, and what no longer matches.

Files against the manifest; facts against the run folder; every face against the facts (made anew where the same
versions are at hand); hashes of model and configuration; ε against the mechanisms that were charged; the
signature of the ledger's head; and, where the ledger can be reached, the head and the charge in it.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dptrain.errors import ConfigError, DptrainError
from dptrain.plain import Json
from dptrain.records import RunFolder
from dptrain.records.run import Charge
from dptrain.report import facts as facts_module
from dptrain.report.build import MANIFEST, makers
from dptrain.report.faces import render
from dptrain.report.shapes import FACTS_SCHEMA, Facts
from dptrain.vocabulary import Edition

if TYPE_CHECKING:
    from dptrain.ledger import Ledger

MOST_SHOWN = 8
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Tie:
    """One comparison. ok: True, False, or None where it could not be made."""

    what: str
    ok: bool | None
    why: str = ""


def verify(folder: str | Path, *, ledger: Ledger | None = None) -> list[Tie]:
    """Check every edition below a run folder. Raises ConfigError where there is no report at all."""
    place = RunFolder(folder)
    editions = [path for path in (place.restricted_report, place.report) if (path / MANIFEST).exists()]
    loose = [path for path in (place.restricted_report, place.report) if path not in editions and path.is_dir()]
    if not editions and not any(any(path.iterdir()) for path in loose):
        raise ConfigError(f"{place.path} holds no report.", remedy=f"Write one: dptrain report run={place.path}")
    ties = [Tie(f"{path.name}/{MANIFEST}", False, "missing or unreadable") for path in loose if any(path.iterdir())]
    run = facts_module.read(place.path)
    for path in editions:
        ties += _edition(path, run)
    ties += _bundle(place, run)
    ties += _run(run)
    ties += _head(run, ledger)
    return ties


def _edition(path: Path, run: Facts) -> list[Tie]:
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
    ties.append(_against_run(f"{name}/facts.json", facts, run))
    if manifest.get("made_with") != makers():
        return [
            *ties,
            Tie(f"{name}: faces say what the facts say", None, "made by other versions; hashes compared only"),
        ]
    ties += _against_facts(path, name, facts, lang)
    return ties


def _against_run(name: str, facts: Json, run: Facts) -> Tie:
    """The facts as written against those that the folder gives now. The ledger's history is left aside: it grows."""
    now = facts_module.public(run) if facts.get("edition") == Edition.PUBLIC else run
    fresh = {**now.to_json(), "made": facts.get("made"), "program": facts.get("program")}
    different = [path for path in differences(facts, fresh) if not path.startswith("budget.history")]
    shown = ", ".join(different[:MOST_SHOWN]) + (" …" if len(different) > MOST_SHOWN else "")
    return Tie(f"{name}: says what the run says", not different, f"differs: {shown}" if different else "")


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

    path = place.model / "configs" / "metadata.json"
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


def _head(run: Facts, ledger: Ledger | None) -> list[Tie]:
    from dptrain.ledger import SignedHead

    ties = []
    stated = {**run.ledger.head.to_json(), "site": run.ledger.site}
    try:
        head = SignedHead.from_dict(stated)
    except ValueError:
        return [Tie("ledger head: signature", False, "no signed head in run.json")]
    ties.append(Tie("ledger head: signature", head.valid(), "" if head.valid() else "not signed by the named key"))
    if ledger is None:
        return [*ties, Tie("ledger head: is in the ledger", None, "the ledger cannot be reached from here")]
    entries = {entry.seq: entry.hash.hex() for entry in ledger.entries()}
    held = entries.get(head.entries, entries.get(head.entries - 1) if 0 in entries else None)
    ties.append(
        Tie("ledger head: is in the ledger", held == head.hash, "" if held == head.hash else "not in this ledger")
    )
    try:
        status = ledger.status(run.cohort.name or "")
    except DptrainError:
        return [*ties, Tie("ledger: charge of the run", False, "the ledger does not know the cohort")]
    charge = next((row for row in status.runs if row.run == run.run.id), None)
    steps = run.privacy.steps_charged
    same = charge is not None and charge.steps == steps
    why = (
        ""
        if same
        else "the ledger does not know the run"
        if charge is None
        else f"{charge.steps} steps, stated {steps}"
    )
    ties.append(Tie("ledger: charge of the run", same, why))
    return ties
