"""Run folders and ledgers made before are still read, and their report is the same to the last byte."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from dptrain.ledger import open_ledger
from dptrain.records import RunFolder
from dptrain.report import facts as facts_module
from dptrain.report.faces import render

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run_42972b7"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text(encoding="utf-8"))
MADE = "2026-11-28T20:30:00Z"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A copy of the fixture with the modes that keys have."""
    folder = tmp_path / "site"
    shutil.copytree(FIXTURE, folder)
    (folder / "keys").chmod(0o700)
    for key in (folder / "keys").iterdir():
        key.chmod(0o600)
    return folder


@pytest.mark.parametrize("edition", ["controller", "public"])
@pytest.mark.parametrize("lang", ["de", "en"])
def test_the_report_of_an_old_run_is_the_same_to_the_last_byte(site: Path, edition: str, lang: str) -> None:
    ledger, _ = open_ledger(str(site / "ledger.sqlite"), str(site / "keys"), None)
    run = str(RunFolder(site / "run").read().id)
    facts = facts_module.read(site / "run", ledger=ledger.evidence(run, made=MADE))
    if edition == "public":
        facts = facts_module.public(facts)
    faces = render(facts, lang)
    written = {f"{edition}/{lang}/{name}": hashlib.sha256(face).hexdigest() for name, face in faces.items()}
    assert written == {name: value for name, value in EXPECTED.items() if name.startswith(f"{edition}/{lang}/")}


def test_an_old_run_agrees_with_its_ledger_where_that_binds_it_and_says_where_not(site: Path) -> None:
    ledger, _ = open_ledger(str(site / "ledger.sqlite"), str(site / "keys"), None)
    facts = facts_module.read(site / "run", ledger=ledger.evidence(str(RunFolder(site / "run").read().id)))
    assert facts.binding.differs == ()
    assert set(facts.binding.open) == {"bundle", "facts", "metrics", "audit", "released"}
    assert {"model", "charge", "budget", "spent", "lock", "decision", "head"} <= set(facts.binding.agrees)
    assert "unbound" in facts.warnings


def test_an_old_ledger_is_verified(site: Path) -> None:
    ledger, _ = open_ledger(str(site / "ledger.sqlite"), str(site / "keys"), None)
    assert ledger.verify() == []
