"""What the entries say, folded into one state: cohorts, budgets, runs, classes of patients.

:func:`apply` is the only place where an entry changes anything. The gate, the status, the snapshot and `verify`
all read the state that it makes, so they cannot disagree. An entry that it does not understand, or that could
not have been written by this program in that state, raises LedgerRefused: no grant is given on such a ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from dptrain.errors import ConfigError, LedgerRefused
from dptrain.ledger.chain import Entry, read_json, write_json
from dptrain.ledger.charges import ORDERS_VERSIONS, Charge
from dptrain.plan import Mechanism, Plan

T = TypeVar("T")
STATE_VERSION = 4
ADJACENCY = "add_remove"


@dataclass
class Version:
    """One registration of a cohort. Everything here is public."""

    id: int
    cohort: str
    number: int
    fingerprint: str
    public_size: int
    unit: str
    owner: str
    issuer: str
    public: dict[str, str] | None
    cautions: list[str]
    seq: int
    time: str


@dataclass
class CohortState:
    """A cohort's name and what hangs on it. `overlaps` is symmetric."""

    name: str
    versions: list[int] = field(default_factory=list)
    overlaps: list[str] = field(default_factory=list)
    budgets: list[int] = field(default_factory=list)
    lock: str | None = None


@dataclass
class Budget:
    """What the controller granted for a cohort and its lineage; `id` is the first entry's number.

    kind `open`: `units` is the RDP that may be spent at `order`. kind `planned`: `declared` are the mechanisms
    that may run, `prefixes[k]` the joint epsilon of the first k, and `units` the RDP at `order` that runs of
    *other* cohorts may cost the same patients (often 0).
    """

    id: int
    cohort: str
    kind: str
    epsilon: float
    delta: float
    order: float
    order_index: int
    units: int
    minimum_charge: float
    minimum_units: int
    declared: list[list[Any]]
    prefixes: list[float]
    signed: list[dict[str, Any]]

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """The declared mechanisms of a planned budget."""
        return tuple(Mechanism(rate, noise, steps, what) for rate, noise, steps, what in self.declared)


@dataclass
class RunState:
    """One granted run. `budget` None: a public cohort. `attempt` rises with each resume.

    `calibrated`: the draw of its calibration was begun, and is never begun again.
    """

    id: str
    seq: int
    time: str
    cohort: str
    version: int
    budget: int | None
    planned: bool
    plan: dict[str, Any]
    step: str | None
    rest: str | None
    excluded: list[int]
    excluded_units: list[int]
    weights: dict[str, Any] | None
    inherited: list[str]
    lease: int
    committed: int = 0
    calibrated: bool = False
    attempt: int = 1
    status: str = "open"
    steps_run: int | None = None
    epsilon_pld: float | None = None
    model: str | None = None
    did: list[str] = field(default_factory=list)
    closed: str | None = None

    @property
    def steps(self) -> int:
        """Steps of the plan."""
        return int(self.plan["steps"])

    @property
    def steps_charged(self) -> int:
        """Steps that count: all of them until a close; afterwards, on open budgets, the committed leases."""
        return self.steps if self.status == "open" or self.planned else self.committed

    @cached_property
    def charge(self) -> Charge:
        """RDP of one step and of the rest."""
        return Charge(self.step, self.rest)

    def units(self, order_index: int) -> int:
        """What this run counts for at one order."""
        return self.charge.at(order_index, self.steps_charged)


@dataclass
class Admission:
    """A grant without charge: evaluation or audit."""

    id: int
    run: str
    cohort: str
    version: int
    purpose: str
    basis: str
    time: str
    permit: int | None = None
    open: bool = True
    complete: bool = False


@dataclass
class Permit:
    """The controller's leave to use a locked cohort once for a purpose."""

    id: int
    purpose: str
    cohort: str
    run: str | None
    reason: str
    used: bool = False


@dataclass
class PatientClass:
    """Patients with one membership history. `parent` is the class that they were in before (0: none)."""

    id: int
    parent: int
    versions: list[int]
    withdrawn: bool
    seq: int


@dataclass
class Weights:
    """Starting weights that the controller declared public."""

    sha256: str
    source: str
    licence: str
    seq: int


@dataclass
class State:
    """Everything that the entries up to `seq` say."""

    seq: int = 0
    hash: str = "00" * 32
    site: str = ""
    site_keys: list[str] = field(default_factory=list)
    controller: str = ""
    recovery: str = ""
    secret_check: str = ""
    cohorts: dict[str, CohortState] = field(default_factory=dict)
    versions: list[Version] = field(default_factory=list)
    budgets: dict[int, Budget] = field(default_factory=dict)
    runs: dict[str, RunState] = field(default_factory=dict)
    admissions: dict[int, Admission] = field(default_factory=dict)
    permits: dict[int, Permit] = field(default_factory=dict)
    classes: dict[int, PatientClass] = field(default_factory=dict)
    weights: dict[str, Weights] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    patients_digest: int = 0
    records_digest: int = 0
    links: int = 0
    sums: dict[int, int] = field(default_factory=dict)  # what budgets have spent; forgotten at each entry

    def version_of(self, run: RunState | Admission) -> Version:
        """The cohort version that a grant is about."""
        return self.versions[run.version]

    def newest(self, cohort: str) -> Version:
        """The newest version of a cohort."""
        return self.versions[self.cohorts[cohort].versions[-1]]

    def is_public(self, cohort: str) -> bool:
        """Whether the newest version was declared public."""
        return self.newest(cohort).public is not None

    def history(self, klass: int) -> list[PatientClass]:
        """A class and those that its patients were in before, oldest first."""
        chain: list[PatientClass] = []
        while klass:
            chain.append(self.classes[klass])
            klass = chain[-1].parent
        return chain[::-1]

    def dump(self) -> str:
        """JSON text of everything."""
        plain: dict[str, Any] = {"state_version": STATE_VERSION}
        for name in self.__dataclass_fields__:
            if name != "sums":
                plain[name] = _plain(getattr(self, name))
        plain["patients_digest"] = f"{self.patients_digest:064x}"
        plain["records_digest"] = f"{self.records_digest:064x}"
        return write_json(plain)

    @classmethod
    def parse(cls, text: str) -> State:
        """Back from :meth:`dump`. Empty for another version of it: then the chain is read instead."""
        values = read_json(text)
        if values.pop("state_version", None) != STATE_VERSION:
            return cls()
        # the text is in the order of its names; whoever replays the chain has the order of events
        values["versions"] = [Version(**value) for value in values["versions"]]
        names = dict.fromkeys(version.cohort for version in values["versions"])
        values["cohorts"] = {name: CohortState(**values["cohorts"][name]) for name in names}
        values["budgets"] = _numbered(Budget, values["budgets"])
        values["admissions"] = _numbered(Admission, values["admissions"])
        values["permits"] = _numbered(Permit, values["permits"])
        values["classes"] = _numbered(PatientClass, values["classes"])
        values["runs"] = _by_entry(RunState, values["runs"])
        values["weights"] = _by_entry(Weights, values["weights"])
        values["patients_digest"] = int(values["patients_digest"], 16)
        values["records_digest"] = int(values["records_digest"], 16)
        return cls(**values)


def _numbered(kind: Callable[..., T], values: dict[str, Any]) -> dict[int, T]:
    return dict(sorted((int(name), kind(**value)) for name, value in values.items()))


def _by_entry(kind: Callable[..., T], values: dict[str, Any]) -> dict[str, T]:
    ordered = sorted(values.items(), key=lambda item: int(item[1]["seq"]))
    return {name: kind(**value) for name, value in ordered}


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value


class Unsound(LedgerRefused):
    """An entry that no sound ledger holds at this place."""


def _need(condition: bool, entry: Entry, what: str) -> None:
    if not condition:
        raise Unsound(f"Entry {entry.seq} of the ledger ({entry.kind}) cannot stand here: {what}.")


def apply(state: State, entry: Entry) -> None:
    """Fold one entry (already checked for hash and signatures) into the state, in place.

    Raises LedgerRefused for an unknown kind, unit of adjacency, grid of orders, or an entry that contradicts
    the ones before it. The state is then unusable.
    """
    _need(entry.seq == state.seq + 1, entry, "its number does not follow")
    handler = HANDLERS.get(entry.kind)
    if handler is None:
        raise Unsound(
            f"Entry {entry.seq} of the ledger is of the kind '{entry.kind}', which this program does not know.",
            remedy="Use the newer program that wrote it.",
        )
    _need(entry.kind == "genesis" or state.seq > 0, entry, "the ledger does not begin with its founding entry")
    try:
        handler(state, entry, entry.facts, entry.secrets)
    except (ConfigError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise Unsound(
            f"Entry {entry.seq} of the ledger ({entry.kind}) lacks something or holds something unknown "
            f"({type(error).__name__})."
        ) from None
    state.seq = entry.seq
    state.hash = entry.hash.hex()
    state.sums.clear()


def keys_for(state: State, entry: Entry) -> tuple[str, tuple[str, ...]]:
    """The public keys that must have signed an entry: (site, controllers)."""
    if entry.kind == "genesis":
        facts = entry.facts
        return str(facts["site_public"]), ()
    site = state.site_keys[-1]
    if entry.kind == "rotate":
        facts = entry.facts
        if facts["what"] == "site":
            site = str(facts["public"])
        return site, (state.controller, state.recovery)
    return site, (state.controller,)


def _genesis(state: State, entry: Entry, body: dict[str, Any], _: dict[str, Any]) -> None:
    _need(entry.seq == 1, entry, "a ledger is founded once")
    state.site = str(body["site"])
    state.site_keys = [str(body["site_public"])]
    state.controller = str(body["controller_public"])
    state.recovery = str(body["recovery_public"])
    state.secret_check = str(body["secret_check"])


def _register(state: State, entry: Entry, body: dict[str, Any], sealed: dict[str, Any]) -> None:
    _need(body["adjacency"] == ADJACENCY, entry, f"the adjacency '{body['adjacency']}' is unknown")
    _need(body["public"] is None or entry.countersignature is not None, entry, "a public cohort needs a signature")
    name = str(body["name"])
    cohort = state.cohorts.setdefault(name, CohortState(name))
    _need(int(body["version"]) == len(cohort.versions) + 1, entry, "its version does not follow")
    version = Version(
        id=len(state.versions),
        cohort=name,
        number=int(body["version"]),
        fingerprint=str(body["fingerprint"]),
        public_size=int(body["public_size"]),
        unit=str(body["unit"]),
        owner=str(body["owner"]),
        issuer=str(body["issuer"]),
        public=body["public"],
        cautions=list(body["cautions"]),
        seq=entry.seq,
        time=entry.time,
    )
    _need(version.public_size >= 1, entry, "its size is not positive")
    state.versions.append(version)
    cohort.versions.append(version.id)
    for other in body["overlaps"]:
        there = state.cohorts[other]
        _need(other != name, entry, "a cohort does not overlap with itself")
        cohort.overlaps = sorted({*cohort.overlaps, other})
        there.overlaps = sorted({*there.overlaps, name})
    for old, new in sealed["classes"]:
        _need(new not in state.classes and (old == 0 or old in state.classes), entry, "its classes do not follow")
        before = state.classes.get(old)
        state.classes[new] = PatientClass(
            id=new,
            parent=old,
            versions=[*(before.versions if before else []), version.id],
            withdrawn=before.withdrawn if before else False,
            seq=entry.seq,
        )
    state.links = int(sealed["links"])
    _digests(state, sealed)


def _digests(state: State, sealed: dict[str, Any]) -> None:
    state.patients_digest = int(sealed["patients_digest"], 16)
    state.records_digest = int(sealed["records_digest"], 16)


def _budget(state: State, entry: Entry, body: dict[str, Any], _: dict[str, Any]) -> None:
    cohort = state.cohorts[body["cohort"]]
    _need(body["adjacency"] == ADJACENCY, entry, f"the adjacency '{body['adjacency']}' is unknown")
    _need(body["unit"] == state.newest(cohort.name).unit, entry, "its unit is not the cohort's")
    _need(body["orders_version"] in ORDERS_VERSIONS, entry, "its grid of RDP orders is unknown")
    _need(body["kind"] in ("open", "planned"), entry, f"the kind '{body['kind']}' of budget is unknown")
    signed = {
        "seq": entry.seq,
        "time": entry.time,
        "epsilon": float(body["epsilon"]),
        "delta": float(body["delta"]),
        "reason": str(body["reason"]),
        "advice": body["advice"],
    }
    if body["changes"] is not None:
        budget = state.budgets[int(body["changes"])]
        _need(
            budget.cohort == cohort.name and budget.kind == body["kind"] == "open", entry, "it changes no open budget"
        )
        _need(budget.order == float(body["order"]), entry, "a raise must keep its order")
    else:
        _need(
            body["kind"] == "planned" or all(state.budgets[b].kind != "open" for b in cohort.budgets),
            entry,
            "the cohort has an open budget already",
        )
        budget = Budget(
            id=entry.seq,
            cohort=cohort.name,
            kind=str(body["kind"]),
            epsilon=0.0,
            delta=0.0,
            order=float(body["order"]),
            order_index=int(body["order_index"]),
            units=0,
            minimum_charge=0.0,
            minimum_units=0,
            declared=list(body["declared"]),
            prefixes=[float(value) for value in body["prefixes"]],
            signed=[],
        )
        state.budgets[budget.id] = budget
        cohort.budgets.append(budget.id)
    budget.epsilon, budget.delta = signed["epsilon"], signed["delta"]
    budget.units = int(body["units"])
    budget.minimum_charge = float(body["minimum_charge"])
    budget.minimum_units = int(body["minimum_units"])
    budget.signed.append(signed)


def _weights(state: State, entry: Entry, body: dict[str, Any], _: dict[str, Any]) -> None:
    sha = str(body["sha256"])
    state.weights[sha] = Weights(sha, str(body["source"]), str(body["licence"]), entry.seq)


def _permit(state: State, entry: Entry, body: dict[str, Any], _: dict[str, Any]) -> None:
    _need(body["cohort"] in state.cohorts, entry, "its cohort is unknown")
    state.permits[entry.seq] = Permit(
        entry.seq, str(body["purpose"]), str(body["cohort"]), body["run"], str(body["reason"])
    )


def _reserve(state: State, entry: Entry, body: dict[str, Any], sealed: dict[str, Any]) -> None:
    name = str(body["run"])
    _need(name not in state.runs, entry, "its run exists already")
    plan = Plan.from_dict(body["plan"])
    version = state.versions[int(body["version"])]
    _need(version.cohort == body["cohort"], entry, "its version belongs to another cohort")
    _need(plan.unit == version.unit, entry, "its unit is not the cohort's")
    charge = Charge.from_dict(body["charge"])
    budget = None if body["budget"] is None else state.budgets[int(body["budget"])]
    _need(budget is None or budget.cohort == version.cohort, entry, "its budget belongs to another cohort")
    _need(budget is not None or version.public is not None, entry, "it has no budget")
    state.runs[name] = RunState(
        id=name,
        seq=entry.seq,
        time=entry.time,
        cohort=version.cohort,
        version=version.id,
        budget=None if budget is None else budget.id,
        planned=budget is not None and budget.kind == "planned",
        plan=body["plan"],
        step=charge.step,
        rest=charge.rest,
        excluded=[int(value) for value in sealed["classes"]],
        excluded_units=[int(value) for value in sealed["units"]],
        weights=body["weights"],
        inherited=list(body["inherited"]),
        lease=int(body["lease"]),
    )


def _open_run(state: State, entry: Entry, body: dict[str, Any]) -> RunState:
    run = state.runs[body["run"]]
    _need(run.status == "open", entry, "its run is closed")
    return run


def _commit(state: State, entry: Entry, body: dict[str, Any], _: dict[str, Any]) -> None:
    run = _open_run(state, entry, body)
    _need(int(body["attempt"]) == run.attempt, entry, "its run was resumed elsewhere")
    _need(run.committed < int(body["through"]) <= run.steps, entry, "it commits steps outside its grant")
    run.committed = int(body["through"])


def _calibrate(state: State, entry: Entry, body: dict[str, Any], _: dict[str, Any]) -> None:
    run = _open_run(state, entry, body)
    _need(int(body["attempt"]) == run.attempt, entry, "its run was resumed elsewhere")
    _need(run.plan["calibration_noise_multiplier"] is not None, entry, "its run declares no calibration")
    _need(run.committed > 0 and not run.calibrated, entry, "its calibration is not paid, or was begun before")
    run.calibrated = True


def _resume(state: State, entry: Entry, body: dict[str, Any], _: dict[str, Any]) -> None:
    run = _open_run(state, entry, body)
    _need(int(body["attempt"]) == run.attempt + 1, entry, "its attempt does not follow")
    run.attempt += 1


def _close(state: State, entry: Entry, body: dict[str, Any], _: dict[str, Any]) -> None:
    run = _open_run(state, entry, body)
    _need(int(body["attempt"]) == run.attempt, entry, "its run was resumed elsewhere")
    _need(body["status"] in ("complete", "interrupted"), entry, "its status is unknown")
    _need(0 <= int(body["steps_run"]) <= run.committed == int(body["committed"]), entry, "it ran unpaid steps")
    run.status, run.closed = str(body["status"]), entry.time
    run.steps_run = int(body["steps_run"])
    run.epsilon_pld = body["epsilon_pld"]
    run.did = [*run.did, *(purpose for purpose in body["did"] if purpose not in run.did)]
    if body["model"] is not None:
        run.model = str(body["model"])
        state.models[run.model] = run.id


def _admit(state: State, entry: Entry, body: dict[str, Any], _: dict[str, Any]) -> None:
    version = state.versions[int(body["version"])]
    _need(version.cohort == body["cohort"], entry, "its version belongs to another cohort")
    permit = None
    if body["permit"] is not None:
        permit = state.permits[int(body["permit"])]
        _need(not permit.used and permit.cohort == version.cohort, entry, "its permission was used or is for another")
        permit.used = True
    state.admissions[entry.seq] = Admission(
        id=entry.seq,
        run=str(body["run"]),
        cohort=version.cohort,
        version=version.id,
        purpose=str(body["purpose"]),
        basis=str(body["basis"]),
        time=entry.time,
        permit=None if permit is None else permit.id,
    )


def _finish(state: State, entry: Entry, body: dict[str, Any], _: dict[str, Any]) -> None:
    admission = state.admissions[int(body["admission"])]
    _need(admission.open, entry, "it is finished already")
    admission.open = False
    admission.complete = body["status"] == "complete"
    run = state.runs.get(admission.run)
    if body["status"] == "complete" and admission.basis == "declared" and run is not None:
        run.did = [*run.did, admission.purpose]


def _withdraw(state: State, entry: Entry, _: dict[str, Any], sealed: dict[str, Any]) -> None:
    for old, new in sealed["classes"]:
        before = state.classes.get(old)
        if new in state.classes:
            there = state.classes[new]
            _need(there.withdrawn and there.parent == old, entry, "its classes do not follow")
            continue
        versions = list(before.versions) if before else []
        state.classes[new] = PatientClass(new, old, versions, True, entry.seq)
    _digests(state, sealed)


def _lock(state: State, entry: Entry, body: dict[str, Any], _: dict[str, Any]) -> None:
    state.cohorts[body["cohort"]].lock = str(body["reason"])


def _unlock(state: State, entry: Entry, body: dict[str, Any], _: dict[str, Any]) -> None:
    state.cohorts[body["cohort"]].lock = None


def _release(state: State, entry: Entry, body: dict[str, Any], _: dict[str, Any]) -> None:
    _need(body["run"] in state.runs, entry, "its run is unknown")


def _rotate(state: State, entry: Entry, body: dict[str, Any], sealed: dict[str, Any]) -> None:
    what = body["what"]
    if what == "site":
        state.site_keys.append(str(body["public"]))
    elif what == "controller":
        state.controller = str(body["public"])
    elif what == "recovery":
        state.recovery = str(body["public"])
    elif what == "secret":
        state.secret_check = str(body["secret_check"])
        for version in state.versions:
            version.fingerprint = f"under an earlier secret: {version.fingerprint}"
        _need(all(run.status != "open" for run in state.runs.values()), entry, "runs were open")
        _digests(state, sealed)
    else:
        raise Unsound(f"Entry {entry.seq} of the ledger rotates something unknown.")


HANDLERS: dict[str, Callable[[State, Entry, dict[str, Any], dict[str, Any]], None]] = {
    "genesis": _genesis,
    "register": _register,
    "budget": _budget,
    "weights": _weights,
    "permit": _permit,
    "reserve": _reserve,
    "commit": _commit,
    "calibrate": _calibrate,
    "resume": _resume,
    "close": _close,
    "admit": _admit,
    "finish": _finish,
    "withdraw": _withdraw,
    "lock": _lock,
    "unlock": _unlock,
    "release": _release,
    "rotate": _rotate,
}
