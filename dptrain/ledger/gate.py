"""Who may spend what: the privacy filter of open budgets, the declared list of planned ones, and patients' own caps.

**Open budgets.** The sum of worst-case RDP at one order, fixed at signing, must stay within what that order allows
for (epsilon, delta). A filter on RDP at a fixed order is valid when each run is chosen after seeing the results of
those before it (Feldman & Zrnic 2021, Theorem 4.3), also for runs that overlap in time (Haney et al.,
arXiv 2309.05901). A reservation counts in full until the run is closed.

**Planned budgets.** The mechanisms are bound at signing; their joint PLD is within (epsilon, delta). Each may run
once. There is nothing to adapt, hence no filter and no overhead.

**Lineage.** A budget of cohort X is also charged by runs on every cohort that was declared to overlap with X. An
open budget takes such charges like its own. A planned one sets aside `units` at signing for them: what remains of
its epsilon once its own mechanisms are accounted at delta/2 (basic composition; for concurrent use see Vadhan &
Zhang 2023, Lyu 2022).

**Patients.** Beyond what is declared, one person may be in several cohorts. Patients with one membership history
form a class. A class that a run would carry past the budget of *any* of its cohorts is left out of that run's
draws. That decision follows nothing but the patient's own history, an individual filter (Feldman & Zrnic 2021,
Section 5), and it changes nothing that the run's owner can see.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence

from dptrain.accounting.units import from_units
from dptrain.errors import ConfigError, LedgerRefused
from dptrain.ledger.approvals import over
from dptrain.ledger.charges import Charge
from dptrain.ledger.state import Budget, PatientClass, RunState, State, Version
from dptrain.plan import Mechanism, Plan
from dptrain.vocabulary import BudgetKind, RunStatus


def carrier(state: State, cohort: str) -> Budget | None:
    """The budget that takes charges from elsewhere: the open one, else the first planned one."""
    budgets = [state.budgets[number] for number in state.cohorts[cohort].budgets]
    return next((budget for budget in budgets if budget.kind == BudgetKind.OPEN), budgets[0] if budgets else None)


def counts(state: State, budget: int | None, carrying: Budget) -> bool:
    """Whether a run charged to `budget` also counts against the shared RDP of `carrying`."""
    if budget is None:
        return False  # a public cohort gates nothing
    if state.budgets[budget].cohort == carrying.cohort:
        return carrying.kind == BudgetKind.OPEN and budget == carrying.id
    return True


def lineage(state: State, cohort: str) -> set[str]:
    """The cohort and those declared to overlap with it."""
    return {cohort, *state.cohorts[cohort].overlaps}


def spent(state: State, budget: Budget) -> int:
    """Units at the budget's order that the cohort and its lineage have spent or hold reserved. Public."""
    members = frozenset(lineage(state, budget.cohort))
    return _sum(state, budget, members, lambda run: run.cohort in members)


def _sum(state: State, budget: Budget, whose: Hashable, includes: Callable[[RunState], bool]) -> int:
    """Units at a budget's order of the runs that count and are included; only what changed since last is looked at.

    Args:
        whose: what `includes` depends on, so that it says the same of a run for as long as the ledger lives.
    """
    seen, total = state.sums.get((budget.id, whose), (0, 0))
    for run, before, now in state.changes[seen:]:
        if counts(state, run.budget, budget) and includes(run):
            total += run.charge.at(budget.order_index, now) - run.charge.at(budget.order_index, before)
    state.sums[budget.id, whose] = (len(state.changes), total)
    return total


def remaining(state: State, budget: Budget) -> int:
    """Units that an open budget has left; never below 0."""
    return max(0, budget.units - spent(state, budget))


def unused(state: State, budget: Budget) -> Counter[tuple[float, float, int]]:
    """Declared mechanisms of a planned budget that no run has taken yet."""
    return Counter(map(_key, budget.mechanisms)) - _taken(state, budget)


def overdrawn(state: State, budget: Budget) -> bool:
    """Whether runs took mechanisms that a planned budget does not declare (or not so often)."""
    return bool(_taken(state, budget) - Counter(map(_key, budget.mechanisms)))


def _taken(state: State, budget: Budget) -> Counter[tuple[float, float, int]]:
    """The mechanisms of a planned budget's runs. A run changes once, when it is granted: nothing is given back."""
    seen, taken = state.taken.get(budget.id, (0, Counter()))
    for change in state.changes[seen:]:
        if change.run.budget == budget.id:
            taken.update(map(_key, Plan.from_dict(change.run.plan).mechanisms))
    state.taken[budget.id] = (len(state.changes), taken)
    return taken


def epsilon_at(budget: Budget, used: int) -> float:
    """The epsilon that an open budget has reached when so many units are spent.

    The conversion of the RDP sum has the form sum + g(order, delta), so it is the granted epsilon less the units
    that remain; nothing spent is 0.
    """
    return budget.epsilon + from_units(used) - from_units(budget.units) if used else 0.0


def spent_epsilon(state: State, budget: Budget) -> float:
    """What the runs so far cost at this budget's gate, as the largest epsilon that they can reach.

    open: :func:`epsilon_at`. planned: the joint epsilon of the shortest declared prefix that holds all runs.
    """
    if budget.kind == BudgetKind.OPEN:
        return epsilon_at(budget, spent(state, budget))
    total = Counter(_key(mechanism) for mechanism in budget.mechanisms)
    used_up = total - unused(state, budget)
    for k in range(len(budget.prefixes)):
        if not used_up - Counter(_key(mechanism) for mechanism in budget.mechanisms[:k]):
            return budget.prefixes[k]
    return budget.prefixes[-1]


def exhausted(state: State, budget: Budget) -> bool:
    """Whether nothing is left, or less than the budget's signed minimum charge (planned: nothing left to run)."""
    if budget.kind == BudgetKind.OPEN:
        return remaining(state, budget) < max(1, budget.minimum_units)
    return not unused(state, budget)


def locked(state: State, cohort: str) -> bool:
    """Whether a cohort is locked: by hand, or because every budget is exhausted. Public cohorts never are."""
    if state.cohorts[cohort].lock is not None:
        return True
    if state.is_public(cohort):
        return False
    budgets = [state.budgets[number] for number in state.cohorts[cohort].budgets]
    return bool(budgets) and all(exhausted(state, budget) for budget in budgets)


def holders(state: State, cohort: str) -> list[RunState]:
    """Open runs that hold steps reserved which they have not paid: a close would give these back (open budgets)."""
    carrying = carrier(state, cohort)
    if carrying is None or carrying.kind != BudgetKind.OPEN:
        return []
    members = lineage(state, cohort)
    return [
        run
        for run in state.runs.values()
        if run.cohort in members
        and run.status == RunStatus.OPEN
        and not run.planned
        and run.committed < run.steps
        and counts(state, run.budget, carrying)
    ]


def reserved(state: State, cohort: str) -> list[RunState]:
    """Open runs whose reservations alone lock a cohort: with what these have paid, it would be open."""
    carrying = carrier(state, cohort)
    if carrying is None or state.cohorts[cohort].lock is not None or not locked(state, cohort):
        return []
    waiting = holders(state, cohort)
    if not waiting:
        return []
    index = carrying.order_index
    unpaid = sum(run.units(index) - run.charge.at(index, run.committed) for run in waiting)
    left = carrying.units - spent(state, carrying) + unpaid
    return waiting if left >= max(1, carrying.minimum_units) else []


def choose(state: State, version: Version, plan: Plan, charge: Charge, day: str) -> Budget | None:
    """The budget that pays for a plan: a planned one that declares it, else the open one; None if none fits."""
    for number in state.cohorts[version.cohort].budgets:
        budget = state.budgets[number]
        if over(budget.last_day, day):
            continue
        if budget.kind == BudgetKind.PLANNED and not Counter(map(_key, plan.mechanisms)) - unused(state, budget):
            return budget
    shared = carrier(state, version.cohort)
    if shared is None or shared.kind != BudgetKind.OPEN or exhausted(state, shared) or over(shared.last_day, day):
        return None
    if spent(state, shared) + charge.at(shared.order_index, plan.steps) > shared.units:
        return None
    return shared


def overlap_in_the_way(state: State, version: Version, budget: Budget, plan: Plan, charge: Charge) -> Budget | None:
    """The budget of a declared overlapping cohort that this plan would carry past its end, if any."""
    for other in state.cohorts[version.cohort].overlaps:
        shared = carrier(state, other)
        if shared is None or state.is_public(other):
            continue
        if spent(state, shared) + charge.at(shared.order_index, plan.steps) > shared.units:
            return shared
    return None


def took_part(history: Sequence[PatientClass], run: RunState) -> bool:
    """Whether patients with this history were drawn from by a run: their class at that time was a member."""
    then: PatientClass | None = None
    for klass in history:
        if klass.seq < run.seq:
            then = klass
    if then is None or then.withdrawn or run.version not in then.versions:
        return False
    return then.id not in run.excluded


def class_spent(state: State, classes: Iterable[int], budget: Budget, besides: RunState | None = None) -> int:
    """Units at a budget's order that patients of these classes (one person under several keys) have spent.

    Args:
        besides: a run that is not to count.
    """
    total = 0
    for klass in classes:
        part = functools.partial(took_part, state.history(klass))
        total += _sum(state, budget, klass, part)
        if besides is not None and counts(state, besides.budget, budget) and part(besides):
            total -= besides.units(budget.order_index)
    return total


def bars(
    state: State,
    classes: Sequence[int],
    version: Version,
    budget: Budget | None,
    charge: Charge,
    T: int,
    besides: RunState | None = None,
) -> bool:
    """Whether a run on `version` must leave out the patients of these classes (one person).

    Args:
        besides: that very run, where the state holds it already.
    """
    members = [state.classes[klass] for klass in classes if klass]
    if any(member.withdrawn for member in members):
        return True
    if budget is None:
        return False
    cohorts = {
        state.versions[number].cohort
        for member in members
        for number in member.versions
        if state.versions[number].public is None
    }
    for cohort in cohorts:
        carrying = carrier(state, cohort)
        if carrying is None:
            continue
        own = charge.at(carrying.order_index, T) if counts(state, budget.id, carrying) else 0
        already = class_spent(state, classes, carrying, besides)
        if (own or budget.cohort == cohort) and already + own > carrying.units:
            return True
    return False


def excluded_classes(
    state: State, version: Version, budget: Budget | None, charge: Charge, steps: int, besides: RunState | None = None
) -> list[int]:
    """Classes whose patients a new run on `version` must leave out, in order.

    Args:
        besides: that very run, where the state holds it already.
    """
    return [
        klass.id
        for klass in state.classes.values()
        if version.id in klass.versions and bars(state, [klass.id], version, budget, charge, steps, besides)
    ]


def excluded_now(state: State, run: RunState) -> list[int]:
    """Classes of today whose patients a run of the past leaves out: barred then, or withdrawn since."""
    barred = set(run.excluded)
    return [
        klass.id
        for klass in state.classes.values()
        if run.version in klass.versions
        and (klass.withdrawn or any(before.id in barred for before in state.history(klass.id)))
    ]


LEAST_EPSILON, MOST_EPSILON = 1e-6, 10_000.0


def check_epsilon(epsilon: float) -> None:
    """Raises ConfigError for a budget that no training could keep to, or that promises nothing."""
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ConfigError(
            f"epsilon={epsilon} must be a finite number above 0.",
            remedy="Usual values lie between 0.5 (strict) and 8 (loose).",
        )
    if epsilon > MOST_EPSILON:
        raise ConfigError(f"epsilon={epsilon:g} protects nobody.", remedy="Choose a budget below 100.")
    if epsilon < LEAST_EPSILON:
        raise ConfigError(
            f"epsilon={epsilon:g} is less than any training could keep to.", remedy="Choose 0.1 or more."
        )


def check_delta(delta: float, public_size: int, cohort: str, others: Sequence[float] = ()) -> None:
    """Raises LedgerRefused for a delta that would allow one patient to be published outright.

    What a patient can lose to several budgets adds up, delta as well (basic composition: Dwork & Roth 2014,
    theorem 3.16), so that the sum with the cohort's `others` must stay below 1/N.
    """
    if not (math.isfinite(delta) and 0 < delta < 1):
        raise LedgerRefused(f"delta = {delta} is no probability between 0 and 1.")
    if delta >= 1 / public_size:
        raise LedgerRefused(
            f"delta = {delta:g} is too large for cohort '{cohort}': with {public_size} patients it must be below "
            f"{1 / public_size:.3g}, or the promise would allow one patient to be published outright.",
            remedy=f"Use {min(1e-5, 1 / (10 * public_size)):.3g} or less.",
        )
    total = delta + sum(others)
    if total >= 1 / public_size:
        raise LedgerRefused(
            f"delta = {delta:g} with the {sum(others):g} of the other budgets of '{cohort}' makes {total:g}: with "
            f"{public_size} patients their sum must stay below {1 / public_size:.3g}.",
            remedy="Use a smaller delta, or put the runs into one planned budget.",
        )


def _key(mechanism: Mechanism) -> tuple[float, float, int]:
    return (mechanism.sample_rate, mechanism.noise_multiplier, mechanism.steps)
