"""Time and memory of the ledger: `python -m benchmarks.ledger [patients=1000000 runs=1000 stores=SQLite,PostgreSQL]`.

Registration of a large cohort runs in a process of its own, so that its memory is its own; hashes are at hand, and
hashing is reported apart. Everything else runs on a ledger with many earlier runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _results
from benchmarks._ledger_site import COHORT, PASSPHRASE, Postgres, epsilon_for, have_postgres
from dptrain.ledger import Keys, Ledger, fingerprint
from dptrain.plan import Plan
from dptrain.terminal.words import Word, parse_words

PLAN = Plan(
    public_size=20_000,
    expected_batch_size=1000,
    steps=1200,
    noise_multiplier=400.0,
    max_grad_norm=1.0,
    delta=1e-6,
)


Times = list[tuple[float, float]]  # (wall-clock, CPU) seconds of each call


def timed(times: int, act: Callable[[int], object]) -> Times:
    """Seconds of each of so many calls."""
    found = []
    for number in range(times):
        begun, work = time.perf_counter(), time.process_time()
        act(number)
        found.append((time.perf_counter() - begun, time.process_time() - work))
    return found


def start_times(words: list[str], times: int = 9) -> Times:
    """Seconds of a fresh `python -m dptrain …`, start included; bytecode is at hand, as after an installation."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def act(_: int) -> None:
        command = [sys.executable, "-m", "dptrain", *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)

    act(0)
    found = []
    for _ in range(times):
        work = sum(os.times()[2:4])
        ((wall, _cpu),) = timed(1, act)
        found.append((wall, sum(os.times()[2:4]) - work))
    return found


def per_second(times: Times) -> float:
    """Calls a second at the median."""
    return 1 / statistics.median(wall for wall, _ in times)


def row(what: str, store: str, times: Times, *, goal: float | None = None, **more: Any) -> dict[str, Any]:
    """One flat object of results."""
    ordered = sorted(wall for wall, _ in times)
    median = statistics.median(ordered)
    return {
        "what": what,
        "store": store,
        "median_seconds": median,
        "p95_seconds": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "cpu_seconds": statistics.median(cpu for _, cpu in times),
        "count": len(ordered),
        "goal_seconds": goal,
        "met": None if goal is None else median <= goal,
        **more,
    }


def register_alone(place: str, keys_folder: str, count: int) -> None:
    """Register `count` patients of one record each, and print seconds and the process's peak memory."""
    keys = Keys.load(keys_folder)
    ledger = Ledger.open(place, keys)
    patients = {
        hashlib.sha256(b"patient %d" % number).digest(): [hashlib.sha256(b"record %d" % number).digest()]
        for number in range(count)
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts: dict[str, Any] = {"unit": "patient", "issuer": "x", "owner": "x"}
    facts |= {"public_size": count, "patients": patients}
    times = timed(1, lambda _: ledger.register("large", **facts))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                "times": times,
                "peak_bytes": peak * 1024,
                "hashes_at_hand_bytes": before * 1024,
                "fingerprint": timed(1, lambda _: fingerprint(patients)),
            }
        )
    )


def large_cohort(store: str, place: str, keys: Keys, count: int) -> list[dict[str, Any]]:
    """Registration of a large cohort in a process of its own, its verification, and a reservation on it."""
    ledger = Ledger.create(place, keys)
    code = f"from benchmarks.ledger import register_alone; register_alone({place!r}, {str(keys.folder)!r}, {count})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    rows = [
        row(
            f"register {count:,} patients, hashes at hand",
            store,
            found["times"],
            goal=60.0,
            peak_bytes=found["peak_bytes"],
            hashes_at_hand_bytes=found["hashes_at_hand_bytes"],
        ),
        row(f"fingerprint of {count:,} patients", store, found["fingerprint"]),
    ]
    rows.append(row(f"verify {count:,} patients", store, timed(1, lambda _: ledger.verify())))
    ledger.close()
    return rows


def many_runs(store: str, place: str, keys: Keys, runs: int) -> list[dict[str, Any]]:
    """Everything that a run or a steward waits for, on a ledger with many earlier runs."""
    controller = keys.controller(PASSPHRASE)
    ledger = Ledger.create(place, keys)
    os.environ.update(DPTRAIN_LEDGER=place, DPTRAIN_KEYS=str(keys.folder))
    rows = [
        row("dptrain ledger --help", store, start_times(["ledger", "--help"]), goal=0.5),
        row("dptrain ledger show, nothing registered yet", store, start_times(["ledger", "show"]), goal=0.5),
    ]
    patients: dict[bytes, list[bytes]] = {hashlib.sha256(b"%d" % number).digest(): [] for number in range(20_000)}
    ledger.register(COHORT, unit="patient", issuer="x", public_size=20_000, patients=patients, owner="Radiology")
    ledger.budget(
        COHORT,
        epsilon=epsilon_for(PLAN, 4.0 * runs + 1000),
        delta=1e-6,
        forecast=PLAN.mechanisms,
        minimum_charge=0.0,
        reason="bench",
        controller=controller,
    )
    mark = fingerprint(patients)
    whole: Times = []

    def one(number: int, book: Ledger, prefix: str) -> None:
        begun, work = time.perf_counter(), time.process_time()
        grant = book.reserve(PLAN, COHORT, run=f"{prefix}{number}", fingerprint=mark)
        while grant.committed < PLAN.steps:
            grant.commit(min(PLAN.steps, grant.committed + grant.lease))
        grant.close()
        whole.append((time.perf_counter() - begun, time.process_time() - work))

    for number in range(runs):
        one(number, ledger, "earlier ")
    ledger.close()
    with_earlier = f"with {runs:,} earlier runs"
    rows.append(row(f"open the ledger {with_earlier}", store, timed(20, lambda _: Ledger.open(place, keys).close())))
    ledger = Ledger.open(place, keys)
    grants = []
    seconds = timed(
        40, lambda n: grants.append(ledger.reserve(PLAN, COHORT, run=f"timed {n}", fingerprint=mark, lease=20))
    )
    rows.append(row(f"reserve {with_earlier}", store, seconds, goal=0.1))

    def new_plan(number: int) -> None:
        plan = Plan.from_dict({**PLAN.to_dict(), "noise_multiplier": 401.0 + number / 7})
        ledger.reserve(plan, COHORT, run=f"new {number}", fingerprint=mark)

    rows.append(row(f"reserve a plan never accounted before, {with_earlier}", store, timed(20, new_plan), goal=0.1))
    seconds = timed(200, lambda n: grants[n % 40].commit(20 * (n // 40 + 1)))
    rows.append(row(f"commit a lease {with_earlier}", store, seconds, goal=0.01))
    rows.append(row(f"status {with_earlier}", store, timed(20, lambda _: ledger.status(COHORT)), goal=1.0))
    rows.append(row(f"verify {with_earlier}", store, timed(1, lambda _: ledger.verify())))
    whole.clear()
    for number in range(10):
        one(number, ledger, "whole ")
    total = statistics.median(wall for wall, _ in whole)
    rows.append(
        row(
            f"all the ledger's time in a run of {PLAN.steps} steps, default lease",
            store,
            whole,
            loop_seconds_at_half_a_percent=total / 0.005,
            step_seconds_at_half_a_percent=total / 0.005 / PLAN.steps,
        )
    )
    ledger.close()
    shown = start_times(["ledger", "show"])
    rows.append(row(f"dptrain ledger show {with_earlier}, start included", store, shown, goal=1.0))
    shown = start_times(["ledger", "show", f"cohort={COHORT}"])
    rows.append(row(f"dptrain ledger show cohort=… {with_earlier}, start included", store, shown, goal=1.0))
    return rows


def hashing(keys: Keys) -> list[dict[str, Any]]:
    """Keys and hashes a second, on one core."""
    rows = []
    for name, image in (
        ("224×224, 8 bits", np.zeros((224, 224), np.uint8)),
        ("2048×2048, 16 bits", np.zeros((2048, 2048), np.uint16)),
    ):
        seconds = timed(50, lambda _, image=image: keys.record_hash(image))  # type: ignore[misc]
        rows.append(
            row(
                f"hash an image of {name}", "", seconds, per_second=1 / statistics.median(wall for wall, _ in seconds)
            )
        )
    seconds = timed(2000, lambda number: keys.patient_key("clinic", str(number)))
    rows.append(row("key of a patient", "", seconds, per_second=per_second(seconds)))
    return rows


def main(argv: Sequence[str]) -> int:
    """Measure and write the results."""
    values = parse_words(
        argv,
        {
            "patients": Word(int, "patients of the large cohort", 1_000_000),
            "runs": Word(int, "earlier runs", 1000),
            "stores": Word(lambda text: text.split(","), "SQLite, PostgreSQL", ["SQLite", "PostgreSQL"]),
            "folder": Word(Path, "where the results go", _results.RESULTS),
        },
    )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="dptrain-bench-") as name:
        folder = Path(name)
        keys = Keys.create(folder / "keys", PASSPHRASE)
        rows += hashing(keys)
        for store in values["stores"]:
            if store == "PostgreSQL" and not have_postgres():
                continue
            server = Postgres() if store == "PostgreSQL" else None
            try:
                for number, measure in enumerate((many_runs, large_cohort)):
                    place = server.database() if server else str(folder / f"{number}.sqlite")
                    count = values["patients"] if measure is large_cohort else values["runs"]
                    rows += measure(store, place, keys, count)
                    print(f"{store}: {measure.__name__} done", flush=True)
            finally:
                if server:
                    server.stop()
    for each in rows:
        if each.get("peak_bytes"):
            each["peak_gib"] = each["peak_bytes"] / 2**30
    path = _results.write(
        "ledger",
        rows,
        command=_results.command_of("ledger", argv),
        folder=values["folder"],
        title="Time and memory of the ledger",
        table_columns=[
            "what",
            "store",
            "median_seconds",
            "p95_seconds",
            "cpu_seconds",
            "count",
            "goal_seconds",
            "met",
            "peak_gib",
            "per_second",
        ],
        notes=(
            f"Wall-clock time; load average when it ended: {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores. "
            "`cpu_seconds` is this process's own work (median), which other programs disturb less. `peak_gib` is the "
            "whole process's, the hashes at hand included. The time of a whole run includes the PLD figure at its "
            "close, computed once for the same plan; `loop_seconds_at_half_a_percent` in the JSON is the training "
            "time from which the ledger takes less than 0.5 %."
        ),
    )
    print(path.with_suffix(".md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
