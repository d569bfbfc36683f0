"""What an open budget would allow and cost, before it is signed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dptrain.accounting.losses import pld_epsilon
from dptrain.accounting.renyi import best_order, rdp, rdp_budget, rdp_epsilon
from dptrain.errors import ConfigError
from dptrain.plan import Mechanism

#: An open budget that costs more than this above the joint account is answered with a planned one.
ADVISE_ABOVE = 0.10
_MOST_RUNS = 10_000


@dataclass(frozen=True)
class Forecast:
    """Repeats of one run under a budget of (epsilon, delta), open against planned.

    Attributes:
        epsilon, delta: the budget.
        order: Rényi order that the open budget would be signed with.
        run_epsilon: joint epsilon (loss distribution) of one run.
        runs_open: whole runs that the open budget grants.
        runs_planned: whole runs that a planned budget, declared in advance, would hold.
        epsilon_gate: what the gate counts as spent after `runs_open` runs (0 for none).
        epsilon_joint: the joint epsilon of `runs_open` runs.
        overhead: how much the gate overstates at exhaustion: epsilon over the joint epsilon of as many steps
            as the gate allows, minus 1; nan if not one step fits.
    """

    epsilon: float
    delta: float
    order: float
    run_epsilon: float
    runs_open: int
    runs_planned: int
    epsilon_gate: float
    epsilon_joint: float
    overhead: float

    @property
    def advise_planned(self) -> bool:
        """Whether a planned budget would serve this use clearly better."""
        return not self.overhead <= ADVISE_ABOVE or self.runs_planned > self.runs_open


def forecast(epsilon: float, delta: float, run: Sequence[Mechanism]) -> Forecast:
    """How many repeats of `run` a budget would allow, and what the open gate costs there.

    Args:
        epsilon, delta: the budget.
        run: what one run releases (`plan.mechanisms`).

    Raises:
        ConfigError: as :func:`dptrain.accounting.best_order` (no noise, budget too small).
    """
    order = best_order(epsilon, delta, run)
    cost, budget = float(rdp(run, [order])[0]), rdp_budget(epsilon, delta, order)
    runs_open = min(_MOST_RUNS, math.floor(budget / cost))
    low, high = runs_open, max(2 * runs_open, 1)
    if pld_epsilon(_repeat(run, max(1, runs_open)), delta) > epsilon:
        low, high = 0, 1
    while high <= _MOST_RUNS and pld_epsilon(_repeat(run, high), delta) <= epsilon:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if pld_epsilon(_repeat(run, middle), delta) <= epsilon else (low, middle)
    return Forecast(
        epsilon=epsilon,
        delta=delta,
        order=order,
        run_epsilon=pld_epsilon(run, delta),
        runs_open=runs_open,
        runs_planned=low,
        epsilon_gate=rdp_epsilon(runs_open * cost, order, delta) if runs_open else 0.0,
        epsilon_joint=pld_epsilon(_repeat(run, runs_open), delta),
        overhead=overhead(epsilon, delta, run, order),
    )


def overhead(epsilon: float, delta: float, run: Sequence[Mechanism], order: float) -> float:
    """epsilon / (joint epsilon of what a gate at `order` lets through) − 1, spent by repeats of `run`'s steps.

    The number of steps at exhaustion is taken to the step, not to the run, so that the figure is a property of
    the gate and not of how the last run happens to fit. nan if not one step of each mechanism fits.
    """
    share = rdp_budget(epsilon, delta, order) / float(rdp(run, [order])[0])
    if not share > 0:
        return math.nan
    scaled = [
        Mechanism(m.sample_rate, m.noise_multiplier, steps) for m in run if (steps := math.floor(m.steps * share))
    ]
    if not scaled:
        return math.nan
    joint = pld_epsilon(scaled, delta)
    return epsilon / joint - 1 if joint > 0 else math.inf


def _repeat(run: Sequence[Mechanism], times: int) -> list[Mechanism]:
    if times < 0:
        raise ConfigError(f"runs={times} must be at least 0.")
    return [Mechanism(m.sample_rate, m.noise_multiplier, m.steps * times) for m in run] if times else []
