"""What a plan costs the patients: the mathematics of charges, gates and readings.

Every number is an upper bound on what is lost: rounded up, with the error of its own computation inside.
All functions hold for one unit of privacy added or removed (add/remove adjacency), Poisson draws and Gaussian
noise, as :class:`dptrain.plan.Mechanism` describes them. A noise multiplier of 0 costs infinity.

================  ===========================================================================================
:mod:`.renyi`     Rényi divergences on a fixed grid of orders; conversions; what an *open* budget gates
:mod:`.gaussian`  a second filter, by whole runs and Gaussian trade-off curves; tighter where it applies
:mod:`.units`     charges as whole numbers, so that sums are exact
:mod:`.losses`    privacy loss distributions: what a *planned* budget gates, and what reports show
:mod:`.noise`     the least noise that meets a target
:mod:`.budgets`   what a budget lets be spent, the noise that fits n runs, what more runs would cost
:mod:`.attacks`   what an attacker can reach at most: trade-off curve and its readings
:mod:`.trials`    choosing the best of a random number of trials
================  ===========================================================================================

Importing this package imports nothing heavy (the ledger's `show` starts in under half a second): a name loads
its module when it is first used. No module is called like a public name, or the one would hide the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dptrain.lazy import attach

if TYPE_CHECKING:
    from dptrain.accounting.attacks import TradeOff as TradeOff
    from dptrain.accounting.attacks import tradeoff as tradeoff
    from dptrain.accounting.budgets import Terms as Terms
    from dptrain.accounting.budgets import epsilon_after as epsilon_after
    from dptrain.accounting.budgets import fitting_noise as fitting_noise
    from dptrain.accounting.budgets import open_terms as open_terms
    from dptrain.accounting.budgets import planned_terms as planned_terms
    from dptrain.accounting.gaussian import GaussianBudget as GaussianBudget
    from dptrain.accounting.gaussian import gaussian_budget as gaussian_budget
    from dptrain.accounting.gaussian import gaussian_charge as gaussian_charge
    from dptrain.accounting.losses import epsilon_over_steps as epsilon_over_steps
    from dptrain.accounting.losses import event as event
    from dptrain.accounting.losses import group as group
    from dptrain.accounting.losses import pld_delta as pld_delta
    from dptrain.accounting.losses import pld_epsilon as pld_epsilon
    from dptrain.accounting.noise import calibrate_noise as calibrate_noise
    from dptrain.accounting.renyi import ORDERS as ORDERS
    from dptrain.accounting.renyi import ORDERS_VERSION as ORDERS_VERSION
    from dptrain.accounting.renyi import best_order as best_order
    from dptrain.accounting.renyi import rdp as rdp
    from dptrain.accounting.renyi import rdp_budget as rdp_budget
    from dptrain.accounting.renyi import rdp_delta as rdp_delta
    from dptrain.accounting.renyi import rdp_epsilon as rdp_epsilon
    from dptrain.accounting.trials import random_stopping_epsilon as random_stopping_epsilon
    from dptrain.accounting.units import INFINITE_UNITS as INFINITE_UNITS
    from dptrain.accounting.units import UNIT_BITS as UNIT_BITS
    from dptrain.accounting.units import budget_units as budget_units
    from dptrain.accounting.units import charge_units as charge_units
    from dptrain.accounting.units import from_units as from_units
    from dptrain.accounting.units import to_units as to_units

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "attacks": ("TradeOff", "tradeoff"),
        "budgets": ("Terms", "epsilon_after", "fitting_noise", "open_terms", "planned_terms"),
        "gaussian": ("GaussianBudget", "gaussian_budget", "gaussian_charge"),
        "losses": ("epsilon_over_steps", "event", "group", "pld_delta", "pld_epsilon"),
        "noise": ("calibrate_noise",),
        "renyi": ("ORDERS", "ORDERS_VERSION", "best_order", "rdp", "rdp_budget", "rdp_delta", "rdp_epsilon"),
        "trials": ("random_stopping_epsilon",),
        "units": ("INFINITE_UNITS", "UNIT_BITS", "budget_units", "charge_units", "from_units", "to_units"),
    },
)
