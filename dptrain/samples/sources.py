"""Which chest X-rays the demo runs on: the first that are found, and at the worst a made-up cohort."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dptrain.errors import DataUnreadable, DptrainError
from dptrain.plain import Json
from dptrain.samples.fetch import KERMANY_FOLDER, download, kermany_config
from dptrain.samples.phantoms import phantom
from dptrain.settings import DataConfig
from dptrain.settings.data import folder_of


@dataclass(frozen=True)
class DemoData:
    """What the demo runs on: a line for people, `kermany` or `phantom`, and its whole settings."""

    description: str
    kind: str
    config: DataConfig

    @property
    def overrides(self) -> list[str]:
        """`data.…=…` words that put this data in place of the chest X-ray recipe's.

        The recipe's transforms and image shape stay: it resizes to its own shape.
        """
        data = self.config
        changes: Json = {"data.root": data.root}
        if self.kind == "phantom":
            changes |= {
                "data.folder": data.folder,
                "data.issuer": data.issuer,
                "data.unit": data.unit,
                "data.columns.groups": data.columns.groups,
                "data.source": data.source,
                "data.licence": data.licence,
                "data.cautions": data.cautions,
            }
        return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in changes.items()]

    @property
    def public_size(self) -> int:
        """Training patients, counted in the manifest: these data are public, so is their number."""
        columns, unwanted = self.config.columns, self.config.drop
        with (folder_of(self.config) / self.config.manifest).open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if not any(row[name] for name in unwanted)]
        split = self.config.split.values
        return len({row[columns.patient] for row in rows if split.get(row[columns.split or ""]) == "train"})


def find_demo_data(
    root: Path | None = None,
    *,
    cache: Path | None = None,
    fetch_public: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> DemoData:
    """The first chest X-rays at hand: a given root, ../shared/data, the cache, the public original, a phantom.

    Args:
        root: where the person says that data lies; nothing else is then looked at.
        cache: where fetched and drawn data is kept; None for DPTRAIN_CACHE or ~/.cache/dptrain.
        fetch_public: whether the public original may be fetched.
        say: told what will take a while, before it begins.

    Raises DataUnreadable where the given root does not hold the cohort.
    """
    if root is not None:
        ready = _kermany_below(Path(root))
        if ready is None:
            raise DataUnreadable(
                f"{root} holds no prepared chest X-rays ({KERMANY_FOLDER}/manifest.csv).",
                remedy="Give the folder above it, or leave the root out.",
            )
        return DemoData(f"chest X-rays (Kermany 2018) from {root}", "kermany", kermany_config(ready.resolve()))
    shared = [os.environ.get("DPTRAIN_DATA"), Path("..") / "shared" / "data"]
    for place in (Path(entry) for entry in shared if entry):
        ready = _kermany_below(place)
        if ready is not None:
            return DemoData(f"chest X-rays (Kermany 2018) from {place}", "kermany", kermany_config(ready.resolve()))
    cache = cache or Path(os.environ.get("DPTRAIN_CACHE") or Path.home() / ".cache" / "dptrain")
    cached = _kermany_below(cache) is not None
    why = "fetching was not wanted"
    if cached or fetch_public:
        if not cached:
            say("no chest X-rays here: trying to fetch the public ones (Kermany 2018)")
        try:
            config = download(cache, timeout=10.0)
        except DptrainError:
            why = "the public chest X-rays could not be fetched"
        else:
            kept = "the cached" if cached else "a fresh"
            return DemoData(f"chest X-rays (Kermany 2018) from {kept} download in {cache}", "kermany", config)
    description = f"a made-up phantom cohort, nobody's data ({why})"
    say(f"{description}, drawn now if it is not in {cache} already")
    return DemoData(description, "phantom", phantom(cache / "phantom-chest-xray"))


def _kermany_below(place: Path) -> Path | None:
    """The root whose folder holds the prepared cohort; `place` may be that folder itself."""
    if (place / KERMANY_FOLDER / "manifest.csv").is_file():
        return place
    if place.name == KERMANY_FOLDER and (place / "manifest.csv").is_file():
        return place.parent
    return None
