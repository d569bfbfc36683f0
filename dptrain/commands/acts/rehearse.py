"""`dptrain rehearse`: the training at the plan's noise on made-up records."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dptrain import models
from dptrain.commands.command import Call
from dptrain.errors import EXIT_DONE, ConfigError, LedgerRefused
from dptrain.models.network import build_network
from dptrain.models.preflight import check_outputs
from dptrain.plan import Plan
from dptrain.settings import Settings, load
from dptrain.settings.data import shape_of
from dptrain.settings.overrides import read_overrides
from dptrain.settings.places import recipe_folders
from dptrain.terminal.output import Output
from dptrain.training.planning import check_chunk, make_plan, open_status
from dptrain.training.rehearsal import Rehearsal
from dptrain.training.rehearsal import rehearse as rehearse_run

MEASURED = "measured.json"


def rehearse(call: Call) -> int:
    """Rehearse; touches no data and charges nothing."""
    size, seconds, out_folder = (call.words[name] for name in ("public_size", "seconds", "out"))
    until = time.monotonic() + seconds
    settings = load(call.settings)
    check_chunk(settings)
    plan = make_plan(settings.privacy, public_size=_size(size, settings), unit=settings.data.unit)
    network = build_network(settings)
    models.refuse(
        check_outputs(network.whole, shape_of(settings.data), settings.data.task, classes=len(settings.data.classes))
    )
    name = re.sub(r"[^\w.-]", "_", settings.name)
    folder = Path(out_folder or f"runs/rehearsal-{name}")
    result = rehearse_run(settings, plan, network, folder, until=until)
    out = Output(as_json=call.as_json)
    expected = measured(call.settings, settings.privacy.target_epsilon)
    told = [replace(row, epsilon=min(row.epsilon, 1e308)) for row in expected]  # JSON has no infinity
    out.give({**asdict(result), "plan": plan.to_dict(), "tensorboard": str(folder), "measured": told})
    _say(out, result, plan, folder, expected)
    return EXIT_DONE


def _size(given: int | None, settings: Settings) -> int:
    """N as it was given, or as the ledger declares it."""
    if given is not None:
        return given
    try:
        return open_status(settings)[2].public_size
    except LedgerRefused:
        raise ConfigError(
            "'public_size' is missing, and no ledger here declares this cohort.",
            remedy="Give public_size=…: the number of training patients that may be public, never a private count.",
        ) from None


@dataclass(frozen=True)
class Measured:
    """A row of a recipe's committed table: the mean of a metric over seeds; epsilon is inf without privacy."""

    epsilon: float
    metric: str
    value: float
    seeds: int


def measured(words: tuple[str, ...], epsilon: float) -> list[Measured]:
    """What was measured with a recipe on its public data at the two nearest epsilons, and without privacy."""
    recipe = next((str(one.value()) for one in read_overrides(words) if one.key_or_group == "recipe"), None)
    table = None if recipe is None or recipe not in recipe_folders() else recipe_folders()[recipe] / MEASURED
    if table is None or not table.is_file():
        return []
    rows = [Measured(**{**row, "epsilon": float(row["epsilon"])}) for row in json.loads(table.read_text())["rows"]]
    private = [row for row in rows if math.isfinite(row.epsilon)]
    nearest = sorted(private, key=lambda row: abs(math.log(row.epsilon / min(epsilon, 1e6))))[:2]
    return [row for row in rows if row in nearest or not math.isfinite(row.epsilon)]


def _say(out: Output, result: Rehearsal, plan: Plan, folder: Path, expected: list[Measured]) -> None:
    rows = [(str(step), f"{value:.3f}") for step, value in result.curve]
    out.table("On held-out made-up records", ("after step", result.metric), rows, right=(0, 1))
    cut = "" if result.steps == plan.steps else f" ({result.steps} taken here; seconds=… gives more)"
    out.say(f"{plan.steps} steps of the plan{cut}, noise multiplier {plan.noise_multiplier:.4f}, {result.device}")
    out.say(
        f"a step takes {result.seconds_per_step:.3g} s, all steps about {_time(result.expected_seconds)} "
        f"(beside reading); memory at most {result.peak_bytes / 2**30:.2f} GiB"
    )
    if expected:
        out.say("\nMeasured with this recipe on its public test patients (mean of seeds):")
        for row in expected:
            out.say(f"  epsilon {row.epsilon!s:>4}: {row.metric} {row.value:.3f}")
    out.say(f"\nCurves, pictures and settings: tensorboard --logdir {folder}")
    out.say("Nothing was read and nothing charged: the curve tells of code, noise and settings, not of patients.")


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
