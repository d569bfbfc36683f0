"""Reserve, commit, close; budgets, locks, purposes, weights, public cohorts: on both stores."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from benchmarks._ledger_site import COHORT, Site, approve, epsilon_for, make_site, people, small_plan
from dptrain import accounting
from dptrain.errors import EXIT_REFUSED_BY_LEDGER, ConfigError, DataUnreadable, LedgerRefused
from dptrain.ledger import Ledger, PublicDeclaration, WeightsSource, charged, default_lease, fingerprint, gate
from dptrain.ledger.facts import ReleaseTerms
from dptrain.plan import Mechanism
from tests.ledger.conftest import Home

SHA = "ab" * 32


def train(site: Site, run: str, *, ledger: Ledger | None = None, model: str | None = None) -> None:
    """One whole run."""
    grant = (ledger or site.ledger).reserve(site.plan, COHORT, run=run, fingerprint=site.fingerprint)
    grant.commit(site.plan.steps)
    grant.close("complete", model=model)


def test_a_whole_life(site: Site) -> None:
    grant = site.ledger.reserve(site.plan, COHORT, run="one", fingerprint=site.fingerprint, lease=4)
    assert (grant.committed, grant.lease, grant.excluded, grant.basis) == (0, 4, frozenset(), "budget")
    with pytest.raises(LedgerRefused, match="not paid"):
        grant.require(0)
    grant.commit(4)
    grant.require(3)
    with pytest.raises(LedgerRefused, match="not paid"):
        grant.require(4)
    assert site.again().run("one").committed == 4
    grant.commit(2)  # paid already
    assert grant.committed == 4
    with pytest.raises(LedgerRefused, match="beyond"):
        grant.commit(11)
    grant.commit(10)
    receipt = grant.close("complete", 10, model=SHA)
    assert receipt is not None
    assert (receipt.steps_charged, receipt.steps_run, receipt.unit) == (10, 10, "patient")
    assert receipt.epsilon_pld == pytest.approx(accounting.pld_epsilon(site.plan.mechanisms, site.plan.delta))
    assert receipt.head.valid()
    for use in (grant.require, lambda: grant.commit(10), grant.close):
        with pytest.raises(LedgerRefused, match="closed"):
            use()
    assert site.ledger.verify() == []


def test_the_budget_locks_and_the_refusal_is_understood(site: Site) -> None:
    for number in range(site.capacity):
        train(site, f"run {number}")
    with pytest.raises(LedgerRefused) as caught:
        train(site, "one too many")
    error = caught.value
    assert error.exit_code == EXIT_REFUSED_BY_LEDGER
    for word in (
        "Radiology",
        "Granted",
        "Spent",
        "run 2",
        "Remaining",
        "delta = 0.001",
        "add/remove",
        "RDP of order",
    ):
        assert word in str(error), word
    assert "controller" in str(error)
    status = site.again().status(COHORT)
    assert len(status.runs) == 3
    assert status.spent_epsilon <= status.budget_epsilon
    assert sum(run.share or 0 for run in status.runs) <= 1


def test_below_the_minimum_charge_everything_new_is_refused(place: str, home: Home) -> None:
    site = make_site(place, home.keys, home.controller, runs=1.5)
    train(site, "one")
    assert not site.ledger.status(COHORT).locked
    budget = site.ledger.status(COHORT)
    assert budget.budget_epsilon is not None
    site.ledger.budget(
        COHORT,
        epsilon=budget.budget_epsilon,
        delta=1e-3,
        forecast=(),
        minimum_charge=(budget.remaining_epsilon or 0) * 1.01,
        reason="a floor",
        controller=site.controller,
    )
    status = site.ledger.status(COHORT)
    assert status.locked
    assert status.minimum_charge is not None
    with pytest.raises(LedgerRefused, match="locked"):
        train(site, "two")
    # what the run declared is its own, once; then it is a new request
    with site.ledger.admit(COHORT, purpose="evaluate", run="one", fingerprint=site.fingerprint) as grant:
        assert grant.basis == "declared"
        grant.require(purpose="evaluate", cohort=COHORT)
        with pytest.raises(LedgerRefused, match="evaluate"):
            grant.require(purpose="train")
    with pytest.raises(LedgerRefused, match="locked"):
        site.ledger.admit(COHORT, purpose="evaluate", run="one", fingerprint=site.fingerprint)
    with pytest.raises(LedgerRefused, match="permit"):
        site.ledger.admit(COHORT, purpose="audit", run="one", fingerprint=site.fingerprint)
    site.ledger.permit("audit", COHORT, site.controller, reason="yearly review", run="one")
    with pytest.raises(LedgerRefused, match="locked"):
        site.ledger.admit(COHORT, purpose="audit", run="another", fingerprint=site.fingerprint)
    grant = site.ledger.admit(COHORT, purpose="audit", run="one", fingerprint=site.fingerprint)
    assert grant.basis == "permit"
    grant.commit(5)  # reference models are charged nothing
    again = site.ledger.admit(COHORT, purpose="audit", run="one", fingerprint=site.fingerprint)  # the first died
    again.close()
    grant.close()
    with pytest.raises(LedgerRefused, match="locked"):
        site.ledger.admit(COHORT, purpose="audit", run="one", fingerprint=site.fingerprint)
    assert site.ledger.status(COHORT).spent_epsilon == status.spent_epsilon
    assert site.ledger.verify() == []


def test_own_evaluation_done_under_the_training_grant(place: str, home: Home) -> None:
    site = make_site(place, home.keys, home.controller, runs=1.0001)
    grant = site.ledger.reserve(site.plan, COHORT, run="one", fingerprint=site.fingerprint)
    grant.commit(10)
    grant.require(purpose="evaluate")
    with pytest.raises(LedgerRefused, match="audit"):
        grant.require(purpose="audit")
    with pytest.raises(LedgerRefused, match="declare"):
        grant.close(did=["audit"])
    grant.close(did=["evaluate"])
    site.ledger.lock(COHORT, reason="for the test")
    with pytest.raises(LedgerRefused, match="locked"):
        site.ledger.admit(COHORT, purpose="evaluate", run="one", fingerprint=site.fingerprint)


def test_an_interrupted_run_gives_back_what_never_began(site: Site) -> None:
    before = site.ledger.status(COHORT)
    grant = site.ledger.reserve(site.plan, COHORT, run="one", fingerprint=site.fingerprint, lease=4)
    grant.commit(4)
    held = site.ledger.status(COHORT)
    receipt = grant.close("interrupted", 2)
    assert receipt is not None
    after = site.ledger.status(COHORT)
    assert (receipt.steps_run, receipt.steps_charged) == (2, 4)  # the lease that began is paid whole
    assert before.spent_epsilon < after.spent_epsilon < held.spent_epsilon
    assert after.runs[0].epsilon_gate == pytest.approx(0.4 * (held.runs[0].epsilon_gate or 0), rel=1e-6)
    with pytest.raises(LedgerRefused, match="was closed"):
        site.ledger.resume("one")


def test_a_crash_stays_charged_and_a_resumed_run_fences_off_its_ghost(site: Site) -> None:
    ghost = site.ledger.reserve(site.plan, COHORT, run="one", fingerprint=site.fingerprint, lease=4)
    ghost.commit(4)
    other = site.again()
    held = other.status(COHORT).spent_epsilon
    grant = other.resume("one")
    assert (grant.committed, grant.attempt, grant.plan) == (4, 2, site.plan)
    for act in (lambda: ghost.commit(8), lambda: ghost.close("complete", 4)):
        with pytest.raises(LedgerRefused, match="resumed elsewhere"):
            act()
    grant.commit(10)
    grant.close("complete", 10)
    assert other.status(COHORT).spent_epsilon == held
    with pytest.raises(LedgerRefused, match="already"):
        site.ledger.reserve(site.plan, COHORT, run="one", fingerprint=site.fingerprint)
    assert other.verify() == []


def test_concurrent_runs_count_in_full(site: Site) -> None:
    grants = [site.again().reserve(site.plan, COHORT, run=f"r{n}", fingerprint=site.fingerprint) for n in range(3)]
    with pytest.raises(LedgerRefused, match=r"reserved by run r0 .and 2 more., which is still open"):
        site.again().reserve(site.plan, COHORT, run="r3", fingerprint=site.fingerprint)
    grants[0].close("interrupted", 0)  # nothing was paid: everything goes back
    site.again().reserve(site.plan, COHORT, run="r4", fingerprint=site.fingerprint)


def test_a_reservation_that_locks_is_not_called_spent(place: str, home: Home) -> None:
    """A raised budget would be the wrong remedy: the open run holds what it has not paid."""
    site = make_site(place, home.keys, home.controller, runs=1.3)
    floor = (site.ledger.status(COHORT).budget_epsilon or 0) * 0.3
    site.ledger.budget(
        COHORT,
        epsilon=site.ledger.status(COHORT).budget_epsilon or 0,
        delta=1e-3,
        forecast=(),
        minimum_charge=floor,
        reason="a floor",
        controller=site.controller,
    )
    site.ledger.reserve(site.plan, COHORT, run="dead one", fingerprint=site.fingerprint, lease=4).commit(4)
    assert site.ledger.status(COHORT).locked
    assert "dead one, still open" in str(site.ledger.status(COHORT).lock_reason)
    with pytest.raises(LedgerRefused) as caught:
        site.again().require_open(COHORT)
    said = str(caught.value)
    for word in ("is reserved", "4 paid, 10 reserved", "training.resume=", "ledger close run='dead one' reason="):
        assert word in said, word
    for word in ("raise the budget", "is spent", "10 steps paid", "% of the budget,"):
        assert word not in said, word
    grant = site.ledger.resume("dead one")
    grant.commit(10)  # all is paid: to close it gives nothing back
    with pytest.raises(LedgerRefused, match="is spent") as caught:
        site.again().require_open(COHORT)
    assert "raise the budget" in str(caught.value)


def test_a_training_that_fails_unpaid_gives_its_reservation_back(site: Site) -> None:
    def fails(run: str, pay: int, *, resumed: bool = False) -> None:
        with site.ledger.reserve(site.plan, COHORT, run=run, fingerprint=site.fingerprint) as grant:
            grant.commit(pay)
            if resumed:
                site.again().resume(run)
            raise ZeroDivisionError

    for run, pay, resumed, status in (
        ("unpaid", 0, False, "interrupted"),
        ("paid", 1, False, "open"),
        ("elsewhere", 0, True, "open"),
    ):
        with pytest.raises(ZeroDivisionError):
            fails(run, pay, resumed=resumed)
        assert site.ledger.run(run).status == status


def test_a_second_release_is_paid_whole_with_the_first_step(site: Site) -> None:
    plan = small_plan(calibration_noise_multiplier=20.0)
    grant = site.ledger.reserve(plan, COHORT, run="one", fingerprint=site.fingerprint)
    grant.commit(1)
    receipt = grant.close("interrupted", 1)
    assert receipt is not None
    assert receipt.rest_charged
    assert receipt.mechanisms == charged(plan, 1) == (Mechanism(1.0, 8.0, 1), Mechanism(1.0, 20.0, 1, "calibration"))
    order = site.ledger.status(COHORT).order
    assert order is not None
    cost = accounting.rdp(receipt.mechanisms, [order])[0]
    assert site.ledger.status(COHORT).runs[0].epsilon_gate == pytest.approx(float(cost), rel=1e-9)


def test_a_calibration_begins_once_for_its_charge(site: Site) -> None:
    plan = small_plan(calibration_noise_multiplier=20.0)
    grant = site.ledger.reserve(plan, COHORT, run="one", fingerprint=site.fingerprint)
    with pytest.raises(LedgerRefused, match="not paid"):
        grant.begin_calibration()
    grant.commit(10)
    assert not site.ledger.run("one").calibrated
    grant.begin_calibration()
    assert site.again().run("one").calibrated
    with pytest.raises(LedgerRefused, match="begun already"):
        grant.begin_calibration()
    again = site.again().resume("one")
    with pytest.raises(LedgerRefused, match="resumed elsewhere"):
        grant.begin_calibration()
    with pytest.raises(LedgerRefused, match="begun already"):
        again.begin_calibration()
    again.close("complete", 10)
    with pytest.raises(LedgerRefused, match="closed"):
        again.begin_calibration()
    without = site.ledger.reserve(site.plan, COHORT, run="two", fingerprint=site.fingerprint)
    without.commit(10)
    with pytest.raises(LedgerRefused, match="no calibration"):
        without.begin_calibration()
    assert site.ledger.verify() == []


# -- budgets ---------------------------------------------------------------------------------------------


def test_a_raise_keeps_its_order_and_names_its_reason(site: Site) -> None:
    before = site.ledger.status(COHORT)
    assert before.budget_epsilon is not None
    for number in range(3):
        train(site, f"r{number}")
    budget = site.ledger.budget(
        COHORT,
        epsilon=before.budget_epsilon + 1,
        forecast=(),
        reason="second study",
        advice="DPO: agreed",
        controller=site.controller,
    )
    after = site.ledger.status(COHORT)
    assert (after.order, after.budget_delta) == (before.order, before.budget_delta)
    assert [entry["reason"] for entry in budget.signed] == ["test", "second study"]
    assert after.budgets[0].advice == "DPO: agreed"
    train(site, "r3")


def test_a_planned_budget_grants_what_it_declares_and_nothing_else(place: str, home: Home) -> None:
    ledger = Ledger.create(place, home.keys)
    patients = people(home.keys, 0, 20)
    ledger.register(COHORT, unit="patient", issuer="clinic", public_size=20, patients=patients, owner="Radiology")
    plan, other = small_plan(), small_plan(noise_multiplier=9.0)
    declared = (*plan.mechanisms, *plan.mechanisms, *other.mechanisms)
    joint = accounting.pld_epsilon(declared, 1e-3)
    with pytest.raises(LedgerRefused, match="more than"):
        ledger.budget(
            COHORT,
            kind="planned",
            epsilon=joint * 0.99,
            delta=1e-3,
            forecast=declared,
            reason="x",
            controller=home.controller,
        )
    ledger.budget(
        COHORT,
        kind="planned",
        epsilon=joint * 1.0001,
        delta=1e-3,
        forecast=declared,
        reason="x",
        controller=home.controller,
    )
    mark = fingerprint(patients)
    assert ledger.status(COHORT).planned == declared
    with pytest.raises(LedgerRefused, match="declares"):
        ledger.reserve(small_plan(noise_multiplier=10.0), COHORT, run="no", fingerprint=mark)
    grant = ledger.reserve(plan, COHORT, run="a", fingerprint=mark)
    grant.commit(5)
    grant.close("interrupted", 5)
    status = ledger.status(COHORT)
    assert status.runs[0].steps == 10  # no refunds
    assert status.spent_epsilon == pytest.approx(accounting.pld_epsilon(plan.mechanisms, 1e-3))
    ledger.reserve(plan, COHORT, run="b", fingerprint=mark)
    with pytest.raises(LedgerRefused, match="declares"):
        ledger.reserve(plan, COHORT, run="c", fingerprint=mark)
    ledger.reserve(other, COHORT, run="d", fingerprint=mark)
    status = ledger.status(COHORT)
    assert status.locked
    assert status.kind == "planned"
    assert status.spent_epsilon == pytest.approx(joint)
    with pytest.raises(LedgerRefused, match="locked"):
        ledger.reserve(other, COHORT, run="e", fingerprint=mark)
    assert ledger.verify() == []


def test_a_planned_budget_beside_an_open_one_adds(site: Site) -> None:
    before = site.ledger.status(COHORT)
    extra = small_plan(noise_multiplier=11.0)
    epsilon = accounting.pld_epsilon(extra.mechanisms, 1e-3) * 1.001
    site.ledger.budget(
        COHORT,
        kind="planned",
        epsilon=epsilon,
        delta=1e-3,
        forecast=extra.mechanisms,
        reason="one more",
        controller=site.controller,
    )
    status = site.ledger.status(COHORT)
    assert status.kind == "open+planned"
    assert status.budget_epsilon == pytest.approx((before.budget_epsilon or 0) + epsilon)
    assert status.budget_delta == pytest.approx(2e-3)
    site.ledger.reserve(extra, COHORT, run="planned", fingerprint=site.fingerprint)
    assert gate_spent(site) == 0  # the open budget is untouched
    site.ledger.reserve(extra, COHORT, run="open", fingerprint=site.fingerprint)
    assert gate_spent(site) > 0


def gate_spent(site: Site) -> float:
    """Epsilon spent of the open budget."""
    return next(budget.spent_epsilon for budget in site.ledger.status(COHORT).budgets if budget.kind == "open")


@pytest.mark.parametrize(
    ("change", "kind", "what"),
    [
        ({"epsilon": -1.0}, ConfigError, "above 0"),
        ({"epsilon": math.nan}, ConfigError, "above 0"),
        ({"epsilon": math.inf}, ConfigError, "above 0"),
        ({"delta": 0.06}, LedgerRefused, "too large"),
        ({"delta": math.nan}, LedgerRefused, "probability"),
        ({"delta": 0.0}, LedgerRefused, "probability"),
        ({"reason": " "}, ConfigError, "reason"),
        ({"kind": "renewable"}, ConfigError, "open or planned"),
        ({"minimum_charge": -1.0}, ConfigError, "minimum_charge"),
        ({"minimum_charge": math.nan}, ConfigError, "minimum_charge"),
        ({"forecast": (Mechanism(0.5, 0.0, 3),), "kind": "planned"}, ConfigError, "noise"),
        ({"forecast": (), "kind": "planned"}, ConfigError, "forecast"),
    ],
)
def test_bad_budgets_leave_nothing_behind(
    file_site: Site, change: dict[str, object], kind: type[Exception], what: str
) -> None:
    values = {
        "epsilon": 5.0,
        "delta": 1e-3,
        "forecast": file_site.plan.mechanisms,
        "reason": "x",
        "controller": file_site.controller,
    }
    before = file_site.ledger.head().hash
    with pytest.raises(kind, match=what):
        file_site.ledger.budget(COHORT, **{**values, **change})  # type: ignore[arg-type]
    assert file_site.ledger.head().hash == before


def test_sums_never_drift(file_site: Site) -> None:
    """Many leases cost exactly what one does: whole units."""
    units = []
    for number, lease in enumerate((1, 3, 10)):
        grant = file_site.ledger.reserve(
            file_site.plan, COHORT, run=f"r{number}", fingerprint=file_site.fingerprint, lease=lease
        )
        while grant.committed < 10:
            grant.commit(min(10, grant.committed + lease))
        grant.close()
        units.append(file_site.ledger.run(f"r{number}").units(40))
    assert len(set(units)) == 1


# -- what may start a run --------------------------------------------------------------------------------


def test_starting_weights_are_declared_or_inherited_or_refused(site: Site) -> None:
    def ask(run: str, weights: WeightsSource | None) -> tuple[str, ...]:
        grant = site.ledger.reserve(site.plan, COHORT, run=run, fingerprint=site.fingerprint, weights=weights)
        inherited = grant.inherited
        grant.commit(10)
        grant.close(model=f"{ord(run[0]):064x}")
        return inherited

    with pytest.raises(LedgerRefused, match="neither declared public"):
        ask("a", WeightsSource(SHA))
    with pytest.raises(ConfigError, match="SHA-256"):
        site.ledger.declare_weights("nonsense", source="x", licence="y", controller=site.controller)
    site.ledger.declare_weights(SHA, source="MONAI model zoo", licence="Apache-2.0", controller=site.controller)
    assert ask("a", WeightsSource(SHA)) == ()
    with pytest.raises(LedgerRefused, match="neither"):
        ask("b", WeightsSource(SHA, run="a"))  # that run's model has another hash
    model = f"{ord('a'):064x}"
    assert site.ledger.weights(model) == WeightsSource(model, "a")
    assert site.ledger.weights("00" * 32) is None
    assert ask("b", WeightsSource(model, run="a")) == ("a",)
    assert ask("c", WeightsSource(f"{ord('b'):064x}")) == ("a", "b")


def test_a_public_cohort_records_and_never_gates(place: str, home: Home) -> None:
    ledger = Ledger.create(place, home.keys)
    patients = people(home.keys, 0, 20)
    facts = {"unit": "patient", "issuer": "clinic", "public_size": 20, "patients": patients, "owner": "Bench"}
    public = PublicDeclaration("MedMNIST", "CC BY 4.0")
    with pytest.raises(LedgerRefused, match="controller"):
        ledger.register("pneumonia", public=public, **facts)  # type: ignore[arg-type]
    ledger.register("pneumonia", public=public, controller=home.controller, **facts)  # type: ignore[arg-type]
    plain = small_plan(noise_multiplier=0.0, max_grad_norm=math.inf)
    grant = ledger.reserve(plain, "pneumonia", run="baseline", fingerprint=fingerprint(patients))
    assert grant.basis == "public"
    assert grant.public
    grant.commit(10)
    receipt = grant.close()
    assert receipt is not None
    assert receipt.epsilon_pld is None
    status = ledger.status("pneumonia")
    assert (status.kind, status.locked, status.source, status.licence) == ("public", False, "MedMNIST", "CC BY 4.0")
    assert [(run.run, run.private) for run in status.runs] == [("baseline", False)]
    with ledger.admit("pneumonia", purpose="evaluate", run="anything", fingerprint=fingerprint(patients)) as again:
        assert again.basis == "public"
    ledger.register("private", **facts)  # type: ignore[arg-type]
    with pytest.raises(LedgerRefused, match="without noise"):
        ledger.reserve(plain, "private", run="x", fingerprint=fingerprint(patients))
    with pytest.raises(LedgerRefused, match="no budget"):
        ledger.reserve(small_plan(), "private", run="x", fingerprint=fingerprint(patients))
    with pytest.raises(LedgerRefused, match="no budget"):
        ledger.admit("private", purpose="evaluate", run="x", fingerprint=fingerprint(patients))
    assert ledger.verify() == []


@pytest.mark.parametrize(
    ("change", "plan", "what"),
    [
        ({"fingerprint": "00" * 32}, {}, "differ"),
        ({"cohort": "chst"}, {}, "chest"),
        ({}, {"public_size": 19, "expected_batch_size": 19}, "declares 20"),
        ({}, {"unit": "family"}, "unit|family"),
        ({}, {"noise_multiplier": 0.3}, "budget"),
    ],
)
def test_refused_requests_leave_nothing_behind(
    file_site: Site, change: dict[str, str], plan: dict[str, object], what: str
) -> None:
    values = {"cohort": COHORT, "run": "x", "fingerprint": file_site.fingerprint, **change}
    before = file_site.ledger.head().hash
    with pytest.raises(LedgerRefused, match=what):
        file_site.ledger.reserve(small_plan(**plan), values.pop("cohort"), **values)  # type: ignore[arg-type]
    for purpose in ("train", "sell"):
        with pytest.raises(LedgerRefused, match="no purpose"):
            file_site.ledger.admit(COHORT, purpose=purpose, run="x", fingerprint=file_site.fingerprint)
    assert file_site.ledger.head().hash == before


def test_impossible_charges_are_refused(file_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    real = accounting.rdp
    for bad, error in ((math.nan, ConfigError), (-1.0, ConfigError), (math.inf, LedgerRefused)):
        monkeypatch.setattr(accounting, "rdp", lambda mechanisms, bad=bad: real(mechanisms) * 0 + bad)
        with pytest.raises(error):
            file_site.ledger.reserve(file_site.plan, COHORT, run="x", fingerprint=file_site.fingerprint)


def test_registering_again_changes_nothing_and_new_content_is_a_new_version(site: Site) -> None:
    facts = {"unit": "patient", "issuer": "clinic", "public_size": 20, "owner": "Radiology"}
    before = site.ledger.head().hash
    same = site.ledger.register(COHORT, patients=people(site.keys, 0, 20), **facts)  # type: ignore[arg-type]
    assert (same.version, site.ledger.head().hash) == (1, before)
    more = people(site.keys, 0, 21)
    assert site.ledger.register(COHORT, patients=more, **facts).version == 2  # type: ignore[arg-type]
    train(site, "old data")
    assert site.ledger.reserve(site.plan, COHORT, run="new", fingerprint=fingerprint(more)).version == 2
    with pytest.raises(LedgerRefused, match="next version"):
        site.ledger.register(COHORT, patients=people(site.keys, 0, 22), version=7, **facts)  # type: ignore[arg-type]
    shared = dict(zip(people(site.keys, 0, 2), [[b"x" * 32], [b"x" * 32]]))
    with pytest.raises(DataUnreadable, match="same pixels"):
        site.ledger.register("twins", patients=shared, **facts)  # type: ignore[arg-type]
    for name, patients in (("", more), ("ok", {}), ("ok", {b"short": []}), ("ok", {b"k" * 32: [b"short"]})):
        with pytest.raises(ConfigError):
            site.ledger.register(name, patients=patients, **facts)  # type: ignore[arg-type]
    with pytest.raises(LedgerRefused, match="no other cohort"):
        site.ledger.register("x", patients=more, overlaps=["nowhere"], **facts)  # type: ignore[arg-type]


def test_a_lock_by_hand(site: Site) -> None:
    site.ledger.lock(COHORT, reason="complaint of 3 May")
    with pytest.raises(LedgerRefused, match="complaint of 3 May"):
        train(site, "x")
    assert site.ledger.status(COHORT).lock_reason == "complaint of 3 May"
    before = site.ledger.head().hash
    with pytest.raises(LedgerRefused, match="complaint of 3 May"):
        site.ledger.require_open(COHORT)
    assert site.ledger.head().hash == before
    site.ledger.unlock(COHORT, reason="settled", controller=site.controller)
    site.ledger.require_open(COHORT)
    train(site, "x")


def test_a_release_is_recorded(site: Site) -> None:
    train(site, "one")
    public = ReleaseTerms(items=("model",), recipient="public")
    entry = site.ledger.record_release("one", public, site.controller)
    assert entry.facts["recipient"] == "public"
    terms = ReleaseTerms(items=("model", "metrics"), recipient="Klinikum Nord", purpose="triage")
    entry = site.ledger.record_release("one", terms, site.controller)
    assert entry.facts["purpose"] == "triage"
    before = {"run": "one", "items": ["model"], "recipient": "as it was; purpose: x", "advice": None}
    with site.ledger.write() as (connection, state):  # an entry from before purposes had a field
        site.ledger.append(connection, "release", before, None, approve(state, "release", before, site.controller))
    assert site.again().verify() == []
    with pytest.raises(LedgerRefused, match="no run"):
        site.ledger.record_release("two", public, site.controller)


def test_what_was_measured_is_bound(site: Site) -> None:
    """The close names model and facts, the finish what was measured, the release what leaves the house."""
    model, facts, metrics, audit, other = (letter * 64 for letter in "abcde")
    grant = site.ledger.reserve(site.plan, COHORT, run="one", fingerprint=site.fingerprint)
    assert site.ledger.bound("one").closing is None
    grant.commit(10)
    receipt = grant.close(model=model, facts=facts)
    assert receipt is not None
    evaluated = site.ledger.admit(COHORT, purpose="evaluate", run="one", fingerprint=site.fingerprint)
    with pytest.raises(ConfigError, match="SHA-256"):
        evaluated.close(results={"metrics.json": "none"})
    evaluated.close(results={"metrics.json": metrics})
    for ending, found in (("interrupted", other), ("complete", audit)):
        audited = site.ledger.admit(COHORT, purpose="audit", run="one", fingerprint=site.fingerprint)
        audited.close(ending, results={"audit.json": found})
    terms = ReleaseTerms(
        items=("model", "audit"),
        recipient="public",
        hashes={"model/model.safetensors": model, "restricted/audit/audit.json": audit},
        assessment=other,
        accept_exposed=0.02,
        without_advice="none was asked for",
        accepted=("person check 3",),
    )
    entry = site.ledger.record_release("one", terms, site.controller)
    for ledger in (site.ledger, site.again()):
        bound = ledger.bound("one")
        assert (bound.model, bound.facts, bound.status) == (model, facts, "complete")
        assert bound.closing == (receipt.head.entries, receipt.head.hash)
        for purpose, sha256 in (("evaluate", {"metrics.json": metrics}), ("audit", {"audit.json": audit})):
            result = bound.result(purpose)
            assert result is not None
            assert result.sha256 == sha256
        assert [release.terms for release in bound.releases] == [terms]
        assert (bound.releases[0].entry, bound.releases[0].hash) == (entry.seq, entry.hash.hex())
        assert ledger.verify() == []
    with site.ledger.write() as (connection, state):
        site.ledger.write_snapshot(connection, state)
    assert site.again().bound("one") == site.ledger.bound("one")
    assert site.again().verify() == []


def test_the_default_lease_depends_on_the_plan_alone() -> None:
    assert [default_lease(steps) for steps in (1, 10, 200, 1200, 10_000, 100_000, 10**6)] == [
        1,
        1,
        20,
        120,
        1000,
        1000,
        10_000,
    ]


def test_the_gate_s_number_is_the_accountant_s(file_site: Site) -> None:
    """spent epsilon = conversion of the RDP sum at the signed order."""
    train(file_site, "one")
    status = file_site.ledger.status(COHORT)
    assert status.order is not None
    cost = float(accounting.rdp(file_site.plan.mechanisms, [status.order])[0])
    expected = accounting.rdp_epsilon(cost, status.order, 1e-3)
    assert status.spent_epsilon == pytest.approx(expected, abs=1e-9)
    assert status.runs[0].epsilon_gate == pytest.approx(cost, rel=1e-9)


def test_the_whole_budget_can_be_spent_by_one_calibrated_run(place: str, home: Home) -> None:
    """Noise that the accountant calibrates to the budget's epsilon at its order fits, to the last unit."""
    site = make_site(place, home.keys, home.controller, runs=2.0)
    status = site.ledger.status(COHORT)
    assert status.budget_epsilon is not None
    noise = accounting.calibrate_noise(status.budget_epsilon, 1e-3, 0.25, 500, accountant="rdp", order=status.order)
    plan = dataclasses.replace(site.plan, noise_multiplier=noise, steps=500, expected_batch_size=5)
    site.ledger.reserve(plan, COHORT, run="all", fingerprint=site.fingerprint)
    assert site.ledger.status(COHORT).remaining_epsilon == pytest.approx(0, abs=1e-2)


def test_epsilon_for_is_what_it_says(home: Home, tmp_path: object) -> None:
    assert epsilon_for(small_plan(), 3.5) > epsilon_for(small_plan(), 1.5)


def test_each_run_is_judged_once(tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the ledger takes twice as long for twice the runs, not four times."""
    site = make_site(str(tmp_path / "ledger.sqlite"), home.keys, home.controller, runs=60.0)
    looked: list[int] = []
    counts = gate.counts
    monkeypatch.setattr(gate, "counts", lambda *arguments: looked.append(1) or counts(*arguments))
    work = []
    for number in range(40):
        train(site, f"run {number}")
        if number in (19, 39):
            looked.clear()
            assert site.ledger.verify() == []
            work.append(len(looked))
    assert 0 < work[1] <= 2.2 * work[0]
