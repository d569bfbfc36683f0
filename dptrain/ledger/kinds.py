"""The kinds of entries: what each holds, who must sign it, what it changes, how it reads.

:data:`KINDS` is the one table: a new kind is one class here, and nothing else in the ledger names kinds.
:func:`apply` is the only place where an entry changes anything. The gate, the status, the snapshot and `verify`
all read the state that it makes, so they cannot disagree. An entry that it does not understand, or that could
not have been written by this program in that state, raises LedgerRefused: no grant is given on such a ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

from dptrain.errors import ConfigError, LedgerRefused
from dptrain.ledger.approvals import DEFAULT, FOUNDING, Approval, Role, day_of, over, within_reach
from dptrain.ledger.bodies import Body, fields_of, sealed
from dptrain.ledger.chain import Entry
from dptrain.ledger.charges import ORDERS_VERSIONS, Charge
from dptrain.ledger.checks import check_day
from dptrain.ledger.signing import Algorithm, check_public
from dptrain.ledger.state import (
    ADJACENCY,
    Admission,
    Approver,
    Budget,
    Change,
    CohortState,
    Declared,
    PatientClass,
    Permit,
    Rule,
    RunState,
    State,
    Version,
    Weights,
)
from dptrain.plain import Json
from dptrain.plan import Plan
from dptrain.vocabulary import CLOSED, Basis, BudgetKind, RunStatus

B = TypeVar("B", bound=Body)
CONTROLLER = "controller"  # the name of the approver whose key is made with the site's
KINDS: dict[str, type[Body]] = {}


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field, sealed))
def kind(name: str, *, countersigned: bool = False) -> Callable[[type[B]], type[B]]:
    """Make a class of fields a body and put it into :data:`KINDS`; `countersigned`: the controller signs it too."""

    def enter(cls: type[B]) -> type[B]:
        body = dataclass(frozen=True, kw_only=True)(cls)
        body.KIND, body.COUNTERSIGNED = name, countersigned
        body.FIELDS = fields_of(body)
        KINDS[name] = body
        return body

    return enter


class Unsound(LedgerRefused):
    """An entry that no sound ledger holds at this place."""


def read(entry: Entry) -> Body:
    """What an entry says. Raises LedgerRefused for an unknown kind, or fields that its kind does not have."""
    body = KINDS.get(entry.kind)
    if body is None:
        raise Unsound(
            f"Entry {entry.seq} of the ledger is of the kind '{entry.kind}', which this program does not know.",
            remedy="Use the newer program that wrote it.",
        )
    try:
        return body.read(entry.facts, entry.secrets)
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(entry, error) from None


def apply(state: State, entry: Entry) -> None:
    """Fold one entry (already checked for hash and signatures) into the state, in place.

    Raises LedgerRefused for an unknown kind, unit of adjacency, grid of orders, or an entry that contradicts
    the ones before it. The state is then unusable.
    """
    _need(entry.seq == state.seq + 1, entry, "its number does not follow")
    body = read(entry)
    _need(entry.kind == "genesis" or state.seq > 0, entry, "the ledger does not begin with its founding entry")
    try:
        body.apply(state, entry)
    except (ConfigError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise _unreadable(entry, error) from None
    if entry.version > 1 and entry.countersignature is not None:
        state.nonces[Approval.from_bytes(entry.countersignature).decision.nonce] = entry.seq
    state.seq, state.hash, state.version = entry.seq, entry.hash.hex(), entry.version
    state.time = max(state.time, entry.time)


def needs_controller(entry_kind: str) -> bool:
    """Whether entries of this kind need the controller's signature, whatever they hold."""
    return entry_kind in KINDS and KINDS[entry_kind].COUNTERSIGNED


def keys_for(state: State, entry: Entry) -> tuple[str, tuple[str, ...]]:
    """The public keys that must have signed an entry: (site, controllers)."""
    if entry.kind == Genesis.KIND:
        return str(entry.facts["site_public"]), ()
    site = state.site_keys[-1]
    if entry.kind == Rotate.KIND:
        facts = entry.facts
        if facts["what"] == "site":
            site = str(facts["public"])
        return site, (state.controller, state.recovery)
    return site, (state.controller,)


def _need(condition: bool, entry: Entry, what: str) -> None:
    if not condition:
        raise Unsound(f"Entry {entry.seq} of the ledger ({entry.kind}) cannot stand here: {what}.")


def _unreadable(entry: Entry, error: Exception) -> Unsound:
    return Unsound(
        f"Entry {entry.seq} of the ledger ({entry.kind}) lacks something or holds something unknown "
        f"({type(error).__name__})."
    )


# -- the site and its keys ---------------------------------------------------------------------------------------


@kind("genesis")
class Genesis(Body):
    """The first entry: whose ledger this is."""

    site: str
    site_public: str
    controller_public: str
    recovery_public: str
    secret_check: str
    program: str
    schema: str

    def apply(self, state: State, entry: Entry) -> None:
        """Names the keys in force."""
        _need(entry.seq == 1, entry, "a ledger is founded once")
        state.site = self.site
        state.site_keys = [self.site_public]
        _name_controller(state, entry, self.controller_public)
        state.recovery = self.recovery_public
        state.secret_check = self.secret_check

    def tell(self, plan: Plan | None) -> str:
        """Whose it is."""
        return f"site {self.site[:8]}…"


@kind("rotate", countersigned=True)
class Rotate(Body):
    """A key replaced: `what` is site, controller, recovery or secret. `public`: the new key, but for the secret."""

    what: str
    public: str | None = None
    secret_check: str | None = None
    nonce: str | None = sealed(default=None)
    patients_digest: str | None = sealed(default=None)
    records_digest: str | None = sealed(default=None)

    def apply(self, state: State, entry: Entry) -> None:
        """Names the new key; under a new secret no cohort's fingerprint holds any more."""
        if self.what == "secret":
            state.secret_check = _present(self.secret_check)
            for version in state.versions:
                version.fingerprint = f"under an earlier secret: {version.fingerprint}"
            _need(all(run.status != RunStatus.OPEN for run in state.runs.values()), entry, "runs were open")
            _digests(state, _present(self.patients_digest), _present(self.records_digest))
            return
        public = _present(self.public)
        if self.what == "site":
            state.site_keys.append(public)
        elif self.what == "controller":
            _name_controller(state, entry, public)
        elif self.what == "recovery":
            state.recovery = public
        else:
            raise Unsound(f"Entry {entry.seq} of the ledger rotates something unknown.")

    def tell(self, plan: Plan | None) -> str:
        """Which key."""
        return f"new {self.what} key"


def _name_controller(state: State, entry: Entry, public: str) -> None:
    if state.controller:
        state.retired[state.controller] = CONTROLLER
    state.controller = public
    state.approvers[CONTROLLER] = Approver(CONTROLLER, Role.CONTROLLER, public, Algorithm.ED25519, entry.seq)


@kind("approver", countersigned=True)
class NameApprover(Body):
    """Somebody whose signature counts from now on, a new key of theirs, or (`public` None) no more."""

    name: str
    role: str
    public: str | None
    algorithm: str
    reason: str

    def apply(self, state: State, entry: Entry) -> None:
        """In force, or retired; every rule must stay within reach."""
        _need(self.name != CONTROLLER, entry, "the controller's own key is replaced by a rotation")
        _need(self.role in list(Role), entry, f"the role '{self.role}' is unknown")
        before = state.approvers.pop(self.name, None)
        _need(before is not None or self.public is not None, entry, "nobody of this name is an approver")
        if before is not None:
            state.retired[before.public] = before.name
        if self.public is not None:
            check_public(self.algorithm, self.public)
            used = {approver.public for approver in state.approvers.values()} | {state.recovery, *state.site_keys}
            _need(self.public not in used | {*state.retired}, entry, "its key is, or was, another one's")
            state.approvers[self.name] = Approver(self.name, self.role, self.public, self.algorithm, entry.seq)
        _need_reach(state, entry)

    def tell(self, plan: Plan | None) -> str:
        """Who, as what, and why."""
        if self.public is None:
            return f"{self.name} ({self.role}) signs no more: {self.reason}"
        return f"{self.name} signs as {self.role}, {self.algorithm} {self.public[-16:]}: {self.reason}"


@kind("rule", countersigned=True)
class SetRule(Body):
    """How many must sign entries of a kind, and how many of which role."""

    kind: str
    signatures: int
    roles: dict[str, int]
    reason: str

    def apply(self, state: State, entry: Entry) -> None:
        """In force from the next entry on."""
        _need(self.kind in RULED, entry, f"there is no rule for the kind '{self.kind}'")
        _need(set(self.roles) <= {*Role} and all(n > 0 for n in self.roles.values()), entry, "its roles are unknown")
        _need(self.signatures >= max(1, sum(self.roles.values())), entry, "it asks for fewer than it names")
        state.rules[self.kind] = Rule(self.signatures, dict(self.roles))
        _need_reach(state, entry)

    def tell(self, plan: Plan | None) -> str:
        """What it asks for."""
        roles = "".join(f", {number} by a {role}" for role, number in sorted(self.roles.items()))
        plural = "" if self.signatures == 1 else "s"
        return f"a {self.kind} needs {self.signatures} signature{plural}{roles}: {self.reason}"


def _need_reach(state: State, entry: Entry) -> None:
    for rule in (DEFAULT, *state.rules.values()):
        _need(within_reach(rule, [*state.approvers.values()]), entry, "a rule could never be met again")


def _present(value: str | None) -> str:
    if value is None:
        raise ValueError("missing")
    return value


# -- cohorts and patients ----------------------------------------------------------------------------------------


@kind("register")
class Register(Body):
    """A version of a cohort. `classes`: [class before, class now] of the patients in it.

    binding: how the data are read (columns, rule of the split, salt, groups); None in entries of earlier programs.
    """

    name: str
    version: int
    unit: str
    adjacency: str
    issuer: str
    public_size: int
    owner: str
    fingerprint: str
    public: dict[str, str] | None
    overlaps: tuple[str, ...]
    cautions: tuple[str, ...]
    binding: Json | None = None
    nonce: str = sealed()
    classes: tuple[tuple[int, int], ...] = sealed()
    links: int = sealed()
    patients_digest: str = sealed()
    records_digest: str = sealed()

    def apply(self, state: State, entry: Entry) -> None:
        """One more version, its overlaps, and the classes of its patients."""
        _need(self.adjacency == ADJACENCY, entry, f"the adjacency '{self.adjacency}' is unknown")
        _need(self.public is None or entry.countersignature is not None, entry, "a public cohort needs a signature")
        cohort = state.cohorts.setdefault(self.name, CohortState(self.name))
        _need(self.version == len(cohort.versions) + 1, entry, "its version does not follow")
        _need(self.public_size >= 1, entry, "its size is not positive")
        version = Version(
            id=len(state.versions),
            cohort=self.name,
            number=self.version,
            fingerprint=self.fingerprint,
            public_size=self.public_size,
            unit=self.unit,
            owner=self.owner,
            issuer=self.issuer,
            public=self.public,
            cautions=list(self.cautions),
            seq=entry.seq,
            time=entry.time,
            binding=self.binding,
        )
        state.versions.append(version)
        cohort.versions.append(version.id)
        for name in self.overlaps:
            other = state.cohorts[name]
            _need(name != self.name, entry, "a cohort does not overlap with itself")
            cohort.overlaps = sorted({*cohort.overlaps, name})
            other.overlaps = sorted({*other.overlaps, self.name})
        for old, new in self.classes:
            _need(new not in state.classes and (old == 0 or old in state.classes), entry, "its classes do not follow")
            before = state.classes.get(old)
            state.classes[new] = PatientClass(
                id=new,
                parent=old,
                versions=[*(before.versions if before else []), version.id],
                withdrawn=before.withdrawn if before else False,
                seq=entry.seq,
            )
        state.links = self.links
        _digests(state, self.patients_digest, self.records_digest)

    def tell(self, plan: Plan | None) -> str:
        """Version, size, owner."""
        public = "; public" if self.public else ""
        return f"version {self.version}, N = {self.public_size} {self.unit}s, owner {self.owner}{public}"


@kind("withdraw")
class Withdraw(Body):
    """A patient left out from now on. `classes`: [class before, withdrawn class] of each of the person's keys."""

    nonce: str = sealed()
    classes: tuple[tuple[int, int], ...] = sealed()
    patients_digest: str = sealed()
    records_digest: str = sealed()

    def apply(self, state: State, entry: Entry) -> None:
        """The withdrawn classes."""
        for old, new in self.classes:
            before = state.classes.get(old)
            if new in state.classes:
                same = state.classes[new]
                _need(same.withdrawn and same.parent == old, entry, "its classes do not follow")
                continue
            versions = list(before.versions) if before else []
            state.classes[new] = PatientClass(new, old, versions, True, entry.seq)
        _digests(state, self.patients_digest, self.records_digest)

    def tell(self, plan: Plan | None) -> str:
        """That somebody did, and nothing more."""
        return "a patient is left out from now on"


def _digests(state: State, patients: str, records: str) -> None:
    state.patients_digest = int(patients, 16)
    state.records_digest = int(records, 16)


# -- the controller's decisions ----------------------------------------------------------------------------------


@kind("budget", countersigned=True)
class SignedBudget(Body):
    """(epsilon, delta) for a cohort and its lineage. `changes`: the open budget that it changes."""

    cohort: str
    unit: str
    adjacency: str
    kind: str
    epsilon: float
    delta: float
    order: float
    order_index: int
    orders_version: int
    units: int
    minimum_charge: float
    minimum_units: int
    declared: list[Declared]
    prefixes: list[float]
    reason: str
    advice: str | None
    changes: int | None
    last_day: str | None = None

    def apply(self, state: State, entry: Entry) -> None:
        """A new budget, or new terms of the open one."""
        cohort = state.cohorts[self.cohort]
        _need(self.adjacency == ADJACENCY, entry, f"the adjacency '{self.adjacency}' is unknown")
        _need(self.unit == state.newest(cohort.name).unit, entry, "its unit is not the cohort's")
        _need(self.orders_version in ORDERS_VERSIONS, entry, "its grid of RDP orders is unknown")
        _need(self.kind in list(BudgetKind), entry, f"the kind '{self.kind}' of budget is unknown")
        budget = self._changed(state, cohort, entry) if self.changes is not None else self._new(state, cohort, entry)
        check_day(self.last_day)
        budget.epsilon, budget.delta, budget.last_day = self.epsilon, self.delta, self.last_day
        budget.units = self.units
        budget.minimum_charge = self.minimum_charge
        budget.minimum_units = self.minimum_units
        budget.signed.append(
            {
                "seq": entry.seq,
                "time": entry.time,
                "epsilon": self.epsilon,
                "delta": self.delta,
                "reason": self.reason,
                "advice": self.advice,
            }
        )

    def _changed(self, state: State, cohort: CohortState, entry: Entry) -> Budget:
        budget = state.budgets[self.changes or 0]
        fits = budget.cohort == cohort.name and budget.kind == self.kind == BudgetKind.OPEN
        _need(fits, entry, "it changes no open budget")
        _need(budget.order == self.order, entry, "a raise must keep its order")
        return budget

    def _new(self, state: State, cohort: CohortState, entry: Entry) -> Budget:
        alone = self.kind == BudgetKind.PLANNED or all(
            state.budgets[b].kind != BudgetKind.OPEN for b in cohort.budgets
        )
        _need(alone, entry, "the cohort has an open budget already")
        budget = Budget(
            id=entry.seq,
            cohort=cohort.name,
            kind=self.kind,
            epsilon=0.0,
            delta=0.0,
            order=self.order,
            order_index=self.order_index,
            units=0,
            minimum_charge=0.0,
            minimum_units=0,
            declared=self.declared,
            prefixes=self.prefixes,
            signed=[],
        )
        state.budgets[budget.id] = budget
        cohort.budgets.append(budget.id)
        return budget

    def tell(self, plan: Plan | None) -> str:
        """Its terms and why."""
        text = f"{self.kind} ε = {self.epsilon:g}, δ = {self.delta:.2g}, {self.unit}, add/remove"
        by = f"RDP of order {self.order:g}" if self.kind == BudgetKind.OPEN else "joint PLD"
        until = f", until {self.last_day}" if self.last_day else ""
        return f"{'changed to ' if self.changes else ''}{text}, by {by}{until}: {self.reason}"


@kind("weights", countersigned=True)
class DeclareWeights(Body):
    """Starting weights that are public."""

    sha256: str
    source: str
    licence: str

    def apply(self, state: State, entry: Entry) -> None:
        """Runs may start from them."""
        state.weights[self.sha256] = Weights(self.sha256, self.source, self.licence, entry.seq)

    def tell(self, plan: Plan | None) -> str:
        """Which, and from where."""
        return f"{self.sha256[:12]}… {self.source} ({self.licence})"


@kind("permit", countersigned=True)
class Permission(Body):
    """Leave for one evaluation or audit of a locked cohort. `run` None: whichever comes first."""

    purpose: str
    cohort: str
    run: str | None
    reason: str
    last_day: str | None = None

    def apply(self, state: State, entry: Entry) -> None:
        """One permission more, unused."""
        _need(self.cohort in state.cohorts, entry, "its cohort is unknown")
        check_day(self.last_day)
        permit = Permit(entry.seq, self.purpose, self.cohort, self.run, self.reason, last_day=self.last_day)
        state.permits[entry.seq] = permit

    def tell(self, plan: Plan | None) -> str:
        """Why."""
        return self.reason


@kind("revoke", countersigned=True)
class Revoke(Body):
    """A permission withdrawn before it was used."""

    permit: int
    reason: str

    def apply(self, state: State, entry: Entry) -> None:
        """It admits nothing any more."""
        permit = state.permits[self.permit]
        _need(not permit.used and not permit.withdrawn, entry, "its permission was used or withdrawn before")
        permit.withdrawn = True

    def tell(self, plan: Plan | None) -> str:
        """Which, and why."""
        return f"permission {self.permit} is withdrawn: {self.reason}"


@kind("controller", countersigned=True)
class NameController(Body):
    """The controller of the processing: the legal person, and who represents it."""

    name: str
    represented_by: str
    contact: str | None

    def apply(self, state: State, entry: Entry) -> None:
        """Named from now on."""
        state.person = {"name": self.name, "represented_by": self.represented_by, "contact": self.contact}

    def tell(self, plan: Plan | None) -> str:
        """Who."""
        return f"{self.name}, represented by {self.represented_by}"


@kind("lock")
class Lock(Body):
    """A cohort closed by hand."""

    cohort: str
    reason: str

    def apply(self, state: State, entry: Entry) -> None:
        """Nothing is granted on it."""
        state.cohorts[self.cohort].lock = self.reason

    def tell(self, plan: Plan | None) -> str:
        """Why."""
        return self.reason


@kind("unlock", countersigned=True)
class Unlock(Body):
    """A lock by hand taken back."""

    cohort: str
    reason: str

    def apply(self, state: State, entry: Entry) -> None:
        """The budget alone decides again."""
        state.cohorts[self.cohort].lock = None

    def tell(self, plan: Plan | None) -> str:
        """Why."""
        return self.reason


@kind("release", countersigned=True)
class Release(Body):
    """Results of a run that may leave the house.

    hashes: SHA-256 of each file that is released, and of the assessment under `assessment`. accept_exposed: the
    exposed share of the audit that the controller signs for. without_audit, without_advice: why there is none.
    accepted: the open checks that the controller accepts, by name. `purpose` is missing in entries of before 0.1,
    what follows `advice` in those of before 0.2.
    """

    run: str
    items: tuple[str, ...]
    recipient: str
    purpose: str | None = None
    advice: str | None
    hashes: dict[str, str] = field(default_factory=dict)
    assessment: str | None = None
    accept_exposed: float | None = None
    without_audit: str | None = None
    without_advice: str | None = None
    accepted: tuple[str, ...] = ()
    last_day: str | None = None

    def apply(self, state: State, entry: Entry) -> None:
        """The run knows that it was released."""
        _need(self.run in state.runs, entry, "its run is unknown")
        run = state.runs[self.run]
        run.releases = [
            *run.releases,
            {"seq": entry.seq, "hash": entry.hash.hex(), "time": entry.time, **self.shown()},
        ]

    def tell(self, plan: Plan | None) -> str:
        """What, to whom, what for."""
        purpose = f" for {self.purpose}" if self.purpose else ""
        return f"{', '.join(self.items)} to {self.recipient}{purpose}"


# -- what runs cost ----------------------------------------------------------------------------------------------


@kind("reserve")
class Reserve(Body):
    """A run's whole charge set aside. `classes` and `units`: whom it leaves out."""

    run: str
    cohort: str
    version: int
    budget: int | None
    plan: Json
    charge: Json
    weights: Json | None
    inherited: tuple[str, ...]
    lease: int
    nonce: str = sealed()
    classes: tuple[int, ...] = sealed()
    units: tuple[int, ...] = sealed()

    def apply(self, state: State, entry: Entry) -> None:
        """An open run."""
        _need(self.run not in state.runs, entry, "its run exists already")
        plan = Plan.from_dict(self.plan)
        version = state.versions[self.version]
        _need(version.cohort == self.cohort, entry, "its version belongs to another cohort")
        _need(plan.unit == version.unit, entry, "its unit is not the cohort's")
        charge = Charge.from_dict(self.charge)
        budget = None if self.budget is None else state.budgets[self.budget]
        _need(budget is None or budget.cohort == version.cohort, entry, "its budget belongs to another cohort")
        _need(budget is not None or version.public is not None, entry, "it has no budget")
        run = RunState(
            id=self.run,
            seq=entry.seq,
            time=entry.time,
            cohort=version.cohort,
            version=version.id,
            budget=self.budget,
            planned=budget is not None and budget.kind == BudgetKind.PLANNED,
            plan=self.plan,
            step=charge.step,
            rest=charge.rest,
            excluded=list(self.classes),
            excluded_units=list(self.units),
            weights=self.weights,
            inherited=list(self.inherited),
            lease=self.lease,
        )
        state.runs[run.id] = run
        state.changes.append(Change(run, 0, run.steps_charged))

    def tell(self, plan: Plan | None) -> str:
        """Steps, noise, batch."""
        own = Plan.from_dict(self.plan)
        return f"{own.steps} steps, noise {own.noise_multiplier:.4g}, batch {own.expected_batch_size}"


@kind("commit")
class Commit(Body):
    """A lease paid: all steps below `through`."""

    run: str
    attempt: int
    through: int

    def apply(self, state: State, entry: Entry) -> None:
        """So many steps are paid."""
        run = _open_run(state, entry, self.run, self.attempt)
        _need(run.committed < self.through <= run.steps, entry, "it commits steps outside its grant")
        run.committed = self.through

    def tell(self, plan: Plan | None) -> str:
        """How far."""
        return f"steps below {self.through} paid"


@kind("calibrate")
class Calibrate(Body):
    """The calibration of a run is about to be drawn, once."""

    run: str
    attempt: int

    def apply(self, state: State, entry: Entry) -> None:
        """It is never begun again."""
        run = _open_run(state, entry, self.run, self.attempt)
        _need(run.plan["calibration_noise_multiplier"] is not None, entry, "its run declares no calibration")
        _need(run.committed > 0 and not run.calibrated, entry, "its calibration is not paid, or was begun before")
        run.calibrated = True

    def tell(self, plan: Plan | None) -> str:
        """That it begins."""
        return "the calibration's one draw begins"


@kind("resume")
class Resume(Body):
    """A run that died goes on; earlier attempts are fenced off."""

    run: str
    attempt: int

    def apply(self, state: State, entry: Entry) -> None:
        """The next attempt."""
        run = _open_run(state, entry, self.run, self.attempt - 1)
        run.attempt += 1

    def tell(self, plan: Plan | None) -> str:
        """Which attempt."""
        return f"attempt {self.attempt}"


@kind("close")
class Close(Body):
    """A run's end: what ran, what it cost alone, the SHA-256 of its model and of what it states (`facts`)."""

    run: str
    attempt: int
    status: str
    steps_run: int
    committed: int
    epsilon_pld: float | None
    model: str | None
    facts: str | None = None
    did: tuple[str, ...]
    note: str | None

    def apply(self, state: State, entry: Entry) -> None:
        """Only what was paid counts from now on (open budgets)."""
        run = _open_run(state, entry, self.run, self.attempt)
        _need(self.status in CLOSED, entry, "its status is unknown")
        _need(0 <= self.steps_run <= run.committed == self.committed, entry, "it ran unpaid steps")
        before = run.steps_charged
        run.status, run.closed = self.status, entry.time
        if run.steps_charged != before:
            state.changes.append(Change(run, before, run.steps_charged))
        run.steps_run = self.steps_run
        run.epsilon_pld = self.epsilon_pld
        run.facts, run.closing = self.facts, [entry.seq, entry.hash.hex()]
        run.did = [*run.did, *(purpose for purpose in self.did if purpose not in run.did)]
        if self.model is not None:
            run.model = self.model
            state.models[run.model] = run.id

    def tell(self, plan: Plan | None) -> str:
        """How it ended and what it cost."""
        text = "" if self.epsilon_pld is None else f", ε = {self.epsilon_pld:.4g} alone"
        if text and plan is not None:
            text += f" (PLD, δ = {plan.delta:.2g}, {plan.unit}, add/remove)"
        note = f" ({self.note})" if self.note else ""
        return f"{self.status}: {self.steps_run} steps ran, {self.committed} paid{text}{note}"


def _open_run(state: State, entry: Entry, name: str, attempt: int) -> RunState:
    run = state.runs[name]
    _need(run.status == RunStatus.OPEN, entry, "its run is closed")
    _need(attempt == run.attempt, entry, "its attempt does not follow, or its run was resumed elsewhere")
    return run


@kind("admit")
class Admit(Body):
    """A grant without charge: an evaluation or audit."""

    cohort: str
    version: int
    run: str
    purpose: str
    basis: str
    permit: int | None

    def apply(self, state: State, entry: Entry) -> None:
        """It is open; its permission, if it needed one, is used."""
        version = state.versions[self.version]
        _need(version.cohort == self.cohort, entry, "its version belongs to another cohort")
        if self.permit is not None:
            permit = state.permits[self.permit]
            fits = not permit.used and not permit.withdrawn and permit.cohort == version.cohort
            _need(fits, entry, "its permission was used, withdrawn, or is for another")
            _need(not over(permit.last_day, day_of(state, entry.time)), entry, "its permission had ended")
            permit.used = True
        state.admissions[entry.seq] = Admission(
            id=entry.seq,
            run=self.run,
            cohort=version.cohort,
            version=version.id,
            purpose=self.purpose,
            basis=self.basis,
            time=entry.time,
            permit=self.permit,
        )

    def tell(self, plan: Plan | None) -> str:
        """What for, and why it was given."""
        return f"{self.purpose} ({self.basis})"


@kind("finish")
class Finish(Body):
    """The end of an evaluation or audit. `results`: name -> SHA-256 of each file that it wrote."""

    admission: int
    status: str
    results: dict[str, str] = field(default_factory=dict)

    def apply(self, state: State, entry: Entry) -> None:
        """It is closed; what a plan declared is done."""
        admission = state.admissions[self.admission]
        _need(admission.open, entry, "it is finished already")
        admission.open = False
        admission.complete = self.status == RunStatus.COMPLETE
        run = state.runs.get(admission.run)
        if run is None or not admission.complete:
            return
        if admission.basis == Basis.DECLARED:
            run.did = [*run.did, admission.purpose]
        if self.results:
            done = {
                "seq": entry.seq,
                "purpose": admission.purpose,
                "cohort": admission.cohort,
                "sha256": self.results,
            }
            run.results = [*run.results, done]

    def tell(self, plan: Plan | None) -> str:
        """Which, and how."""
        return f"grant {self.admission} {self.status}"


RULED = tuple(name for name, body in KINDS.items() if body.COUNTERSIGNED and name not in FOUNDING)
