"""Why a request is granted or refused, in the data steward's words. Pure functions of the state."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from dptrain.accounting.units import INFINITE_UNITS
from dptrain.errors import LedgerRefused
from dptrain.files import utc_now
from dptrain.ledger import gate, status
from dptrain.ledger.approvals import day_of, over
from dptrain.ledger.charges import Charge
from dptrain.ledger.facts import GateFacts, WeightsSource
from dptrain.ledger.state import Budget, RunState, State, Version
from dptrain.plan import Plan
from dptrain.vocabulary import Basis, BudgetKind, Purpose


def cohort(state: State, name: str) -> Version:
    """The newest version of a cohort. Raises LedgerRefused with the nearest names for an unknown one."""
    if name not in state.cohorts:
        from dptrain.terminal.words import suggest

        near = f" {suggest(name, list(state.cohorts))}" if state.cohorts else ""
        raise LedgerRefused(
            f"No cohort '{name}' is registered in this ledger.{near}",
            remedy="Register it with `dptrain ledger register recipe=… public_size=… owner=…`.",
        )
    return state.newest(name)


def version(state: State, name: str, fingerprint: str) -> Version:
    """The newest version with this content. Raises LedgerRefused where the data match none."""
    cohort(state, name)
    for number in reversed(state.cohorts[name].versions):
        if state.versions[number].fingerprint == fingerprint:
            return state.versions[number]
    raise LedgerRefused(
        f"The data differ from every registered version of '{name}': patients or pixels were added, removed or "
        "changed.",
        remedy="Register them as a new version with `dptrain ledger register …`, or restore the data.",
    )


def run(state: State, name: str) -> RunState:
    """What the ledger holds about a run. Raises LedgerRefused for an unknown one."""
    if name not in state.runs:
        raise LedgerRefused(f"The ledger knows no run '{name}'.")
    return state.runs[name]


def check_plan(plan: Plan, version: Version) -> None:
    """Raises LedgerRefused where the plan's unit or size is not what was registered."""
    if plan.unit != version.unit:
        raise LedgerRefused(f"The plan protects a {plan.unit}; '{version.cohort}' is registered by {version.unit}.")
    if plan.public_size != version.public_size:
        raise LedgerRefused(
            f"The plan is for N = {plan.public_size}, but version {version.number} of '{version.cohort}' "
            f"declares {version.public_size} {version.unit}s.",
            remedy="Plan with the declared size.",
        )


def check_weights(state: State, weights: WeightsSource | None) -> list[str]:
    """The runs whose charge the starting weights bring along. Raises LedgerRefused for unknown weights."""
    if weights is None:
        return []
    if weights.run is None and weights.sha256 in state.weights:
        return []
    name = weights.run or state.models.get(weights.sha256)
    run = None if name is None else state.runs.get(name)
    if run is None or run.model != weights.sha256:
        raise LedgerRefused(
            f"The starting weights {weights.sha256} are neither declared public nor the model of a run in "
            "this ledger: what they know about patients is unknown.",
            remedy="Let the controller declare them: `dptrain ledger weights recipe=…` for a recipe's own, or "
            "file=… source=… licence=….",
        )
    return [*run.inherited, run.id]


def check_unseen(state: State, version: Version, inherited: Sequence[str]) -> None:
    """Raises LedgerRefused where un-noised scores could be of patients whom an earlier run of these weights drew.

    An earlier run of this cohort drew its training patients by the split of its own version; where that is another
    one, or was never bound, nobody can tell who of today's test patients was among them.
    """
    if ungated(state, version):
        return
    for name in inherited:
        run = state.runs[name]
        if run.cohort != version.cohort or run.version == version.id:
            continue  # patients of another cohort are left out by their keys; one version has one split
        earlier, now = (_split_of(one) for one in (state.version_of(run), version))
        if earlier is None or earlier != now:
            raise LedgerRefused(
                f"The starting weights come from run {name}, which was trained under another split, or one that was "
                "not bound at registration: its training patients may be today's test patients, and their scores "
                "would be outside of epsilon.",
                remedy="Train with training.evaluate=false, or start from other weights.",
            )


def _split_of(version: Version) -> object:
    return None if version.binding is None else version.binding.get("split")


def ungated(state: State, version: Version) -> bool:
    """Whether these data are public. What the newest version no longer calls public is not."""
    return version.public is not None and state.is_public(version.cohort)


def require_open(state: State, version: Version) -> None:
    """Raises LedgerRefused where no training at all is granted: locked, or without a budget."""
    name = version.cohort
    if state.cohorts[name].lock is not None:
        raise refusal(state, name, f"Cohort '{name}' was locked by hand: {state.cohorts[name].lock}.")
    if ungated(state, version):
        return
    if not state.cohorts[name].budgets:
        raise LedgerRefused(
            f"'{name}' belongs to {version.owner} and has no budget yet; without one there is no training.",
            remedy=f"Ask the controller for one: `dptrain ledger budget cohort={name} epsilon=… recipe=… reason=…`.",
        )
    if gate.reserved(state, name):
        raise refusal(state, name, f"Cohort '{name}' is locked: what is left of its privacy budget is reserved.")
    if gate.locked(state, name):
        raise refusal(state, name, f"Cohort '{name}' is locked: its privacy budget is spent.")


def afford(state: State, version: Version, plan: Plan, charge: Charge) -> Budget | None:
    """The budget that pays. Raises LedgerRefused in the steward's words."""
    name = version.cohort
    if not ungated(state, version) and not plan.private:
        raise LedgerRefused(
            f"Training without noise on '{name}' is refused: only cohorts declared public may be used without "
            "privacy.",
            remedy="Set privacy.target_epsilon, or register a public cohort with source and licence.",
        )
    require_open(state, version)
    if ungated(state, version):
        return None
    day = day_of(state, utc_now())
    budget = gate.choose(state, version, plan, charge, day)
    if budget is None:
        budgets = [state.budgets[number] for number in state.cohorts[name].budgets]
        if all(over(one.last_day, day) for one in budgets):
            ended = max(str(one.last_day) for one in budgets)
            raise refusal(state, name, f"The budget of '{name}' was granted until {ended}, which is over.")
        raise refusal(state, name, too_much(state, name, plan, charge))
    others = [state.budgets[number].delta for number in state.cohorts[name].budgets if number != budget.id]
    gate.check_delta(budget.delta, version.public_size, name, others)
    shared = gate.overlap_in_the_way(state, version, budget, plan, charge)
    if shared is not None:
        raise refusal(
            state,
            shared.cohort,
            f"This run on '{name}' would exceed the budget of '{shared.cohort}', with which it shares patients.",
        )
    return budget


def too_much(state: State, name: str, plan: Plan, charge: Charge) -> str:
    """Why a plan does not fit into what a cohort has left."""
    budgets = [state.budgets[number] for number in state.cohorts[name].budgets]
    opened = next((budget for budget in budgets if budget.kind == BudgetKind.OPEN), None)
    what = f"{plan.steps} steps, rate {plan.sample_rate:.4g}, noise {plan.noise_multiplier:.4g}"
    if opened is None:
        return f"'{name}' has a planned budget, and this run ({what}) is not among what it declares and still holds."
    left = f"{gate.remaining(state, opened) / opened.units:.1%} is left"
    cost = charge.at(opened.order_index, plan.steps)
    if cost >= INFINITE_UNITS:
        return f"This run ({what}) costs more than any budget of '{name}' could hold; {left}."
    return f"This run ({what}) would take {cost / opened.units:.1%} of the budget of '{name}'; {left}."


def refusal(state: State, name: str, sentence: str) -> LedgerRefused:
    """The error that says who owns the cohort, what was granted, what was spent by which runs, and what to do."""
    facts = status.status_of(state, name, None, witness=False)
    return LedgerRefused(
        f"{sentence}\n{status.story(facts)}",
        remedy=remedy(state, name, facts.owner),
    )


def remedy(state: State, name: str, owner: str) -> str:
    """What helps against a refusal: it depends on why the cohort is closed, if it is."""
    more = f"`dptrain ledger budget cohort={name} epsilon=… reason=…`"
    if state.cohorts[name].lock is not None:
        return (
            f"What to do: stop here. It was locked by hand: only {owner} and the controller can open it again, with "
            f"`dptrain ledger unlock cohort={name} reason=…`."
        )
    if gate.reserved(state, name):
        return f"What to do: {_wait(state, name)}."
    if gate.locked(state, name):
        return f"What to do: stop here, or ask {owner} and the controller to raise the budget: {more}."
    wait = f"{_wait(state, name)}; or " if gate.holders(state, name) else "stop here, or "
    return (
        f"What to do: {wait}choose a run that costs less (more noise, fewer steps), or ask {owner} and the "
        f"controller to raise the budget: {more}."
    )


def _wait(state: State, name: str) -> str:
    """What helps where open runs hold reserved what they have not paid."""
    runs = [run.id for run in gate.holders(state, name)]
    more = f" (and {len(runs) - 1} more)" if len(runs) > 1 else ""
    return (
        f"part of the budget is reserved by run {runs[0]}{more}, which is still open. Wait for it; or, if it died, "
        "resume it with `dptrain train training.resume=…` (the folder whose run.json names it), or give back what "
        f"it has not paid with `dptrain ledger close run={shlex.quote(runs[0])} reason=…`"
    )


def basis(state: State, version: Version, purpose: str, held: RunState | None, run: str) -> tuple[str, int | None]:
    """Why an evaluation or audit is admitted, and the permission that it uses up. Raises LedgerRefused."""
    name = version.cohort
    by_hand = state.cohorts[name].lock is not None
    if ungated(state, version) and not by_hand:
        return Basis.PUBLIC, None
    own = held is not None and held.cohort == name and purpose in held.plan["declares"] and purpose not in held.did
    if own and not by_hand:
        return Basis.DECLARED, None
    if not ungated(state, version) and not state.cohorts[name].budgets:
        raise LedgerRefused(
            f"'{name}' belongs to {version.owner} and has no budget yet; without one its data are not read.",
            remedy=f"Ask the controller for one: `dptrain ledger budget cohort={name} epsilon=… recipe=… reason=…`.",
        )
    if not gate.locked(state, name):
        return Basis.OPEN, None
    day = day_of(state, utc_now())
    for permit in state.permits.values():
        if permit.withdrawn or over(permit.last_day, day):
            continue
        if permit.cohort == name and permit.purpose == purpose and permit.run in (None, run):
            if not permit.used:
                return Basis.PERMIT, permit.id
            first = next(a for a in state.admissions.values() if a.permit == permit.id)
            since = [
                a
                for a in state.admissions.values()
                if a.id >= first.id and (a.run, a.purpose, a.cohort) == (run, purpose, name)
            ]
            if any(a.open for a in since) and not any(a.complete for a in since):
                return Basis.PERMIT, None  # it was begun and died: the same permission goes on
    facts = status.status_of(state, name, None, witness=False)
    doing = "evaluation" if purpose == Purpose.EVALUATE else "audit"
    raise LedgerRefused(
        f"Cohort '{name}' is locked: a new {doing} of run '{run}' is refused.\n{status.story(facts)}",
        remedy=f"What to do: ask the controller: `dptrain ledger permit cohort={name} purpose={purpose} "
        f"run={run} reason=…`.",
    )


def gate_facts(state: State, name: str) -> GateFacts:
    """The public gate of a cohort now."""
    facts = status.status_of(state, name, None, witness=False, with_runs=False)
    return GateFacts(
        kind=facts.kind or "none",
        accountant=facts.accountant,
        order=facts.order,
        budget_epsilon=facts.budget_epsilon,
        budget_delta=facts.budget_delta,
        spent_before=facts.spent_epsilon,
        spent_after=facts.spent_epsilon,
        remaining=facts.remaining_epsilon,
        minimum_charge=facts.minimum_charge,
        locked=facts.locked,
    )
