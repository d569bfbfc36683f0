"""dptrain: differentially private training for medical imaging.

The house, from the ground up: :mod:`dptrain.plan` and :mod:`dptrain.accounting` (the mathematics),
:mod:`dptrain.ledger` (budgets, grants, charges, locks), :mod:`dptrain.data` (patients and their records),
:mod:`dptrain.models`, :mod:`dptrain.engine` (patient gradients), :mod:`dptrain.training`,
:mod:`dptrain.audit`, :mod:`dptrain.report`, :mod:`dptrain.cli`. A floor knows nothing of those above it.
"""

__version__ = "0.1.0"
