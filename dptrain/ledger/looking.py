"""Looking at the ledger: where cohorts stand, what runs did, the entries themselves. Nothing is recorded."""

from __future__ import annotations

from dataclasses import replace
from operator import itemgetter

import sqlalchemy as sa

from dptrain.errors import LedgerRefused
from dptrain.files import utc_now
from dptrain.ledger import rules, store
from dptrain.ledger.approvals import Approval, day_of, over
from dptrain.ledger.book import Book, read_entry
from dptrain.ledger.chain import Entry, SignedHead, sign_head
from dptrain.ledger.charges import charge_of
from dptrain.ledger.facts import Bound, Released, ReleaseTerms, Result, WeightsSource
from dptrain.ledger.state import Approver, RunState, State
from dptrain.ledger.status import CohortStatus, status_of
from dptrain.plain import Json
from dptrain.plan import Plan
from dptrain.vocabulary import PICTURES


def status(book: Book, cohort: str) -> CohortStatus:
    """Where a cohort stands. Raises LedgerRefused for one that is not registered."""
    with book.view() as (_, state):
        rules.cohort(state, cohort)
        newest = sign_head(book.keys, state.seq, bytes.fromhex(state.hash))
        return status_of(state, cohort, newest, witness=book.witness is not None)


def pictures_until(book: Book, cohort: str) -> str | None:
    """The last day (YYYY-MM-DD) until which the controller permits pictures of a cohort; None: no permission."""
    with book.view() as (_, state):
        rules.cohort(state, cohort)
        day = day_of(state, utc_now())
        days = [
            permit.last_day
            for permit in state.permits.values()
            if permit.cohort == cohort and permit.purpose == PICTURES and not permit.withdrawn and permit.last_day
        ]
        return max((last for last in days if not over(last, day)), default=None)


def require_open(book: Book, cohort: str) -> None:
    """Raise the refusal that a new training would get because the cohort is locked or has no budget.

    Records nothing. It spares a caller the reading of images; :meth:`Ledger.reserve` decides.
    """
    with book.view() as (_, state):
        rules.require_open(state, rules.cohort(state, cohort))


def objections(book: Book, plan: Plan, cohort: str, weights: WeightsSource | None = None) -> list[LedgerRefused]:
    """Every reason for which :meth:`Ledger.reserve` would refuse this plan now, but for what only the data tell.

    Records nothing, and looks at the newest version of the cohort alone. What it says follows from public
    configuration and public charges, like the refusals themselves.
    """
    reasons = []
    with book.view() as (_, state):
        version = rules.cohort(state, cohort)
        charge = charge_of(plan.mechanisms)
        for rule in (
            lambda: rules.check_plan(plan, version),
            lambda: rules.check_weights(state, weights),
            lambda: rules.afford(state, version, plan, charge),
        ):
            try:
                rule()
            except LedgerRefused as error:
                reasons.append(error)
    return reasons


def cohorts(book: Book) -> list[str]:
    """Names of all cohorts, in order of registration."""
    with book.view() as (_, state):
        return list(state.cohorts)


def head(book: Book) -> SignedHead:
    """The newest entry, signed by the site now."""
    with book.view() as (_, state):
        return sign_head(book.keys, state.seq, bytes.fromhex(state.hash))


def run(book: Book, name: str) -> RunState:
    """What the ledger holds about a run. Raises LedgerRefused for an unknown one."""
    with book.view() as (_, state):
        return replace(rules.run(state, name))


def bound(book: Book, run: str) -> Bound:
    """What the ledger binds of a run: hashes of its model, facts, results and releases. Raises for an unknown one."""
    with book.view() as (_, state):
        return bound_of(state, run)


def bound_of(state: State, run: str) -> Bound:
    """What the entries that made this state bind of a run."""
    found = rules.run(state, run)
    return Bound(
        run=found.id,
        cohort=found.cohort,
        status=found.status,
        closing=(found.closing[0], found.closing[1]) if found.closing else None,
        model=found.model,
        facts=found.facts,
        results=tuple(
            Result(done["seq"], done["purpose"], done["cohort"], dict(done["sha256"])) for done in found.results
        ),
        releases=tuple(_released(release) for release in found.releases),
    )


def _released(release: Json) -> Released:
    values = {name: release[name] for name in ReleaseTerms.__dataclass_fields__}
    items, accepted = (tuple(values.pop(name)) for name in ("items", "accepted"))
    entry, digest, time = itemgetter("seq", "hash", "time")(release)
    return Released(entry=entry, hash=digest, time=time, terms=ReleaseTerms(items=items, accepted=accepted, **values))


def weights(book: Book, sha256: str) -> WeightsSource | None:
    """What the ledger knows about a weights file: a declared one, a run's model, or None."""
    with book.view() as (_, state):
        if sha256 in state.weights:
            return WeightsSource(sha256)
        if sha256 in state.models:
            return WeightsSource(sha256, state.models[sha256])
        return None


def entries(book: Book) -> list[Entry]:
    """Every entry, oldest first. `sealed` is for the steward alone."""
    with book.view() as (connection, _):
        rows = connection.execute(sa.select(store.entries).order_by(store.entries.c.seq))
        return [read_entry(row) for row in rows]


def approvers(book: Book) -> list[Approver]:
    """Whose signatures count now, in the order in which their keys were named."""
    with book.view() as (_, state):
        return sorted(state.approvers.values(), key=lambda approver: approver.seq)


def controller(book: Book) -> dict[str, str | None] | None:
    """The controller of the processing: name, represented_by, contact; None where nobody named it."""
    with book.view() as (_, state):
        return None if state.person is None else dict(state.person)


def signed_by(book: Book, entry: Entry) -> list[str]:
    """Who signed an entry beside the site, by name and role as the ledger knows them now, or knew them last."""
    if entry.countersignature is None:
        return []
    if entry.version == 1:
        return ["controller"]
    with book.view() as (_, state):
        names = {approver.public: f"{approver.name} ({approver.role})" for approver in state.approvers.values()}
        names = {state.recovery: "recovery code", **state.retired, **names}
        signatures = Approval.from_bytes(entry.countersignature).signatures
        return [names.get(signature.public, f"key {signature.public[:16]}…") for signature in signatures]


def binding(book: Book, cohort: str, fingerprint: str) -> Json | None:
    """How the data of this version are to be read, as it was registered; None where nothing was bound.

    Raises LedgerRefused for data that are not registered.
    """
    with book.view() as (_, state):
        return rules.version(state, cohort, fingerprint).binding
