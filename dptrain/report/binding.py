"""Which statements of a report are the ledger's: each is compared with its entries, or listed as not compared.

A claim is one thing that a page says the ledger holds. It agrees, it differs, or it could not be compared: because
the ledger was not at hand, or because the entry was written by a version that bound no hashes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dptrain.errors import ConfigError
from dptrain.files import file_sha256
from dptrain.records import Run, RunFolder
from dptrain.records.bound import facts_sha256, metadata_sha256
from dptrain.records.run import Released
from dptrain.report.shapes import BindingFacts, Facts, HeadFacts
from dptrain.vocabulary import Purpose, RunStatus

if TYPE_CHECKING:
    from dptrain.ledger.evidence import Evidence

RESULTS = {"metrics": Purpose.EVALUATE, "audit": Purpose.AUDIT}  # claim -> purpose of the grant that measured it
MEASURED = tuple(RESULTS)
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Page:
    """What is compared: a run folder, and its record as the report reads it."""

    place: RunFolder
    run: Run

    def sha256(self, name: str) -> str | None:
        """Of a file as the ledger names it; None where it cannot be read."""
        try:
            return file_sha256(self.place.place_of(name))
        except OSError:
            return None


Verdict = bool | None  # agrees, differs, or could not be compared
Claim = Callable[[Page, "Evidence"], Verdict]


def _same(*pairs: tuple[object, object]) -> bool:
    return all(_equal(stated, true) for stated, true in pairs)


def _equal(stated: object, true: object) -> bool:
    if isinstance(true, float) and not math.isfinite(true):
        true = None
    if isinstance(stated, float) and isinstance(true, int | float):
        return math.isclose(stated, true, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    if isinstance(stated, tuple | list) and isinstance(true, tuple | list):
        return [*stated] == [*true]
    return stated == true


def _model(page: Page, ledger: Evidence) -> Verdict:
    """The weights are those of the close."""
    if ledger.bound.model is None:
        return None
    name = page.place.name_of(page.place.weights)
    return page.sha256(name) == ledger.bound.model


def _facts(page: Page, ledger: Evidence) -> Verdict:
    """The run's own facts are those of the close."""
    if ledger.bound.facts is None:
        return None
    try:
        return facts_sha256(page.place.read_facts()) == ledger.bound.facts
    except (ConfigError, ValueError):
        return False


def _bundle(page: Page, _: Evidence) -> Verdict:
    """The bundle's other files are those that the facts name (which the close binds)."""
    files = None if page.run.model is None else page.run.model.files
    if files is None:
        return None
    root = page.place.model
    here = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    here.pop(page.place.weights.relative_to(root).as_posix(), None)
    if set(here) != set(files):
        return False
    try:
        return all(
            stated == (metadata_sha256(here[name]) if here[name] == page.place.metadata else file_sha256(here[name]))
            for name, stated in files.items()
        )
    except (OSError, ValueError):
        return False


def _charge(page: Page, ledger: Evidence) -> Verdict:
    """Plan, state, grant and steps."""
    run, privacy = ledger.run, page.run.privacy
    if ledger.bound.closing is None:
        return None if page.run.status in (RunStatus.RUNNING, RunStatus.CRASHED) else False
    day = () if ledger.bound.facts is None else ((page.run.finished, (run.closed or "")[:10]),)
    return _same(
        *day,
        (page.run.plan, run.plan),
        (page.run.status, run.status),
        (None if page.run.ledger is None else page.run.ledger.grant, str(run.seq)),
        (None if privacy is None else privacy.steps_charged, run.steps_charged),
    )


def _budget(page: Page, ledger: Evidence) -> Verdict:
    """The terms of the budget that the run was charged to."""
    stated, true = page.run.gate, ledger.gate
    if stated is None or true is None:
        return None
    return _same(
        (stated.kind, true.kind),
        (stated.accountant, true.accountant or "none (public cohort)"),
        (stated.order, true.order),
        (stated.budget_epsilon, true.budget_epsilon),
        (stated.budget_delta, true.budget_delta),
        (stated.minimum_charge, true.minimum_charge),
        *(() if stated.owner is None else ((stated.owner, ledger.version.owner),)),
    )


def _spent(page: Page, ledger: Evidence) -> Verdict:
    """What was spent before and after the run, and what remained."""
    stated, true = page.run.gate, ledger.gate
    if stated is None or true is None:
        return None
    return _same(
        (stated.spent_before, true.spent_before),
        (stated.spent_after, true.spent_after),
        (stated.remaining, true.remaining),
    )


def _lock(page: Page, ledger: Evidence) -> Verdict:
    """Whether the run left the cohort locked."""
    if page.run.gate is None or ledger.gate is None:
        return None
    return page.run.gate.locked is ledger.gate.locked


def _size(page: Page, ledger: Evidence) -> Verdict:
    """The declared number of units."""
    return page.run.cohort.public_size == ledger.version.public_size


def _unit(page: Page, ledger: Evidence) -> Verdict:
    """The unit of privacy."""
    stated = None if page.run.privacy is None else page.run.privacy.unit
    return _same((page.run.cohort.unit, ledger.version.unit), (stated, ledger.version.unit))


def _cohort(page: Page, ledger: Evidence) -> Verdict:
    """Name, version, owner; whether it is public, and from where."""
    stated, true = page.run.cohort, ledger.version
    public = true.public or {}
    return _same(
        (stated.name, true.cohort),
        (stated.version, true.number),
        (stated.owner, true.owner),
        (stated.public, true.public is not None),
        *((getattr(stated, name), public[name]) for name in ("source", "licence") if name in public),
    )


def _cautions(page: Page, ledger: Evidence) -> Verdict:
    """The steward's cautions."""
    return _equal(page.run.cohort.cautions, ledger.version.cautions)


def _result(claim: str) -> Claim:
    """What an evaluation or audit wrote, by the newest hash that a finish of the run and its cohort carries."""

    def compare(page: Page, ledger: Evidence) -> Verdict:
        stated: dict[str, str] = {}
        for result in ledger.bound.results:
            if result.purpose == RESULTS[claim] and result.cohort == ledger.run.cohort:
                stated.update(result.sha256)
        main = page.place.metrics if claim == "metrics" else page.place.audit_json
        if page.place.name_of(main) not in stated:
            return None  # older than the hashes, or measured by hand
        return all(page.sha256(name) == sha256 for name, sha256 in stated.items())

    return compare


def _decision(page: Page, ledger: Evidence) -> Verdict:
    """The newest release of the run: what, to whom, what for, on whose advice, with which risks accepted."""
    stated, releases = page.run.released, ledger.bound.releases
    if stated is None or not releases:
        return stated is None and not releases
    newest = releases[-1]
    terms = newest.terms
    return _same(
        (stated.entry, entry_text(newest.entry, newest.hash)),
        (stated.date, newest.time),
        (stated.controller, ledger.version.owner),
        *((getattr(stated, name), getattr(terms, name)) for name in DECIDED),
    )


def _released(page: Page, ledger: Evidence) -> Verdict:
    """The files that the newest release names, and the assessment; but for what was measured anew since."""
    if not ledger.bound.releases:
        return True
    newest = ledger.bound.releases[-1]
    since = {name for result in ledger.bound.results if result.entry > newest.entry for name in result.sha256}
    stated = {name: sha256 for name, sha256 in newest.terms.hashes.items() if name not in since}
    if newest.terms.assessment is not None:
        stated[page.place.name_of(page.place.assessment)] = newest.terms.assessment
    if not stated:
        return None  # a release of before the hashes
    return all(page.sha256(name) == sha256 for name, sha256 in stated.items())


DECIDED = (
    "items",
    "recipient",
    "purpose",
    "advice",
    "accept_exposed",
    "without_audit",
    "without_advice",
    "accepted",
)


def entry_text(number: int, sha256: str) -> str:
    """An entry as run.json names it."""
    return f"{number} ({sha256})"


def _sweep(page: Page, _: Evidence) -> Verdict:
    """What all trials of a sweep cost together: written when the last has ended, bound by no entry."""
    return None


def _head(page: Page, ledger: Evidence) -> Verdict:
    """The head at the end of the training, signed with the key of that time."""
    from dptrain.ledger import SignedHead

    closing = ledger.bound.closing
    if closing is None:
        return None
    try:
        head = SignedHead.from_dict({} if page.run.ledger is None else page.run.ledger.head.to_json())
    except ValueError:
        return False
    return ledger.holds(head) and head.entries >= closing[0] and _place(page.run, head.site)


def _place(run: Run, site: str) -> bool:
    """The site, and whether a witness was named: the check of that name, which the close binds, says the same."""
    place = run.ledger
    if place is None:
        return False
    witness = next((row.status == "passed" for row in run.checks if row.id == "rollback"), None)
    return place.site == site and place.witness is place.rollback_detectable and witness in (None, place.witness)


CLAIMS: dict[str, Claim] = {
    "model": _model,
    "bundle": _bundle,
    "facts": _facts,
    "charge": _charge,
    "budget": _budget,
    "spent": _spent,
    "lock": _lock,
    "size": _size,
    "unit": _unit,
    "cohort": _cohort,
    "cautions": _cautions,
    "sweep": _sweep,
    "head": _head,
    "decision": _decision,
    "released": _released,
    "metrics": _result("metrics"),
    "audit": _result("audit"),
}


def made_claims(place: RunFolder, run: Run) -> list[str]:
    """The claims that a report of this folder makes."""
    absent = {
        "decision": run.released is None,
        "released": run.released is None,
        "metrics": not place.metrics.exists(),
        "audit": not place.audit.exists(),
        "cautions": not run.cohort.cautions,
        "sweep": run.sweep is None or run.sweep.trials is None,
    }
    return [name for name in CLAIMS if not absent.get(name)]


def binding(place: RunFolder, run: Run, ledger: Evidence | None) -> BindingFacts:
    """Every claim compared. `ledger` None: it could not be reached, or does not know the run."""
    made = made_claims(place, run)
    if ledger is None:
        return BindingFacts(ledger="unreached", closed=None, agrees=(), differs=(), open=tuple(made))
    page = Page(place, run)
    verdicts = {name: compare(page, ledger) for name, compare in CLAIMS.items()}

    def those(verdict: Verdict, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(name for name in names if verdicts[name] is verdict)

    return BindingFacts(
        ledger="reached",
        closed=ledger.bound.facts is not None,
        agrees=those(True, made),
        differs=those(False, CLAIMS),  # also what the ledger holds and the folder has lost
        open=those(None, made),
    )


def disclosed_binding(facts: Facts) -> BindingFacts:
    """Without the names of what is not released."""
    items = facts.items
    hidden = {name for name in MEASURED if name not in items and not (name == "metrics" and "groups" in items)}

    def shown(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if name not in hidden)

    stated = facts.binding
    return BindingFacts(
        ledger=stated.ledger,
        closed=stated.closed,
        agrees=shown(stated.agrees),
        differs=shown(stated.differs),
        open=shown(stated.open),
    )


def head_now(ledger: Evidence | None) -> HeadFacts | None:
    """The head when the report is made."""
    return None if ledger is None else HeadFacts.of(ledger.head.to_dict())


def released(ledger: Evidence) -> Released | None:
    """The newest release, as run.json has it."""
    if not ledger.bound.releases:
        return None
    newest = ledger.bound.releases[-1]
    terms = {name: getattr(newest.terms, name) for name in DECIDED}
    return Released(
        **terms,
        controller=ledger.version.owner,
        date=newest.time,
        entry=entry_text(newest.entry, newest.hash),
    )
