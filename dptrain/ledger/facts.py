"""What goes into the ledger and comes out of it, as plain values: declarations, versions, the gate, receipts."""

from __future__ import annotations

from dataclasses import dataclass

from dptrain.ledger.chain import SignedHead
from dptrain.plan import Mechanism


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
