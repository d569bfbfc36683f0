"""The section on reconstruction: shares and nulls in both languages, after a release only, and never a picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from dptrain.records.attack import Attack, AttackRow
from dptrain.records.run import Released
from dptrain.report import facts as facts_module
from dptrain.report.document import document
from dptrain.report.language import Language
from dptrain.report.sections.reconstruction import reconstruction
from tests.report.made import make_run

ROWS = (
    AttackRow(
        game="lineup", arm="epsilon", epsilon=8.0, candidates=100, trials=200, successes=8, success=0.04, low=0.017,
        high=0.077, chance=0.01, bound=0.21, returns="who it was", draws="secret", above=False,
    ),
    AttackRow(
        game="message", arm="clip only", coordinator="imprint", patients_in_message=64, trials=64, successes=54,
        success=0.84375, low=0.73, high=0.92, ssim=0.9634, guess=0.5123, returns="picture", prior="none",
    ),
    AttackRow(game="weights", arm="none", returns="features", success=1.0, low=0.85, high=1.0),
)  # fmt: skip


def run_with(folder: Path, rows: tuple[AttackRow, ...] = ROWS) -> Path:
    place = make_run(folder)
    (place / "restricted" / "attack").mkdir(mode=0o700)
    (place / "restricted" / "attack" / "attack.json").write_text(json.dumps(Attack(rows=rows).to_json()))
    (place / "restricted" / "attack" / "figure.png").write_bytes(b"\x89PNG sentinel of a patient")
    return place


def test_every_game_has_its_row_in_both_languages(tmp_path: Path) -> None:
    facts = facts_module.read(run_with(tmp_path / "run"))
    for lang, words in (("en", ("line-up of 100", "malicious coordinator", "no picture")), ("de", ("Wer war es?",))):
        section = reconstruction(facts, Language(lang))
        assert section["marked"]
        text = json.dumps(section, ensure_ascii=False)
        assert all(word in text for word in words)
        assert "reconstruction." not in text
    table = next(block for block in reconstruction(facts, Language("en"))["blocks"] if block["kind"] == "table")
    assert table["rows"][0] == ["line-up of 100: who was it?", "8.00", "4.0% (1.7% to 7.7%)", "21.0%", "", ""]
    assert table["rows"][1][1] == "clip only"
    assert table["rows"][1][4:] == ["0.96", "0.51"]


def test_without_an_attack_there_is_no_section(tmp_path: Path) -> None:
    facts = facts_module.read(make_run(tmp_path / "run"))
    assert facts.attack is None
    assert "attack" not in facts.to_json()
    identities = [section["id"] for section in document(facts, Language("en"))["sections"]]
    assert "reconstruction" not in identities


def test_a_passed_bound_is_said(tmp_path: Path) -> None:
    broken = (dataclasses.replace(ROWS[0], above=True),)
    facts = facts_module.read(run_with(tmp_path / "run", broken))
    assert "not what was planned" in json.dumps(reconstruction(facts, Language("en")))


def test_the_public_edition_has_it_after_a_release_of_the_audit_alone(tmp_path: Path) -> None:
    facts = dataclasses.replace(facts_module.read(run_with(tmp_path / "run")), released=None)
    assert facts_module.public(facts).attack is None
    for items, shown in ((("metrics",), False), (("audit",), True)):
        released = Released.of({"items": list(items)})
        edition = facts_module.public(dataclasses.replace(facts, released=released))
        assert (edition.attack is not None) == shown


def test_no_picture_gets_into_the_document(tmp_path: Path) -> None:
    facts = facts_module.read(run_with(tmp_path / "run"))
    section = reconstruction(facts, Language("en"))
    assert {block["kind"] for block in section["blocks"]} <= {"p", "table"}
    assert "sentinel" not in json.dumps(facts.to_json())
