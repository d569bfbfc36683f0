"""A tiny site: keys, a ledger, and a cohort of made-up 8 x 8 images that a small network can learn."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dptrain import data
from dptrain.ledger import Keys, Ledger, PublicDeclaration
from dptrain.plan import Mechanism
from dptrain.settings import Settings, load

PASSPHRASE = "correct horse battery"
PATIENTS = 80
PUBLIC_SIZE = 60


@dataclass
class Site:
    """A site's folder with what a test needs of it."""

    folder: Path
    keys: Keys
    ledger: Ledger

    @property
    def words(self) -> list[str]:
        """Overrides that name this site's cohort, ledger and a network that trains in moments."""
        return [
            "name=tiny",
            f"data.root={self.folder}",
            "data.folder=images",
            "data.issuer=made-up",
            "data.image_shape=[1,8,8]",
            "data.columns.patient=patient",
            "data.columns.label=[finding]",
            "data.columns.split=split",
            "data.columns.groups=[sex]",
            "data.classes=[clear,shadow]",
            "privacy.expected_batch_size=20",
            "privacy.steps=12",
            "privacy.max_records_per_patient=4",
            "training.chunk=32",
            "training.device=cpu",
            f"ledger.url={self.folder / 'ledger.sqlite'}",
            f"ledger.keys={self.folder / 'keys'}",
        ]

    def settings(self, *words: str) -> Settings:
        """Typed settings of this site, with further overrides."""
        return load([*self.words, *words])


def write_images(folder: Path, seed: int = 0) -> None:
    """80 patients with 1 to 5 images each; a shadow makes the upper half darker."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = []
    for patient in range(PATIENTS):
        ill = patient % 2
        for image in range(1 + patient % 5 if patient else 6):
            pixels = rng.integers(90, 160, (8, 8))
            pixels[:4] -= 60 * ill
            name = f"{patient:03d}-{image}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
            split = "train" if patient < PUBLIC_SIZE - 8 else "calibration" if patient < PUBLIC_SIZE else "test"
            rows.append([name, f"P{patient:03d}", ["clear", "shadow"][ill], split, "FM"[patient % 3 == 0]])
    with open(folder / "manifest.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "patient", "finding", "split", "sex"])
        writer.writerows(rows)


@pytest.fixture
def make_site(tmp_path: Path) -> Callable[..., Site]:
    """Make a site with a registered cohort: with a budget (epsilon), or declared public."""

    def make(epsilon: float | None = 8.0, *, public: bool = False, audit: bool = False) -> Site:
        keys = Keys.create(tmp_path / "keys", PASSPHRASE)
        ledger = Ledger.create(tmp_path / "ledger.sqlite", keys)
        site = Site(tmp_path, keys, ledger)
        write_images(tmp_path / "images")
        cohort = data.scan(site.settings().data, keys)
        controller = keys.controller(PASSPHRASE)
        ledger.register(
            "tiny",
            unit="patient",
            issuer="made-up",
            public_size=PUBLIC_SIZE,
            patients=cohort.hashes(),
            owner="Radiology",
            binding=data.binding_of(cohort),
            public=PublicDeclaration(source="made up", licence="CC0-1.0") if public else None,
            controller=controller if public else None,
        )
        if epsilon is not None and not public:
            ledger.budget(
                "tiny",
                epsilon=epsilon,
                delta=1e-5,
                forecast=(Mechanism(20 / PUBLIC_SIZE, 2.0, 12),),
                reason="test",
                controller=controller,
            )
        return site

    return make
