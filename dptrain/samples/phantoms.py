"""A made-up cohort of chest X-rays, for machines without data and without a network.

Nobody's data: every picture is drawn from ellipses, ribs and noise. It has the structure that matters here:
several images of a patient who look alike (same anatomy, other exposure), sex and age that show, an opacity
in the lungs of those with pneumonia, and distractors in those without. The manifest has the columns of the
chest X-ray recipe, so that the same recipe runs on it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dptrain.errors import ConfigError
from dptrain.plain import Json
from dptrain.settings import ColumnsConfig, DataConfig
from dptrain.terminal.progress import progress

VERSION = 1
FIELDS = (
    "file",
    "patient_id",
    "patient_group",
    "label",
    "class_name",
    "sex",
    "age",
    "age_group",
    "view",
    "duplicate_of",
    "split",
    "licence",
)


def phantom(folder: Path, *, patients: int = 900, size: int = 96, seed: int = 0) -> DataConfig:
    """Draw the cohort into `folder` (PNG and manifest.csv), or find it there already, and describe it.

    The same arguments give the same pictures. Takes about ten seconds for 900 patients.

    Args:
        patients: how many; each has one to eight images, two in the mean.
        size: pixels a side, 32 to 512.

    Raises:
        ConfigError: arguments out of range, or a folder that holds something else.
    """
    if patients < 30 or not 32 <= size <= 512:
        raise ConfigError(f"a phantom of {patients} patients at {size} pixels: at least 30, and 32 to 512 pixels.")
    folder = Path(folder)
    facts = {"phantom": VERSION, "patients": patients, "size": size, "seed": seed}
    marker = folder / "phantom.json"
    if not (marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == facts):
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} holds something else.", remedy="Name an empty folder for the phantom.")
        _draw_all(folder, facts, np.random.default_rng(seed))
    return phantom_config(folder, size)


def phantom_config(folder: Path, size: int) -> DataConfig:
    """The settings that describe a phantom cohort."""
    return DataConfig(
        name="phantom-chest-xray",
        root=str(folder),
        issuer="phantom",
        columns=ColumnsConfig(patient="patient_group", split="split", groups=["sex", "age_group"]),
        classes=["normal", "pneumonia"],
        label_values={"0": "normal", "1": "pneumonia"},
        drop={"duplicate_of": "*"},
        image_shape=[1, size, size],
        transforms=[
            {
                "_target_": "monai.transforms.ScaleIntensityRanged",
                "keys": ["image"],
                "a_min": 0,
                "a_max": 255,
                "b_min": 0,
                "b_max": 1,
            }
        ],
        source="dptrain's procedural phantom: drawn by a program, of nobody",
        licence="CC0 1.0",
        cautions=["Made-up pictures: results say how the program works, nothing about medicine."],
    )


def _draw_all(folder: Path, facts: Json, random: np.random.Generator) -> None:
    from PIL import Image

    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "images").mkdir(parents=True)
    size, rows = facts["size"], []
    canvas = Canvas(size)
    with progress(facts["patients"], "Drawing the phantom cohort") as shown:
        for number in range(facts["patients"]):
            patient = f"phantom{number:05d}"
            anatomy = Anatomy.draw(random)
            ill = random.random() < 0.45
            split = _split(patient)
            for image in range(int(min(8, random.geometric(0.5)))):
                label = int(ill and (image == 0 or random.random() < 0.8))
                name = f"images/{patient}_{image}.png"
                Image.fromarray(canvas.picture(anatomy, label, random)).save(part / name)
                rows.append(
                    {
                        "file": name,
                        "patient_id": patient,
                        "patient_group": patient,
                        "label": label,
                        "class_name": "pneumonia" if label else "normal",
                        "sex": "F" if anatomy.female else "M",
                        "age": anatomy.age,
                        "age_group": _age_group(anatomy.age),
                        "view": "AP",
                        "duplicate_of": "",
                        "split": split,
                        "licence": "CC0 1.0",
                    }
                )
            shown.advance()
    with (part / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    (part / "phantom.json").write_text(json.dumps(facts), encoding="utf-8")
    if folder.exists():
        folder.rmdir()
    folder.parent.mkdir(parents=True, exist_ok=True)
    part.rename(folder)


def _split(patient: str) -> str:
    share = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.7 else "val" if share < 0.85 else "test"


def _age_group(age: int) -> str:
    return "below 18" if age < 18 else "18 to 39" if age < 40 else "40 to 64" if age < 65 else "65 and above"


@dataclass(frozen=True)
class Anatomy:
    """What stays the same in all images of a patient; lengths in units of half the picture."""

    female: bool
    age: int
    lung_width: float
    lung_height: float
    lung_depth: float
    apart: float
    heart: float
    ribs: float
    tilt: float
    texture: int

    @classmethod
    def draw(cls, random: np.random.Generator) -> Anatomy:
        """A patient at random."""
        age = int(np.clip(random.gamma(3.0, 16.0), 1, 95))
        small = 0.85 if age < 18 else 1.0
        return cls(
            female=bool(random.random() < 0.5),
            age=age,
            lung_width=float(random.normal(0.30, 0.025) * small),
            lung_height=float(random.normal(0.62, 0.05) * small),
            lung_depth=float(random.normal(0.42, 0.025)),
            apart=float(random.normal(0.40, 0.02) * small),
            heart=float(random.normal(0.26, 0.03) + 0.0008 * max(0, age - 50)),
            ribs=float(random.normal(9.0, 0.7)),
            tilt=float(random.normal(0.0, 0.05)),
            texture=int(random.integers(2**31)),
        )


class Canvas:
    """Draws pictures of one size; coordinates run from −1 to 1."""

    def __init__(self, size: int) -> None:
        self.size = size
        axis = np.linspace(-1, 1, size, dtype=np.float32)
        self.y, self.x = np.meshgrid(axis, axis, indexing="ij")

    def blob(self, x: float, y: float, width: float, height: float, edge: float = 6.0) -> np.ndarray:
        """A soft ellipse, 1 inside, 0 outside."""
        distance = np.sqrt(((self.x - x) / width) ** 2 + ((self.y - y) / height) ** 2)
        return 1 / (1 + np.exp(np.clip(edge * (distance - 1) * 2, -30, 30)))

    def cloud(self, random: np.random.Generator, cells: int) -> np.ndarray:
        """Smooth noise of mean 0 with about `cells` bumps a side."""
        coarse = random.normal(size=(cells + 1, cells + 1)).astype(np.float32)
        at = np.linspace(0, cells, self.size, dtype=np.float32)
        low = np.minimum(at.astype(int), cells - 1)
        part = at - low
        part = part * part * (3 - 2 * part)
        rows = coarse[low] * (1 - part)[:, None] + coarse[low + 1] * part[:, None]
        return np.asarray(rows[:, low] * (1 - part) + rows[:, low + 1] * part)

    def picture(self, anatomy: Anatomy, label: int, random: np.random.Generator) -> np.ndarray:
        """One radiograph, uint8 [size, size]."""
        own = np.random.default_rng(anatomy.texture)
        shift_x, shift_y = random.normal(0, 0.02, 2)
        body = 0.62 + 0.04 * self.cloud(own, 4) - 0.25 * np.abs(self.x + shift_x) ** 3
        lungs = np.zeros_like(self.x)
        for side in (-1, 1):
            shape = self.blob(side * anatomy.apart + shift_x, shift_y - 0.05, anatomy.lung_width, anatomy.lung_height)
            lungs = np.maximum(lungs, shape)
        image = body - anatomy.lung_depth * lungs
        arcs = self.y * anatomy.ribs + 2.2 * (self.x - anatomy.tilt) ** 2 * anatomy.ribs / 9
        image += 0.05 * np.sin(arcs * np.pi) * (0.3 + 0.7 * lungs)
        image += 0.25 * self.blob(shift_x, 0.0, 0.07, 1.2, 4)
        image += 0.24 * self.blob(0.12 + shift_x, 0.32 + shift_y, anatomy.heart, 0.30)
        if anatomy.female:
            for side in (-1, 1):
                image += 0.05 * self.blob(side * 0.42, 0.45, 0.34, 0.30, 3)
        image += 0.015 * self.cloud(own, 16)
        if label:
            image += self._opacity(
                anatomy, lungs, random, float(random.uniform(0.14, 0.36)), int(random.integers(2, 5))
            )
        elif random.random() < 0.25:
            image += self._opacity(anatomy, lungs, random, float(random.uniform(0.02, 0.07)), 1)
        image = (image - 0.5) * random.normal(1.0, 0.06) + 0.5 + random.normal(0, 0.03)
        image += random.normal(0, 0.018, image.shape)
        return np.asarray(np.clip(np.rint(image * 255), 0, 255), dtype=np.uint8)

    def _opacity(
        self, anatomy: Anatomy, lungs: np.ndarray, random: np.random.Generator, strength: float, number: int
    ) -> np.ndarray:
        """Patchy brightening inside the lungs."""
        total = np.zeros_like(self.x)
        side = random.choice([-1, 1])
        for _ in range(number):
            x = side * anatomy.apart + random.normal(0, 0.10)
            y = random.uniform(-0.35, 0.4)
            width = random.uniform(0.12, 0.26)
            total += self.blob(x, y, width, width * random.uniform(0.7, 1.4), 3)
        patchy = np.clip(1 + 0.35 * self.cloud(random, 10), 0.2, 2)
        return np.asarray(strength * np.clip(total, 0, 1.5) * patchy * lungs)
