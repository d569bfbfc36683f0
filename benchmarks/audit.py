"""Who is exposed, at which epsilon and model size; and how fast reference models train together.

    python -m benchmarks.audit                       what is missing in the table, as far as 35 minutes go
    python -m benchmarks.audit --anew                the same, from an empty table
    python -m benchmarks.audit --minutes 5 --only ecg_beats --models 32
    python -m benchmarks.audit --speed-only
    python -m benchmarks.audit --renew               then measure the rows of other commits again
    python -m benchmarks.audit --table               no measurement: write table and plot anew

Rows are written as they come, in order of importance, each with the commit that made it; what was not run is
listed as not run. Only public data sets are used: their rows train without privacy (epsilon infinite) too.
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
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import _results
from dptrain import accounting
from dptrain.audit import masks, reference
from dptrain.audit.games.release import confirm
from dptrain.audit.reference import Material
from dptrain.audit.results import People, Summary, summarise
from dptrain.audit.statistics import wilson
from dptrain.models.losses import loss_for_task
from dptrain.models.nets import cnn1d, mlp, small_cnn
from dptrain.plan import Plan
from dptrain.settings import AuditConfig, OptimizerConfig

EPSILONS = (math.inf, 8.0, 1.0)
COLUMNS = (
    *("dataset", "unit", "model", "parameters", "epsilon", "patients", "records", "exposed", "exposed_share"),
    *("low", "high", "exposed_by_records", "mean_auc", "auc_ceiling", "max_auc", "max_auc_by_chance"),
    *("tpr_at_1pct_fpr", "best_record_mean_auc", "largest_gap", "accuracy", "seconds", "commit"),
)
SPEED_COLUMNS = (
    "dataset",
    "model",
    "models",
    "patients",
    "records",
    "seconds",
    "models_per_minute",
    "speed",
    "commit",
)
CONFIRMED_COLUMNS = (
    *("dataset", "model", "epsilon", "chosen", "tested", "confirmed", "fresh_models"),
    *("auc_before", "auc_fresh", "auc_fresh_low", "auc_fresh_high", "seconds", "commit"),
)
CONFIRMED = 5  # patients taken to the release game


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
    rate: float
    steps: int
    optimizer: OptimizerConfig  # with and without privacy

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
            rate=0.25,
            steps=150,
            optimizer=OptimizerConfig(name="sgd", lr=0.1, momentum=0.9),
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
            rate=0.25,
            steps=150,
            optimizer=OptimizerConfig(name="sgd", lr=0.1, momentum=0.9),
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
            rate=0.125,
            steps=300,
            optimizer=OptimizerConfig(name="sgd", lr=0.2, momentum=0.9),
        ),
        limit,
    )


@lru_cache(maxsize=1)
def people(limit: int | None) -> Data:
    """The 47 people of the heart beats as units, 10 beats each."""
    held = np.load(root() / "ecg_mitbih_beats" / "beats.npz")
    draw = np.random.default_rng(0)
    index = held["patient_index"]
    chosen = np.concatenate([draw.choice(np.flatnonzero(index == i), 10, replace=False) for i in np.unique(index)])
    signal = torch.from_numpy(held["x_uV"][chosen].astype(np.float32))
    signal = (signal - signal.mean(1, keepdim=True)) / signal.std(1, keepdim=True).clamp(min=1)
    return _limit(
        dataclasses.replace(
            beats(None),
            name="ecg_people",
            unit="patient",
            inputs=signal[:, None],
            labels=torch.from_numpy(held["y"][chosen].astype(np.int64)),
            patient=torch.from_numpy(_compact(index[chosen])[0]),
            columns={},
            rate=0.5,
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
            rate=0.02,
            steps=200,
            optimizer=OptimizerConfig(name="sgd", lr=0.2, momentum=0.9),
        ),
        limit,
    )


@lru_cache(maxsize=1)
def diabetes_all(limit: int | None) -> Data:
    """All 71,518 people with diabetes."""
    return dataclasses.replace(diabetes(limit), name="diabetes_all")


@lru_cache(maxsize=1)
def overfitted(limit: int | None) -> Data:
    """2,000 of the people with diabetes and a network that trains until it knows them: do repeats leak?"""
    few = diabetes(min(limit or OVERFITTED, OVERFITTED))
    longer = OptimizerConfig(name="adam", lr=0.01)
    return dataclasses.replace(few, name="diabetes_overfit", rate=0.05, steps=1500, optimizer=longer)


OVERFITTED = 2000
SETS: dict[str, Callable[[int | None], Data]] = {
    "ecg_beats": beats,
    "ecg_people": people,
    "diabetes": diabetes,
    "nih": nih,
    "kermany": kermany,
    "diabetes_overfit": overfitted,
    "diabetes_all": diabetes_all,
}


def _mlp(*hidden: int) -> Callable[[Data], nn.Module]:
    return lambda data: mlp(data.inputs[0].numel(), data.outputs, hidden)


XRAYS = {"mlp 32": _mlp(32), "linear": _mlp(), "mlp 128": _mlp(128)}
TABLES = {"mlp 64": _mlp(64), "linear": _mlp(), "mlp 256": _mlp(256)}
BEATS = {**TABLES, "cnn1d 8-16": lambda data: cnn1d(1, data.outputs, (8, 16), 7)}
# The networks of each data set, the most important first.
SIZES: dict[str, dict[str, Callable[[Data], nn.Module]]] = {
    "kermany": XRAYS,
    "nih": XRAYS,
    "ecg_beats": BEATS,
    "ecg_people": BEATS,
    "diabetes": TABLES,
    "diabetes_all": {"mlp 64": _mlp(64)},
    "diabetes_overfit": {"mlp 256, 1,500 steps": _mlp(256)},
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
            optimizer=data.optimizer,
            ema=0.0,
            module=module,
            start=reference.fresh_start(module),
        ),
        plan,
    )


def train(data: Data, make: Callable[[], nn.Module], epsilon: float, models: int) -> Trained:
    """Reference models on random halves, their scores, and what the statistics make of them."""
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
    return Trained(what, plan, member, scores, summary)


@dataclass(frozen=True)
class Trained:
    """Reference models of one row."""

    material: Material
    plan: Plan
    member: np.ndarray
    scores: np.ndarray
    summary: Summary


def measure(data: Data, name: str, make: Callable[[], nn.Module], epsilon: float, models: int) -> dict[str, Any]:
    """One row: train, attack, count."""
    begun = time.perf_counter()
    found = train(data, make, epsilon, models)
    audit = found.summary.audit.to_json()
    gaps = [
        (max(cells.values(), key=_share), min(cells.values(), key=_share), column)
        for column, cells in audit["groups"].items()
        if column not in ("person", "records") and len(cells) > 1
    ]
    widest = max(gaps, key=lambda gap: gap[0]["share"] - gap[1]["share"], default=None)
    bands = audit["groups"].get("records", {})
    return {
        "what": "exposure",
        "dataset": data.name,
        "unit": data.unit,
        "model": name,
        "parameters": sum(p.numel() for p in found.material.module.parameters()),
        "epsilon": epsilon if math.isfinite(epsilon) else "inf",
        "models": models,
        "patients": found.material.patients,
        "records": len(data.patient),
        "exposed": audit["exposed"]["count"] if audit["exposed"] else None,
        "exposed_share": audit["exposed"]["share"] if audit["exposed"] else None,
        "low": audit["exposed"]["low"] if audit["exposed"] else None,
        "high": audit["exposed"]["high"] if audit["exposed"] else None,
        "exposed_by_records": ", ".join(
            f"{band}: {cell['raw_share']:.1%} of {cell['patients']}" for band, cell in bands.items()
        ),
        "mean_auc": audit["auc"]["mean"],
        "max_auc": audit["auc"]["max"],
        "max_auc_by_chance": audit["auc"]["max_by_chance"],
        "auc_ceiling": audit["auc"]["ceiling"],
        "tpr_at_1pct_fpr": audit["tpr_at"]["0.01"]["pooled"],
        "best_record_mean_auc": audit["baseline_max"]["mean"],
        "largest_gap": None if widest is None else f"{widest[0]['share'] - widest[1]['share']:.3f} ({widest[2]})",
        "groups": audit["groups"],
        "by_records": audit["baseline_max"]["by_records"],
        "accuracy": float(np.mean((found.scores > 0)[~found.member[:, data.patient.numpy()]])),
        "steps": found.plan.steps,
        "noise_multiplier": found.plan.noise_multiplier,
        "seconds": round(time.perf_counter() - begun, 1),
        **_results.stamp(),
        "status": "run",
    }


def confirmation(
    data: Data, name: str, make: Callable[[], nn.Module], epsilon: float, models: int, chosen: str
) -> dict[str, Any]:
    """The release game on fresh models of the whole cohort, for those whose traces looked largest.

    Args:
        chosen: `exposed` takes the top of those found exposed, `largest AUC` the top whether exposed or not:
            what chance lifted to the top falls back to its place on fresh models.
    """
    begun = time.perf_counter()
    found = train(data, make, epsilon, models)
    summary = found.summary
    if chosen != "exposed":
        summary = dataclasses.replace(summary, traced=np.ones(found.material.patients, dtype=bool))
    config = AuditConfig(models=models, confirm=CONFIRMED, confirm_models=32, stack=32)
    whole = dataclasses.replace(found.material, plan=found.plan)
    order = np.argsort(-np.nan_to_num(summary.area.auc), kind="stable")
    before = [float(summary.area.auc[i]) for i in order if summary.traced[i]][:CONFIRMED]
    confirmed = confirm(whole, found.scores, found.member, summary, config, None, torch.device("cpu"))
    assert confirmed is not None  # 32 fresh models are enough
    result = confirmed.to_json()
    fresh = {key: [cell[key] for cell in result["auc"]] for key in ("auc", "low", "high")}

    def mean(values: list[float]) -> float | None:
        return float(np.mean(values)) if values else None

    return {
        "what": "confirmation",
        "dataset": data.name,
        "model": name,
        "epsilon": epsilon if math.isfinite(epsilon) else "inf",
        "chosen": chosen,
        "tested": result["tested"],
        "confirmed": result["confirmed"],
        "fresh_models": config.confirm_models,
        "auc_before": mean(before),
        "auc_fresh": mean(fresh["auc"]),
        "auc_fresh_low": mean(fresh["low"]),
        "auc_fresh_high": mean(fresh["high"]),
        "each": result["auc"],
        "seconds": round(time.perf_counter() - begun, 1),
        **_results.stamp(),
        "status": "run",
    }


def _share(cell: dict[str, Any]) -> float:
    return float(cell["share"])


def head_material(steps: int) -> Material:
    """The demo's head: 2,215 patients, about 4,100 records of 1,280 features, expected batch 600 of them."""
    draw = np.random.default_rng(0)
    owner = np.repeat(np.arange(2215), np.minimum(draw.geometric(0.54, 2215), 31))
    return made_up(nn.Linear(1280, 1), (1280,), owner, 600, steps, 32)


def cnn_material(steps: int) -> Material:
    """A small CNN at 28 pixels: 500 patients with one image, expected batch 100 of them."""
    return made_up(small_cnn(1, 1, (8, 16)), (1, 28, 28), np.arange(500), 100, steps, 1)


def made_up(
    module: nn.Module, shape: tuple[int, ...], owner: np.ndarray, batch: int, steps: int, cap: int
) -> Material:
    """Random records: only their number and size matter to the clock."""
    draw = np.random.default_rng(0)
    count = int(owner.max()) + 1
    plan = Plan(
        public_size=count,
        expected_batch_size=batch,
        steps=steps,
        noise_multiplier=2.6,
        max_grad_norm=1.0,
        delta=1e-5,
        max_records_per_patient=cap,
    )
    return Material(
        inputs=torch.from_numpy(draw.normal(size=(len(owner), *shape)).astype(np.float32)),
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


SPEEDS: dict[str, tuple[str, Callable[[int], Material], float]] = {
    "demo's head": ("linear 1280", head_material, 1.0),
    "small CNN, 28 px": ("cnn 8-16", cnn_material, 0.1),
}


def speed(name: str, models: int, alone: int, steps: int) -> list[dict[str, Any]]:
    """One after another with the run's own loop (engine, loader, clipping, cryptographic noise), one after another
    with the stack's own arithmetic, and together: in one process, on the same threads."""
    label, make, share = SPEEDS[name]
    what = make(max(4, round(share * steps)))
    models = max(4, round(share**0.5 * models))
    member = masks.draw(models, what.patients)
    reference.train_together(dataclasses.replace(what, plan=dataclasses.replace(what.plan, steps=2)), member)
    rows = []
    alone_rate = None
    ways: list[tuple[str, int, Callable[[], Any]]] = [
        ("one after another, the run's loop", alone, lambda: reference.train_in_processes(what, member[:alone])),
        (
            "one after another, as a stack of one",
            alone,
            lambda: [reference.train_together(what, member[i : i + 1]) for i in range(alone)],
        ),
        ("together", models, lambda: reference.train_together(what, member)),
    ]
    for way, number, work in ways:
        begun, spent = time.perf_counter(), time.process_time()
        work()
        seconds, spent = time.perf_counter() - begun, time.process_time() - spent
        rate = 60 * number / seconds
        alone_rate = rate if alone_rate is None else alone_rate
        rows.append(
            {
                "what": "speed",
                "dataset": name,
                "model": f"{label}: {way}",
                "parameters": sum(p.numel() for p in what.module.parameters()),
                "models": number,
                "patients": what.patients,
                "records": len(what.inputs),
                "steps": what.plan.steps,
                "seconds": round(seconds, 2),
                "cpu_seconds": round(spent, 2),
                "models_per_minute": round(rate, 2),
                "speed": round(rate / alone_rate, 2),
                "threads": torch.get_num_threads(),
                "load": round(os.getloadavg()[0], 1),
                **_results.stamp(),
                "status": "run",
            }
        )
    return rows


@dataclass(frozen=True)
class Job:
    """One or several rows: what is measured, and where they stand in the table."""

    what: str
    dataset: str
    model: str
    epsilon: float = math.inf
    chosen: str = ""

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        shown = str(self.epsilon) if math.isfinite(self.epsilon) else "inf"
        return self.what, self.dataset, "" if self.what == "speed" else self.model, shown, self.chosen

    def run(self, arguments: argparse.Namespace) -> list[dict[str, Any]]:
        if self.what == "speed":
            return speed(self.dataset, arguments.speed_models, arguments.speed_alone, arguments.speed_steps)
        limit = arguments.diabetes_patients if self.dataset == "diabetes" else None
        data = SETS[self.dataset](arguments.patients if arguments.patients is not None else limit)
        make = partial(SIZES[self.dataset][self.model], data)
        if self.what == "confirmation":
            return [confirmation(data, self.model, make, self.epsilon, arguments.models, self.chosen)]
        return [measure(data, self.model, make, self.epsilon, arguments.models)]


def key_of(row: dict[str, Any]) -> tuple[str, str, str, str, str]:
    """The key of the job that a row comes from."""
    model = "" if row["what"] == "speed" else row.get("model", "")
    return row["what"], row["dataset"], model, str(row.get("epsilon", "inf")), row.get("chosen", "")


def planned(only: list[str]) -> list[Job]:
    """In order of importance, and what takes least first: speed, one size of every data set, the others."""
    jobs = [Job("speed", name, "") for name in SPEEDS]
    last: list[Any] = []
    if "nih" in only:
        jobs.append(Job("confirmation", "nih", "linear", math.inf, "exposed"))
        jobs.append(Job("confirmation", "nih", "linear", 1.0, "largest AUC"))
    for size in range(4):
        for epsilon in EPSILONS:
            for name in sorted(only, key=list(SETS).index):
                if size < len(SIZES[name]):
                    job = Job("exposure", name, list(SIZES[name])[size], epsilon)
                    (last if name.startswith("diabetes_") and math.isfinite(epsilon) else jobs).append(job)
    return jobs + last


NOT_HERE = (
    "the demo's head and a small CNN on a GPU (the goal there is 10 times the models a minute): no GPU here",
    "a head on EfficientNet-Lite features at 128 px: that is what `dptrain demo` audits",
    "Kermany and NIH with CNNs at 64 px, 64 models, three sizes: hours on two cores, needs a GPU",
)

NOTES = """
`exposed` counts units whose trace is significant at a false-discovery rate of 5 % (exact randomisation tests);
`low` and `high` are its 95 % interval, and 0 says that this attack found nobody with these models, not that nobody
can be found; `exposed_by_records` splits it by the number of records, without adjustment.
`auc_ceiling` is what the guarantee of the audited plan allows on average over models; the mean is to be held against
it. **The largest AUC is not**: it is the largest of hundreds to thousands of estimates from 64 models each, and where
nothing leaks at all it stays below `max_auc_by_chance` in about 95 of 100 audits. What chance lifted falls back on
fresh models: see the table of confirmations. The reference models train on random halves with the plan's rate, clip,
noise and steps. `best_record_mean_auc` is the baseline that grows with the number of records; it is no risk.
`largest_gap` is the widest difference between two groups of one column in the adjusted share of exposed units (not
of the column `records`). `accuracy` is the share of records outside of a reference model's training whose true class
got more than half of the probability; with the five classes of the beats that is at most the accuracy.
`diabetes_overfit` trains on 1,000 of 2,000 patients until it knows them: whoever was in hospital more often is then
exposed more often. `diabetes` holds the first 20,000 patients, `diabetes_all` everybody. Rows without
`max_auc_by_chance` were measured before it existed; `commit` says by which code each row was made.
`ecg_beats` takes each beat for a unit, `ecg_people` the 47 people with 10 beats each. Inputs are small (28 to 32
pixels, vectors) and the networks are sized for two cores: what larger networks on full images leak is not shown here.
"""
SPEED_NOTES = "`speed`: models a minute relative to the first row of the same network, measured in one process."
CONFIRMED_NOTES = """
The release game: fresh models of the whole cohort with and without one patient, 16 and 16 (`audit.confirm_models`),
judged by an attack that was fitted on the first set of models. `auc_before` is the mean AUC of the patients tested
as the population game saw it, `auc_fresh` on the fresh models. With `exposed` the top of those found exposed is
tested, with `largest AUC` the top whether exposed or not.
"""


GROUP_NOTES = """
Exposed share of each group in per cent, adjusted for class and number of records, with 95 % patient-bootstrap
intervals and the group's size; rows in which anybody was exposed. Groups that are too small are suppressed; columns
of more than 12 groups (the 47 persons of the beats) are in the JSON.
"""


def group_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a model, epsilon and column of groups."""
    found = []
    for row in rows:
        for column, cells in row["groups"].items() if row["exposed"] else ():
            shown = [
                f"{name}: {100 * cell['share']:.1f} ({100 * cell['low']:.1f} to {100 * cell['high']:.1f}; "
                f"{cell['patients']:,})"
                for name, cell in cells.items()
                if cell.get("share") is not None
            ]
            if 1 < len(shown) <= 12:
                facts = {key: row[key] for key in ("dataset", "model", "epsilon")}
                found.append({**facts, "column": column, "shares": "; ".join(shown)})
    return found


def main() -> None:
    """Run what fits into the time, most important rows first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=35.0, help="no new row is begun after this time")
    parser.add_argument("--models", type=int, default=64)
    parser.add_argument("--patients", type=int, default=None, help="at most so many units a data set")
    parser.add_argument("--diabetes-patients", type=int, default=20000)
    parser.add_argument("--only", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--anew", action="store_true", help="begin with an empty table")
    parser.add_argument("--renew", action="store_true", help="after what is missing, the rows of other commits")
    parser.add_argument("--table", action="store_true", help="write table and plot of the rows that are there")
    parser.add_argument("--speed-only", action="store_true")
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("--speed-models", type=int, default=64)
    parser.add_argument("--speed-alone", type=int, default=4)
    parser.add_argument("--speed-steps", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=_results.RESULTS)
    arguments = parser.parse_args()
    os.environ["DPTRAIN_QUIET"] = "1"
    begun = time.monotonic()
    every = planned(list(SETS))
    path = arguments.folder / "audit.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() and not arguments.anew else None
    rows = [] if known is None else earlier(known)
    commands = "" if known is None else known["meta"]["command"]
    head = _results.meta(_results.joined(commands, _results.command_of("audit", sys.argv[1:])))
    jobs = [] if arguments.table else planned(arguments.only)
    if arguments.no_speed or arguments.speed_only:
        jobs = [job for job in jobs if (job.what == "speed") == arguments.speed_only]
    held = {key_of(row): row for row in rows}
    here = _results.stamp()["commit"]
    missing = [job for job in jobs if job.key not in held]
    old = [job for job in jobs if job.key in held and held[job.key]["commit"] != here]
    for job in missing + (old if arguments.renew else []):
        if time.monotonic() - begun > 60 * arguments.minutes:
            break
        found = job.run(arguments)
        rows = [row for row in rows if key_of(row) != job.key] + found
        print({key: found[-1].get(key) for key in ("what", "dataset", "model", "epsilon", "seconds")}, flush=True)
        save(rows, every, arguments.folder, head)
    save(rows, every, arguments.folder, known["meta"] if arguments.table and known is not None else head)


def earlier(held: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that earlier runs finished."""
    rows = [{"commit": held["meta"]["commit"], **row} for row in held["rows"] if row["status"] == "run"]
    for row in rows:
        if row.get("exposed") is not None:  # the interval follows from the counts
            row["low"], row["high"] = wilson(row["exposed"], row["patients"])
    return rows


def save(rows: list[dict[str, Any]], every: list[Job], folder: Path, head: dict[str, str]) -> None:
    """Results so far, in the table's order, with what was not run."""
    place = {job.key: number for number, job in enumerate(every)}
    rows = sorted(rows, key=lambda row: place.get(key_of(row), len(place)))
    held = {key_of(row) for row in rows}
    left = [job for job in every if job.key not in held]
    missing = [{"what": j.what, "dataset": j.dataset, "model": j.model, "status": "not run"} for j in left]
    told = [
        f"{j.what}: {j.dataset} {j.model}" + ("" if j.what == "speed" else f", epsilon {j.key[3]}") for j in left
    ] + list(NOT_HERE)
    of = {what: [row for row in rows if row["what"] == what] for what in ("exposure", "speed", "confirmation")}
    notes = [
        NOTES.strip(),
        "## Groups",
        GROUP_NOTES.strip(),
        _results.table(group_rows(of["exposure"]), ("dataset", "model", "epsilon", "column", "shares")),
        "## Confirmed on fresh models",
        _results.table(of["confirmation"], CONFIRMED_COLUMNS),
        CONFIRMED_NOTES.strip(),
        "## Reference models trained together",
        _results.table(of["speed"], SPEED_COLUMNS),
        SPEED_NOTES,
        "## Not run",
        "\n".join(f"- {text}" for text in told),
    ]
    _results.write(
        "audit",
        [*rows, *missing],
        command=head["command"],
        head=head,
        table_columns=COLUMNS,
        table_rows=of["exposure"],
        title="Audit: exposed patients, and speed",
        notes="\n\n".join(notes),
        folder=folder,
    )
    plot(of["exposure"], folder)


COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
MARKERS = ("o", "s", "^", "D")


def plot(rows: list[dict[str, Any]], folder: Path) -> None:
    """Share exposed against epsilon by model size, a panel a data set; and the baseline against the records."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in SETS if any(row["dataset"] == name for row in rows)]
    if not names:
        return
    wide = math.ceil((len(names) + 1) / 2)
    figure, grid = plt.subplots(2, wide, figsize=(3.9 * wide, 6.4), squeeze=False)
    axes = grid.reshape(-1)
    places = {"inf": 0, 8.0: 1, 1.0: 2}
    for axis, name in zip(axes, names, strict=False):
        some = [row for row in rows if row["dataset"] == name and row["exposed_share"] is not None]
        models = sorted({row["model"]: row["parameters"] for row in some}.items(), key=lambda item: item[1])
        for number, (model, parameters) in enumerate(models):
            line = sorted((row for row in some if row["model"] == model), key=lambda row: places[row["epsilon"]])
            x = np.array([places[row["epsilon"]] for row in line]) + 0.09 * (number - (len(models) - 1) / 2)
            y = np.array([row["exposed_share"] for row in line])
            error = np.abs(np.array([[row["low"] for row in line], [row["high"] for row in line]]) - y)
            axis.errorbar(
                x,
                100 * y,
                100 * error,
                color=COLOURS[number],
                marker=MARKERS[number],
                capsize=3,
                label=f"{model} ({parameters:,})",
            )
        units = {row["unit"] for row in some}
        title = f"{name}: {some[0]['patients']:,} {units.pop()}s" if some else name
        top = max(10.0, 140 * max((row["high"] for row in some), default=0.0))
        axis.set(title=title, xlabel="ε", xlim=(-0.4, 2.4), ylim=(-0.03 * top, top))
        axis.set_xticks(list(places.values()), ["none", "8", "1"])
        axis.legend(frameon=False, fontsize=8, title="model (parameters)", title_fontsize=8)
    for row_of_axes in grid:
        row_of_axes[0].set_ylabel("exposed, %")
    last = axes[len(names)]
    bands = ["1", "2", "3-4", "5+"]
    for row in [row for row in rows if row["epsilon"] == 1.0 and row["dataset"] == "kermany"][:1]:
        held = {cell["records"]: cell for cell in row["by_records"]}
        shown = [band for band in bands if band in held]
        last.plot(
            shown, [held[b]["best_record"] for b in shown], "v--", color="#CC79A7", label="best record (baseline)"
        )
        last.plot(shown, [held[b]["pooled"] for b in shown], "o-", color="#009E73", label="pooled")
        last.axhline(row["auc_ceiling"], color="black", linewidth=0.8, linestyle=":", label="ceiling")
    last.set(title="best record of a patient: kermany, ε = 1", xlabel="records of a patient", ylabel="mean AUC")
    last.legend(frameon=False, loc="upper left", fontsize=8)
    last.set_ylim(top=last.get_ylim()[1] + 0.03)
    for axis in axes[len(names) + 1 :]:
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(folder / "audit.png", dpi=150)
    figure.savefig(folder / "audit.svg")
    plt.close(figure)


if __name__ == "__main__":
    main()
