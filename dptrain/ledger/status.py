"""Where a cohort stands, as plain values and as sentences for the data steward."""

from __future__ import annotations

from dataclasses import dataclass

from dptrain.accounting.units import INFINITE_UNITS, from_units
from dptrain.ledger import gate
from dptrain.ledger.chain import SignedHead
from dptrain.ledger.state import Budget, RunState, State
from dptrain.plan import Mechanism, Plan
from dptrain.terminal.output import number
from dptrain.vocabulary import BudgetKind, RunStatus


@dataclass(frozen=True)
class RunCharge:
    """What one run was charged.

    steps: those that count (all of them while it is open). steps_paid: those that it paid for.
    epsilon_pld: the run alone by PLD at the plan's own delta, computed at its close; None while it is open, or
    where it is infinite. epsilon_gate: what it takes from the gate: nats of RDP at the budget's order on an open
    budget (these add up exactly), None on planned and public ones. epsilon_gate_after: the gate's spent epsilon
    after this run. share: part of the open budget, 0…1. rest_charged: whether mechanisms beside training
    (calibration) count; they are paid whole with the first step.
    """

    run: str
    cohort: str
    steps: int
    steps_paid: int
    steps_planned: int
    steps_run: int | None
    epsilon_pld: float | None
    delta: float
    epsilon_gate: float | None
    epsilon_gate_after: float | None
    share: float | None
    mechanisms: tuple[Mechanism, ...]
    rest_charged: bool
    private: bool
    status: str
    date: str


@dataclass(frozen=True)
class BudgetStatus:
    """One signed budget: what was granted, spent and is left (epsilon at its gate).

    share: the part that is spent of what adds up run by run, 0…1: nats of RDP of an open budget, declared mechanisms
    of a planned one (epsilon itself does not add up). room: how many more runs like the newest one an open budget
    pays for; None where no run tells, or a planned budget names its runs.
    """

    id: int
    kind: str
    epsilon: float
    delta: float
    order: float
    accountant: str
    spent_epsilon: float
    remaining_epsilon: float
    minimum_charge: float
    exhausted: bool
    planned: tuple[Mechanism, ...]
    unused: tuple[Mechanism, ...]
    share: float
    room: int | None
    reason: str
    advice: str | None
    date: str


@dataclass(frozen=True)
class CohortStatus:
    """Where a cohort stands. Everything here is public configuration or the public charge.

    kind: `open`, `planned`, `open+planned`, `public`, or None without a budget. With several budgets the numbers
    are their sums (basic composition). `order` is the open budget's RDP order.
    """

    name: str
    version: int
    fingerprint: str
    unit: str
    adjacency: str
    owner: str
    issuer: str
    public: bool
    public_size: int
    kind: str | None
    budget_epsilon: float | None
    budget_delta: float | None
    order: float | None
    accountant: str | None
    spent_epsilon: float
    remaining_epsilon: float | None
    minimum_charge: float | None
    locked: bool
    lock_reason: str | None
    runs: list[RunCharge]
    budgets: list[BudgetStatus]
    planned: tuple[Mechanism, ...]
    overlaps: list[str]
    head: SignedHead | None
    cautions: list[str]
    source: str | None
    licence: str | None
    site: str
    witness: bool


def accountant_of(budget: Budget) -> str:
    """The accountant that gates, in words."""
    return f"RDP of order {budget.order:g}" if budget.kind == BudgetKind.OPEN else "joint PLD"


def status_of(
    state: State, name: str, head: SignedHead | None, *, witness: bool, with_runs: bool = True
) -> CohortStatus:
    """The status of a cohort that exists."""
    version, cohort = state.newest(name), state.cohorts[name]
    budgets = [state.budgets[number] for number in cohort.budgets]
    facts = [_budget_status(state, budget) for budget in budgets]
    kinds = sorted({budget.kind for budget in budgets})
    opened = next((budget for budget in budgets if budget.kind == BudgetKind.OPEN), None)
    public = version.public is not None
    locked = gate.locked(state, name)
    reason = None
    if locked:
        reason = cohort.lock if cohort.lock is not None else "less is left than the smallest charge allowed"
        if waiting := gate.reserved(state, name):
            reason = f"the rest is reserved by {', '.join(run.id for run in waiting)}, still open"
    return CohortStatus(
        name=name,
        version=version.number,
        fingerprint=version.fingerprint,
        unit=version.unit,
        adjacency="add_remove",
        owner=version.owner,
        issuer=version.issuer,
        public=public,
        public_size=version.public_size,
        kind="public" if public else "+".join(kinds) or None,
        budget_epsilon=sum(fact.epsilon for fact in facts) if facts else None,
        budget_delta=sum(fact.delta for fact in facts) if facts else None,
        order=opened.order if opened else None,
        accountant=" and ".join(dict.fromkeys(fact.accountant for fact in facts)) or None,
        spent_epsilon=sum(fact.spent_epsilon for fact in facts),
        remaining_epsilon=sum(fact.remaining_epsilon for fact in facts) if facts else None,
        minimum_charge=opened.minimum_charge if opened else (budgets[0].minimum_charge if budgets else None),
        locked=locked,
        lock_reason=reason,
        runs=charges(state, name) if with_runs else [],
        budgets=facts,
        planned=tuple(mechanism for fact in facts for mechanism in fact.planned),
        overlaps=list(cohort.overlaps),
        head=head,
        cautions=list(version.cautions),
        source=version.public["source"] if version.public else None,
        licence=version.public["licence"] if version.public else None,
        site=state.site,
        witness=witness,
    )


def _budget_status(state: State, budget: Budget) -> BudgetStatus:
    used = gate.spent_epsilon(state, budget)
    left: tuple[Mechanism, ...] = ()
    if budget.kind == BudgetKind.PLANNED:
        counter = gate.unused(state, budget)
        for mechanism in budget.mechanisms:
            key = (mechanism.sample_rate, mechanism.noise_multiplier, mechanism.steps)
            if counter[key] > 0:
                counter[key] -= 1
                left = (*left, mechanism)
    share, room = _share(state, budget, len(left))
    return BudgetStatus(
        id=budget.id,
        kind=budget.kind,
        epsilon=budget.epsilon,
        delta=budget.delta,
        order=budget.order,
        accountant=accountant_of(budget),
        spent_epsilon=used,
        remaining_epsilon=max(0.0, budget.epsilon - used),
        minimum_charge=budget.minimum_charge,
        exhausted=gate.exhausted(state, budget),
        planned=budget.mechanisms,
        unused=left,
        share=share,
        room=room,
        reason=str(budget.signed[-1]["reason"]),
        advice=budget.signed[-1]["advice"],
        date=str(budget.signed[-1]["time"]),
    )


def _share(state: State, budget: Budget, left: int) -> tuple[float, int | None]:
    """The share that is spent of what adds up, and how many more runs like the newest one fit."""
    if budget.kind != BudgetKind.OPEN:
        return 1 - left / max(1, len(budget.mechanisms)), None
    remaining, members = gate.remaining(state, budget), gate.lineage(state, budget.cohort)
    costs = (
        run.units(budget.order_index)
        for run in reversed(state.runs.values())
        if run.cohort in members and gate.counts(state, run.budget, budget)
    )
    share = 1 - remaining / budget.units if budget.units else 1.0
    newest = next((cost for cost in costs if 0 < cost < INFINITE_UNITS), None)
    return share, None if newest is None else remaining // newest


def charges(state: State, name: str) -> list[RunCharge]:
    """The runs of a cohort and its lineage, in order."""
    members = gate.lineage(state, name)
    opened = gate.carrier(state, name)
    if opened is not None and opened.kind != BudgetKind.OPEN:
        opened = None
    total = 0
    rows = []
    for run in state.runs.values():
        if run.cohort not in members:
            continue
        units = None
        if opened is not None and gate.counts(state, run.budget, opened):
            units = run.units(opened.order_index)
            total += units
        rows.append(_charge(run, opened, units, total))
    return rows


def _charge(run: RunState, opened: Budget | None, units: int | None, total: int) -> RunCharge:
    plan = Plan.from_dict(run.plan)
    finite = opened is not None and units is not None and units < INFINITE_UNITS
    return RunCharge(
        run=run.id,
        cohort=run.cohort,
        steps=run.steps_charged,
        steps_paid=run.committed,
        steps_planned=run.steps,
        steps_run=run.steps_run,
        epsilon_pld=run.epsilon_pld,
        delta=plan.delta,
        epsilon_gate=from_units(units) if finite and units is not None else None,
        epsilon_gate_after=gate.epsilon_at(opened, total) if finite and opened is not None and total else None,
        share=units / opened.units if finite and opened is not None and units is not None and opened.units else None,
        mechanisms=plan.mechanisms,
        rest_charged=run.rest is not None and run.steps_charged > 0,
        private=run.step is not None,
        status=run.status,
        date=run.time,
    )


def steps(run: RunCharge) -> str:
    """How many steps count, in words: an open run holds all of them reserved, whatever it has paid."""
    if run.status == RunStatus.OPEN:
        return f"{run.steps_paid} paid, {run.steps} reserved"
    return f"{run.steps}/{run.steps_planned} paid"


def epsilon_in_words(status: CohortStatus, epsilon: float, *, budget: BudgetStatus | None = None) -> str:
    """An epsilon with its unit, adjacency, delta and accountant."""
    delta = budget.delta if budget else status.budget_delta
    accountant = budget.accountant if budget else status.accountant
    return f"epsilon = {number(epsilon)} (unit: {status.unit}, add/remove, delta = {delta:.3g}, by {accountant})"


def story(status: CohortStatus, *, runs: int = 8) -> str:
    """Who owns the cohort, what was granted, what was spent by which runs, what remains."""
    if status.public:
        return f"'{status.name}' belongs to {status.owner}; it is public, and its charges gate nothing."
    if status.budget_epsilon is None:
        return f"'{status.name}' belongs to {status.owner}. No budget was granted yet."
    lines = [
        f"'{status.name}' (version {status.version}, {status.public_size} {status.unit}s declared) belongs to "
        f"{status.owner}.",
        f"Granted:   {epsilon_in_words(status, status.budget_epsilon)}.",
        f"Spent:     epsilon = {number(status.spent_epsilon)} (same terms) by {len(status.runs)} "
        f"run{_s(len(status.runs))}{':' if status.runs else '.'}",
    ]
    shown = status.runs[-runs:]
    if len(shown) < len(status.runs):
        lines.append(
            f"             … {len(status.runs) - len(shown)} earlier (dptrain ledger show cohort={status.name})"
        )
    for run in shown:
        share = "" if run.share is None else f", {run.share:.1%} of the budget's RDP"
        where = "" if run.cohort == status.name else f" on {run.cohort}"
        lines.append(f"             {run.run}{where}: {run.date[:10]}, steps: {steps(run)}{share}, {run.status}")
    remaining = status.remaining_epsilon or 0.0
    lines.append(
        f"Remaining: epsilon = {number(remaining)} (same terms); the smallest charge allowed is "
        f"{number(status.minimum_charge or 0.0)}."
    )
    return "\n".join(lines)


def _s(count: int) -> str:
    return "" if count == 1 else "s"
