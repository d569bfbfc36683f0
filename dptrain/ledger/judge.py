"""Whether an entry keeps to the rules, as the ledger stood when it was written: budgets, grants, exclusions.

An entry may be well signed and wrong all the same: by a program with wrong mathematics, or by somebody who has the
site's key. So the rules are checked whenever entries are read, not only when they are written.
"""

from __future__ import annotations

import functools

from dptrain.accounting.units import budget_units
from dptrain.errors import ConfigError, LedgerRefused
from dptrain.ledger import gate
from dptrain.ledger.approvals import over
from dptrain.ledger.chain import Entry
from dptrain.ledger.charges import Charge, charge_of
from dptrain.ledger.state import RunState, State
from dptrain.plan import Mechanism, Plan
from dptrain.vocabulary import BudgetKind


def judge(state: State, entry: Entry, *, thorough: bool) -> None:
    """Raises LedgerRefused where the newest entry, folded in already, breaks a rule.

    Args:
        thorough: compute again what budgets and charges rest on; else the sums and exclusions alone.
    """
    if entry.kind == "budget" and thorough:
        check_budget(entry)
    elif entry.kind == "reserve":
        check_grant(state, state.runs[entry.facts["run"]], thorough=thorough)


def overdrawn(state: State) -> bool:
    """Whether a budget holds less than was spent: one was lowered since, or a rule was broken."""
    return any(
        gate.spent(state, budget) > budget.units if budget.kind == BudgetKind.OPEN else gate.overdrawn(state, budget)
        for budget in state.budgets.values()
    )


def check_budget(entry: Entry) -> None:
    """Raises LedgerRefused where an open budget's units are more than its epsilon, delta and order allow.

    A planned budget has no units of its own to spend: what it sets aside for other cohorts is not computed again.
    """
    from dptrain.accounting import ORDERS

    facts = entry.facts
    order, index = float(facts["order"]), int(facts["order_index"])
    if not 0 <= index < len(ORDERS) or ORDERS[index] != order:
        raise LedgerRefused(f"entry {entry.seq} grants at order {order:g}, but counts charges at another order")
    if facts["kind"] != BudgetKind.OPEN:
        return
    try:
        true = budget_units(float(facts["epsilon"]), float(facts["delta"]), order)
    except ConfigError:
        raise LedgerRefused(f"entry {entry.seq} has an epsilon or delta that no open budget can have") from None
    if int(facts["units"]) > true * (1 + 1e-6):
        raise LedgerRefused(f"entry {entry.seq} lets more than its epsilon and delta allow be spent")


def check_grant(state: State, run: RunState, *, thorough: bool) -> None:
    """Raises LedgerRefused where a run (the newest) was granted beyond its budget or with wrong exclusions."""
    version, plan = state.version_of(run), Plan.from_dict(run.plan)
    if thorough and _understates(run.charge, plan):
        raise LedgerRefused(f"entry {run.seq} states less than its plan costs")
    budget = None if run.budget is None else state.budgets[run.budget]
    fits = True
    if budget is not None and over(budget.last_day, state.time[:10]):
        raise LedgerRefused(f"entry {run.seq} was granted after the last day of its budget, {budget.last_day}")
    if budget is not None:
        fits = plan.private and plan.public_size == version.public_size
        if budget.kind == BudgetKind.OPEN:
            fits = fits and gate.spent(state, budget) <= budget.units
        else:
            fits = fits and not gate.overdrawn(state, budget)
        for other in state.cohorts[version.cohort].overlaps:
            shared = gate.carrier(state, other)
            if shared is not None and not state.is_public(other):
                fits = fits and gate.spent(state, shared) <= shared.units
    if not fits:
        raise LedgerRefused(f"entry {run.seq} grants more than the budget of '{version.cohort}' held")
    barred = gate.excluded_classes(state, version, budget, run.charge, plan.steps, besides=run)
    if sorted(barred) != sorted(run.excluded):  # a program that began from a snapshot wrote them in another order
        raise LedgerRefused(f"entry {run.seq} does not leave out the patients that it must")


def _understates(charge: Charge, plan: Plan) -> bool:
    """Whether a charge is below what the plan costs (beyond what another release of a library may change)."""
    from dptrain.accounting import ORDERS

    true = _true_charge(plan.mechanisms)
    return any(charge.at(order, plan.steps) * (1 + 1e-6) < true.at(order, plan.steps) for order in range(len(ORDERS)))


@functools.lru_cache(maxsize=4096)
def _true_charge(mechanisms: tuple[Mechanism, ...]) -> Charge:
    return charge_of(mechanisms)
