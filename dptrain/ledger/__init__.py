"""Budgets, grants, charges, locks: who may use which patients, and what it cost them.

Imports nothing heavy at import; the names below load their modules on first use. See docs/ledger.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dptrain.lazy import attach

if TYPE_CHECKING:
    from dptrain.ledger.chain import SignedHead as SignedHead
    from dptrain.ledger.face import Ledger as Ledger
    from dptrain.ledger.facts import CohortVersion as CohortVersion
    from dptrain.ledger.facts import GateFacts as GateFacts
    from dptrain.ledger.facts import PublicDeclaration as PublicDeclaration
    from dptrain.ledger.facts import Receipt as Receipt
    from dptrain.ledger.facts import WeightsSource as WeightsSource
    from dptrain.ledger.grants import Grant as Grant
    from dptrain.ledger.grants import charged as charged
    from dptrain.ledger.grants import default_lease as default_lease
    from dptrain.ledger.keys import Controller as Controller
    from dptrain.ledger.keys import Keys as Keys
    from dptrain.ledger.keys import recovery as recovery
    from dptrain.ledger.members import fingerprint as fingerprint
    from dptrain.ledger.places import open_ledger as open_ledger
    from dptrain.ledger.status import BudgetStatus as BudgetStatus
    from dptrain.ledger.status import CohortStatus as CohortStatus
    from dptrain.ledger.status import RunCharge as RunCharge
    from dptrain.ledger.verify import Fault as Fault

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "chain": ("SignedHead",),
        "keys": ("Controller", "Keys", "recovery"),
        "grants": ("Grant", "charged", "default_lease"),
        "face": ("Ledger",),
        "facts": ("CohortVersion", "GateFacts", "PublicDeclaration", "Receipt", "WeightsSource"),
        "members": ("fingerprint",),
        "places": ("open_ledger",),
        "status": ("BudgetStatus", "CohortStatus", "RunCharge"),
        "verify": ("Fault",),
    },
)
