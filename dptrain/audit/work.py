"""An unfinished audit: what it measures, in one number, and the masks and scores that it has so far."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml

from dptrain.audit import masks
from dptrain.audit.reference import Material
from dptrain.files import whole_or_nothing
from dptrain.models import ModelStore
from dptrain.plain import Json
from dptrain.plan import Plan
from dptrain.settings import Settings, to_yaml

# settings that do not change what is measured: where things lie, and how the work is cut up
NOT_MEASURED = {
    "data": ("root", "folder"),
    "training": ("run", "resume", "device", "chunk", "lease", "checkpoint_steps", "evaluate"),
    "audit": ("declare", "processes"),
}
# settings of the audit that decide which reference models are trained; the others are about their scores only
TRAINED_BY = ("models", "new_scan", "trainer", "stack", "game", "confirm_models", "unit_column")


def configuration(settings: Settings) -> Json:
    """Everything that decides what an audit measures: the settings without places, and the starting weights."""
    values: Json = yaml.safe_load(to_yaml(settings))
    for part in ("ledger", "report", "attack"):
        values.pop(part, None)
    for part, names in NOT_MEASURED.items():
        values[part] = {name: value for name, value in values[part].items() if name not in names}
    if settings.model.weights is not None:
        weights = ModelStore.of(settings.model.weights)
        values["weights"] = weights.sha256() if weights.exists else None
    return values


def digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def asked(settings: Settings, plan: Plan, identity: str) -> str:
    """One number for an audit: two that have it ask the same question of the same training."""
    return digest([configuration(settings), plan.digest, identity])


class Kept:
    """What an unfinished piece of work has so far, by name. Work of another key does not find it."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stamp = folder / "key"
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != key:
            self.clear()
            with whole_or_nothing(stamp, private=True) as file:
                file.write(key)

    def clear(self) -> None:
        for file in self.folder.iterdir():
            file.unlink()

    def remove(self) -> None:
        """Everything is in the results: forget the work."""
        self.clear()
        self.folder.rmdir()

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        path = self.folder / f"{name}.npz"
        if not path.exists():
            return None
        with np.load(path) as arrays:
            return {key: arrays[key] for key in arrays.files}

    def save(self, name: str, **arrays: np.ndarray) -> None:
        with whole_or_nothing(self.folder / f"{name}.npz", "wb", private=True) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def array(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What was kept under this name, or what is made now, and kept."""
        if self.load(name) is None:
            self.save(name, values=make())
        (values,) = (self.load(name) or {}).values()
        return values


class Work(Kept):
    """Masks and scores of an unfinished audit. Another cohort, plan or configuration does not find them.

    What only reads scores (the attack, the tolerance, how many are confirmed) may change in between.
    """

    def __init__(self, folder: Path, settings: Settings, material: Material, plan: Plan, fingerprint: str) -> None:
        values = configuration(settings)
        values["audit"] = {name: value for name, value in values["audit"].items() if name in TRAINED_BY}
        super().__init__(folder, digest([fingerprint, plan.digest, values, material.patients]))
        # the records kept back were chosen when the audit began
        material.trained[:] = self.array("kept", lambda: material.trained)

    def member(self, models: int, count: int) -> np.ndarray:
        """The masks: drawn when the audit began, the same ones after a resume."""
        drawn = self.load("masks")
        if drawn is None:
            self.save("masks", member=masks.draw(models, count))
            drawn = self.load("masks")
        assert drawn is not None
        return drawn["member"]

    def canaries(self, planted: Material, member: np.ndarray, own: int) -> tuple[Material, np.ndarray]:
        """The canaries and their masks: made when they were first planted, the same ones after a resume.

        Args:
            own: records of the cohort; the canaries' follow them.
        """
        planted_before = self.load("canaries")
        if planted_before is None or planted_before["member"].shape != member.shape:
            for file in self.folder.glob("canary-*.npz"):  # scores of other canaries
                file.unlink()
            self.save(
                "canaries", inputs=planted.inputs[own:].numpy(), labels=planted.labels[own:].numpy(), member=member
            )
            return planted, member
        same = dataclasses.replace(
            planted,
            inputs=torch.cat([planted.inputs[:own], torch.from_numpy(planted_before["inputs"])]),
            labels=torch.cat([planted.labels[:own], torch.from_numpy(planted_before["labels"])]),
        )
        return same, planted_before["member"]
