"""What an open budget costs above the joint account: `make bench-accounting` (some minutes, one core).

Three questions, for budgets of epsilon 1, 3, 8, 20 at delta 1e-5:

- *overhead*: 1, 5 or 20 equal runs of (q, T) use up an open budget that was signed for exactly them. By how much
  does the budget's epsilon exceed the joint epsilon of what was released? What would the filter by Gaussian curves
  (`accounting.gaussian_budget`, signed for as many runs) count for the same runs? And how far is a planned budget,
  which gates by the joint account itself, from the value of a grid of losses eight times as fine?
- *mismatch*: the budget was signed with a forecast of (q, T), but runs of another (q, T) use it up.
- *calibrated*: noise calibrated to the budget by the joint account, as for a planned run; what would an open gate
  say of it?
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

from benchmarks import _results
from dptrain import accounting
from dptrain.accounting import losses
from dptrain.plan import Mechanism

DELTA = 1e-5
EPSILONS = (1.0, 3.0, 8.0, 20.0)
RUNS = (1, 5, 20)
SETTINGS = ((0.0256, 1200), (0.05, 1000), (0.27, 200), (0.01, 300))
GOAL_OPEN, GOAL_PLANNED, GOAL_HOLDS_FROM = 0.10, 0.005, 0.85


def noise_at_exhaustion(epsilon: float, rate: float, steps: int) -> tuple[float, float]:
    """(noise, order) with which `steps` steps just use up an open budget signed with the order best for them."""
    low, high = math.log(0.2), math.log(500.0)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if _fits(epsilon, rate, math.exp(middle), steps) else (middle, high)
    noise = math.exp(high)
    return noise, accounting.best_order(epsilon, DELTA, [Mechanism(rate, noise, steps)])


def _fits(epsilon: float, rate: float, noise: float, steps: int) -> bool:
    order = accounting.best_order(epsilon, DELTA, [Mechanism(rate, noise, steps)])
    charge = accounting.charge_units([Mechanism(rate, noise, steps)], [order])[0]
    return charge <= accounting.budget_units(epsilon, DELTA, order)


def noise_at_order(epsilon: float, rate: float, steps: int, order: float) -> float:
    """Noise with which `steps` steps just use up an open budget that gates at `order`."""
    return accounting.calibrate_noise(epsilon, DELTA, rate, steps, accountant="rdp", order=order)


def joint(rate: float, noise: float, steps: int) -> float:
    return accounting.pld_epsilon([Mechanism(rate, noise, steps)], DELTA)


def planned_overhead(rate: float, noise: float, steps: int) -> float:
    """How far the planned gate's figure lies above the one on a grid of losses eight times as fine."""
    items = {(rate, noise): steps}
    width = losses._interval(items, 1)
    assert width is not None
    return joint(rate, noise, steps) / losses._epsilon(items, 1, DELTA, width / 8) - 1


def overhead_row(epsilon: float, runs: int, rate: float, steps: int) -> dict[str, Any]:
    noise, order = noise_at_exhaustion(epsilon, rate, steps * runs)
    spent = joint(rate, noise, steps * runs)
    overhead = epsilon / spent - 1
    planned = planned_overhead(rate, noise, steps * runs)
    binding = rate * math.sqrt(steps) >= GOAL_HOLDS_FROM
    budget = accounting.gaussian_budget(epsilon, DELTA, runs=runs)
    charge = accounting.gaussian_charge([Mechanism(rate, noise, steps)], budget.tail)
    by_curve = budget.spent_epsilon(runs * charge) / spent - 1
    return {
        "question": "overhead",
        "epsilon": epsilon,
        "delta": DELTA,
        "runs": runs,
        "sample_rate": rate,
        "steps": steps,
        "q_sqrt_t": round(rate * math.sqrt(steps), 3),
        "noise_multiplier": round(noise, 4),
        "order": order,
        "epsilon_joint": round(spent, 4),
        "open_overhead_percent": round(100 * overhead, 2),
        "open_goal_met": overhead <= GOAL_OPEN if binding else None,
        "gaussian_overhead_percent": round(100 * by_curve, 2),
        "planned_overhead_percent": round(100 * planned, 4),
        "planned_goal_met": planned <= GOAL_PLANNED,
    }


def mismatch_rows(epsilon: float) -> list[dict[str, Any]]:
    rows = []
    signed = {setting: noise_at_exhaustion(epsilon, setting[0], 5 * setting[1])[1] for setting in SETTINGS}
    for forecast, order in signed.items():
        for rate, steps in SETTINGS:
            noise = noise_at_order(epsilon, rate, 5 * steps, order)
            best = noise_at_order(epsilon, rate, 5 * steps, signed[rate, steps])
            rows.append(
                {
                    "question": "mismatch",
                    "epsilon": epsilon,
                    "delta": DELTA,
                    "runs": 5,
                    "sample_rate": rate,
                    "steps": steps,
                    "q_sqrt_t": round(rate * math.sqrt(steps), 3),
                    "forecast_sample_rate": forecast[0],
                    "forecast_steps": forecast[1],
                    "order": order,
                    "noise_multiplier": noise,
                    "noise_with_own_forecast": best,
                    "epsilon_joint": round(joint(rate, noise, 5 * steps), 4),
                    "open_overhead_percent": round(100 * (epsilon / joint(rate, noise, 5 * steps) - 1), 2),
                }
            )
    return rows


def calibrated_row(epsilon: float, rate: float, steps: int) -> dict[str, Any]:
    noise = accounting.calibrate_noise(epsilon, DELTA, rate, steps)
    run = [Mechanism(rate, noise, steps)]
    cost = dict(zip(accounting.ORDERS, accounting.rdp(run).tolist()))
    best, order = min((accounting.rdp_epsilon(value, order, DELTA), order) for order, value in cost.items())
    signed = accounting.best_order(epsilon, DELTA, run)
    gate = accounting.rdp_epsilon(cost[signed], signed, DELTA)
    return {
        "question": "calibrated",
        "epsilon": epsilon,
        "delta": DELTA,
        "runs": 1,
        "sample_rate": rate,
        "steps": steps,
        "q_sqrt_t": round(rate * math.sqrt(steps), 3),
        "noise_multiplier": noise,
        "order": signed,
        "epsilon_gate": round(gate, 4),
        "open_overhead_percent": round(100 * (gate / epsilon - 1), 2),
        "best_order_afterwards": order,
        "epsilon_best_order_afterwards": round(best, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="epsilon 3 and one run only; writes nothing")
    quick = parser.parse_args().quick
    epsilons, runs = (EPSILONS[1:2], RUNS[:1]) if quick else (EPSILONS, RUNS)
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    for rate, steps in SETTINGS:
        for epsilon in epsilons:
            rows += [overhead_row(epsilon, count, rate, steps) for count in runs]
            rows.append(calibrated_row(epsilon, rate, steps))
        print(f"q={rate} T={steps}: done after {time.perf_counter() - began:.0f} s", flush=True)
    for epsilon in epsilons:
        rows += mismatch_rows(epsilon)
    if quick:
        for row in rows:
            print(row)
        return
    command = "make bench-accounting"
    columns = [
        "question",
        "epsilon",
        "runs",
        "sample_rate",
        "steps",
        "q_sqrt_t",
        "forecast_sample_rate",
        "forecast_steps",
        "noise_multiplier",
        "order",
        "epsilon_joint",
        "open_overhead_percent",
        "open_goal_met",
        "gaussian_overhead_percent",
        "planned_overhead_percent",
    ]
    path = _results.write(
        "accounting",
        rows,
        command=command,
        table_columns=columns,
        title="The gate's overhead against the joint account, at exhaustion",
        notes=notes(rows),
    )
    plot(rows, path.with_suffix(".svg"))


def notes(rows: list[dict[str, Any]]) -> str:
    """What the rows say, computed from them."""
    at_exhaustion = [row for row in rows if row["question"] == "overhead"]
    binding = [row for row in at_exhaustion if row["open_goal_met"] is not None]
    missed = [row for row in binding if not row["open_goal_met"]]
    worst_planned = max(row["planned_overhead_percent"] for row in at_exhaustion)
    small_gaussian = [row["gaussian_overhead_percent"] for row in at_exhaustion if row["open_goal_met"] is None]
    gaussian = [row["gaussian_overhead_percent"] for row in binding]
    over = sum(value > 100 * GOAL_OPEN for value in gaussian)
    small = [row["open_overhead_percent"] for row in at_exhaustion if row["open_goal_met"] is None]
    lines = [
        f"- Goal for open budgets where q·√T ≥ {GOAL_HOLDS_FROM}: at most {100 * GOAL_OPEN:.0f} %. Met in "
        f"{len(binding) - len(missed)} of {len(binding)} cells; missed in: "
        + (
            "; ".join(
                f"ε = {row['epsilon']:g}, q = {row['sample_rate']}, T = {row['steps']}, {row['runs']} run(s): "
                f"{row['open_overhead_percent']:.1f} %"
                for row in missed
            )
            or "none"
        )
        + ".",
        "- Why: at one fixed order a divergence sees the loss through one exponential moment. Given that moment "
        "alone the conversion to (ε, δ) is within 0.1 % of lossless (tests), and a positive combination of several "
        "orders cannot beat the best single one; what remains is the distance between a Chernoff bound and the tail "
        "itself: about 7 to 9 % for a Gaussian loss, more where few large steps make the loss skewed.",
        f"- Outside that range (q·√T = 0.17) the overhead is {min(small):.0f} to {max(small):.0f} %, and falls as "
        "runs add up; a planned budget answers it.",
        f"- *gaussian*: the filter by Gaussian curves counts {min(gaussian):.1f} to {max(gaussian):.1f} % above the "
        f"joint account in the range of the goal ({over} of {len(gaussian)} cells above {100 * GOAL_OPEN:.0f} %), "
        f"{min(small_gaussian):.1f} to {max(small_gaussian):.1f} % outside it. It charges whole runs, gives nothing "
        "back, and limits the number of runs at signing.",
        f"- Planned budgets: at most {worst_planned:.2g} % above the figure of a grid of losses eight times as fine; "
        f"goal {100 * GOAL_PLANNED:g} %.",
        "- *mismatch*: 5 runs of (q, T) use up a budget that was signed with the forecast (forecast q, forecast T) "
        "of another use. Compare with the row whose forecast is its own.",
        "- *calibrated*: noise such that one run's joint ε is the budget; the overhead is that of the epsilon an "
        "open gate would count, at the order it would have been signed with.",
    ]
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Any) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(SETTINGS), figsize=(12, 3.2), sharey=True)
    for axis, (rate, steps) in zip(axes, SETTINGS):
        for runs in RUNS:
            cells = [
                row
                for row in rows
                if row["question"] == "overhead"
                and (row["sample_rate"], row["steps"], row["runs"]) == (rate, steps, runs)
            ]
            axis.plot(
                [row["epsilon"] for row in cells],
                [row["open_overhead_percent"] for row in cells],
                marker="o",
                label=f"{runs} run{'s' if runs > 1 else ''}",
            )
        axis.axhline(100 * GOAL_OPEN, color="grey", linestyle=":", linewidth=1)
        axis.set(title=f"q = {rate}, T = {steps}", xscale="log", xlabel="budget ε", xticks=EPSILONS)
        axis.set_xticklabels([f"{epsilon:g}" for epsilon in EPSILONS])
        axis.minorticks_off()
    axes[0].set(ylabel="open gate above joint account, %", ylim=(0, None))
    axes[-1].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
