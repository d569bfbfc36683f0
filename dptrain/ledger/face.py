"""The ledger's face: register a cohort, grant a budget, reserve, commit, close. Every method is one transaction.

The work is done by the offices, as functions over a :class:`Book`: `registry` (cohorts and patients), `decisions`
(what the controller signs), `charging` (what runs cost), `rotation` (keys), `looking`, `founding`, `verify`.

The life of a charge: :meth:`Ledger.reserve` sets the whole plan aside; :meth:`Grant.commit` pays for a lease of
steps durably before the first of them runs; :meth:`Grant.close` ends the run, and on open budgets gives back the
leases that never began. A run that dies in between stays charged in full until :meth:`Ledger.resume` goes on with
it. Whatever fails, the transaction is rolled back: an entry is there whole, or not at all.
"""

from __future__ import annotations

import os

from dptrain.ledger import charging, decisions, evidence, founding, looking, registry, rotation, store, verify
from dptrain.ledger.book import Book
from dptrain.ledger.keys import Keys


class Ledger(Book):
    """One site's ledger, in a SQLite file or a PostgreSQL database. Safe for threads, processes and forks."""

    @classmethod
    def create(
        cls,
        place: str | os.PathLike[str],
        keys: Keys,
        *,
        witness: str | None = None,
        wait: float = store.WAIT_SECONDS,
    ) -> Ledger:
        """Found a ledger: tables and first entry, in one transaction.

        Raises LedgerRefused where there is one already, or the place cannot be written.
        """
        ledger = cls(place, keys, witness=witness, wait=wait)
        founding.found(ledger)
        return ledger

    @classmethod
    def open(
        cls,
        place: str | os.PathLike[str],
        keys: Keys,
        *,
        witness: str | None = None,
        wait: float = store.WAIT_SECONDS,
    ) -> Ledger:
        """Open a ledger and check that it is this site's, undamaged at its head, and not rolled back.

        Args:
            place: a path, or postgresql://….
            witness: a file or URL with heads that somebody else keeps; every grant then requires descent from
                them, and a witness that cannot be read refuses everything.
            wait: seconds to wait for another program that holds the ledger.

        Raises LedgerRefused for anything that is not so.
        """
        ledger = cls(place, keys, witness=witness, wait=wait)
        founding.check(ledger)
        return ledger

    register = registry.register
    withdraw = registry.withdraw
    in_a_cohort = registry.in_a_cohort
    steward = registry.steward
    forecast_of = registry.forecast_of

    budget = decisions.budget
    declare_weights = decisions.declare_weights
    permit = decisions.permit
    revoke = decisions.revoke
    record_release = decisions.record_release
    name_controller = decisions.name_controller
    name_approver = decisions.name_approver
    set_rule = decisions.set_rule
    lock = decisions.lock
    unlock = decisions.unlock

    reserve = charging.reserve
    resume = charging.resume
    admit = charging.admit

    status = looking.status
    require_open = looking.require_open
    pictures_until = looking.pictures_until
    objections = looking.objections
    cohorts = looking.cohorts
    head = looking.head
    run = looking.run
    bound = looking.bound
    evidence = evidence.evidence
    binding = looking.binding
    weights = looking.weights
    entries = looking.entries
    signed_by = looking.signed_by
    approvers = looking.approvers
    controller = looking.controller

    rotate_site_key = rotation.rotate_site_key
    rotate_controller_key = rotation.rotate_controller_key
    rotate_recovery_code = rotation.rotate_recovery_code
    rotate_secret = rotation.rotate_secret
    names = rotation.names

    verify = verify.verify
    backup = founding.backup
