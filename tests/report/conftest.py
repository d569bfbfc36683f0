"""Report fixtures: a made-up run, released, rendered once in each edition and language."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _finished_run
from benchmarks._finished_run import Site
from dptrain.ledger import open_ledger
from dptrain.records import RunFolder
from dptrain.report import facts as facts_module
from dptrain.report.build import build
from dptrain.report.faces import render
from dptrain.report.release import standing
from dptrain.report.shapes import Facts
from tests.report.made import make_run, run_facts

RELEASED = {
    "items": ["model", "metrics", "groups", "audit"],
    "recipient": "Klinikum Nord",
    "purpose": "Triage",
    "advice": "Keine Bedenken",
    "controller": "Musterklinik",
    "date": "2026-11-22T18:00:00Z",
    "entry": "10 (abc)",
}
MADE = "2026-11-22T17:30:00Z"
EDITIONS = ("controller", "public")


def german(values: dict[str, Any]) -> dict[str, Any]:
    """The run with German words where people write freely, so that English in a German report is the program's."""
    values["cohort"]["cautions"] = ["Manche Nummern fassen zwei Kinder zusammen."]
    values["weights"]["note"] = "EfficientNet-Lite0, ImageNet"
    return values


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run whose results are all released."""
    values = german(run_facts())
    values["released"] = RELEASED
    return make_run(tmp_path_factory.mktemp("run") / "run", run=values)


@pytest.fixture(scope="session")
def faces(run: Path) -> Callable[[str, str], tuple[Facts, dict[str, bytes]]]:
    """(edition, lang) -> (facts, faces), each made once."""
    made: dict[tuple[str, str], tuple[Facts, dict[str, bytes]]] = {}

    def get(edition: str, lang: str) -> tuple[Facts, dict[str, bytes]]:
        if (edition, lang) not in made:
            facts = facts_module.read(run, made=MADE)
            facts = facts_module.public(facts) if edition == "public" else facts
            made[edition, lang] = (facts, render(facts, lang))
        return made[edition, lang]

    return get


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """A new run folder with run.json changed by a function."""

    def make(change: Callable[[dict[str, Any]], None] | None = None, **pieces: Any) -> Path:
        values = run_facts()
        if change is not None:
            change(values)
        return make_run(
            tmp_path / f"run{len(list(tmp_path.iterdir()))}", run=json.loads(json.dumps(values)), **pieces
        )

    return make


@pytest.fixture(scope="session")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One site, before and after the release of its run."""
    root = tmp_path_factory.mktemp("finished")
    (root / "site").mkdir()
    site = _finished_run.trained(root / "site")
    build(site.run.path, ledger=standing(site.ledger, site.run.path))
    shutil.copytree(root / "site", root / "before")
    _finished_run.released(site)
    return {"before": root / "before", "after": root / "site"}


@pytest.fixture
def site(states: dict[str, Path], tmp_path: Path) -> Callable[[str], Site]:
    """A copy of the site to tamper with."""

    def copy(state: str) -> Site:
        folder = tmp_path / state
        shutil.copytree(states[state], folder)
        ledger, keys = open_ledger(str(folder / "ledger.sqlite"), str(folder / "keys"), None)
        return Site(folder, keys, ledger, RunFolder(folder / "run"))

    return copy
