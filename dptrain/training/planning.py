"""From settings and what the ledger declares to the one plan, and from a plan to what it promises."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from dptrain import accounting
from dptrain.errors import ConfigError
from dptrain.plain import Json
from dptrain.plan import Mechanism, Plan, default_delta
from dptrain.records import Run
from dptrain.records.run import Sweep
from dptrain.settings import PrivacyConfig, Settings
from dptrain.terminal.progress import progress
from dptrain.vocabulary import BudgetKind, Generator, Purpose

if TYPE_CHECKING:
    from dptrain.ledger import CohortStatus, Keys, Ledger


def open_status(settings: Settings) -> tuple[Ledger, Keys, CohortStatus]:
    """The ledger, the keys, and where the cohort stands. Raises LedgerRefused for a cohort it does not know."""
    from dptrain.ledger import open_ledger

    ledger, keys = open_ledger(settings.ledger.url, settings.ledger.keys, settings.ledger.witness)
    return ledger, keys, ledger.status(settings.ledger.cohort or settings.name)


def plan_for(settings: Settings, status: CohortStatus) -> Plan:
    """The plan that these settings and this cohort's budget make."""
    declares = (Purpose.EVALUATE,) if settings.training.evaluate else ()
    if settings.audit.declare:
        declares = (*declares, Purpose.AUDIT)
    return make_plan(
        settings.privacy, public_size=status.public_size, unit=status.unit, declares=declares, gate=status
    )


def check_chunk(settings: Settings) -> None:
    """Raises ConfigError where a physical chunk cannot hold one patient with all records and views."""
    privacy, chunk = settings.privacy, settings.training.chunk
    largest = privacy.max_records_per_patient * privacy.views
    if chunk < largest:
        raise ConfigError(
            f"training.chunk={chunk} cannot hold one patient: the record cap {privacy.max_records_per_patient} times "
            f"{privacy.views} views makes {largest}.",
            remedy=f"Write training.chunk={largest}, or lower privacy.max_records_per_patient or privacy.views.",
        )


LONG = 20_000  # steps from which composing losses takes more than seconds


@contextmanager
def patience(privacy: PrivacyConfig, public_size: int) -> Iterator[None]:
    """Says that work goes on while the losses of very many steps are composed; nothing for plans of usual length."""
    steps = privacy.steps or math.ceil((privacy.epochs or 0) * public_size / privacy.expected_batch_size)
    if steps < LONG:
        yield
        return
    print(f"composing the losses of {steps:,} steps: this may take minutes", file=sys.stderr, flush=True)
    with progress(None, "composing"):
        yield


def make_plan(
    privacy: PrivacyConfig,
    *,
    public_size: int,
    unit: str = "patient",
    declares: tuple[str, ...] = (Purpose.EVALUATE,),
    gate: CohortStatus | None = None,
) -> Plan:
    """The plan of a run; noise is calibrated so that its own epsilon (PLD) stays within the target.

    Args:
        public_size: N, training patients as the steward declared them.
        unit: what one unit of privacy is, in the words of the cohort.
        gate: the cohort's status, for its signed budgets (see :func:`calibrate`); None: PLD alone.

    Raises:
        ConfigError: settings out of range, or a target that no noise can reach.
    """
    delta = default_delta(public_size) if privacy.delta is None else privacy.delta
    if not 1 <= privacy.expected_batch_size <= public_size:
        raise ConfigError(
            f"privacy.expected_batch_size={privacy.expected_batch_size} of {public_size} {unit}s is a rate of "
            f"{privacy.expected_batch_size / public_size:.3g}: a rate lies above 0 and at most at 1.",
            remedy=f"Choose between 1 and {public_size}.",
        )
    rate = privacy.expected_batch_size / public_size
    steps = privacy.steps if privacy.steps is not None else max(1, math.ceil((privacy.epochs or 0) / rate))
    calibration = privacy.calibration_noise_multiplier
    also = (Mechanism(1.0, calibration, 1, "calibration"),) if calibration is not None else ()
    norm = privacy.max_grad_norm
    if privacy.noise_multiplier is not None:
        noise = privacy.noise_multiplier
    elif math.isinf(privacy.target_epsilon):
        noise, norm, calibration = 0.0, math.inf, None if calibration is None else 0.0
    else:
        noise = calibrate(privacy.target_epsilon, delta, rate, steps, also=also, gate=gate)
    return Plan(
        public_size=public_size,
        expected_batch_size=privacy.expected_batch_size,
        steps=steps,
        noise_multiplier=noise,
        max_grad_norm=norm,
        delta=delta,
        max_records_per_patient=privacy.max_records_per_patient,
        views=privacy.views,
        generator=Generator(privacy.generator),
        calibration_noise_multiplier=calibration,
        declares=declares,
        unit=unit,
    )


def calibrate(
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    *,
    also: tuple[Mechanism, ...] = (),
    gate: CohortStatus | None = None,
) -> float:
    """The noise multiplier of a run that shall promise `target_epsilon` on its own.

    The promise is the PLD's. An open budget gates by RDP at one order, which costs more than the PLD: a run
    that asks for no more than the whole signed budget gets at least the noise with which it fits that budget,
    so that target_epsilon=8 is possible on a budget of 8. On a planned budget the declared run of the same
    rate and length gives the noise. Nothing here follows what was spent.
    """
    noise = accounting.calibrate_noise(target_epsilon, delta, sample_rate, steps, also=also)
    for budget in gate.budgets if gate is not None else ():
        if budget.kind == BudgetKind.PLANNED:
            declared = [m for m in budget.unused if m.sample_rate == sample_rate and m.steps == steps]
            if declared:
                return declared[0].noise_multiplier
        elif target_epsilon <= budget.epsilon:
            fits = accounting.calibrate_noise(
                budget.epsilon, budget.delta, sample_rate, steps, also=also, accountant="rdp", order=budget.order
            )
            noise = max(noise, fits)
    return noise


def promise(mechanisms: tuple[Mechanism, ...], delta: float, units: int = 1) -> Json:
    """What a patient is promised: epsilon, the trade-off curve and its readings, as plain JSON values.

    Args:
        units: how many units one person may have; group_epsilon has that number beside two.

    Returns the keys epsilon (None where infinite), infinite, accountant, tradeoff, tpr_at_*_fpr,
    auc_ceiling, advantage, mu, group_epsilon, reconstruction of the run facts.
    """
    if any(mechanism.noise_multiplier == 0 for mechanism in mechanisms):
        return {"epsilon": None, "infinite": True, "accountant": "PLD", "tradeoff": None}
    curve = accounting.tradeoff(mechanisms)
    fpr, tpr = curve.points(101)
    return {
        "epsilon": accounting.pld_epsilon(mechanisms, delta),
        "infinite": False,
        "accountant": "PLD",
        "tradeoff": {"fpr": [float(value) for value in fpr], "tpr": [float(value) for value in tpr]},
        "tpr_at_1pct_fpr": float(curve.tpr(0.01)),
        "tpr_at_5pct_fpr": float(curve.tpr(0.05)),
        "tpr_at_10pct_fpr": float(curve.tpr(0.10)),
        "auc_ceiling": float(curve.auc),
        "advantage": float(curve.advantage),
        "mu": float(curve.mu),
        "group_epsilon": {str(k): finite(accounting.group(mechanisms, k, delta)) for k in sorted({2, max(2, units)})},
        "reconstruction": {f"{kappa:g}": float(curve.reconstruction(kappa)) for kappa in (0.001, 0.01, 0.1)},
    }


def finite(value: float) -> float | None:
    """The value, or None where it is infinite or not a number (JSON has neither)."""
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class Offer:
    """What one kind of budget asks for a plan. gate: what decides; both epsilons are at the plan's delta."""

    kind: BudgetKind
    gate: str
    noise_multiplier: float
    gate_epsilon: float
    pld_epsilon: float


@dataclass(frozen=True)
class Outlook:
    """A plan before anything is granted: what each kind of budget asks for it, and what it promises.

    promise: of :func:`promise`. epsilon_over_steps: (step, epsilon by PLD) of the training alone.
    """

    plan: Plan
    target_epsilon: float
    budgets: tuple[Offer, ...]
    advice: str
    promise: Json
    epsilon_over_steps: Sequence[tuple[int, float]]

    @property
    def epochs(self) -> float:
        """How often each patient is drawn, on average."""
        return self.plan.sample_rate * self.plan.steps

    @property
    def n_delta(self) -> float:
        """N·δ, which must be well below 1."""
        return self.plan.delta * self.plan.public_size

    def to_json(self) -> Json:
        """Plain values for JSON."""
        return {
            "plan": self.plan.to_dict(),
            "sample_rate": self.plan.sample_rate,
            "epochs": self.epochs,
            "n_delta": self.n_delta,
            "target_epsilon": self.target_epsilon,
            "budgets": [asdict(offer) for offer in self.budgets],
            "advice": self.advice,
            "promise": self.promise,
            "epsilon_over_steps": self.epsilon_over_steps,
        }


def outlook(privacy: PrivacyConfig, *, public_size: int, unit: str = "patient", units: int = 1) -> Outlook:
    """What `dptrain plan` prints: the plan under both kinds of budget, the promise and its ceilings.

    The open budget's order is the one that is best for this very plan (the steward's forecast).
    """
    plan = make_plan(privacy, public_size=public_size, unit=unit)
    if not plan.private:
        raise ConfigError(
            "without privacy there is nothing to plan: epsilon is infinite.", remedy="Give a finite target_epsilon."
        )
    target = privacy.target_epsilon
    if privacy.noise_multiplier is not None:
        target = accounting.pld_epsilon(plan.mechanisms, plan.delta)
    also = plan.mechanisms[1:]
    order = accounting.best_order(target, plan.delta, plan.mechanisms)
    open_noise = accounting.calibrate_noise(
        target, plan.delta, plan.sample_rate, plan.steps, also=also, accountant="rdp", order=order
    )
    offers = []
    for kind, noise in ((BudgetKind.PLANNED, plan.noise_multiplier), (BudgetKind.OPEN, open_noise)):
        mechanisms = (Mechanism(plan.sample_rate, noise, plan.steps), *also)
        by_pld = accounting.pld_epsilon(mechanisms, plan.delta)
        by_rdp = accounting.rdp_epsilon(float(accounting.rdp(mechanisms, (order,))[0]), order, plan.delta)
        gate = "joint PLD of declared runs" if kind == BudgetKind.PLANNED else f"RDP at order {order:g}"
        gated = by_pld if kind == BudgetKind.PLANNED else by_rdp
        offers.append(Offer(kind, gate, noise, gate_epsilon=gated, pld_epsilon=by_pld))
    extra = open_noise / plan.noise_multiplier - 1
    advice = (
        f"An open budget (any runs, chosen as you go) needs {100 * extra:.1f} % more noise here than a planned one."
    )
    if extra > 0.1:
        advice += " If you can name your runs beforehand, ask for a planned budget (kind=planned)."
    return Outlook(
        plan=plan,
        target_epsilon=target,
        budgets=tuple(offers),
        advice=advice,
        promise=promise(plan.mechanisms, plan.delta, units),
        epsilon_over_steps=accounting.epsilon_over_steps(plan.mechanisms[:1], plan.delta),
    )


@dataclass(frozen=True)
class PlannedTrial:
    """One trial of a sweep that is planned: by which words it differs, its plan, and its epsilon by PLD alone."""

    words: str
    plan: Plan
    epsilon: float


@dataclass(frozen=True)
class SweepOutlook:
    """What the trials of a sweep promise one by one, and the budgets that all of them need together.

    Attributes:
        planned: epsilon of a planned budget that declares just these runs (their joint PLD).
        opened: epsilon of an open budget, gated by RDP at `order`, the best one for these runs.
        delta: at which both hold: the least of the trials'.
    """

    trials: tuple[PlannedTrial, ...]
    planned: float
    opened: float
    order: float
    delta: float


def sweep_outlook(
    trials: Sequence[tuple[str, PrivacyConfig]], *, public_size: int, unit: str = "patient"
) -> SweepOutlook:
    """What `dptrain plan -m` prints, of trials and the words in which they differ.

    Raises ConfigError for a trial without noise.
    """
    rows: list[tuple[str, Plan]] = []
    plans: dict[PrivacyConfig, Plan] = {}
    for words, privacy in trials:
        plan = plans.get(privacy) or make_plan(privacy, public_size=public_size, unit=unit)
        plans[privacy] = plan
        if not plan.private:
            raise ConfigError(
                f"the trial {words} has no privacy: its epsilon is infinite.", remedy="Give a finite target_epsilon."
            )
        rows.append((words, plan))
    alone = {plan: accounting.pld_epsilon(plan.mechanisms, plan.delta) for plan in plans.values()}
    delta = min(plan.delta for plan in alone)
    every = [mechanism for _, plan in rows for mechanism in plan.mechanisms]
    total = accounting.rdp(every)
    opened, order = min(
        (accounting.rdp_epsilon(float(cost), order, delta), order) for cost, order in zip(total, accounting.ORDERS)
    )
    return SweepOutlook(
        tuple(PlannedTrial(words, plan, alone[plan]) for words, plan in rows),
        planned=accounting.pld_epsilon(tuple(every), delta),
        opened=opened,
        order=order,
        delta=delta,
    )


def sweep_cost(runs: list[Run]) -> Sweep | None:
    """The joint cost of a sweep's trials, for their records; None where there are none.

    A run that several trials start from counts once, and so does a trial that others start from.
    """
    if not runs:
        return None
    ended = [(run.id, run.privacy) for run in runs if run.privacy is not None]
    paid = {earlier.run: earlier.mechanisms for _, privacy in ended for earlier in privacy.inherited}
    paid |= {str(identity): privacy.mechanisms for identity, privacy in ended}
    mechanisms = tuple(charge.mechanism() for charges in paid.values() for charge in charges)
    if not mechanisms or any(mechanism.noise_multiplier == 0 for mechanism in mechanisms):
        return Sweep(trials=len(runs))
    delta = min(privacy.delta or 0.0 for _, privacy in ended)
    return Sweep(trials=len(runs), epsilon_total=accounting.pld_epsilon(mechanisms, delta))
