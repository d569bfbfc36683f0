"""Every operation in any order, against a model of a few lines that knows each patient's own sum."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from benchmarks._ledger_site import PASSPHRASE, epsilon_for, people, small_plan
from dptrain.errors import LedgerRefused
from dptrain.ledger import Grant, Keys, Ledger, fingerprint
from dptrain.ledger.charges import charge_of

PLANS = [small_plan(), small_plan(noise_multiplier=12.0), small_plan(steps=3), small_plan(noise_multiplier=5.0)]
GROUPS = {"a": (0, 12), "b": (8, 16), "c": (100, 104)}  # a and b share patients 8…11; b is declared to overlap with c


@dataclass
class ModelRun:
    """What a run should look like."""

    cohort: str
    plan: int
    excluded: frozenset[bytes]
    committed: int = 0
    open: bool = True
    grant: Grant | None = None

    @property
    def steps(self) -> int:
        """Steps that count."""
        return PLANS[self.plan].steps if self.open else self.committed


@dataclass
class ModelCohort:
    """What a cohort should look like."""

    units: int = 0
    order: int = 0
    epsilon: float = 0.0
    locked: bool = False
    patients: dict[bytes, list[bytes]] = field(default_factory=dict)


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
        self.withdrawn: set[bytes] = set()
        self.charges = [charge_of(plan.mechanisms) for plan in PLANS]

    @initialize()
    def begin(self) -> None:
        """Three cohorts, each with a budget."""
        for name, (first, last) in GROUPS.items():
            patients = people(self.keys, first, last)
            self.ledger.register(
                name,
                unit="patient",
                issuer="clinic",
                public_size=20,
                patients=patients,
                owner="Radiology",
                overlaps=["b"] if name == "c" else [],
            )
            self.cohorts[name] = ModelCohort(patients=patients)
            self.grant_budget(name, 3)

    def overlaps(self, name: str) -> set[str]:
        """Declared lineage."""
        return {"b": {"b", "c"}, "c": {"b", "c"}}.get(name, {name})

    def cost(self, run: ModelRun, order: int) -> int:
        """Units of a run at an order."""
        return self.charges[run.plan].at(order, run.steps)

    def spent(self, name: str) -> int:
        """Public sum of a cohort and its lineage."""
        order = self.cohorts[name].order
        return sum(self.cost(run, order) for run in self.runs.values() if run.cohort in self.overlaps(name))

    def own(self, patient: bytes, name: str) -> int:
        """What one patient has spent, at the order of a cohort's budget."""
        order = self.cohorts[name].order
        return sum(
            self.cost(run, order)
            for run in self.runs.values()
            if patient in self.cohorts[run.cohort].patients and patient not in run.excluded
        )

    @rule(name=st.sampled_from(sorted(GROUPS)), runs=st.integers(1, 6))
    def grant_budget(self, name: str, runs: int) -> None:
        """Grant, raise or lower."""
        if name not in self.cohorts:
            return
        budget = self.ledger.budget(
            name,
            epsilon=epsilon_for(PLANS[0], runs + 0.5),
            delta=1e-3,
            forecast=PLANS[0].mechanisms,
            minimum_charge=0.0,
            reason="test",
            controller=self.controller,
        )
        cohort = self.cohorts[name]
        cohort.units, cohort.order, cohort.epsilon = budget.units, budget.order_index, budget.epsilon

    @rule(name=st.sampled_from(sorted(GROUPS)), plan=st.integers(0, len(PLANS) - 1))
    def reserve(self, name: str, plan: int) -> None:
        """Granted exactly where the public sums allow; leaves out exactly who must be."""
        cohort, run = self.cohorts[name], f"run{len(self.runs)}"
        cost = self.charges[plan]
        fits = not cohort.locked and all(
            self.spent(there) + cost.at(self.cohorts[there].order, PLANS[plan].steps) <= self.cohorts[there].units
            for there in self.overlaps(name)
        )
        try:
            grant = self.ledger.reserve(PLANS[plan], name, run=run, fingerprint=fingerprint(cohort.patients), lease=4)
        except LedgerRefused:
            assert not fits
            return
        assert fits
        expected = set()
        for patient in cohort.patients:
            if patient in self.withdrawn:
                expected.add(patient)
            for there, other in self.cohorts.items():
                if patient in other.patients and (
                    self.own(patient, there) + cost.at(other.order, PLANS[plan].steps) > other.units
                ):
                    expected.add(patient)
        assert grant.excluded == expected
        self.runs[run] = ModelRun(name, plan, frozenset(expected), grant=grant)

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
        """End a run; never-started leases go back."""
        run = self.runs[data.draw(st.sampled_from(self.any_open()))]
        assert run.grant is not None
        receipt = run.grant.close("interrupted", run.committed)
        assert receipt is not None
        run.open = False
        assert receipt.steps_charged == run.committed

    @precondition(lambda self: self.any_open())
    @rule(data=st.data())
    def die_and_resume(self, data: Any) -> None:
        """Another process goes on; the old grant is dead."""
        name = data.draw(st.sampled_from(self.any_open()))
        run = self.runs[name]
        ghost, run.grant = run.grant, self.ledger.resume(name)
        assert ghost is not None
        assert run.grant.committed == run.committed
        assert run.grant.excluded == run.excluded | (self.withdrawn & set(self.cohorts[run.cohort].patients))
        with pytest.raises(LedgerRefused):
            ghost.close("interrupted", 0)

    @rule(number=st.sampled_from([3, 9, 102, 777]))
    def withdraw(self, number: int) -> None:
        """A patient of a, of a and b, of c, of none."""
        key = self.keys.patient_key("clinic", str(number))
        self.ledger.withdraw(key)
        self.withdrawn.add(key)

    @rule(name=st.sampled_from(sorted(GROUPS)), lock=st.booleans())
    def lock(self, name: str, lock: bool) -> None:
        """By hand."""
        if lock:
            self.ledger.lock(name, reason="test")
        else:
            self.ledger.unlock(name, reason="test", controller=self.controller)
        self.cohorts[name].locked = lock

    @rule()
    def another_program(self) -> None:
        """Everything is read again from the file."""
        self.ledger.close()
        self.ledger = Ledger.open(self.folder / "ledger.sqlite", self.keys)
        for run in self.runs.values():
            if run.grant is not None:
                run.grant._ledger = self.ledger

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
            spent = self.spent(name)
            if spent:
                left = status.budget_epsilon - status.spent_epsilon  # type: ignore[operator]
                assert left == pytest.approx((cohort.units - spent) / 2**40, abs=1e-9)
            assert len([run for run in status.runs if run.cohort == name]) == sum(
                run.cohort == name for run in self.runs.values()
            )

    def teardown(self) -> None:
        """The chain verifies, each grant anew."""
        try:
            assert self.ledger.verify() == []
        finally:
            self.ledger.close()
            shutil.rmtree(self.folder)


HOME: dict[str, Any] = {}


def test_any_order_of_operations(tmp_path: Path) -> None:
    keys = Keys.create(tmp_path / "keys", PASSPHRASE)
    HOME.update(keys=keys, controller=keys.controller(PASSPHRASE))
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=20,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
