"""Leave: what is none is refused, and one that is lent covers its paid steps once, in its process."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dptrain.errors import LedgerRefused
from dptrain.leave import Leave, PaidLeave, PayingLeave, lend, require_leave
from dptrain.ledger import Grant, Keys, Ledger
from dptrain.plan import Mechanism, Plan

PLAN = Plan(public_size=20, expected_batch_size=10, steps=10, noise_multiplier=3.0, max_grad_norm=1.0, delta=1e-3)


def paid(**values: Any) -> PaidLeave:
    own: dict[str, Any] = {"run": "one", "cohort": "lungs", "plan": PLAN, "fingerprint": "f", "excluded": frozenset()}
    return PaidLeave(**{**own, "first": 2, "committed": 5, "process": os.getpid(), **values})


@pytest.fixture
def grant(tmp_path: Path) -> Grant:
    """A grant of which three steps are paid."""
    keys = Keys.create(tmp_path / "keys", "correct horse battery")
    ledger = Ledger.create(tmp_path / "ledger.sqlite", keys)
    patients = {keys.patient_key("A", f"p{i}"): [bytes([i]) * 32] for i in range(20)}
    version = ledger.register("lungs", unit="patient", issuer="A", public_size=20, patients=patients, owner="R")
    controller = keys.controller("correct horse battery")
    forecast = [Mechanism(0.5, 3.0, 10)]
    ledger.budget("lungs", epsilon=8, delta=1e-3, forecast=forecast, reason="a study", controller=controller)
    grant = ledger.reserve(PLAN, "lungs", run="first", fingerprint=version.fingerprint)
    grant.commit(3)
    return grant


def test_a_grant_is_a_leave_that_can_pay(grant: Grant) -> None:
    assert isinstance(grant, PayingLeave)
    assert require_leave(grant, grant.fingerprint) is grant
    with pytest.raises(LedgerRefused, match="other data"):
        require_leave(grant, "another")


def test_what_cannot_say_which_data_it_is_for_is_no_leave() -> None:
    """It used to pass the comparison of fingerprints."""
    values = {"run": "one", "cohort": "lungs", "purpose": "train", "plan": PLAN, "excluded": frozenset()}
    forged = SimpleNamespace(**values, committed=9, process=os.getpid(), require=lambda *_, **__: None)
    with pytest.raises(LedgerRefused, match="No grant"):
        require_leave(forged, "f")
    with pytest.raises(LedgerRefused, match="other data"):
        require_leave(SimpleNamespace(**vars(forged), fingerprint=None), "f")


def test_lent_steps_are_paid_ones_each_once_in_one_process(grant: Grant) -> None:
    leave = pickle.loads(pickle.dumps(lend(grant, first=1, process=os.getpid())))
    assert isinstance(leave, Leave)
    assert not isinstance(leave, PayingLeave)
    with pytest.raises(LedgerRefused, match="Step 0"):
        leave.require(0)
    leave.require(1)
    with pytest.raises(LedgerRefused, match="Step 1"):
        leave.require(1)
    leave.require(2)
    with pytest.raises(LedgerRefused, match="Step 3"):
        leave.require(3)
    grant.commit(4)
    with pytest.raises(LedgerRefused):  # a lease that is paid later needs a leave of its own
        leave.require(3)


def test_a_lent_leave_is_for_one_process_one_purpose_one_cohort() -> None:
    elsewhere = paid(process=os.getpid() + 1)
    elsewhere.require()  # to read
    with pytest.raises(LedgerRefused, match="another process"):
        elsewhere.require(2)
    with pytest.raises(LedgerRefused, match="not to audit"):
        paid().require(purpose="audit")
    with pytest.raises(LedgerRefused, match="not for cohort"):
        paid().require(cohort="hearts")
    paid().require(cohort="lungs", purpose="train")


def test_unpaid_steps_and_closed_grants_are_not_lent(grant: Grant) -> None:
    with pytest.raises(LedgerRefused, match="none from 3 on"):
        lend(grant, first=3, process=1)
    grant.close("interrupted", 3)
    with pytest.raises(LedgerRefused, match="closed"):
        lend(grant, first=0, process=1)
