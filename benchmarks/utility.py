"""What ε costs: every recipe at six levels of privacy, with groups, variants and stock Opacus beside it.

`make bench-utility` runs the whole (hours on two cores), `make bench-utility QUICK=1` a part in under 20 minutes,
`python -m benchmarks.utility recipe …` some recipes. Rows are written as they come, and those that are there
are not run again (delete the JSON to start anew).

Every trial takes the library's own way: cohort scanned and registered in a throw-away ledger, a plan, a grant,
`fit`, noisy calibration, evaluation, the grant closed. What is unlike a clinic's run:

- cohorts are declared *public* there, so that ε = ∞ is allowed and many trials are granted. All are charged;
  what those at the recipe's unit together would have cost a private cohort is a row of its own (`sweep_epsilon`).
  Trials with the image as the unit are not in it: for a patient each alone costs far more (`epsilon_of_a_patient`);
- features of the frozen part are computed once and used by all trials, for the same reason;
- the ledger's HMAC secret is a published constant, so that the split by keyed hash is the same for everyone.

A seed numbers repetitions and starts the weights of networks; noise and draws are never seeded.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import _results
from benchmarks._utility_plot import plot
from dptrain import accounting, data, models
from dptrain.data import Cohort, PatientLoader
from dptrain.ledger import Grant, Keys, Ledger, PublicDeclaration
from dptrain.models import losses
from dptrain.models.check import check
from dptrain.models.network import Network, build_network
from dptrain.plan import Mechanism, Plan
from dptrain.settings import Settings, load
from dptrain.settings.places import recipe_folders
from dptrain.training.calibration import Calibration, fit_calibration
from dptrain.training.evaluate import evaluate_classification, evaluate_segmentation
from dptrain.training.inputs import Prepared, load_inputs
from dptrain.training.loop import fit
from dptrain.training.planning import make_plan
from dptrain.training.scoring import conformal_report, dice_scores
from dptrain.training.step import PrivateStep

EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0, math.inf)
SEEDS = (0, 1, 2)
SECRET = hashlib.sha256(b"dptrain utility benchmark: public cohorts only").digest()
PASSPHRASE = "a benchmark on public data"
MAIN = "recipe"
TUNED = "tuned without privacy"
TUTORIAL = "stock Opacus, one image a patient"
AS_RECIPE = "stock Opacus, the recipe's clip, rate and steps"

#: Training patients (or images) as declared to the public; see the recipes' pages.
PUBLIC_SIZE = {
    "chest_xray_pneumonia": 2215,
    "chest_xray_findings": 475,
    "hippocampus_segmentation": 188,
    "ecg_beats": 33,
    "readmission": 47500,
}
IMAGES = 4171  # training images of chest_xray_pneumonia, for the image as the unit
MOST_IMAGES = 19  # of one patient group among them
VOLUMES = (2, 3, 4)  # of one person, perhaps: how many hippocampus volumes anybody has is not known
#: Metrics of several units together, with whose they are.
GROUPED = {
    **{f"epsilon_of_{k}_volumes": f"{k} volumes of one person" for k in VOLUMES},
    "epsilon_of_a_patient": f"a patient with {MOST_IMAGES} images",
}

#: A non-private model is not served best by settings that suit noise; chosen by cross-validation like the recipes'.
LONGER = {
    "chest_xray_pneumonia": ("privacy.steps=400", "privacy.max_grad_norm=inf", "optimizer.lr=0.02"),
    "readmission": ("privacy.steps=600", "privacy.max_grad_norm=inf", "optimizer.lr=1.0"),
    "chest_xray_findings": ("model.network.projection=null", "optimizer.lr=5.0"),
}

#: Learning rates by ε where the recipe's own (for its default ε) is too large for more noise; from the recipe's page.
RATES = {
    "chest_xray_pneumonia": {0.5: 0.4, 1.0: 0.5, 2.0: 0.8, 4.0: 1.4},
    "chest_xray_findings": {0.5: 0.1, 1.0: 0.2, 2.0: 0.3, 4.0: 0.5},
}

#: Noise of the calibration histogram by ε: about a twentieth of what a patient may pay.
CALIBRATION = {0.5: 36.0, 1.0: 19.0, 2.0: 10.0, 4.0: 5.5, 8.0: 4.0}

#: (recipe, ε) -> how far the mean AUROC may lie below the best variant without privacy.
GOALS = {
    ("chest_xray_pneumonia", 8.0): 0.005,
    ("chest_xray_pneumonia", 1.0): 0.015,
    ("readmission", 1.0): 0.01,
    ("chest_xray_findings", 8.0): 0.03,
}

#: Metrics of a group that become rows.
BY_GROUP = ("auroc", "sensitivity_at_90_specificity", "calibration_error", "conformal_coverage", "dice")

#: Shown in the table; the JSON holds all.
HEADLINE = {"hippocampus_segmentation": "dice"}
COLUMNS = (
    "recipe", "variant", "unit", "epsilon", "delta", "metric", "value", "seed_low", "seed_high", "low", "high",
    "seeds", "noise_multiplier", "steps", "seconds",
)  # fmt: skip
NOT_RUN = """\
## Not run
| rows | why |
| --- | --- |
| full fine-tuning of EfficientNet-Lite0 (ε ∈ {1, 8, ∞}) | needs a GPU |
| K = 8 augmented views of each image (ε ∈ {1, 8, ∞}) | needs a GPU: eight passes through the network at every step |
"""


@dataclass(frozen=True)
class Trial:
    """One training: which recipe, what differs, at which ε, which repetition."""

    recipe: str
    variant: str
    epsilon: float
    seed: int
    words: tuple[str, ...] = ()
    unit: str | None = None
    runner: str = "dptrain"

    @property
    def key(self) -> tuple[str, str, str | float, int]:
        return (self.recipe, self.variant, level(self.epsilon), self.seed)


def level(epsilon: float) -> str | float:
    """ε for JSON, which has no infinity."""
    return "inf" if math.isinf(epsilon) else epsilon


@dataclass
class Site:
    """A throw-away ledger with one cohort declared public, and that cohort's records in memory once read."""

    settings: Settings
    ledger: Ledger
    cohort: Cohort
    public_size: int
    records: dict[str, Prepared] = field(default_factory=dict)


# ---------------------------------------------------------------- what is run


def trials(*, quick: bool, wanted: Sequence[str]) -> list[Trial]:
    """All trials, the most telling first."""
    epsilons = (1.0, 8.0, math.inf) if quick else EPSILONS
    seeds = SEEDS[:1] if quick else SEEDS
    few = tuple(epsilon for epsilon in epsilons if epsilon in (1.0, 8.0))
    ends = (*few, math.inf)
    cxr, unit = "chest_xray_pneumonia", "image"
    image_unit = (
        "data.columns.patient=file",
        f"data.unit={unit}",
        "privacy.expected_batch_size=1130",  # the same rate, 0.271
        "privacy.max_records_per_patient=1",
    )
    small = (
        "model=small_cnn",
        "data.image_shape=[1,32,32]",
        "data.transforms.0.spatial_size=[32,32]",
        "model.train=all",
        "optimizer.name=adam",
        "optimizer.lr=0.005",
        "optimizer.momentum=0",
        "privacy.max_grad_norm=1.0",
        "training.ema=0.95",
        "privacy.steps=150",
    )
    plans: list[tuple[str, str, Iterable[float], Sequence[int], tuple[str, ...], str | None, str]] = [
        (cxr, MAIN, epsilons, seeds if quick else range(6), (), None, "dptrain"),
        (cxr, TUTORIAL, few if quick else epsilons[:-1], seeds, (), None, "opacus"),
        ("readmission", MAIN, epsilons, seeds, (), None, "dptrain"),
        ("chest_xray_findings", MAIN, epsilons, seeds, (), None, "dptrain"),
        ("ecg_beats", MAIN, epsilons, seeds, (), None, "dptrain"),
        ("hippocampus_segmentation", MAIN, (8.0, math.inf) if quick else epsilons, seeds, (), None, "dptrain"),
    ]
    if not quick:
        plans += [
            (cxr, AS_RECIPE, epsilons[:-1], seeds, (), None, "opacus"),
            (cxr, "image unit", epsilons, seeds, image_unit, unit, "dptrain"),
            (cxr, "no weight average", few, seeds, ("training.ema=0.0",), None, "dptrain"),
            (cxr, "batch 150", few, seeds, ("privacy.expected_batch_size=150",), None, "dptrain"),
            (cxr, "batch 2215 (all)", few, seeds, ("privacy.expected_batch_size=2215",), None, "dptrain"),
            (cxr, "small network from scratch, 32 px", ends, seeds, small, None, "dptrain"),
            (cxr, TUNED, (math.inf,), seeds, LONGER[cxr], None, "dptrain"),
            ("readmission", TUNED, (math.inf,), seeds, LONGER["readmission"], None, "dptrain"),
            ("chest_xray_findings", TUNED, (math.inf,), seeds, LONGER["chest_xray_findings"], None, "dptrain"),
            ("chest_xray_findings", "no projection", few, seeds, ("model.network.projection=null",), None, "dptrain"),
        ]
    result = []
    for recipe, variant, levels, repeats, words, unit_word, runner in plans:
        if wanted and recipe not in wanted:
            continue
        result += [
            Trial(recipe, variant, epsilon, seed, words, unit_word, runner)
            for seed in repeats
            for epsilon in sorted(levels, reverse=True)
        ]
    return result


# ---------------------------------------------------------------- a throw-away site


def settings_of(trial: Trial) -> Settings:
    """The recipe's settings with the trial's words."""
    settings = load([f"recipe={trial.recipe}", *_words(trial.words)])
    for position, transform in enumerate(settings.data.transforms):
        for word in trial.words:
            head = f"data.transforms.{position}."
            if word.startswith(head):
                name, _, value = word.removeprefix(head).partition("=")
                transform[name] = json.loads(value)
    privacy, optimizer = replace(settings.privacy, target_epsilon=trial.epsilon), settings.optimizer
    if trial.variant != TUNED and "optimizer.name=adam" not in trial.words:
        optimizer = replace(optimizer, lr=RATES.get(trial.recipe, {}).get(trial.epsilon, optimizer.lr))
    calibrates = privacy.calibration_noise_multiplier is not None
    if calibrates and math.isfinite(trial.epsilon):
        privacy = replace(privacy, calibration_noise_multiplier=CALIBRATION[trial.epsilon])
    if math.isinf(trial.epsilon):  # the same training without noise: clipping, and with it the step size, stays
        calibration = 0.0 if calibrates else None
        privacy = replace(privacy, noise_multiplier=0.0, calibration_noise_multiplier=calibration)
    training = replace(settings.training, seed=trial.seed)
    return replace(settings, privacy=privacy, optimizer=optimizer, training=training)


def _words(words: Iterable[str]) -> list[str]:
    return [word for word in words if not word.startswith("data.transforms.")]


def open_site(settings: Settings, public_size: int, place: Path) -> Site:
    """Make keys and ledger below `place`, scan the cohort and register it as public."""
    keys = Keys.create(place / "keys", PASSPHRASE)
    (place / "keys" / "secret.json").write_text(json.dumps({"secrets": [SECRET.hex()]}))
    controller = keys.controller(PASSPHRASE)
    keys = Keys.load(place / "keys")
    ledger = Ledger.create(str(place / "ledger.sqlite"), keys)
    cohort = data.scan(settings.data, keys)
    ledger.register(
        settings.name,
        unit=settings.data.unit,
        issuer=settings.data.issuer,
        public_size=public_size,
        patients=cohort.hashes(),
        owner="benchmark",
        public=PublicDeclaration(source=settings.data.source, licence=settings.data.licence),
        cautions=list(settings.data.cautions),
        controller=controller,
    )
    network = build_network(settings)
    if network.weights is not None:
        ledger.declare_weights(
            network.weights.sha256, source=network.weights_note, licence="Apache-2.0", controller=controller
        )
    models.refuse(check(settings, network))
    return Site(settings, ledger, cohort, public_size)


def records(site: Site, split: str, grant: Grant, network: Network, cache: Path | None) -> Prepared:
    """Inputs of a split: read and put through the frozen part by the first trial, kept for the others.

    `cache`: a folder that keeps them for a later start as well. Only ever used for cohorts declared public.
    """
    if split in site.records:
        return replace(site.records[split], network=network)
    grant.require()
    cohort, settings = site.cohort, site.settings
    pairs = [(p, r) for p in cohort.split(split, excluded=grant.excluded) for r in cohort.patients[p].records]
    record = np.array([r for _, r in pairs], dtype=np.int64)
    patient = torch.tensor([p for p, _ in pairs], dtype=torch.long)
    name = hashlib.sha256(
        repr(
            (cohort.fingerprint, split, network.weights, settings.data.image_shape, settings.data.transforms)
        ).encode()
    ).hexdigest()[:24]
    kept = None if cache is None or network.frozen is None else cache / f"{name}.pt"
    if kept is not None and kept.exists():
        inputs, label = torch.load(kept, weights_only=True)
    else:
        inputs, label = load_inputs(cohort, record, grant, network.frozen, torch.device("cpu"), label=split)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.save((inputs, label), kept)
    site.records[split] = Prepared(
        cohort, inputs, label, patient, record, network, losses.loss_for_task(settings.data.task)
    )
    return site.records[split]


# ---------------------------------------------------------------- one trial


def run(trial: Trial, site: Site, cache: Path | None) -> list[dict[str, Any]]:
    """Train, calibrate, evaluate and close one trial; its rows."""
    settings = replace(settings_of(trial), data=site.settings.data)
    network = build_network(settings)
    if trial.runner == "opacus":
        return run_opacus(trial, settings, site, network, cache)
    plan = make_plan(settings.privacy, public_size=site.public_size, unit=settings.data.unit, declares=("evaluate",))
    grant = reserve(trial, plan, site, network)
    try:
        train = records(site, "train", grant, network, cache)
        begun = time.perf_counter()
        loader = PatientLoader(train.tensors(), plan, grant, chunk=settings.training.chunk)
        step = PrivateStep(
            network.trainable, plan, loss=train.loss, optimizer=settings.optimizer, ema=settings.training.ema
        )
        result = fit(step, loader, grant)
        seconds = time.perf_counter() - begun
        calibration = None
        if plan.calibration_noise_multiplier is not None:
            held = records(site, "calibration", grant, network, cache)
            calibration = fit_calibration(
                outputs(result.model, held.inputs).double().numpy(),
                held.label.numpy(),
                held.patient.numpy(),
                settings.data.task,
                noise_multiplier=plan.calibration_noise_multiplier,
            )
        test = records(site, "test", grant, network, cache)
        logits = outputs(result.model, test.inputs)
        metrics = evaluate(settings, site.cohort, test, logits, calibration)
    except BaseException:
        grant.close("interrupted", steps_run=0)
        raise
    grant.close("complete", steps_run=plan.steps, did=("evaluate",))
    return rows_of(trial, plan, plan.mechanisms, metrics, seconds)


def reserve(trial: Trial, plan: Plan, site: Site, network: Network) -> Grant:
    """Ask the ledger; every trial is charged, whatever the cohort."""
    digest = hashlib.sha256(repr(trial).encode()).hexdigest()[:12]
    return site.ledger.reserve(
        plan,
        site.settings.name,
        run=f"{digest}-{os.urandom(2).hex()}",
        fingerprint=site.cohort.fingerprint,
        weights=network.weights,
    )


def outputs(model: torch.nn.Module, inputs: Tensor, batch: int = 512) -> Tensor:
    """Logits of all records, in evaluation mode."""
    model.eval()
    step = batch if inputs[0].numel() < 10_000 else 8
    with torch.inference_mode():
        return torch.cat([model(inputs[i : i + step]).float() for i in range(0, len(inputs), step)])


def evaluate(
    settings: Settings, cohort: Cohort, test: Prepared, logits: Tensor, calibration: Calibration | None
) -> dict[str, Any]:
    """Metrics of the test patients, overall and by group, with patient-bootstrap intervals."""
    groups = {column: [values[r] for r in test.record] for column, values in cohort.groups.items()}
    task, classes = settings.data.task, list(settings.data.classes)
    patient = test.patient.numpy()
    if task == "segmentation":
        return evaluate_segmentation(dice_scores(logits, test.label), patient, groups, classes=classes).to_json()
    scaled = logits.double() / (calibration.temperature if calibration else 1.0)
    probability = (scaled.softmax(1) if task == "multiclass" else scaled.sigmoid()).numpy()
    if task == "binary":
        probability = probability.reshape(-1)
    truth = test.label.numpy()
    results = evaluate_classification(probability, truth, patient, groups, task=task, classes=classes)
    metrics = results.to_json()
    if calibration is not None:
        metrics["temperature"] = calibration.temperature
        margin = scaled.numpy()
        metrics["conformal"] = conformal_report(margin, truth, patient, task, calibration).to_json()
        for column, values in metrics["groups"].items():
            for value, table in values.items():
                inside = np.array([item == value for item in groups[column]])
                sets = conformal_report(margin[inside], truth[inside], patient[inside], task, calibration)
                table["conformal_coverage"] = {"value": sets.coverage, "low": None, "high": None}
    return metrics


def rows_of(
    trial: Trial, plan: Plan, mechanisms: Sequence[Mechanism], metrics: dict[str, Any], seconds: float
) -> list[dict[str, Any]]:
    """One row a metric: overall, by class, by group."""
    base = {
        "recipe": trial.recipe,
        "variant": trial.variant,
        "unit": plan.unit,
        "epsilon": level(trial.epsilon),
        "delta": plan.delta,
        "seed": trial.seed,
    }
    tail = {
        "noise_multiplier": plan.noise_multiplier,
        "steps": plan.steps,
        "expected_batch_size": plan.expected_batch_size,
        "seconds": round(seconds, 1),
    }
    rows: list[dict[str, Any]] = []

    def add(metric: str, value: Any, low: Any = None, high: Any = None, **extra: Any) -> None:
        if value is not None and math.isfinite(value):
            rows.append({**base, "metric": metric, "value": value, "low": low, "high": high, **extra, **tail})

    for metric, figure in metrics["overall"].items():
        add(metric, figure["value"], figure["low"], figure["high"])
    for name, table in metrics["by_class"].items():
        for metric in ("auroc", "dice"):
            if metric in table:
                add(
                    metric, table[metric]["value"], table[metric]["low"], table[metric]["high"], group=f"class={name}"
                )
    for column, values in metrics["groups"].items():
        for value, table in values.items():
            for metric in BY_GROUP:
                figure = table.get(metric)
                if figure:
                    add(metric, figure["value"], figure["low"], figure["high"], group=f"{column}={value}")
    if metrics.get("conformal"):
        add("temperature", metrics["temperature"])
        add("conformal_coverage", metrics["conformal"]["coverage"])
        add("conformal_set_size", metrics["conformal"]["set_size"])
    if math.isfinite(trial.epsilon):
        add("epsilon_pld", accounting.pld_epsilon(mechanisms, plan.delta))
    return rows


# ---------------------------------------------------------------- the baseline


def run_opacus(
    trial: Trial, settings: Settings, site: Site, network: Network, cache: Path | None
) -> list[dict[str, Any]]:
    """Stock Opacus on the same frozen features, as its image-classification tutorial has it or tuned like the recipe.

    Settings of the tutorial: `make_private_with_epsilon`, RMSprop at 1e-3, batch 512, 20 epochs, clip 1.2. Of the
    recipe: SGD with its rate and momentum, its batch, as many epochs as give its steps, its clip.
    Opacus protects rows. With the first image of each patient alone, a row is a patient, so that its ε is at
    the same unit as ours; it cannot use a patient's other images at that unit.
    """
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    privacy, tuned = settings.privacy, trial.variant == AS_RECIPE
    batch, clip = (privacy.expected_batch_size, privacy.max_grad_norm) if tuned else (512, 1.2)
    delta = min(1e-5, 1 / (10 * site.public_size))
    model = copy.deepcopy(network.trainable)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    # The grant comes first: the plan charges what Opacus will do, with its own rate and steps.
    length = len(DataLoader(range(site.public_size), batch_size=batch))  # type: ignore[arg-type]
    epochs = round((privacy.steps or 0) / length) if tuned else 20
    sigma = accounting.calibrate_noise(trial.epsilon, delta, 1 / length, epochs * length)
    plan = Plan(
        public_size=site.public_size,
        expected_batch_size=math.ceil(site.public_size / length),
        steps=epochs * length,
        noise_multiplier=sigma,
        max_grad_norm=clip,
        delta=delta,
        max_records_per_patient=1,
        unit=settings.data.unit,
    )
    grant = reserve(trial, plan, site, network)
    train = records(site, "train", grant, network, cache)
    test = records(site, "test", grant, network, cache)
    grant.commit(plan.steps)
    first = np.unique(train.patient.numpy(), return_index=True)[1]
    dataset = TensorDataset(train.inputs[first], train.label[first].float())
    begun = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = PrivacyEngine()
        model.train()
        private, optimizer, loader = engine.make_private_with_epsilon(
            module=model,
            optimizer=(
                torch.optim.SGD(model.parameters(), lr=settings.optimizer.lr, momentum=settings.optimizer.momentum)
                if tuned
                else torch.optim.RMSprop(model.parameters(), lr=1e-3)
            ),
            data_loader=DataLoader(dataset, batch_size=batch),
            epochs=epochs,
            target_epsilon=trial.epsilon,
            target_delta=delta,
            max_grad_norm=clip,
        )
        for _ in range(epochs):
            for image, label in loader:
                optimizer.zero_grad()
                loss = torch.nn.functional.binary_cross_entropy_with_logits(private(image).reshape(-1), label)
                loss.backward()
                optimizer.step()
    seconds = time.perf_counter() - begun
    logits = outputs(private, test.inputs)
    metrics = evaluate(settings, site.cohort, test, logits, None)
    grant.close("complete", steps_run=plan.steps, did=("evaluate",))
    noise = float(optimizer.noise_multiplier)
    ran = Mechanism(1 / length, noise, epochs * length)
    return rows_of(trial, replace(plan, noise_multiplier=noise), (ran,), metrics, seconds)


# ---------------------------------------------------------------- the whole


def mechanisms_of(row: dict[str, Any]) -> tuple[Mechanism, ...]:
    """What a private trial released, from its `epsilon_pld` row."""
    size = IMAGES if row["unit"] == "image" else PUBLIC_SIZE[row["recipe"]]
    training = Mechanism(row["expected_batch_size"] / size, row["noise_multiplier"], row["steps"])
    if "Opacus" in row["variant"] or not _calibrated(row["recipe"]):
        return (training,)
    return (training, Mechanism(1.0, CALIBRATION[row["epsilon"]], 1, "calibration"))


@cache
def _calibrated(recipe: str) -> bool:
    return load([f"recipe={recipe}"]).privacy.calibration_noise_multiplier is not None


def group_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """ε of several units together, where one person may have them: a row for each kind of private trial."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        sizes = {"volume": VOLUMES, "image": (MOST_IMAGES,)}.get(row["unit"], ())
        for k in sizes:
            metric = "epsilon_of_a_patient" if row["unit"] == "image" else f"epsilon_of_{k}_volumes"
            key = (row["recipe"], row["variant"], row["epsilon"], metric)
            if row["metric"] == "epsilon_pld" and key not in found:
                value = accounting.group(mechanisms_of(row), k, row["delta"])
                found[key] = {**row, "seed": None, "metric": metric, "value": value, "seconds": None}
                found[key] = {name: item for name, item in found[key].items() if name not in ("date", "commit")}
    return list(found.values())


def sweep_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each recipe's trials at its own unit would together cost a private cohort, and the random-stopping
    account beside it. Trials with the image as the unit are left out; see `epsilon_of_a_patient` for those.

    The second holds only where the number of trials is drawn at random and kept secret, settings are drawn
    anew for each and the best alone is released (Papernot & Steinke 2022): a sweep that is shown, like this
    one, costs the first. It is computed for trials like the one at ε = 1, as many as the sweep has on average.
    """
    found: list[dict[str, Any]] = []
    for recipe in PUBLIC_SIZE:
        runs = [
            row
            for row in rows
            if row["recipe"] == recipe and row["metric"] == "epsilon_pld" and row["unit"] != "image"
        ]
        if not runs:
            continue
        delta = runs[0]["delta"]
        base = {
            "recipe": recipe,
            "variant": "all private trials at this unit",
            "unit": runs[0]["unit"],
            "epsilon": None,
            "delta": delta,
        }
        base |= {"seed": None, "trials": len(runs)}
        total = accounting.pld_epsilon([m for run in runs for m in mechanisms_of(run)], delta)
        found.append({**base, "metric": "sweep_epsilon", "value": total})
        strict = [mechanisms_of(r) for r in runs if r["epsilon"] == 1.0 and r["variant"] == MAIN][:1]
        for one in strict:
            value = accounting.random_stopping_epsilon(one, delta, expected_trials=len(runs))
            total = accounting.pld_epsilon([replace(m, steps=m.steps * len(runs)) for m in one], delta)
            found.append({**base, "metric": "random_stopping_epsilon", "value": value})
            found.append({**base, "metric": "sum_of_as_many_trials_epsilon", "value": total})
    return found


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds for the table: the headline metric of each recipe and variant at each ε."""
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        metric = HEADLINE.get(row["recipe"], "auroc")
        extras = ["sweep_epsilon", "random_stopping_epsilon", "sum_of_as_many_trials_epsilon", *GROUPED]
        if row.get("group") or row["metric"] not in (metric, *extras):
            continue
        cells.setdefault((row["recipe"], row["variant"], row["epsilon"], row["metric"]), []).append(row)
    found = []
    for (recipe, variant, epsilon, metric), same in cells.items():
        values = [row["value"] for row in same]

        def mean(name: str, same: list[dict[str, Any]] = same) -> float | None:
            have = [row[name] for row in same if row.get(name) is not None]
            return sum(have) / len(have) if have else None

        found.append(
            {
                "recipe": recipe,
                "variant": variant,
                "unit": same[0]["unit"],
                "epsilon": "∞" if epsilon == "inf" else epsilon,
                "delta": same[0]["delta"],
                "metric": metric,
                "value": sum(values) / len(values),
                "seed_low": min(values),
                "seed_high": max(values),
                "low": mean("low"),
                "high": mean("high"),
                "seeds": len(values),
                "noise_multiplier": mean("noise_multiplier"),
                "steps": same[0].get("steps"),
                "seconds": mean("seconds"),
            }
        )
    names = list(PUBLIC_SIZE)
    order = {epsilon: i for i, epsilon in enumerate([0.5, 1.0, 2.0, 4.0, 8.0, "∞", None])}
    return sorted(
        found,
        key=lambda r: (
            names.index(r["recipe"]),
            r["variant"] != MAIN,
            r["variant"],
            r["metric"],
            order[r["epsilon"]],
        ),
    )


def goals(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: how far below the best non-private mean of any variant the recipe stays, against its goal.

    The goals are set for three seeds; where more were run, the mean over all stands beside it.
    """

    def over(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str, Any], float]:
        return {
            (r["recipe"], r["variant"], r["epsilon"]): r["value"]
            for r in summary(list(rows))
            if r["metric"] == "auroc"
        }

    lines = [
        "## Goals",
        "| recipe | ε | recipe, mean of seeds | best without privacy, of these variants | gap | goal | met |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    means, of_all = over(row for row in rows if row["seed"] in SEEDS), over(rows)
    for (recipe, epsilon), goal in GOALS.items():
        free = [(v, name) for (r, name, level_), v in means.items() if r == recipe and level_ == "∞"]
        if free and (recipe, MAIN, epsilon) in means:
            (best, name), ours = max(free), means[recipe, MAIN, epsilon]
            seeds = len({row["seed"] for row in rows if row["recipe"] == recipe and row["variant"] == MAIN})
            first = "seeds 0 to 2" if seeds >= len(SEEDS) else f"{seeds} of {len(SEEDS)} seeds"
            for label, value in ((first, ours), (f"all {seeds} seeds", of_all[recipe, MAIN, epsilon])):
                if label == first or seeds > len(SEEDS):
                    met = "yes" if best - value <= goal else "no"
                    if seeds < len(SEEDS) or (recipe, TUNED, "∞") not in means:
                        met = "not judged: seeds, or the model tuned without privacy, are missing"
                    lines.append(
                        f"| {recipe} | {epsilon:g} | {value:.4f} ({label}) | {best:.4f} ({name}) "
                        f"| {best - value:.4f} | {goal:g} | {met} |"
                    )
    for stock in (TUTORIAL, AS_RECIPE):
        both = [e for recipe, variant, e in means if variant == stock and (recipe, MAIN, e) in means]
        cxr = "chest_xray_pneumonia"
        behind = [f"{e:g}" for e in both if means[cxr, MAIN, e] <= means[cxr, stock, e]]
        if both:
            margins = [means[cxr, MAIN, e] - means[cxr, stock, e] for e in both]
            said = f"not ahead at ε = {', '.join(behind)}" if behind else f"ahead at all {len(both)} levels of ε"
            lines += ["", f"Against '{stock}': {said}, by {min(margins):+.4f} to {max(margins):+.4f}."]
    return "\n".join(lines) + "\n"


def gaps(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: by recipe, group column and ε, the spread between the best and the worst group."""
    cells: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for row in rows:
        column, _, value = (row.get("group") or "").partition("=")
        if not column or column == "class" or row["variant"] != MAIN:
            continue
        cells.setdefault((row["recipe"], column, row["metric"], str(row["epsilon"])), {}).setdefault(
            value, []
        ).append(row["value"])
    if not cells:
        return ""
    levels = [
        level_ for level_ in (str(level(epsilon)) for epsilon in EPSILONS) if any(c[3] == level_ for c in cells)
    ]
    shown = ["no noise" if item == "inf" else f"ε = {float(item):g}" for item in levels]
    lines = [
        "## Gaps between groups",
        "Largest minus smallest group mean over seeds (lowest < highest group); groups with fewer than 10 patients, "
        "or 10 records of a class, are left out. Small test groups differ by chance alone: see the intervals in the "
        "JSON. The sensitivity is that at each group's own 90 % specificity; coverage is that of the conformal sets.",
        "",
        "| recipe | group | metric | " + " | ".join(shown) + " |",
        "| --- | --- | --- |" + " --- |" * len(levels),
    ]
    for recipe, column, metric in dict.fromkeys(cell[:3] for cell in cells):
        texts = []
        for item in levels:
            groups = cells.get((recipe, column, metric, item), {})
            means = {name: sum(values) / len(values) for name, values in groups.items()}
            if len(means) < 2:
                texts.append("")
                continue
            low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
            texts.append(f"{means[high] - means[low]:.3f} ({low} < {high})")
        if any(texts):
            lines.append(f"| {recipe} | {column} | {metric} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def missing(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: what of the whole grid was not run."""
    done = {(r["recipe"], r["variant"], r["epsilon"], r["seed"]) for r in rows}
    left: dict[tuple[str, str], dict[str, int]] = {}
    planned: dict[tuple[str, str, str], int] = {}
    for trial in trials(quick=False, wanted=[]):
        name = "∞" if math.isinf(trial.epsilon) else f"{trial.epsilon:g}"
        whole = (trial.recipe, trial.variant, name)
        planned[whole] = planned.get(whole, 0) + 1
        if trial.key not in done:
            counts = left.setdefault((trial.recipe, trial.variant), {})
            counts[name] = counts.get(name, 0) + 1
    told = []
    for (recipe, variant), counts in left.items():
        cells = ", ".join(f"{e} ({n} of {planned[recipe, variant, e]} seeds)" for e, n in counts.items())
        told.append(f"| {recipe}, {variant}: ε = {cells} | time; `python -m benchmarks.utility {recipe}` runs them |")
    return "\n".join([NOT_RUN.strip(), *told]) + "\n"


CONFIDENCE = ("brier", "calibration_error", "temperature", "conformal_coverage", "conformal_set_size")


def confidence(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: by recipe and ε, how far probabilities can be believed, and what the noisy calibration gave."""
    cells: dict[tuple[str, str, Any], list[float]] = {}
    for row in rows:
        if row["variant"] == MAIN and row["metric"] in CONFIDENCE and not row.get("group"):
            cells.setdefault((row["recipe"], row["metric"], row["epsilon"]), []).append(row["value"])
    lines = [
        "## Confidence",
        "Means over seeds. Temperature and conformal sets (90 % of truths inside) come from one noisy histogram over "
        "patients set aside, whose noise is part of ε; each patient counts once, in coverage and set size too. "
        "Recipes without them have too few patients for that. `brier` and "
        "`calibration_error` are after the temperature. A set of size 1 is a decision, of size 2 (of two classes) an "
        "open question.",
        "",
        "| recipe | metric | " + " | ".join("no noise" if math.isinf(e) else f"ε = {e:g}" for e in EPSILONS) + " |",
        "| --- | --- |" + " --- |" * len(EPSILONS),
    ]
    for recipe, metric in sorted({key[:2] for key in cells}, key=lambda k: (list(PUBLIC_SIZE).index(k[0]), k[1])):
        values = [cells.get((recipe, metric, level(epsilon))) for epsilon in EPSILONS]
        shown = ["" if value is None else f"{sum(value) / len(value):.3f}" for value in values]
        lines.append(f"| {recipe} | {metric} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def pages(rows: Sequence[dict[str, Any]]) -> None:
    """Write each recipe's measured figures into its page, between two marks."""
    for recipe, folder in recipe_folders().items():
        page = folder / "README.md"
        mine = [row for row in rows if row["recipe"] == recipe]
        if not mine or not page.exists():
            continue
        made = [f"{row['date']} at {row['commit']}" for row in mine if "commit" in row]
        when = ", ".join(sorted(dict.fromkeys(made)))
        head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, mark, tail = rest.partition(END)
        if mark:
            page.write_text(f"{head}{BEGIN}\n{page_of(recipe, summary(mine), when)}{END}{tail}", encoding="utf-8")


def page_of(recipe: str, same: Sequence[dict[str, Any]], when: str) -> str:
    """Markdown: a line a variant, a column a level of privacy; then what the sweep cost."""
    metric = HEADLINE.get(recipe, "auroc")
    levels = [0.5, 1.0, 2.0, 4.0, 8.0, "∞"]
    name = {"auroc": "AUROC", "dice": "Dice"}[metric]
    lines = [
        f"{name} on test {'volumes' if metric == 'dice' else 'patients'}: mean of seeds (their range), {when}. "
        "Bootstrap intervals, groups and all other metrics: `benchmarks/results/utility.md` and `utility.json`.",
        "",
        "| variant | unit | " + " | ".join(f"ε = {item:g}" if item != "∞" else "no noise" for item in levels) + " |",
        "| --- |" + " --- |" * (len(levels) + 1),
    ]
    for variant in dict.fromkeys(row["variant"] for row in same if row["metric"] == metric):
        cells = {row["epsilon"]: row for row in same if row["variant"] == variant and row["metric"] == metric}
        unit = next(iter(cells.values()))["unit"]
        lines.append(f"| {variant} | {unit} | " + " | ".join(_cell(cells.get(item)) for item in levels) + " |")
    for extra, label in GROUPED.items():
        for variant in dict.fromkeys(row["variant"] for row in same if row["metric"] == extra):
            cells = {row["epsilon"]: row for row in same if row["variant"] == variant and row["metric"] == extra}
            shown = " | ".join(f"ε {cells[item]['value']:.3g}" if item in cells else "" for item in levels)
            lines.append(f"| promised to {label} by '{variant}' | | {shown} |")
    figures = {row["metric"]: row for row in same}
    if "sweep_epsilon" in figures:
        lines += [
            "",
            f"All private trials at this unit together would have cost a private cohort ε = "
            f"{figures['sweep_epsilon']['value']:.1f} (δ = {figures['sweep_epsilon']['delta']:.2g}).",
        ]
    worst = max((row["value"] for row in same if row["metric"] == "epsilon_of_a_patient"), default=None)
    if worst is not None and "sweep_epsilon" in figures:
        lines[-1] += (
            " The trials with the image as the unit are not in that sum: one alone has up to "
            f"ε = {worst:.3g} for a patient."
        )
    if "random_stopping_epsilon" in figures:
        plain, tight = figures["sum_of_as_many_trials_epsilon"]["value"], figures["random_stopping_epsilon"]["value"]
        lines[-1] += (
            f" As many trials like the one at ε = 1: {plain:.2f} as a plain sum, {tight:.2f} where their number is "
            "random and secret and only the best is released (Papernot & Steinke 2022)."
        )
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["seeds"] == 1:
        return f"{row['value']:.3f} (1 seed)"
    return f"{row['value']:.3f} ({row['seed_low']:.3f} to {row['seed_high']:.3f})"


def keep(
    rows: list[dict[str, Any]], command: str, folder: Path, head: dict[str, str] | None = None, ran: str = ""
) -> None:
    """Write JSON, table and plot of what is there; `head` is the origin of rows that were measured earlier."""
    whole = [*rows, *group_rows(rows), *sweep_rows(rows)]
    notes = "\n".join(
        [
            "Means over seeds (`seed_low` to `seed_high`: the extremes); `low` to `high`: 95 % patient-bootstrap "
            "interval of a run, averaged. `seconds` is training alone. Cohorts are declared public in a throw-away "
            "ledger; `sweep_epsilon` is what all private trials of a recipe at its own unit together would have cost "
            "otherwise (trials with the image as the unit are not in it: `epsilon_of_a_patient` is what one of them "
            "costs the patient with most images), and `random_stopping_epsilon` the tighter account of a sweep of as "
            "many trials like the one at ε = 1 whose number is random and whose best alone is released, beside their "
            "plain sum. The JSON names each measured row's "
            "date and commit (for the oldest rows those of the first table that held them). Calibration errors of "
            "rows before e0764e3 are of bins of any size; now each holds ten patients or more. " + ran,
            "",
            goals(rows),
            confidence(rows),
            gaps(rows),
            missing(rows),
        ]
    )
    _results.write(
        "utility",
        whole,
        command=command,
        table_rows=summary(whole),
        table_columns=COLUMNS,
        title="Utility against ε",
        notes=notes,
        folder=folder,
        head=head,
    )
    plot(whole, folder)
    if folder == _results.RESULTS:
        pages(whole)


def main(argv: Sequence[str] | None = None, *, say: Callable[[str], None] = print) -> int:
    """Run what is missing; returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.utility", description=__doc__.split("\n\n")[0])
    parser.add_argument("recipes", nargs="*", help="only these recipes")
    parser.add_argument("--quick", action="store_true", help="one seed, three levels, main variants, measured anew")
    parser.add_argument("--variant", action="append", default=[], help="only variants whose name begins so")
    parser.add_argument("--folder", type=Path, default=None, help="where results go (quick: results/quick)")
    parser.add_argument("--tables", action="store_true", help="run nothing: write table and plots of what is there")
    parser.add_argument("--cache", type=Path, default=None, help="keep features here for a later start")
    options = parser.parse_args(argv)
    unknown = set(options.recipes) - set(PUBLIC_SIZE)
    if unknown:
        parser.error(f"unknown recipe {', '.join(sorted(unknown))}: there are {', '.join(PUBLIC_SIZE)}")
    shared = Path(__file__).parents[2] / "shared" / "data"
    if "DPTRAIN_DATA" not in os.environ and shared.is_dir():
        os.environ["DPTRAIN_DATA"] = str(shared)
    folder = options.folder or (_results.RESULTS / "quick" if options.quick else _results.RESULTS)
    path = folder / "utility.json"
    known: dict[str, Any] = {"meta": {"command": ""}, "rows": []}
    if path.exists() and (options.tables or not options.quick):  # a quick look is measured here and now
        known = json.loads(path.read_text())
    # Rows of sweeps and of groups are computed anew.
    rows = [r for r in known["rows"] if r["epsilon"] is not None and not r["metric"].startswith("epsilon_of_")]
    command = _results.command_of("utility", argv if argv is not None else sys.argv[1:])
    command = _results.joined(known["meta"]["command"], "" if options.tables else command)
    begun = time.monotonic()
    made = _results.stamp()
    done = {(r["recipe"], r["variant"], r["epsilon"], r["seed"]) for r in rows}
    todo = [
        trial
        for trial in trials(quick=options.quick, wanted=options.recipes)
        if not options.tables
        and trial.key not in done
        and (not options.variant or trial.variant.startswith(tuple(options.variant)))
    ]
    say(f"{len(todo)} trials to run, {len(done)} are there")
    place = Path(tempfile.mkdtemp(prefix="dptrain-utility-"))
    try:
        site, site_name = None, None
        for number, trial in enumerate(todo, 1):
            settings = settings_of(trial)
            network = tuple(word for word in trial.words if word.startswith("model."))
            name = (
                trial.recipe,
                trial.unit,
                tuple(settings.data.image_shape),
                network,
                trial.words if trial.unit else (),
            )
            if name != site_name:
                size = IMAGES if trial.unit == "image" else PUBLIC_SIZE[trial.recipe]
                site, site_name = open_site(settings, size, place / str(number)), name
            assert site is not None
            new = [{**row, **made} for row in run(trial, site, options.cache)]
            rows += new
            metric = HEADLINE.get(trial.recipe, "auroc")
            value = next(r["value"] for r in new if r["metric"] == metric and not r.get("group"))
            say(
                f"[{number}/{len(todo)}] {trial.recipe}, {trial.variant}, ε={level(trial.epsilon)}, "
                f"seed {trial.seed}: {metric} {value:.4f} ({new[0]['seconds']} s)"
            )
            last = number == len(todo) or todo[number].recipe != trial.recipe or todo[number].variant != trial.variant
            if last or number % 6 == 0:
                keep(rows, command, folder)
            else:  # the rows alone, so that nothing is lost: tables and plots take a while
                folder.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"meta": _results.meta(command), "rows": rows}) + "\n")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if not rows:
        return 0
    ran = f"The last command ran {len(todo)} trials in {(time.monotonic() - begun) / 60:.1f} minutes." if todo else ""
    say(ran)
    keep(rows, command, folder, known["meta"] if options.tables else None, ran)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
