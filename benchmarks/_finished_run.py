"""A small finished run on made-up images with its site: trained, evaluated, audited, reported and released."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dptrain import data
from dptrain.audit.run import audit_run
from dptrain.ledger import Keys, Ledger
from dptrain.plan import Mechanism
from dptrain.records import RunFolder
from dptrain.report.build import build
from dptrain.report.judgement import PERSON_CHECKS
from dptrain.report.release import Decision, release, standing
from dptrain.settings import Settings, load
from dptrain.training.run import train

PASSPHRASE = "correct horse battery"
COHORT = "made_up"
PATIENTS = 60
SIZE = 50
MODELS = 24
AUDIT = (f"audit.models={MODELS}", "audit.canaries=0", "audit.processes=1")
DECISION = Decision(
    items=("model", "metrics", "audit"),
    recipient="Klinikum Nord",
    purpose="triage study",
    advice="no objection",
    accept_exposed=0.5,
    accepted=PERSON_CHECKS,
)


@dataclass(frozen=True)
class Site:
    """A site's folder, its keys and ledger, and the folder of its run."""

    folder: Path
    keys: Keys
    ledger: Ledger
    run: RunFolder

    @property
    def places(self) -> list[str]:
        """The words that name the ledger."""
        return [f"ledger.url={self.folder / 'ledger.sqlite'}", f"ledger.keys={self.folder / 'keys'}"]

    def settings(self, *words: str) -> Settings:
        """Typed settings of this site's training."""
        return load([*_words(self.folder), *words])


def _words(folder: Path) -> list[str]:
    return [
        f"name={COHORT}",
        f"data.root={folder}",
        "data.folder=images",
        "data.issuer=made-up",
        "data.image_shape=[1,8,8]",
        "data.columns.patient=patient",
        "data.columns.label=[finding]",
        "data.columns.split=split",
        "data.classes=[clear,shadow]",
        "model=mlp",
        "model.network.in_features=64",
        "model.network.num_classes=1",
        "privacy.target_epsilon=4",
        "privacy.expected_batch_size=20",
        "privacy.steps=12",
        "privacy.max_records_per_patient=4",
        "training.chunk=32",
        "training.device=cpu",
        f"ledger.url={folder / 'ledger.sqlite'}",
        f"ledger.keys={folder / 'keys'}",
    ]


def _write_images(folder: Path) -> None:
    """60 made-up patients with 1 or 2 images each; a shadow makes the upper half darker."""
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows = []
    for patient in range(PATIENTS):
        ill = patient % 2
        for image in range(1 + patient % 2):
            pixels = rng.integers(90, 160, (8, 8))
            pixels[:4] -= 60 * ill
            name = f"{patient:03d}-{image}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
            split = "train" if patient < SIZE else "test"
            rows.append([name, f"P{patient:03d}", ["clear", "shadow"][ill], split])
    with open(folder / "manifest.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "patient", "finding", "split"])
        writer.writerows(rows)


def quiet(_: str) -> None:
    """Say nothing."""


def trained(folder: Path) -> Site:
    """A site with a finished run, evaluated and audited."""
    keys = Keys.create(folder / "keys", PASSPHRASE)
    ledger = Ledger.create(folder / "ledger.sqlite", keys)
    site = Site(folder, keys, ledger, RunFolder(folder / "run"))
    _write_images(folder / "images")
    cohort = data.scan(site.settings().data, keys)
    ledger.register(
        COHORT,
        unit="patient",
        issuer="made-up",
        public_size=SIZE,
        patients=cohort.hashes(),
        owner="Radiology",
        cautions=("Made up.",),
    )
    ledger.budget(
        COHORT,
        epsilon=8.0,
        delta=1e-5,
        forecast=(Mechanism(20 / SIZE, 2.0, 12),),
        reason="a benchmark",
        controller=keys.controller(PASSPHRASE),
    )
    train(site.settings(f"training.run={folder / 'run'}"), say=quiet)
    audit_run(folder / "run", [*AUDIT], say=quiet)
    return site


def released(site: Site) -> Site:
    """The same, with both editions of its report and a release."""
    if not site.run.restricted_report.exists():
        build(site.run.path, ledger=standing(site.ledger, site.run.path))
    release(site.run.path, DECISION, "en", ledger=site.ledger, controller=site.keys.controller(PASSPHRASE))
    return site
