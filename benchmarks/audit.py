"""Who is exposed, at which epsilon and model size; and how fast reference models train together.

    python -m benchmarks.audit                       everything that fits into 35 minutes on two cores
    python -m benchmarks.audit --minutes 5 --only ecg_beats --models 32
    python -m benchmarks.audit --speed-only
    python -m benchmarks.audit --resume              keep the rows that are there, run those that are missing

Rows are written as they come, in order of importance; what was not run is listed as not run. Only public data
sets are used: their rows train without privacy (epsilon infinite) too.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gzip
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import _results
from dptrain import accounting
from dptrain.audit import masks, reference
from dptrain.audit.config import AuditConfig
from dptrain.audit.reference import Material
from dptrain.audit.results import People, summarise
from dptrain.config import OptimizerConfig
from dptrain.models.nets import cnn1d, mlp
from dptrain.plan import Plan
from dptrain.training.losses import loss_for_task

EPSILONS = (math.inf, 8.0, 1.0)
COLUMNS = (
    *("what", "dataset", "unit", "model", "parameters", "epsilon", "models", "patients", "records", "exposed"),
    *("exposed_share", "low", "high", "mean_auc", "max_auc", "auc_ceiling", "tpr_at_1pct_fpr"),
    *("best_record_mean_auc", "largest_gap", "accuracy", "seconds", "speed", "status"),
)


@dataclass(frozen=True)
class Data:
    """A public data set as the references see it."""

    name: str
    unit: str
    inputs: Tensor
    labels: Tensor
    patient: Tensor
    task: str
    outputs: int
    columns: dict[str, np.ndarray]
    sizes: tuple[tuple[str, Callable[[], nn.Module]], ...]
    rate: float
    steps: int
    free: OptimizerConfig
    private: OptimizerConfig

    @property
    def count(self) -> int:
        return int(self.patient.max()) + 1


def root() -> Path:
    """The folder of the public data sets."""
    found = os.environ.get("DPTRAIN_DATA") or Path(__file__).parents[2] / "shared" / "data"
    if not Path(found).is_dir():
        sys.exit("The public data sets are absent: set DPTRAIN_DATA to their folder.")
    return Path(found)


def _compact(owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions 0, 1, … of the owners, and the first row of each."""
    _, first, position = np.unique(owner, return_index=True, return_inverse=True)
    return position, first


@lru_cache(maxsize=1)
def kermany(limit: int | None) -> Data:
    """Chest X-rays at 28 pixels, pooled over the images of a patient group."""
    held = np.load(root() / "kermany_paediatric_cxr_224" / "kermany_28.npz")
    keep = (held["split"] == 0) & ~held["duplicate"]
    owner, _ = _compact(held["patient_group"][keep])
    images = torch.from_numpy(held["images"][keep]).float()[:, None] / 127.5 - 1
    labels = torch.from_numpy(held["label"][keep].astype(np.int64))
    return _limit(
        Data(
            "kermany",
            "patient group",
            images,
            labels,
            torch.from_numpy(owner),
            "binary",
            1,
            {},
            (
                ("mlp 32", lambda: mlp(784, 1, (32,))),
                ("linear", lambda: mlp(784, 1, ())),
                ("mlp 128", lambda: mlp(784, 1, (128,))),
            ),
            rate=0.25,
            steps=150,
            free=OptimizerConfig(name="sgd", lr=0.1, momentum=0.9),
            private=OptimizerConfig(name="sgd", lr=0.1, momentum=0.9),
        ),
        limit,
    )


@lru_cache(maxsize=1)
def nih(limit: int | None) -> Data:
    """Chest X-rays of adults at 32 pixels, abnormal or not, with sex, age and view."""
    held = np.load(root() / "nih_chestxray14_subset" / "nih_64.npz")
    owner, first = _compact(held["patient_id"])
    images = torch.from_numpy(held["images"]).float()[:, None] / 127.5 - 1
    images = nn.functional.avg_pool2d(images, 2)
    age = np.select([held["age"] < 40, held["age"] < 60], ["under 40", "40 to 59"], "60 and over")
    columns = {
        "sex": np.where(held["sex_female"], "F", "M")[first],
        "age": age[first],
        "view": np.where(held["view_ap"], "AP", "PA")[first],
    }
    return _limit(
        Data(
            "nih",
            "patient",
            images,
            torch.from_numpy(held["label_abnormal"].astype(np.int64)),
            torch.from_numpy(owner),
            "binary",
            1,
            columns,
            (
                ("mlp 32", lambda: mlp(1024, 1, (32,))),
                ("linear", lambda: mlp(1024, 1, ())),
                ("mlp 128", lambda: mlp(1024, 1, (128,))),
            ),
            rate=0.25,
            steps=150,
            free=OptimizerConfig(name="sgd", lr=0.1, momentum=0.9),
            private=OptimizerConfig(name="sgd", lr=0.1, momentum=0.9),
        ),
        limit,
    )


@lru_cache(maxsize=1)
def beats(limit: int | None) -> Data:
    """Heart beats, each a unit of its own: 47 patients are too few to audit as patients."""
    held = np.load(root() / "ecg_mitbih_beats" / "beats.npz")
    chosen = np.sort(np.random.default_rng(0).choice(len(held["y"]), 2000, replace=False))
    signal = torch.from_numpy(held["x_uV"][chosen].astype(np.float32))
    signal = (signal - signal.mean(1, keepdim=True)) / signal.std(1, keepdim=True).clamp(min=1)
    return _limit(
        Data(
            "ecg_beats",
            "beat",
            signal[:, None],
            torch.from_numpy(held["y"][chosen].astype(np.int64)),
            torch.arange(len(chosen)),
            "multiclass",
            5,
            {"person": held["patient_ids"][held["patient_index"][chosen]]},
            (
                ("mlp 64", lambda: mlp(84, 5, (64,))),
                ("linear", lambda: mlp(84, 5, ())),
                ("mlp 256", lambda: mlp(84, 5, (256,))),
                ("cnn1d 8-16", lambda: cnn1d(1, 5, (8, 16), 7)),
            ),
            rate=0.125,
            steps=300,
            free=OptimizerConfig(name="sgd", lr=0.2, momentum=0.9),
            private=OptimizerConfig(name="sgd", lr=0.2, momentum=0.9),
        ),
        limit,
    )


NUMERIC = {
    "time_in_hospital": 14,
    "num_lab_procedures": 100,
    "num_procedures": 6,
    "num_medications": 40,
    "number_outpatient": 4,
    "number_emergency": 3,
    "number_inpatient": 4,
    "number_diagnoses": 9,
}
AGES = [f"[{low}-{low + 10})" for low in range(0, 100, 10)]


@lru_cache(maxsize=1)
def diabetes(limit: int | None) -> Data:
    """Hospital encounters of people with diabetes: readmitted within 30 days, with race, gender and age."""
    rows: list[list[float]] = []
    labels, owner, groups = [], [], []
    with gzip.open(root() / "tabular" / "diabetes130_encounters.csv.gz", "rt", newline="") as file:
        for row in csv.DictReader(file):
            numbers = [min(float(row[name]) / top, 1.0) for name, top in NUMERIC.items()]
            age = [float(row["age"] == value) for value in AGES]
            codes = [float(row["discharge_disposition_id"] == str(code)) for code in range(1, 12)]
            source = [float(row["admission_source_id"] == str(code)) for code in range(1, 8)]
            drugs = [float(row["insulin"] == value) for value in ("No", "Steady", "Up", "Down")]
            rows.append([*numbers, *age, *codes, *source, *drugs])
            labels.append(int(row["readmitted"] == "<30"))
            owner.append(int(row["patient_nbr"]))
            groups.append((row["race"].replace("?", ""), row["gender"], row["age"]))
    position, first = _compact(np.array(owner))
    columns = {name: np.array([groups[i][n] for i in first]) for n, name in enumerate(("race", "gender", "age"))}
    width = len(rows[0])
    return _limit(
        Data(
            "diabetes",
            "patient",
            torch.tensor(rows),
            torch.tensor(labels),
            torch.from_numpy(position),
            "binary",
            1,
            columns,
            (
                ("mlp 64", lambda: mlp(width, 1, (64,))),
                ("linear", lambda: mlp(width, 1, ())),
                ("mlp 256", lambda: mlp(width, 1, (256,))),
            ),
            rate=0.02,
            steps=200,
            free=OptimizerConfig(name="sgd", lr=0.2, momentum=0.9),
            private=OptimizerConfig(name="sgd", lr=0.2, momentum=0.9),
        ),
        limit,
    )


SETS: dict[str, Callable[[int | None], Data]] = {
    "kermany": kermany,
    "nih": nih,
    "ecg_beats": beats,
    "diabetes": diabetes,
}


def _limit(data: Data, limit: int | None) -> Data:
    """The first `limit` patients."""
    if limit is None or data.count <= limit:
        return data
    keep = data.patient < limit
    return dataclasses.replace(
        data,
        inputs=data.inputs[keep],
        labels=data.labels[keep],
        patient=data.patient[keep],
        columns={name: values[:limit] for name, values in data.columns.items()},
    )


def material(data: Data, make: Callable[[], nn.Module], epsilon: float) -> tuple[Material, Plan]:
    """What to train, and the plan of the run that is audited (the references train on half of it)."""
    delta = min(1e-5, 0.1 / data.count)
    batch = max(1, round(data.rate * data.count))
    noise, clip = 0.0, math.inf
    if math.isfinite(epsilon):
        noise, clip = accounting.calibrate_noise(epsilon, delta, batch / data.count, data.steps), 1.0
    plan = Plan(
        public_size=data.count,
        expected_batch_size=batch,
        steps=data.steps,
        noise_multiplier=noise,
        max_grad_norm=clip,
        delta=delta,
        max_records_per_patient=64,
    )
    module = make()
    return (
        Material(
            inputs=data.inputs,
            labels=data.labels,
            patient=data.patient,
            patients=data.count,
            trained=np.ones(len(data.patient), dtype=bool),
            task=data.task,
            loss=loss_for_task(data.task),
            plan=reference.half_plan(plan),
            optimizer=data.private if plan.private else data.free,
            ema=0.0,
            module=module,
            start=reference.fresh_start(module),
        ),
        plan,
    )


def measure(data: Data, name: str, make: Callable[[], nn.Module], epsilon: float, models: int) -> dict[str, Any]:
    """One row: train, attack, count."""
    begun = time.perf_counter()
    what, plan = material(data, make, epsilon)
    member = masks.draw(models, what.patients)
    stack = max(1, min(models, int(1.5e9 / (4 * max(1, what.inputs[0].numel()) * data.rate * len(data.patient)))))
    scores = np.concatenate(
        [reference.train_together(what, member[start : start + stack]) for start in range(0, models, stack)]
    )
    first = np.unique(data.patient.numpy(), return_index=True)[1]
    people = People([str(i) for i in range(what.patients)], data.labels.numpy()[first].astype(str), data.columns)
    curve = accounting.tradeoff(plan.mechanisms) if plan.private else None
    summary = summarise(
        scores,
        member,
        data.patient.numpy(),
        people,
        AuditConfig(models=models),
        tpr=None if curve is None else lambda rate: float(curve.tpr(rate)),
        auc_ceiling=1.0 if curve is None else float(curve.auc),
    )
    audit = summary.audit
    gaps = [
        (max(cells.values(), key=_share), min(cells.values(), key=_share), column)
        for column, cells in audit["groups"].items()
        if column not in ("person",) and len(cells) > 1
    ]
    widest = max(gaps, key=lambda gap: gap[0]["share"] - gap[1]["share"], default=None)
    return {
        "what": "exposure",
        "dataset": data.name,
        "unit": data.unit,
        "model": name,
        "parameters": sum(p.numel() for p in what.module.parameters()),
        "epsilon": epsilon if math.isfinite(epsilon) else "inf",
        "models": models,
        "patients": what.patients,
        "records": len(data.patient),
        "exposed": audit["exposed"]["count"] if audit["exposed"] else None,
        "exposed_share": audit["exposed"]["share"] if audit["exposed"] else None,
        "low": audit["exposed"]["low"] if audit["exposed"] else None,
        "high": audit["exposed"]["high"] if audit["exposed"] else None,
        "mean_auc": audit["auc"]["mean"],
        "max_auc": audit["auc"]["max"],
        "auc_ceiling": audit["auc"]["ceiling"],
        "tpr_at_1pct_fpr": audit["tpr_at"]["0.01"]["pooled"],
        "best_record_mean_auc": audit["baseline_max"]["mean"],
        "largest_gap": None if widest is None else round(widest[0]["share"] - widest[1]["share"], 4),
        "gap_column": None if widest is None else widest[2],
        "groups": audit["groups"],
        "by_records": audit["baseline_max"]["by_records"],
        "accuracy": float(np.mean((scores > 0)[~member[:, data.patient.numpy()]])),
        "steps": plan.steps,
        "noise_multiplier": plan.noise_multiplier,
        "seconds": round(time.perf_counter() - begun, 1),
        "status": "run",
    }


def _share(cell: dict[str, Any]) -> float:
    return float(cell["share"])


def speed(models: int, alone: int, steps: int) -> list[dict[str, Any]]:
    """The demo's head: 2,215 patients, about 4,100 records of 1,280 features, expected batch 600 of them.

    Together, then one after another with the run's own loop (engine, loader, clipping, cryptographic noise), then
    one after another with the closed form of the stack: in one process, on the same threads.
    """
    draw = np.random.default_rng(0)
    count = 2215
    owner = np.repeat(np.arange(count), np.minimum(draw.geometric(0.54, count), 31))
    plan = Plan(
        public_size=count,
        expected_batch_size=600,
        steps=steps,
        noise_multiplier=2.6,
        max_grad_norm=1.0,
        delta=1e-5,
        max_records_per_patient=32,
    )
    module = nn.Linear(1280, 1)
    what = Material(
        inputs=torch.from_numpy(draw.normal(size=(len(owner), 1280)).astype(np.float32)),
        labels=torch.from_numpy(draw.integers(0, 2, len(owner))),
        patient=torch.from_numpy(owner),
        patients=count,
        trained=np.ones(len(owner), dtype=bool),
        task="binary",
        loss=loss_for_task("binary"),
        plan=reference.half_plan(plan),
        optimizer=OptimizerConfig(name="sgd", lr=0.15, momentum=0.9),
        ema=0.99,
        module=module,
        start=reference.fresh_start(module),
    )
    member = masks.draw(models, count)
    reference.train_together(dataclasses.replace(what, plan=dataclasses.replace(what.plan, steps=2)), member)
    rows = []
    alone_rate = None
    ways: list[tuple[str, int, Callable[[], Any]]] = [
        ("one after another, the run's loop", alone, lambda: reference.train_in_processes(what, member[:alone])),
        (
            "one after another, closed form",
            alone,
            lambda: [reference.train_together(what, member[i : i + 1]) for i in range(alone)],
        ),
        ("together", models, lambda: reference.train_together(what, member)),
    ]
    for name, number, work in ways:
        begun = time.perf_counter()
        work()
        seconds = time.perf_counter() - begun
        rate = 60 * number / seconds
        alone_rate = rate if alone_rate is None else alone_rate
        rows.append(
            {
                "what": "speed",
                "dataset": "demo's head",
                "model": f"linear 1280: {name}",
                "parameters": 1281,
                "models": number,
                "patients": count,
                "records": len(owner),
                "steps": steps,
                "seconds": round(seconds, 2),
                "models_per_minute": round(rate, 2),
                "speed": round(rate / alone_rate, 2),
                "threads": torch.get_num_threads(),
                "load": round(os.getloadavg()[0], 1),
                "status": "run",
            }
        )
    return rows


def planned(only: list[str]) -> list[tuple[str, int, float]]:
    """(data set, size, epsilon) in order of importance: every data set first, then sizes."""
    order: list[tuple[str, int, float]] = []
    for size in range(4):
        for epsilon in EPSILONS:
            for name in only:
                order.append((name, size, epsilon))
    return order


NOT_HERE = (
    ("speed", "demo's head on a GPU", "not run: no GPU here"),
    ("speed", "small CNN on a GPU, 10 times the models a minute", "not run: no GPU here"),
    ("exposure", "kermany, head on EfficientNet-Lite features at 224 px", "not run here: see `dptrain demo`"),
    (
        "exposure",
        "kermany and nih, CNNs at 64 px, 64 models, three sizes",
        "not run: hours on two cores, needs a GPU",
    ),
)

NOTES = """
`exposed` counts units whose trace is significant at a false-discovery rate of 5 % (exact randomisation tests);
`low` and `high` are its 95 % interval. `auc_ceiling` is what the guarantee of the audited plan allows. The
reference models train on random halves with the plan's rate, clip, noise and steps. `best_record_mean_auc` is
the baseline that grows with the number of records; it is no risk. `largest_gap` is the widest difference between
two groups of one column in the adjusted share of exposed units. `accuracy` is that of the reference models on
records they did not train on. Speed rows: models a minute relative to the first row, measured in one process;
`load` in the JSON is the machine's load average then (above 2, other work shared the two cores).
Inputs are small (28 to 32 pixels, vectors) and the networks are sized for two cores: what larger networks on full
images leak is not shown here.
"""


def main() -> None:
    """Run what fits into the time, most important rows first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=35.0, help="no new row is begun after this time")
    parser.add_argument("--models", type=int, default=64)
    parser.add_argument("--patients", type=int, default=None, help="at most so many units a data set")
    parser.add_argument("--diabetes-patients", type=int, default=20000)
    parser.add_argument("--only", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--resume", action="store_true", help="keep the rows of an earlier run")
    parser.add_argument("--speed-only", action="store_true")
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("--speed-models", type=int, default=64)
    parser.add_argument("--speed-alone", type=int, default=4)
    parser.add_argument("--speed-steps", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=_results.RESULTS)
    arguments = parser.parse_args()
    os.environ["DPTRAIN_QUIET"] = "1"
    begun = time.monotonic()
    rows: list[dict[str, Any]] = []
    left = [] if arguments.speed_only else planned(arguments.only)
    if arguments.resume:
        rows = earlier(arguments.folder)
        done = {(row["dataset"], row["model"], str(row["epsilon"])) for row in rows if row["what"] == "exposure"}
        left = [row for row in left if _key(*row) not in done]
    if not arguments.no_speed and not any(row["what"] == "speed" for row in rows):
        rows += speed(arguments.speed_models, arguments.speed_alone, arguments.speed_steps)
        save(rows, left, arguments.folder)
    while left:
        if time.monotonic() - begun > 60 * arguments.minutes:
            break
        name, size, epsilon = left.pop(0)
        limit = arguments.diabetes_patients if name == "diabetes" else None
        limit = arguments.patients if arguments.patients is not None else limit
        data = SETS[name](limit)
        if size < len(data.sizes):
            label, make = data.sizes[size]
            rows.append(measure(data, label, make, epsilon, arguments.models))
            told = {
                key: rows[-1][key] for key in ("dataset", "model", "epsilon", "exposed_share", "mean_auc", "seconds")
            }
            print(told, flush=True)
        save(rows, left, arguments.folder)


def earlier(folder: Path) -> list[dict[str, Any]]:
    """The rows that an earlier run finished."""
    path = folder / "audit.json"
    if not path.exists():
        return []
    return [row for row in json.loads(path.read_text(encoding="utf-8"))["rows"] if row["status"] == "run"]


def _key(name: str, size: int, epsilon: float) -> tuple[str, str, str]:
    sizes = SIZE_NAMES[name]
    return name, sizes[size] if size < len(sizes) else "", str(epsilon if math.isfinite(epsilon) else "inf")


def save(rows: list[dict[str, Any]], left: list[tuple[str, int, float]], folder: Path) -> None:
    """Results so far, with what was not run."""
    missing: list[dict[str, Any]] = []
    for name, size, epsilon in left:
        sizes = SIZE_NAMES[name]
        if size < len(sizes):
            shown = epsilon if math.isfinite(epsilon) else "inf"
            missing.append(
                {"what": "exposure", "dataset": name, "model": sizes[size], "epsilon": shown, "status": "not run"}
            )
    missing += [{"what": what, "dataset": which, "status": status} for what, which, status in NOT_HERE]
    command = "python -m benchmarks.audit " + " ".join(sys.argv[1:])
    _results.write(
        "audit",
        [*rows, *missing],
        command=command.strip(),
        table_columns=COLUMNS,
        title="Audit: exposed patients, and speed",
        notes=NOTES,
        folder=folder,
    )
    plot(rows, folder)


SIZE_NAMES = {
    "kermany": ("mlp 32", "linear", "mlp 128"),
    "nih": ("mlp 32", "linear", "mlp 128"),
    "ecg_beats": ("mlp 64", "linear", "mlp 256", "cnn1d 8-16"),
    "diabetes": ("mlp 64", "linear", "mlp 256"),
}


def plot(rows: list[dict[str, Any]], folder: Path) -> None:
    """Share exposed by data set, model size and epsilon; and the baseline against the number of records."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    exposure = [row for row in rows if row["what"] == "exposure"]
    names = [name for name in SETS if any(row["dataset"] == name for row in exposure)]
    if not names:
        return
    figure, axes = plt.subplots(1, len(names) + 1, figsize=(3.4 * (len(names) + 1), 3.4), squeeze=False)
    style = {"inf": ("#000000", "o", "no privacy"), 8.0: ("#0072B2", "s", "ε = 8"), 1.0: ("#D55E00", "^", "ε = 1")}
    for axis, name in zip(axes[0], names, strict=False):
        for epsilon, (colour, marker, label) in style.items():
            some = sorted(
                (row for row in exposure if row["dataset"] == name and row["epsilon"] == epsilon),
                key=lambda row: row["parameters"],
            )
            some = [row for row in some if row["exposed_share"] is not None]
            if not some:
                continue
            x = [row["parameters"] for row in some]
            y = np.array([row["exposed_share"] for row in some])
            error = np.abs(np.array([[row["low"] for row in some], [row["high"] for row in some]]) - y)
            axis.errorbar(x, 100 * y, 100 * error, color=colour, marker=marker, label=label, capsize=3)
        axis.set(title=name, xlabel="parameters", xscale="log", ylim=(-3, 103))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axes[0][0].set_ylabel("exposed, % of units")
    axes[0][0].legend(frameon=False)
    last = axes[0][-1]
    bands = ["1", "2", "3-4", "5+"]
    private = [row for row in exposure if row["epsilon"] == 1.0 and row["dataset"] == "kermany"]
    for row in private[:1]:
        held = {cell["records"]: cell for cell in row["by_records"]}
        shown = [band for band in bands if band in held]
        last.plot(
            shown, [held[b]["best_record"] for b in shown], "v--", color="#CC79A7", label="best record (baseline)"
        )
        last.plot(shown, [held[b]["pooled"] for b in shown], "o-", color="#009E73", label="pooled")
        last.axhline(row["auc_ceiling"], color="black", linewidth=0.8, linestyle=":", label="ceiling")
    last.set(title="kermany, ε = 1", xlabel="records of a patient", ylabel="mean AUC")
    last.legend(frameon=False, loc="upper left", fontsize=8)
    last.set_ylim(top=last.get_ylim()[1] + 0.03)
    figure.tight_layout()
    figure.savefig(folder / "audit.png", dpi=150)
    figure.savefig(folder / "audit.svg")
    plt.close(figure)


if __name__ == "__main__":
    main()
