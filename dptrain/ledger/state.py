"""What the entries say, folded into one state: cohorts, budgets, runs, classes of patients.

Entries change it in one place: :func:`dptrain.ledger.kinds.apply`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias, TypeVar

from dptrain.ledger.chain import read_json, write_json
from dptrain.ledger.charges import Charge
from dptrain.plain import Json
from dptrain.plan import Mechanism
from dptrain.vocabulary import RunStatus

T = TypeVar("T")
STATE_VERSION = 6
Declared: TypeAlias = list[Any]  # a declared mechanism as canonical JSON has it: rate, noise, steps, what
ADJACENCY = "add_remove"
DERIVED = ("changes", "sums", "taken")  # what follows from the rest of a state


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
    binding: Json | None = None


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
    declared: list[Declared]
    prefixes: list[float]
    signed: list[Json]
    last_day: str | None = None

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """The declared mechanisms of a planned budget."""
        return tuple(Mechanism(rate, noise, steps, what) for rate, noise, steps, what in self.declared)


@dataclass
class RunState:
    """One granted run. `budget` None: a public cohort. `attempt` rises with each resume.

    `calibrated`: the draw of its calibration was begun, and is never begun again. `model`, `facts`: the SHA-256 that
    its close names; `closing`: number and hash of that entry. `results`: what its evaluations and audits wrote;
    `releases`: what the controller let out.
    """

    id: str
    seq: int
    time: str
    cohort: str
    version: int
    budget: int | None
    planned: bool
    plan: Json
    step: str | None
    rest: str | None
    excluded: list[int]
    excluded_units: list[int]
    weights: Json | None
    inherited: list[str]
    lease: int
    committed: int = 0
    calibrated: bool = False
    attempt: int = 1
    status: str = RunStatus.OPEN
    steps_run: int | None = None
    epsilon_pld: float | None = None
    model: str | None = None
    facts: str | None = None
    closing: list[Any] = field(default_factory=list)
    results: list[Json] = field(default_factory=list)
    releases: list[Json] = field(default_factory=list)
    did: list[str] = field(default_factory=list)
    closed: str | None = None

    @property
    def steps(self) -> int:
        """Steps of the plan."""
        return int(self.plan["steps"])

    @property
    def steps_charged(self) -> int:
        """Steps that count: all of them until a close; afterwards, on open budgets, the committed leases."""
        return self.steps if self.status == RunStatus.OPEN or self.planned else self.committed

    @cached_property
    def charge(self) -> Charge:
        """RDP of one step and of the rest."""
        return Charge(self.step, self.rest)

    def units(self, order_index: int) -> int:
        """What this run counts for at one order."""
        return self.charge.at(order_index, self.steps_charged)


class Change(NamedTuple):
    """A run begins to count, or counts for other steps than before."""

    run: RunState
    before: int
    now: int


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
    withdrawn: bool = False
    last_day: str | None = None


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


@dataclass(frozen=True)
class Approver:
    """Somebody whose signature counts. `seq`: the entry that named the key."""

    name: str
    role: str
    public: str
    algorithm: str
    seq: int


@dataclass(frozen=True)
class Rule:
    """So many signatures, and of them so many by a role at least."""

    signatures: int
    roles: dict[str, int]


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
    version: int = 1  # of the newest entry: no older program may write after a newer one
    time: str = ""  # the newest that an entry states
    person: dict[str, str | None] | None = None  # the controller of the processing, by name
    approvers: dict[str, Approver] = field(default_factory=dict)
    rules: dict[str, Rule] = field(default_factory=dict)
    retired: dict[str, str] = field(default_factory=dict)  # public key -> whose it was
    nonces: dict[str, int] = field(default_factory=dict)  # of decisions, and the entries that applied them
    # every change of what counts, in order, and sums over it: how many changes each holds already, and what they make
    changes: list[Change] = field(default_factory=list)
    sums: dict[tuple[int, Hashable], tuple[int, int]] = field(default_factory=dict)
    taken: dict[int, tuple[int, Counter[tuple[float, float, int]]]] = field(default_factory=dict)

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
        plain: Json = {"state_version": STATE_VERSION}
        for name in self.__dataclass_fields__:
            if name not in DERIVED:
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
        values["approvers"] = _by_entry(Approver, values["approvers"])
        values["rules"] = {name: Rule(**value) for name, value in values["rules"].items()}
        values["patients_digest"] = int(values["patients_digest"], 16)
        values["records_digest"] = int(values["records_digest"], 16)
        values["changes"] = [Change(run, 0, run.steps_charged) for run in values["runs"].values()]
        return cls(**values)


def _numbered(kind: Callable[..., T], values: Json) -> dict[int, T]:
    return dict(sorted((int(name), kind(**value)) for name, value in values.items()))


def _by_entry(kind: Callable[..., T], values: Json) -> dict[str, T]:
    ordered = sorted(values.items(), key=lambda item: int(item[1]["seq"]))
    return {name: kind(**value) for name, value in ordered}


def _plain(value: object) -> object:
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value
