"""What a run holds in its hand: the grant, and the receipt that it leaves with."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn, Protocol, SupportsIndex

from dptrain.errors import LedgerRefused
from dptrain.ledger.checks import whole
from dptrain.ledger.facts import Ending, GateFacts, Receipt
from dptrain.ledger.state import RunState, Version
from dptrain.plan import Mechanism, Plan
from dptrain.vocabulary import Basis, Purpose, RunStatus


class Payer(Protocol):
    """Who keeps the book in which a grant's steps are paid and its end is written."""

    def pay(self, grant: Grant, through: int) -> None:
        """Commit all steps below `through`, durably. Raises LedgerRefused where they must not run."""

    def begin_calibration(self, grant: Grant) -> None:
        """Record that the one calibration is about to be drawn. Raises LedgerRefused where it must not be."""

    def standing(self, grant: Grant) -> RunState:
        """What the book holds about the grant's run."""

    def finish(self, grant: Grant, how: str, results: Mapping[str, str]) -> None:
        """End an evaluation or audit."""

    def close(self, grant: Grant, ending: Ending) -> Receipt:
        """End a training."""


class Grant:
    """Leave to use a cohort for one purpose. Made by :meth:`Ledger.reserve`, `admit` and `resume` only.

    Attributes:
        id: number of the entry that granted it.
        cohort, version, fingerprint, unit: what may be read.
        run, purpose: whose grant it is, and what for.
        plan: the plan that was granted (of the evaluated run, for evaluate and audit; None if it is unknown).
        excluded: patient keys to leave out of every draw. Never show or count them in public output.
        committed: steps paid so far; lease: steps to pay at once; attempt: 1, and one more for each resume.
        inherited: earlier runs whose charge this run's starting weights bring along.
        gate: the public gate as it stood when the grant was given.
        basis: why it was given (`budget`, `public`, `declared`, `open`, `permit`).
        process: pid of the process that may run its steps and pay for more.
    """

    def __init__(
        self,
        payer: Payer,
        *,
        id: int,
        version: Version,
        run: str,
        purpose: str,
        plan: Plan | None,
        excluded: frozenset[bytes],
        committed: int,
        lease: int,
        attempt: int,
        inherited: tuple[str, ...],
        gate: GateFacts,
        basis: str,
    ) -> None:
        self._payer = payer
        self.id = id
        self.cohort = version.cohort
        self.version = version.number
        self.fingerprint = version.fingerprint
        self.unit = version.unit
        self.public = version.public is not None and basis != Basis.BUDGET
        self.run = run
        self.purpose = purpose
        self.plan = plan
        self.excluded = excluded
        self.committed = committed
        self.lease = lease
        self.attempt = attempt
        self.inherited = inherited
        self.gate = gate
        self.basis = basis
        self.closed = False
        self.process = os.getpid()
        self._handed_out = committed  # steps below it ran, or were skipped

    def __repr__(self) -> str:
        return f"Grant({self.run!r}, {self.purpose} on {self.cohort!r}, {self.committed} steps paid)"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Raises LedgerRefused: a copy would hand out the same paid steps again."""
        raise LedgerRefused(
            f"The grant of run '{self.run}' cannot be copied: its steps would run twice for one charge.",
            remedy="Hand out a PaidLeave (dptrain.leave) for steps that are paid.",
        )

    def commit(self, through: int) -> None:
        """Pay for all steps below `through`, durably, before the first of them runs.

        Does nothing where they are paid already, or on an audit's grant (its reference models are charged
        nothing). Raises LedgerRefused where the grant is closed, the run was resumed elsewhere, `through` is
        beyond the plan, or the ledger cannot be written: then the steps must not run.
        """
        self.require()
        through = whole("through", through)
        if self.purpose == Purpose.AUDIT:
            self.committed = max(self.committed, through)
            return
        self._only_here()
        if self.purpose != Purpose.TRAIN or self.plan is None:
            raise LedgerRefused(f"a grant to {self.purpose} pays for no training step.")
        if through > self.plan.steps:
            raise LedgerRefused(f"step {through} is beyond the {self.plan.steps} steps that were granted.")
        if through > self.committed:
            self._payer.pay(self, through)
            self.committed = through

    def begin_calibration(self) -> None:
        """Record durably that the plan's calibration is about to be drawn: once for its charge, before the draw.

        Raises LedgerRefused where it was begun before, is not in the plan or not paid, or the run was resumed
        elsewhere: then nothing must be drawn.
        """
        self.require(purpose=Purpose.TRAIN)
        self._only_here()
        self._payer.begin_calibration(self)

    def require(self, step: int | None = None, *, purpose: str | None = None, cohort: str | None = None) -> None:
        """Raise LedgerRefused unless the grant is open and covers this step, purpose and cohort.

        Args:
            step: number (from 0) of a training step about to run; must be committed. Each is handed out once, and
                only in the process that got the grant: run again, it would be released twice for one charge.
            purpose: defaults to what the grant is for. A training grant also covers what its plan declares.
        """
        if self.closed:
            raise LedgerRefused(
                f"The grant of run '{self.run}' is closed: its data may not be read any more.",
                remedy="Ask for a new grant.",
            )
        if cohort is not None and cohort != self.cohort:
            raise LedgerRefused(f"The grant of run '{self.run}' is for cohort '{self.cohort}', not '{cohort}'.")
        if purpose is not None and purpose != self.purpose:
            declared = self.purpose == Purpose.TRAIN and self.plan is not None and purpose in self.plan.declares
            if not declared:
                raise LedgerRefused(
                    f"The grant of run '{self.run}' is to {self.purpose}, not to {purpose}.",
                    remedy="Declare the purpose in the plan, or ask for its own grant.",
                )
        if step is not None and self.purpose == Purpose.TRAIN:
            step = whole("step", step)
            self._only_here()
            if step >= self.committed:
                raise LedgerRefused(f"Step {step} of run '{self.run}' is not paid ({self.committed} steps are).")
            if step < self._handed_out and self.basis != Basis.PUBLIC:
                raise LedgerRefused(
                    f"Step {step} of run '{self.run}' ran already: to run it again would release it twice for one "
                    "charge.",
                    remedy="Reserve a new run.",
                )
            self._handed_out = step + 1

    def _only_here(self) -> None:
        if self.purpose == Purpose.TRAIN and self.process != os.getpid():
            raise LedgerRefused(
                f"The grant of run '{self.run}' belongs to another process: a copy of it would run the same steps "
                "again for one charge.",
                remedy="Train in the process that reserved, or resume the run here (which fences the other off).",
            )

    def close(
        self,
        status: str = RunStatus.COMPLETE,
        steps_run: int | None = None,
        *,
        model: str | None = None,
        facts: str | None = None,
        results: Mapping[str, str] | None = None,
        did: Sequence[str] = (),
        note: str | None = None,
    ) -> Receipt | None:
        """End the grant. Nothing may be read with it afterwards.

        Args:
            status: `complete` or `interrupted`.
            steps_run: steps that ran (training only; default: all committed).
            model: SHA-256 (hex) of the model file; needed if another run is to start from these weights.
            facts: SHA-256 (hex) of what the run states about itself (training only).
            results: name -> SHA-256 (hex) of each file that an evaluation or audit wrote (these only).
            did: declared purposes that were carried out under this grant already (`evaluate`, `audit`).
            note: a sentence for the record, for instance why somebody else closes a run that died.

        Returns the receipt of a training; None for evaluate and audit.
        """
        if self.closed:
            raise LedgerRefused(f"The grant of run '{self.run}' is closed already.")
        self._only_here()
        ran = self.committed if steps_run is None else whole("steps_run", steps_run)
        receipt = None
        if self.purpose == Purpose.TRAIN:
            ending = Ending(status, ran, model=model, facts=facts, did=tuple(did), note=note)
            receipt = self._payer.close(self, ending)
        else:
            self._payer.finish(self, status, results or {})
        self.closed = True
        return receipt

    def give_back(self) -> bool:
        """Close a training that paid nothing, so that its reservation goes back; whether it was closed.

        A planned budget gives nothing back: there the run stays open, to be resumed.
        """
        if self.closed or self.purpose != Purpose.TRAIN or self.committed or self.process != os.getpid():
            return False
        run = self._payer.standing(self)
        self.committed = max(self.committed, run.committed)  # an answer that was lost is paid all the same
        if run.planned or self.committed:
            return False
        self.close(RunStatus.INTERRUPTED, 0)
        return True

    def __enter__(self) -> Grant:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Close an evaluation's or audit's grant; a training's, which ends with its status, if it failed unpaid."""
        if not self.closed and self.purpose != Purpose.TRAIN:
            self.close(RunStatus.COMPLETE if kind is None else RunStatus.INTERRUPTED)
        elif kind is not None:
            with suppress(LedgerRefused):  # the error on its way says more
                self.give_back()


def default_lease(steps: int) -> int:
    """Steps paid at once: a tenth of the plan, from 10,000 steps on a thousand or so, at most 100 leases.

    A crash costs at most one lease. Ten payments of a few milliseconds are below 0.5 % of any training that
    lasts longer than some ten seconds. It depends on the plan alone, so it tells nothing about the data.
    """
    leases = max(10, min(100, steps // 1000))
    return max(1, math.ceil(steps / leases))


def charged(plan: Plan, steps: int) -> tuple[Mechanism, ...]:
    """What counts after `steps` committed steps: the training that far, and everything else whole."""
    if steps == 0:
        return ()
    training, *rest = plan.mechanisms
    return (replace(training, steps=steps), *rest)
