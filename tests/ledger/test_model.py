"""Every operation in any order, against a model of a few lines that knows each patient's own sum."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from benchmarks._ledger_site import PASSPHRASE, epsilon_for, record, small_plan
from dptrain import accounting
from dptrain.accounting.units import budget_units, from_units, to_units
from dptrain.errors import DataUnreadable, LedgerRefused
from dptrain.ledger import Grant, Keys, Ledger, fingerprint, gate
from dptrain.ledger.charges import charge_of
from dptrain.ledger.state import Budget, State
from dptrain.plan import Plan

PLANS = [small_plan(), small_plan(noise_multiplier=12.0), small_plan(steps=3), small_plan(noise_multiplier=5.0)]
# a, b and d share patients; b is declared to overlap with c; d begins without a budget
GROUPS = {"a": (0, 12), "b": (8, 16), "c": (100, 104), "d": (6, 10)}
PEOPLE = [6, 7, 8, 9, 10, 100, 101]  # whose forms change from version to version
FORMS = ["own", "alias", "both", "copy", "gone"]
DELTA = 1e-3

names = st.sampled_from(sorted(GROUPS))
people = st.sampled_from(PEOPLE)
plans = st.integers(0, len(PLANS) - 1)
versions_back = st.sampled_from([0, 0, 0, 1, 2])


@functools.cache
def open_epsilon(runs: int) -> float:
    """An epsilon that holds so many runs of the first plan, and a half."""
    return epsilon_for(PLANS[0], runs + 0.5)


@functools.cache
def planned_epsilon(chosen: tuple[int, ...]) -> float:
    """What these plans cost together."""
    return float(accounting.pld_epsilon([m for plan in chosen for m in PLANS[plan].mechanisms], DELTA))


@dataclass(eq=False)
class ModelBudget:
    """What a budget should hold; `plans` are the declared ones of a planned budget."""

    cohort: str
    id: int
    units: int
    order: int
    minimum: int = 0
    plans: tuple[int, ...] | None = None


@dataclass
class ModelRun:
    """What a run should look like: `alone` are keys barred by their own sums, `persons` all keys of barred ones."""

    cohort: str
    version: int
    plan: int
    budget: ModelBudget
    alone: frozenset[bytes]
    persons: frozenset[bytes]
    committed: int = 0
    open: bool = True
    grant: Grant | None = None
    evaluated: bool = False

    @property
    def steps(self) -> int:
        """Steps that count; nothing goes back to a planned budget."""
        return PLANS[self.plan].steps if self.open or self.budget.plans is not None else self.committed


@dataclass
class ModelAdmission:
    """An evaluation or audit: what paid for it, and how it ended."""

    cohort: str
    run: str
    purpose: str
    basis: str
    permit: int | None
    grant: Grant
    open: bool = True
    complete: bool = False


@dataclass
class ModelCohort:
    """What a cohort should look like: `versions` are patients with their records, newest last."""

    manifest: dict[int, str]
    versions: list[dict[bytes, list[bytes]]] = field(default_factory=list)
    overlaps: set[str] = field(default_factory=set)
    budgets: list[ModelBudget] = field(default_factory=list)
    locked: bool = False


class LedgerMachine(RuleBasedStateMachine):
    """The ledger beside a model that knows each patient's own sum."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="dptrain-model-"))
        keys, controller = HOME["keys"], HOME["controller"]
        self.keys, self.controller = keys, controller
        self.ledger = Ledger.create(self.folder / "ledger.sqlite", keys)
        self.cohorts: dict[str, ModelCohort] = {}
        self.runs: dict[str, ModelRun] = {}
        self.permits: list[tuple[str, str, str | None]] = []
        self.admissions: list[ModelAdmission] = []
        self.withdrawn: set[bytes] = set()
        self.brought: dict[bytes, bytes] = {}  # record -> the key that brought it first
        self.persons: dict[bytes, frozenset[bytes]] = {}  # key -> all keys of the same person
        self.charges = [charge_of(plan.mechanisms) for plan in PLANS]

    # -- the model ---------------------------------------------------------------------------------------------

    def key(self, number: int, form: str = "own") -> bytes:
        """A patient's key, or the one under the other issuer."""
        return self.keys.patient_key("elsewhere" if form == "alias" else "clinic", str(number))

    def patients(self, manifest: dict[int, str]) -> dict[bytes, list[bytes]]:
        """Keys and records of a manifest: patients as themselves, under another id, under both, with a copy of the
        next patient's pixels, or not at all."""
        found: dict[bytes, list[bytes]] = {}
        for number, form in manifest.items():
            pixels = record(self.keys, number)
            if form in ("own", "copy"):
                found[self.key(number)] = [pixels, record(self.keys, number + 1)] if form == "copy" else [pixels]
            elif form in ("alias", "both"):
                found[self.key(number, "alias")] = [pixels]
                if form == "both":
                    found[self.key(number)] = [record(self.keys, 1000 + number)]
        return found

    def person(self, key: bytes) -> frozenset[bytes]:
        """All keys that are known to be one person's."""
        return self.persons.get(key, frozenset({key}))

    def gone(self, key: bytes) -> bool:
        """Whether that person withdrew, under any id."""
        return bool(self.person(key) & self.withdrawn)

    def carrier(self, name: str) -> ModelBudget | None:
        """The budget that takes charges from elsewhere."""
        budgets = self.cohorts[name].budgets
        return next((budget for budget in budgets if budget.plans is None), budgets[0] if budgets else None)

    def counts(self, budget: ModelBudget, carrying: ModelBudget) -> bool:
        """Whether a run paid by one budget counts against another cohort's, or against its own open one."""
        return budget.cohort != carrying.cohort or (budget is carrying and budget.plans is None)

    def cost(self, run: ModelRun, budget: ModelBudget) -> int:
        """Units of a run at a budget's order."""
        return self.charges[run.plan].at(budget.order, run.steps) if self.counts(run.budget, budget) else 0

    def spent(self, budget: ModelBudget) -> int:
        """Public sum of a cohort and its lineage."""
        lineage = {budget.cohort, *self.cohorts[budget.cohort].overlaps}
        return sum(self.cost(run, budget) for run in self.runs.values() if run.cohort in lineage)

    def own(self, keys: Iterable[bytes], budget: ModelBudget) -> int:
        """What one person has spent under these keys, at a budget's order."""
        return sum(
            self.cost(run, budget)
            for key in keys
            for run in self.runs.values()
            if key in self.cohorts[run.cohort].versions[run.version] and key not in run.alone
        )

    def unused(self, budget: ModelBudget) -> Counter[int]:
        """Declared runs that nobody took."""
        return Counter(budget.plans or ()) - Counter(run.plan for run in self.runs.values() if run.budget is budget)

    def exhausted(self, budget: ModelBudget) -> bool:
        """Whether less than the minimum charge is left, or nothing declared."""
        if budget.plans is not None:
            return not self.unused(budget)
        return budget.units - self.spent(budget) < max(1, budget.minimum)

    def locked(self, name: str) -> bool:
        """By hand, or because all is spent."""
        cohort = self.cohorts[name]
        return cohort.locked or (bool(cohort.budgets) and all(map(self.exhausted, cohort.budgets)))

    def payer(self, name: str, plan: int) -> ModelBudget | None:
        """The budget that should pay for a run; None where it must be refused."""
        if self.locked(name):
            return None
        budgets, charge, steps = self.cohorts[name].budgets, self.charges[plan], PLANS[plan].steps
        paying = next((budget for budget in budgets if self.unused(budget)[plan]), None)
        if paying is None:
            paying = self.carrier(name)
            if paying is None or paying.plans is not None or self.exhausted(paying):
                return None
            if self.spent(paying) + charge.at(paying.order, steps) > paying.units:
                return None
        for other in self.cohorts[name].overlaps:
            there = self.carrier(other)
            if there is not None and self.spent(there) + charge.at(there.order, steps) > there.units:
                return None
        return paying

    def barred(self, keys: Iterable[bytes], paying: ModelBudget, plan: int) -> bool:
        """Whether a person under these keys must be left out of a new run."""
        keys = list(keys)
        if any(key in self.withdrawn for key in keys):
            return True
        for name, cohort in self.cohorts.items():
            there = self.carrier(name)
            if there is None or not any(key in version for key in keys for version in cohort.versions):
                continue
            adds = self.counts(paying, there)
            cost = self.charges[plan].at(there.order, PLANS[plan].steps) if adds else 0
            if (cost or paying.cohort == name) and self.own(keys, there) + cost > there.units:
                return True
        return False

    def left_out(self, run: ModelRun) -> set[bytes]:
        """Whom a run of the past leaves out now: barred then, or withdrawn since."""
        return {
            key
            for key in self.cohorts[run.cohort].versions[run.version]
            if key in run.alone or self.person(key) & run.persons or self.gone(key)
        }

    def same_data(self, name: str, back: int) -> int:
        """The newest version with the content of the one so many before the newest."""
        versions = self.cohorts[name].versions
        content = versions[max(0, len(versions) - 1 - back)]
        return max(number for number, version in enumerate(versions) if version == content)

    # -- cohorts -----------------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        """Four cohorts; all but one have a budget."""
        for name, (first, last) in GROUPS.items():
            self.cohorts[name] = ModelCohort(dict.fromkeys(range(first, last), "own"))
            self.register(name, {}, "b" if name == "c" else None)
            if name != "d":
                self.grant_budget(name, 3, 0.0)

    def register(self, name: str, forms: dict[int, str], overlap: str | None = None) -> None:
        """A version whose patients differ in these forms."""
        cohort = self.cohorts[name]
        manifest = {**cohort.manifest, **forms}
        patients = self.patients(manifest)
        overlaps = [overlap] if overlap not in (None, name) else []
        facts: dict[str, Any] = {"unit": "patient", "issuer": "clinic", "public_size": 20, "owner": "Radiology"}
        if max(Counter(each for records in patients.values() for each in records).values()) > 1:
            with pytest.raises(DataUnreadable, match="same pixels"):
                self.ledger.register(name, **facts, patients=patients, overlaps=overlaps)
            return
        made = self.ledger.register(name, **facts, patients=patients, overlaps=overlaps)
        if not (cohort.versions and cohort.versions[-1] == patients and set(overlaps) <= cohort.overlaps):
            cohort.versions.append(patients)
            for other in overlaps:
                cohort.overlaps.add(other)
                self.cohorts[other].overlaps.add(name)
        assert made.version == len(cohort.versions)
        cohort.manifest = manifest
        for key, records in patients.items():
            for each in records:
                first = self.brought.setdefault(each, key)
                if first != key:
                    together = self.person(first) | self.person(key)
                    self.persons.update(dict.fromkeys(together, together))

    @rule(name=names, number=people, leaves=st.booleans(), overlap=st.sampled_from([None] * 9 + ["a"]))
    def new_version(self, name: str, number: int, leaves: bool, overlap: str | None) -> None:
        """A patient more or less, and seldom a declared overlap more."""
        self.register(name, {number: "gone" if leaves else "own"}, overlap)

    @rule(name=names, forms=st.dictionaries(people, st.sampled_from(FORMS), min_size=1, max_size=3))
    def link(self, name: str, forms: dict[int, str]) -> None:
        """The same pixels under another id: the two are one person."""
        self.register(name, forms)

    @rule(number=st.sampled_from([3, *PEOPLE, 777]), form=st.sampled_from(["own", "alias"]))
    def withdraw(self, number: int, form: str) -> None:
        """A patient of one cohort, of several, of none; under either id."""
        key = self.key(number, form)
        self.ledger.withdraw(key)
        self.withdrawn |= self.person(key)

    # -- the controller ----------------------------------------------------------------------------------------

    @rule(name=names, runs=st.integers(1, 6), least=st.sampled_from([0.0, 0.0, 0.1, 0.4, None]))
    def grant_budget(self, name: str, runs: int, least: float | None) -> None:
        """Grant, raise or lower; `least` is the part of it below which the cohort locks (None: as before)."""
        cohort, epsilon = self.cohorts[name], open_epsilon(runs)
        before = next((budget for budget in cohort.budgets if budget.plans is None), None)
        if before is None:
            order = accounting.best_order(epsilon, DELTA, PLANS[0].mechanisms)
            before = ModelBudget(name, 0, 0, accounting.ORDERS.index(order))
        elif least is None and before.minimum > budget_units(epsilon, DELTA, accounting.ORDERS[before.order]):
            return  # it would be locked at once, which is refused
        units = budget_units(epsilon, DELTA, accounting.ORDERS[before.order])
        minimum = None if least is None else from_units(int(units * least))
        budget = self.ledger.budget(
            name,
            epsilon=epsilon,
            delta=DELTA,
            forecast=PLANS[0].mechanisms,
            minimum_charge=minimum,
            reason="test",
            controller=self.controller,
        )
        assert (budget.units, budget.order_index) == (units, before.order)
        if not before.id:
            before.id = budget.id
            cohort.budgets.append(before)
            if minimum is None:
                before.minimum = to_units(min(epsilon / 100, from_units(units) / 10))
        assert budget.id == before.id
        before.units = units
        if minimum is not None:
            before.minimum = to_units(minimum)
        assert budget.minimum_units == before.minimum

    @rule(name=names, declared=st.lists(plans, min_size=1, max_size=2), room=st.sampled_from([0.0, 3.0]))
    def plan_budget(self, name: str, declared: list[int], room: float) -> None:
        """Declared runs, with or without something set aside for runs of other cohorts."""
        cohort, chosen = self.cohorts[name], tuple(sorted(declared))
        if sum(budget.plans is not None for budget in cohort.budgets) == 3:
            return
        facts: dict[str, Any] = {
            "kind": "planned", "delta": DELTA, "forecast": [m for plan in chosen for m in PLANS[plan].mechanisms],
            "reason": "test", "controller": self.controller,
        }  # fmt: skip
        with pytest.raises(LedgerRefused, match="cost epsilon"):
            self.ledger.budget(name, **facts, epsilon=planned_epsilon(chosen) * 0.999)
        budget = self.ledger.budget(name, **facts, epsilon=planned_epsilon(chosen) + room)
        cohort.budgets.append(ModelBudget(name, budget.id, budget.units, budget.order_index, plans=chosen))

    @rule(name=names, lock=st.booleans())
    def lock(self, name: str, lock: bool) -> None:
        """By hand."""
        if lock:
            self.ledger.lock(name, reason="test")
        else:
            self.ledger.unlock(name, reason="test", controller=self.controller)
        self.cohorts[name].locked = lock

    @rule(data=st.data(), name=names, purpose=st.sampled_from(["evaluate", "audit"]))
    def permit(self, data: Any, name: str, purpose: str) -> None:
        """Leave for one use of a locked cohort."""
        run = data.draw(st.sampled_from([None, "elsewhere", *self.runs]))
        self.ledger.permit(purpose, name, self.controller, reason="test", run=run)
        self.permits.append((name, purpose, run))

    # -- runs --------------------------------------------------------------------------------------------------

    @rule(name=names, plan=plans, back=versions_back)
    def reserve(self, name: str, plan: int, back: int) -> None:
        """Granted exactly where the public sums allow; leaves out exactly who must be."""
        number, run = self.same_data(name, back), f"run{len(self.runs)}"
        patients, paying = self.cohorts[name].versions[number], self.payer(name, plan)
        try:
            grant = self.ledger.reserve(PLANS[plan], name, run=run, fingerprint=fingerprint(patients), lease=4)
        except LedgerRefused:
            assert paying is None
            return
        assert paying is not None
        alone = frozenset(key for key in patients if self.barred([key], paying, plan))
        persons: set[bytes] = set()
        for person in {self.person(key) for key in patients}:
            here = [key for key in person if key in patients]
            if len(person) > 1 and (len(here) > 1 or self.barred(person, paying, plan)):
                persons |= person
        assert grant.excluded == alone | (persons & patients.keys())
        assert self.ledger.run(run).budget == paying.id
        self.runs[run] = ModelRun(name, number, plan, paying, alone, frozenset(persons), grant=grant)

    def any_open(self) -> list[str]:
        """Names of open runs."""
        return [name for name, run in self.runs.items() if run.open]

    @precondition(lambda self: self.any_open())
    @rule(data=st.data(), steps=st.integers(1, 12))
    def commit(self, data: Any, steps: int) -> None:
        """Pay some steps."""
        run = self.runs[data.draw(st.sampled_from(self.any_open()))]
        assert run.grant is not None
        through = run.committed + steps
        if through > PLANS[run.plan].steps:
            with pytest.raises(LedgerRefused):
                run.grant.commit(through)
        else:
            run.grant.commit(through)
            run.committed = through

    @precondition(lambda self: self.any_open())
    @rule(data=st.data())
    def close(self, data: Any) -> None:
        """End a run; never-started leases go back to an open budget."""
        run = self.runs[data.draw(st.sampled_from(self.any_open()))]
        assert run.grant is not None
        receipt = run.grant.close("interrupted", run.committed)
        assert receipt is not None
        run.open = False
        run.evaluated = False  # a close says what was done, and forgets an evaluation that ended before it
        assert receipt.steps_charged == run.steps

    @precondition(lambda self: self.any_open())
    @rule(data=st.data())
    def die_and_resume(self, data: Any) -> None:
        """Another process goes on; the old grant is dead."""
        name = data.draw(st.sampled_from(self.any_open()))
        run = self.runs[name]
        ghost, run.grant = run.grant, self.ledger.resume(name)
        assert ghost is not None
        assert run.grant.committed == run.committed
        assert run.grant.excluded == self.left_out(run)
        with pytest.raises(LedgerRefused):
            ghost.close("interrupted", 0)

    def basis(self, name: str, run: str, purpose: str) -> tuple[str, int | None] | None:
        """What should pay for an evaluation or audit; None where it must be refused."""
        cohort, held = self.cohorts[name], self.runs.get(run)
        if held and held.cohort == name and purpose == "evaluate" and not (held.evaluated or cohort.locked):
            return "declared", None
        if not cohort.budgets:
            return None
        if not self.locked(name):
            return "open", None
        for number, (whose, what, which) in enumerate(self.permits):
            if (whose, what) != (name, purpose) or which not in (None, run):
                continue
            first = next((i for i, each in enumerate(self.admissions) if each.permit == number), None)
            if first is None:
                return "permit", number
            since = [a for a in self.admissions[first:] if (a.cohort, a.run, a.purpose) == (name, run, purpose)]
            if any(each.open for each in since) and not any(each.complete for each in since):
                return "permit", None
        return None

    @rule(data=st.data(), name=names, purpose=st.sampled_from(["evaluate", "audit"]), back=versions_back)
    def admit(self, data: Any, name: str, purpose: str, back: int) -> None:
        """Evaluation and audit: admitted exactly where they may be; the withdrawn are left out under every id."""
        run = data.draw(st.sampled_from(["elsewhere", *self.runs]))
        number, expected = self.same_data(name, back), self.basis(name, run, purpose)
        patients = self.cohorts[name].versions[number]
        try:
            grant = self.ledger.admit(name, purpose=purpose, run=run, fingerprint=fingerprint(patients))
        except LedgerRefused:
            assert expected is None
            return
        assert expected is not None
        assert grant.basis == expected[0]
        out = {key for key in patients if self.gone(key)}
        held = self.runs.get(run)
        if held is not None and (held.cohort, held.version) == (name, number):
            out |= self.left_out(held)
        assert grant.excluded == out
        self.admissions.append(ModelAdmission(name, run, purpose, *expected, grant))

    @precondition(lambda self: any(admission.open for admission in self.admissions))
    @rule(data=st.data(), complete=st.booleans())
    def finish(self, data: Any, complete: bool) -> None:
        """An evaluation or audit ends; the declared one is used up where it is complete."""
        still = [number for number, each in enumerate(self.admissions) if each.open]
        admission = self.admissions[data.draw(st.sampled_from(still))]
        admission.grant.close("complete" if complete else "interrupted")
        admission.open, admission.complete = False, complete
        if complete and admission.basis == "declared":
            self.runs[admission.run].evaluated = True

    # -- programs ----------------------------------------------------------------------------------------------

    @rule()
    def another_program(self) -> None:
        """Everything is read again from the file."""
        self.ledger.close()
        self.ledger = Ledger.open(self.folder / "ledger.sqlite", self.keys)
        for holder in (*self.runs.values(), *self.admissions):
            if holder.grant is not None:  # type: ignore[attr-defined]
                holder.grant._ledger = self.ledger  # type: ignore[attr-defined]

    @rule()
    def snapshot(self) -> None:
        """The shortcut is written at any time."""
        with self.ledger.write() as (connection, state):
            self.ledger.write_snapshot(connection, state)

    @invariant()
    def sums_agree(self) -> None:
        """Status and model name the same sums; nothing is overspent unless a budget was lowered."""
        for name, cohort in self.cohorts.items():
            status = self.ledger.status(name)
            assert status.locked == self.locked(name)
            assert set(status.overlaps) == cohort.overlaps
            assert [budget.id for budget in status.budgets] == [budget.id for budget in cohort.budgets]
            for told, budget in zip(status.budgets, cohort.budgets):
                assert told.exhausted == self.exhausted(budget)
                if budget.plans is not None:
                    assert len(told.unused) == self.unused(budget).total()
                elif spent := self.spent(budget):
                    left = (budget.units - spent) / 2**40
                    assert told.epsilon - told.spent_epsilon == pytest.approx(left, abs=1e-9)
            assert sum(run.cohort == name for run in status.runs) == sum(
                run.cohort == name for run in self.runs.values()
            )

    @invariant()
    def running_sums_are_sums(self) -> None:
        """What is kept from entry to entry is what all runs make, and so is what a snapshot gives."""
        with self.ledger.view() as (_, state):
            for each in (state, State.parse(state.dump())):
                for budget in each.budgets.values():
                    check_sums(each, budget)

    def teardown(self) -> None:
        """The chain verifies, each grant anew."""
        try:
            assert self.ledger.verify() == []
        finally:
            self.ledger.close()
            shutil.rmtree(self.folder)


def check_sums(state: State, budget: Budget) -> None:
    """A budget's sums against those over all runs, and a class's without its newest run."""
    runs = [run for run in state.runs.values() if gate.counts(state, run.budget, budget)]
    order, lineage = budget.order_index, gate.lineage(state, budget.cohort)
    assert gate.spent(state, budget) == sum(run.units(order) for run in runs if run.cohort in lineage)
    paid = [Plan.from_dict(run.plan).mechanisms for run in state.runs.values() if run.budget == budget.id]
    declared, taken = (
        Counter((m.sample_rate, m.noise_multiplier, m.steps) for m in some)
        for some in (budget.mechanisms, sum(paid, ()))
    )
    assert gate.unused(state, budget) == declared - taken
    assert gate.overdrawn(state, budget) == bool(taken - declared)
    for klass in state.classes:
        drawn = [run for run in runs if gate.took_part(state.history(klass), run)]
        spent = [run.units(order) for run in drawn]
        assert gate.class_spent(state, [klass], budget) == sum(spent)
        if drawn:
            assert gate.class_spent(state, [klass], budget, besides=drawn[-1]) == sum(spent[:-1])


HOME: dict[str, Any] = {}


def play(folder: Path, **profile: Any) -> None:
    """Play the machine with new keys."""
    keys = Keys.create(folder / "keys", PASSPHRASE)
    HOME.update(keys=keys, controller=keys.controller(PASSPHRASE))
    run_state_machine_as_test(
        LedgerMachine, settings=settings(deadline=None, suppress_health_check=list(HealthCheck), **profile)
    )


def test_any_order_of_operations(tmp_path: Path) -> None:
    play(tmp_path, max_examples=20, stateful_step_count=25, derandomize=True)


@pytest.mark.slow
def test_any_order_of_operations_at_length(tmp_path: Path) -> None:
    """Other orders each time; a failure prints the shortest that fails."""
    play(tmp_path, max_examples=300, stateful_step_count=50, derandomize=False, database=None)
