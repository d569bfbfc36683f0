"""What goes into the ledger and comes out of it, as plain values: declarations, versions, the gate, receipts."""

from __future__ import annotations

from dataclasses import dataclass, field

from dptrain.ledger.chain import SignedHead
from dptrain.plan import Mechanism
from dptrain.vocabulary import BudgetKind


@dataclass(frozen=True)
class PublicDeclaration:
    """The controller's statement that a cohort is public: where it comes from and under which licence."""

    source: str
    licence: str


@dataclass(frozen=True)
class WeightsSource:
    """Starting weights: the SHA-256 of a declared file, or the model (by hash) of a run in this ledger."""

    sha256: str
    run: str | None = None


@dataclass(frozen=True)
class CohortVersion:
    """A registered version of a cohort."""

    name: str
    version: int
    fingerprint: str
    public_size: int
    unit: str


@dataclass(frozen=True)
class GateFacts:
    """The public gate around a grant, for the run's report (epsilon at the gate)."""

    kind: str
    accountant: str | None
    order: float | None
    budget_epsilon: float | None
    budget_delta: float | None
    spent_before: float
    spent_after: float
    remaining: float | None
    minimum_charge: float | None
    locked: bool


@dataclass(frozen=True)
class Ending:
    """How a training ends.

    Attributes:
        status: `complete` or `interrupted`; steps_run: steps that ran.
        model: SHA-256 (hex) of the model file; facts: of what the run states about itself.
        did: declared purposes that were carried out under this grant already.
        note: a sentence for the record.
    """

    status: str
    steps_run: int
    model: str | None = None
    facts: str | None = None
    did: tuple[str, ...] = ()
    note: str | None = None


@dataclass(frozen=True)
class Result:
    """What an evaluation or audit of a run wrote: file name -> SHA-256, in which entry, for which purpose."""

    entry: int
    purpose: str
    cohort: str
    sha256: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class BudgetTerms:
    """What the controller decides about a budget; :meth:`Ledger.budget` says what each value means."""

    epsilon: float
    reason: str
    forecast: tuple[Mechanism, ...] = ()
    delta: float | None = None
    kind: str = BudgetKind.OPEN
    minimum_charge: float | None = None
    advice: str | None = None
    last_day: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReleaseTerms:
    """What the controller decides when results leave the house.

    Attributes:
        items: what, in the words of `dptrain release`; recipient, purpose, advice: to whom, what for, who advised.
        hashes: path in the run folder -> SHA-256 of each file that is released.
        assessment: SHA-256 of the controller's assessment.
        accept_exposed: the share of patients exposed by the audit that the controller signs for, 0 to 1.
        without_audit, without_advice: why there is no audit, no advice of the data protection officer.
        accepted: open checks that the controller accepts, by name.
        last_day: YYYY-MM-DD until which the recipient may use it; binds honest recipients only.
    """

    items: tuple[str, ...]
    recipient: str
    purpose: str | None = None
    advice: str | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    assessment: str | None = None
    accept_exposed: float | None = None
    without_audit: str | None = None
    without_advice: str | None = None
    accepted: tuple[str, ...] = ()
    last_day: str | None = None


@dataclass(frozen=True, kw_only=True)
class Released:
    """A release as the controller signed it, and the entry that holds it."""

    entry: int
    hash: str
    time: str
    terms: ReleaseTerms


@dataclass(frozen=True)
class Bound:
    """What the ledger binds of a run: compare with it whatever a page says.

    A run of before 0.2 has no `facts`, and its results no hashes: it is not bound.

    Attributes:
        status: of the run; closing: number and hash of the entry that closed it (None while it is open).
        model, facts: SHA-256; None where the close named none.
        results: oldest first; releases: oldest first.
    """

    run: str
    cohort: str
    status: str
    closing: tuple[int, str] | None
    model: str | None
    facts: str | None
    results: tuple[Result, ...]
    releases: tuple[Released, ...]

    def result(self, purpose: str) -> Result | None:
        """The newest result for a purpose."""
        return next((result for result in reversed(self.results) if result.purpose == purpose), None)


@dataclass(frozen=True)
class Receipt:
    """What a closed run cost. epsilon_pld is None where it is infinite (a public cohort without noise)."""

    run: str
    cohort: str
    status: str
    steps_run: int
    steps_charged: int
    steps_planned: int
    epsilon_pld: float | None
    delta: float
    unit: str
    adjacency: str
    mechanisms: tuple[Mechanism, ...]
    rest_charged: bool
    gate: GateFacts
    head: SignedHead
