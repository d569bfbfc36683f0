"""What runs are charged: reserve, resume, admit; and what their grants pay and how they end."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sqlalchemy.engine import Connection

from dptrain.errors import ConfigError, LedgerRefused
from dptrain.ledger import gate, members, rules
from dptrain.ledger.book import Book
from dptrain.ledger.chain import sign_head
from dptrain.ledger.charges import Charge, charge_of
from dptrain.ledger.checks import check_hashes, check_name, check_sha, check_texts, whole
from dptrain.ledger.facts import Ending, GateFacts, Receipt, WeightsSource
from dptrain.ledger.grants import Grant, charged, default_lease
from dptrain.ledger.kinds import Admit, Calibrate, Close, Commit, Finish, Reserve, Resume
from dptrain.ledger.state import ADJACENCY, Budget, RunState, State, Version
from dptrain.plan import Mechanism, Plan
from dptrain.vocabulary import CLOSED, Basis, Purpose, RunStatus


def reserve(
    book: Book,
    plan: Plan,
    cohort: str,
    *,
    run: str,
    fingerprint: str,
    weights: WeightsSource | None = None,
    lease: int | None = None,
) -> Grant:
    """Set a plan's whole charge aside and grant the run.

    Whether it is granted depends on the public charges of the cohort and its declared overlaps alone.

    Args:
        run: a name that no run of this ledger has had.
        fingerprint: of the data as they are now (:func:`fingerprint`); must be a registered version's.
        weights: where the starting weights come from; None: random.
        lease: steps paid at once; None: :func:`default_lease`.

    Raises LedgerRefused (exit code 3) with who owns the cohort, what was granted, what was spent by which
    runs and what to do.
    """
    check_name("run", run)
    lease = default_lease(plan.steps) if lease is None else min(whole("lease", lease, least=1), plan.steps)
    charge = charge_of(plan.mechanisms)
    heads = book.heads()
    with book.write() as (connection, state):
        book.descends(connection, state, heads)
        book.check_members(connection, state)
        version = rules.version(state, cohort, fingerprint)
        if run in state.runs:
            raise LedgerRefused(
                f"The run '{run}' is in the ledger already.",
                remedy="Name the new run differently, or continue the old one with training.resume=….",
            )
        rules.check_plan(plan, version)
        inherited = rules.check_weights(state, weights)
        if Purpose.EVALUATE in plan.declares:
            rules.check_unseen(state, version, inherited)
        before = rules.gate_facts(state, cohort)
        budget = rules.afford(state, version, plan, charge)
        excluded = gate.excluded_classes(state, version, budget, charge, plan.steps)
        keys, barred = _excluded(connection, state, version, excluded, budget, charge, plan.steps)
        body = Reserve(
            run=run,
            cohort=cohort,
            version=version.id,
            budget=None if budget is None else budget.id,
            plan=plan.to_dict(),
            charge=charge.to_dict(),
            weights=None if weights is None else {"sha256": weights.sha256, "run": weights.run},
            inherited=tuple(inherited),
            lease=lease,
            nonce=os.urandom(16).hex(),
            classes=tuple(excluded),
            units=tuple(barred),
        )
        book.add(connection, body)
        gate_facts = replace(rules.gate_facts(state, cohort), spent_before=before.spent_before)
        return _grant(book, state, state.runs[run], keys, gate_facts)


def resume(book: Book, run: str) -> Grant:
    """Go on with a run that died: it continues after the last paid lease; lost steps are skipped and paid.

    From now on the earlier process, should it still live, can neither pay nor close.
    """
    heads = book.heads()
    with book.write() as (connection, state):
        book.descends(connection, state, heads)
        book.check_members(connection, state)
        died = state.runs.get(run)
        if died is None:
            raise LedgerRefused(f"The ledger knows no run '{run}'.")
        if died.status != RunStatus.OPEN:
            raise LedgerRefused(
                f"The run '{run}' was closed ({died.status}) and cannot go on.", remedy="Reserve a new run."
            )
        book.add(connection, Resume(run=run, attempt=died.attempt + 1))
        keys = _left_out(connection, state, state.version_of(died), died)
        return _grant(book, state, died, keys, rules.gate_facts(state, died.cohort))


def _grant(book: Book, state: State, run: RunState, keys: set[bytes], gate_facts: GateFacts) -> Grant:
    """The grant of a training run as it stands."""
    return Grant(
        Till(book),
        id=run.seq,
        version=state.version_of(run),
        run=run.id,
        purpose=Purpose.TRAIN,
        plan=Plan.from_dict(run.plan),
        excluded=frozenset(keys),
        committed=run.committed,
        lease=run.lease,
        attempt=run.attempt,
        inherited=tuple(run.inherited),
        gate=gate_facts,
        basis=Basis.PUBLIC if run.budget is None else Basis.BUDGET,
    )


def admit(book: Book, cohort: str, *, purpose: str, run: str, fingerprint: str) -> Grant:
    """Grant an evaluation or audit; it charges nothing and is recorded.

    What a run's plan declares belongs to that run, once, even when the cohort is locked meanwhile. Anything
    else is a new request: refused on a locked cohort, unless the controller permitted it.
    """
    check_name("run", run)
    if purpose not in (Purpose.EVALUATE, Purpose.AUDIT):
        raise LedgerRefused(
            f"'{purpose}' is no purpose to be admitted for: evaluate or audit.",
            remedy="Training is reserved with a plan.",
        )
    heads = book.heads()
    with book.write() as (connection, state):
        book.descends(connection, state, heads)
        book.check_members(connection, state)
        version = rules.version(state, cohort, fingerprint)
        trained = state.runs.get(run)
        if purpose == Purpose.EVALUATE and trained is not None:
            rules.check_unseen(state, version, trained.inherited)
        basis, permit = rules.basis(state, version, purpose, trained, run)
        body = Admit(cohort=cohort, version=version.id, run=run, purpose=purpose, basis=basis, permit=permit)
        entry = book.add(connection, body)
        keys = _left_out(connection, state, version, trained)
        if purpose == Purpose.EVALUATE and trained is not None and not rules.ungated(state, version):
            keys |= _drawn_elsewhere(connection, state, version, trained)
        return Grant(
            Till(book),
            id=entry.seq,
            version=version,
            run=run,
            purpose=purpose,
            plan=None if trained is None else Plan.from_dict(trained.plan),
            excluded=frozenset(keys),
            committed=0,
            lease=1,
            attempt=1,
            inherited=(),
            gate=rules.gate_facts(state, cohort),
            basis=basis,
        )


class Till:
    """Where grants of one book pay and end (:class:`dptrain.ledger.grants.Payer`)."""

    def __init__(self, book: Book) -> None:
        self.book = book

    def pay(self, grant: Grant, through: int) -> None:
        """Commit all steps below `through`, durably."""
        with self.book.write() as (connection, state):
            run = _own(state, grant)
            if through > run.committed:
                self.book.add(connection, Commit(run=grant.run, attempt=grant.attempt, through=int(through)))

    def begin_calibration(self, grant: Grant) -> None:
        """Record that the run's one calibration is about to be drawn."""
        with self.book.write() as (connection, state):
            run = _own(state, grant)
            if run.plan["calibration_noise_multiplier"] is None:
                raise LedgerRefused(f"The plan of run '{grant.run}' declares no calibration.")
            if run.committed == 0:
                raise LedgerRefused(f"The calibration of run '{grant.run}' is not paid: no step is.")
            if run.calibrated:
                raise LedgerRefused(
                    f"The calibration of run '{grant.run}' was begun already: one charge, one draw.",
                    remedy="Use what it gave, go without, or reserve a new run.",
                )
            self.book.add(connection, Calibrate(run=grant.run, attempt=grant.attempt))

    def standing(self, grant: Grant) -> RunState:
        """What the ledger holds about the grant's run."""
        with self.book.view() as (_, state):
            return replace(rules.run(state, grant.run))

    def finish(self, grant: Grant, how: str, results: Mapping[str, str]) -> None:
        """End an evaluation or audit; `results`: name -> SHA-256 of what it wrote."""
        _check_end(how)
        check_hashes("result", results)
        with self.book.write() as (connection, state):
            admission = state.admissions.get(grant.id)
            if admission is None or not admission.open:
                raise LedgerRefused(f"The ledger holds no open grant to {grant.purpose} for '{grant.run}'.")
            self.book.add(connection, Finish(admission=grant.id, status=how, results=dict(results)))

    def close(self, grant: Grant, ending: Ending) -> Receipt:
        """End a training; what never began goes back on open budgets."""
        _check_end(ending.status)
        plan = grant.plan
        if plan is None:
            raise LedgerRefused(f"The grant of run '{grant.run}' has no plan.")
        if not 0 <= ending.steps_run <= grant.committed:
            raise LedgerRefused(f"{ending.steps_run} steps ran, but {grant.committed} were paid: this must not be.")
        for sha256 in (ending.model, ending.facts):
            if sha256 is not None:
                check_sha(sha256)
        check_texts("a close", note=ending.note)
        for purpose in ending.did:
            if purpose not in plan.declares:
                raise LedgerRefused(f"the plan of '{grant.run}' does not declare '{purpose}'.")
        paid = self.standing(grant)
        mechanisms = charged(plan, paid.steps if paid.planned else paid.committed)
        epsilon = _pld(mechanisms, plan.delta)
        with self.book.write() as (connection, state):
            run = _own(state, grant)
            before = rules.gate_facts(state, grant.cohort)
            body = Close(
                run=grant.run,
                attempt=grant.attempt,
                status=ending.status,
                steps_run=ending.steps_run,
                committed=run.committed,
                epsilon_pld=epsilon,
                model=ending.model,
                facts=ending.facts,
                did=tuple(sorted(set(ending.did))),
                note=ending.note,
            )
            self.book.add(connection, body)
            after = rules.gate_facts(state, grant.cohort)
            return Receipt(
                run=grant.run,
                cohort=grant.cohort,
                status=ending.status,
                steps_run=ending.steps_run,
                steps_charged=run.steps_charged,
                steps_planned=plan.steps,
                epsilon_pld=epsilon,
                delta=plan.delta,
                unit=plan.unit,
                adjacency=ADJACENCY,
                mechanisms=mechanisms,
                rest_charged=run.rest is not None and run.steps_charged > 0,
                gate=replace(after, spent_before=before.spent_before),
                head=sign_head(self.book.keys, state.seq, bytes.fromhex(state.hash)),
            )


def _check_end(how: str) -> None:
    if how not in CLOSED:
        raise ConfigError(f"a run ends 'complete' or 'interrupted', not '{how}'.")


def _own(state: State, grant: Grant) -> RunState:
    """The open run of this grant's attempt. Raises LedgerRefused where somebody else has it, or it ended."""
    run = state.runs.get(grant.run)
    if run is None or run.seq != grant.id:
        raise LedgerRefused(f"The ledger holds no grant for the run '{grant.run}'.")
    if run.status != RunStatus.OPEN:
        raise LedgerRefused(f"The run '{grant.run}' was closed elsewhere.")
    if run.attempt != grant.attempt:
        raise LedgerRefused(f"The run '{grant.run}' was resumed elsewhere; this process must stop.")
    return run


def _excluded(
    connection: Connection,
    state: State,
    version: Version,
    classes: Sequence[int],
    budget: Budget | None,
    charge: Charge,
    steps: int,
) -> tuple[set[bytes], list[int]]:
    """Keys to leave out: of barred classes, and of persons known under several keys; and those units."""
    keys = members.keys_in(connection, classes)
    barred = []
    if state.links:
        for unit, pairs in members.units(connection).items():
            here = [key for key, klass in pairs if klass and version.id in state.classes[klass].versions]
            if here and (
                len(here) > 1 or gate.bars(state, [klass for _, klass in pairs], version, budget, charge, steps)
            ):
                barred.append(unit)
                keys.update(here)
    return keys, barred


def _drawn_elsewhere(connection: Connection, state: State, version: Version, run: RunState) -> set[bytes]:
    """This version's keys of everybody in another cohort from which an earlier run of the weights may have drawn."""
    others = {state.runs[name].version for name in run.inherited if state.runs[name].cohort != version.cohort}
    classes = [
        klass.id for klass in state.classes.values() if version.id in klass.versions and others & set(klass.versions)
    ]
    return members.keys_in(connection, classes)


def _left_out(connection: Connection, state: State, version: Version, run: RunState | None) -> set[bytes]:
    """This version's keys of everybody who withdrew, under this key or any other, and of whom `run` left out."""
    gone = {klass.id for klass in state.classes.values() if klass.withdrawn}
    classes = [number for number in gone if version.id in state.classes[number].versions]
    linked = members.units(connection) if state.links else {}
    units = {unit for unit, pairs in linked.items() if any(klass in gone for _, klass in pairs)}
    if run is not None and run.version == version.id:
        classes += gate.excluded_now(state, run)
        units.update(run.excluded_units)
        merged = [unit for unit in run.excluded_units if unit not in linked]
        if merged:  # into a unit of a lower number since; which of them nobody wrote down: all of them stay out
            units.update(unit for unit in linked if unit < max(merged))
    return members.keys_in(connection, classes) | {
        key
        for unit in units
        for key, klass in linked.get(unit, [])
        if klass and version.id in state.classes[klass].versions
    }


@functools.lru_cache(maxsize=256)
def _pld(mechanisms: tuple[Mechanism, ...], delta: float) -> float | None:
    """Joint PLD epsilon of a run alone; 0 for nothing, None where it is infinite."""
    if not mechanisms:
        return 0.0
    if any(mechanism.noise_multiplier == 0 for mechanism in mechanisms):
        return None
    from dptrain import accounting

    try:
        value = float(accounting.pld_epsilon(mechanisms, delta))
    except ConfigError:
        return None  # a figure for people; a run must always be able to close
    return value if math.isfinite(value) else None
