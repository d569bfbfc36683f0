"""Leave to use a cohort: what loaders, workers and ranks are handed, whoever gives it.

The ledger's grant is a leave that can also pay. A process that does not talk to the ledger (a rank, a worker that
reads ahead) is handed a :class:`PaidLeave`; reference models of an audit train under a leave of their own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from dptrain.errors import LedgerRefused
from dptrain.plan import Plan
from dptrain.vocabulary import Purpose


@runtime_checkable
class Leave(Protocol):
    """What may be read and run, and the one question that is asked before anything is.

    Attributes:
        run, purpose: whose leave it is, and what for (`train`, `evaluate` or `audit`).
        cohort: its name in the ledger.
        plan: the plan that was granted; None for what needs none.
        fingerprint: which data may be read (:attr:`dptrain.data.Cohort.fingerprint`); there is no leave for any data.
        excluded: patient keys to leave out of every draw. Never show or count them in public output.
        committed: steps that are paid; those from here on must not run.
        process: the one process (its pid) that may run steps under it.
    """

    @property
    def run(self) -> str: ...
    @property
    def purpose(self) -> str: ...
    @property
    def cohort(self) -> str: ...
    @property
    def plan(self) -> Plan | None: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def excluded(self) -> frozenset[bytes]: ...
    @property
    def committed(self) -> int: ...
    @property
    def process(self) -> int: ...

    def require(self, step: int | None = None, *, purpose: str | None = None, cohort: str | None = None) -> None:
        """Raise LedgerRefused unless the leave is open and covers this step, purpose and cohort."""


@runtime_checkable
class PayingLeave(Leave, Protocol):
    """A leave whose holder can pay for further steps: what :func:`dptrain.training.fit` needs.

    Attributes:
        lease: steps to pay at once.
    """

    @property
    def lease(self) -> int: ...

    def commit(self, through: int) -> None:
        """Pay for all steps below `through`, durably, before the first of them runs. Raises LedgerRefused."""

    def give_back(self) -> bool:
        """Let go of a reservation that paid nothing; whether it was let go of."""


def require_leave(leave: object, fingerprint: str) -> Leave:
    """The leave, where it is open and for the data of this fingerprint.

    Raises:
        LedgerRefused: no leave (what cannot say which data it is for is none), a closed one, or one for other data.
    """
    if not isinstance(leave, Leave):
        raise LedgerRefused(
            "No grant: pixels are read only under a grant of the ledger.",
            remedy="Reserve one: ledger.reserve(plan, cohort, ...).",
        )
    leave.require()
    if leave.fingerprint != fingerprint:
        raise LedgerRefused(
            "The grant is for other data than these.", remedy="Register this version of the cohort, then reserve."
        )
    return leave


@dataclass
class PaidLeave:
    """Leave for another process to run steps that are paid already: it can pay for none.

    The holder of the grant makes one for each lease and process (:func:`lend`); it is plain values, so that it
    travels. The processes of one run take a step together, each with patients of its own: whoever lends answers for
    that.

    Args:
        first: the first step that it covers; `committed`: the first that it does not.
        process: pid of the process that may run its steps; any process may read under it.
    """

    run: str
    cohort: str
    plan: Plan
    fingerprint: str
    excluded: frozenset[bytes]
    first: int
    committed: int
    process: int
    purpose: str = Purpose.TRAIN
    _next: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._next = self.first

    def require(self, step: int | None = None, *, purpose: str | None = None, cohort: str | None = None) -> None:
        """Raise LedgerRefused unless the step is paid, of this lease, not yet run, and this is the process for it."""
        if purpose not in (None, self.purpose):
            raise LedgerRefused(f"The leave of run '{self.run}' is to {self.purpose}, not to {purpose}.")
        if cohort not in (None, self.cohort):
            raise LedgerRefused(f"The leave of run '{self.run}' is not for cohort '{cohort}'.")
        if step is None:
            return
        if self.process != os.getpid():
            raise LedgerRefused(f"The leave of run '{self.run}' belongs to another process.")
        if not self._next <= step < self.committed:
            raise LedgerRefused(
                f"Step {step} of run '{self.run}' is not covered: the leave goes from step {self._next} to "
                f"{self.committed}, each once.",
                remedy="Ask the process that holds the grant for the next lease.",
            )
        self._next = step + 1


def lend(grant: Leave, *, first: int, process: int) -> PaidLeave:
    """Leave for `process` to run the steps from `first` to the last that the grant has paid.

    Raises:
        LedgerRefused: a grant that is closed, not for training, or that has paid no step from `first` on.
    """
    grant.require(purpose=Purpose.TRAIN)
    if grant.plan is None or not 0 <= first < grant.committed:
        raise LedgerRefused(
            f"Run '{grant.run}' has paid {grant.committed} steps: there is none from {first} on to lend.",
            remedy="Commit a lease first.",
        )
    return PaidLeave(
        run=grant.run,
        cohort=grant.cohort,
        plan=grant.plan,
        fingerprint=grant.fingerprint,
        excluded=grant.excluded,
        first=first,
        committed=grant.committed,
        process=process,
    )
