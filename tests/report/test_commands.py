"""`dptrain report` and `dptrain release` on a real ledger, and what bad use gets."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from benchmarks import _finished_run
from benchmarks._ledger_site import COHORT, PASSPHRASE, Site, make_site
from dptrain.cli import main as cli
from dptrain.commands.table import run
from dptrain.errors import ConfigError, GuaranteeBroken, LedgerRefused
from dptrain.ledger import Keys
from dptrain.report import cohort
from dptrain.report import facts as facts_module
from dptrain.report.judgement import PERSON_CHECKS
from dptrain.report.language import Language
from dptrain.report.release import refuse, standing
from tests.report.made import make_run, run_facts
from tests.report.text import html_text


@dataclass
class World:
    site: Site
    folder: Path
    words: list[str]


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Keys:
    return Keys.create(tmp_path_factory.mktemp("site") / "keys", PASSPHRASE)


@pytest.fixture
def world(tmp_path, keys, monkeypatch) -> World:
    """A ledger with one finished run, and that run's folder."""
    monkeypatch.setenv("DPTRAIN_PASSPHRASE", PASSPHRASE)
    site = make_site(str(tmp_path / "ledger.sqlite"), keys, keys.controller(PASSPHRASE))
    values = run_facts()
    grant = site.ledger.reserve(site.plan, COHORT, run=values["id"], fingerprint=site.fingerprint)
    grant.commit(site.plan.steps)
    grant.close("complete", site.plan.steps)
    values["cohort"]["name"] = COHORT
    values["privacy"]["steps_charged"] = site.plan.steps
    values["ledger"]["head"] = site.ledger.head().to_dict()
    values["ledger"]["site"] = values["ledger"]["head"]["site"]
    folder = make_run(tmp_path / "run", run=values)
    return World(site, folder, [f"ledger.url={site.place}", f"ledger.keys={keys.folder}"])


def test_report_of_a_run_has_the_history(world, capsys):
    assert run(["report", f"run={world.folder}", "lang=de", *world.words]) == 0
    assert "report.pdf" in capsys.readouterr().out
    facts = json.loads((world.folder / "restricted/report/facts.json").read_text())
    assert [row["this"] for row in facts["budget"]["history"]] == [True]
    page = html_text((world.folder / "restricted/report/report.html").read_text())
    assert Language("de")("budget.history") in page


def test_language_and_ledger_come_from_the_run_where_nobody_says_otherwise(world, monkeypatch, tmp_path, capsys):
    """`report=german` and the ledger of the training are written into the run; nobody has to repeat them."""
    for name in ("DPTRAIN_LEDGER", "DPTRAIN_KEYS"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    (world.folder / "config.yaml").write_text(
        f"report: {{lang: de}}\nledger: {{url: {world.site.place}, keys: {world.words[1].partition('=')[2]}}}\n"
    )
    values = json.loads((world.folder / "run.json").read_text())
    values["config_sha256"] = hashlib.sha256((world.folder / "config.yaml").read_bytes()).hexdigest()
    (world.folder / "run.json").write_text(json.dumps(values))
    assert run(["report", f"run={world.folder}"]) == 0
    facts = json.loads((world.folder / "restricted/report/facts.json").read_text())
    assert facts["budget"]["history"]
    assert 'lang="de"' in (world.folder / "restricted/report/report.html").read_text()
    assert run(["report", f"run={world.folder}", "lang=en"]) == 0
    assert 'lang="en"' in (world.folder / "restricted/report/report.html").read_text()
    (world.folder / "config.yaml").write_text("[torn: {")
    assert run(["report", f"run={world.folder}"]) == 0


def words_of(site, *more: str) -> list[str]:
    """The words of a release that says all that it must."""
    accepted = f"accepted={','.join(PERSON_CHECKS)}"
    return [
        f"run={site.run.path}",
        "recipient=Klinikum Nord",
        "purpose=Triage",
        "advice=none",
        accepted,
        *site.places,
        *more,
    ]


def test_release_records_publishes_and_still_verifies(site, monkeypatch, capsys):
    monkeypatch.setenv("DPTRAIN_PASSPHRASE", _finished_run.PASSPHRASE)
    finished = site("before")
    before = len(finished.ledger.entries())
    assert run(["release", *words_of(finished, "items=model,audit")]) == 0
    entries = finished.ledger.entries()
    assert len(entries) == before + 1
    assert entries[-1].facts["items"] == ["model", "audit"]
    assert entries[-1].countersignature is not None
    assert (entries[-1].facts["recipient"], entries[-1].facts["purpose"]) == ("Klinikum Nord", "Triage")
    facts = json.loads((finished.run.report / "facts.json").read_text())
    assert facts["utility"] is None
    public = "".join((finished.run.report / name).read_text() for name in ("report.html", "MODEL_CARD.md"))
    assert "Klinikum Nord" in public
    assert json.loads(finished.run.metadata.read_text())["privacy"]["run"] == finished.run.read().id
    capsys.readouterr()
    assert run(["report", "verify", f"run={finished.run.path}", *finished.places]) == 0
    said = capsys.readouterr().out
    assert not [line for line in said.splitlines() if line.startswith(("DIFFERS", "unknown"))], said
    for what in ("the head at the end of the training", "plan and charge", "the release decision"):
        assert f"ok       ledger: {what}" in said


def test_release_refuses(site, monkeypatch):
    monkeypatch.setenv("DPTRAIN_PASSPHRASE", _finished_run.PASSPHRASE)
    finished = site("before")
    for items in ("items=modell", "items=", "items=groups"):
        with pytest.raises(ConfigError):
            run(["release", *words_of(finished, items)])
    monkeypatch.setenv("DPTRAIN_PASSPHRASE", "wrong")
    with pytest.raises(LedgerRefused):
        run(["release", *words_of(finished, "items=model")])
    monkeypatch.delenv("DPTRAIN_PASSPHRASE")
    with pytest.raises(LedgerRefused, match="passphrase"):
        run(["release", *words_of(finished, "items=model")])
    assert finished.run.read().released is None
    assert not finished.run.report.exists()


def test_a_broken_guarantee_is_not_released_in_silence(site):
    finished = site("before")
    facts = facts_module.read(finished.run.path, ledger=standing(finished.ledger, finished.run.path))
    facts = replace(facts, warnings=("guarantee_broken",))
    with pytest.raises(GuaranteeBroken):
        refuse(facts, replace(_finished_run.DECISION, items=("model", "metrics")))
    refuse(facts, _finished_run.DECISION)


def test_release_of_an_unfinished_or_unknown_run(world):
    path = world.folder / "run.json"
    values = json.loads(path.read_text())
    words = [f"run={world.folder}", "items=model", "recipient=x", *world.words]
    path.write_text(json.dumps({**values, "status": "running"}))
    with pytest.raises(ConfigError, match="running"):
        run(["release", *words])
    path.write_text(json.dumps({**values, "id": "other"}))
    with pytest.raises(LedgerRefused):
        run(["release", *words])


@pytest.mark.parametrize("lang", ["en", "de"])
def test_report_of_a_cohort(world, tmp_path, lang, capsys):
    out = tmp_path / "out"
    assert run(["report", "ledger", f"cohort={COHORT}", f"lang={lang}", f"out={out}", *world.words]) == 0
    facts = json.loads((out / "facts.json").read_text())
    assert [row["runs"] for row in facts["forecast"]] == [1, 2, 3]
    status = world.site.ledger.status(COHORT)
    assert facts["budget"]["spent"] == status.spent_epsilon
    possible = [row["possible"] for row in facts["forecast"]]
    assert sum(possible) == world.site.capacity - 1
    page = html_text((out / "report.html").read_text())
    assert Language(lang)("cohort.title") in page
    assert (out / "report.pdf").read_bytes().startswith(b"%PDF")


def test_forecast_is_what_the_ledger_then_charges(world):
    said = cohort.forecast(world.site.ledger.status(COHORT))[0].spent
    grant = world.site.ledger.reserve(world.site.plan, COHORT, run="second", fingerprint=world.site.fingerprint)
    grant.commit(world.site.plan.steps)
    grant.close("complete", world.site.plan.steps)
    assert world.site.ledger.status(COHORT).spent_epsilon == pytest.approx(said, rel=1e-9)


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["report", "--help"], 0),
        (["report"], 2),
        (["report", "run=nowhere"], 2),
        (["report", "runn=x"], 2),
        (["report", "run=x", "lang=fr"], 2),
        (["report", "verify"], 2),
        (["report", "run="], 2),
        (["report", "verify", "run=nowhere", "nowhere"], 2),
        (["report", "ledger"], 2),
        (["report", "ledger", "cohort=x", "ledger.url=/nowhere/l.sqlite"], 3),
        (["release", "--help"], 0),
        (["release"], 2),
        (["release", "run=x", "items=model"], 2),
    ],
)
def test_bad_use(argv, code, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DPTRAIN_LEDGER", str(tmp_path / "none.sqlite"))
    assert cli(argv) == code
    assert "Traceback" not in capsys.readouterr().err


def test_import_is_light():
    import subprocess
    import sys

    code = "import sys, dptrain.report, dptrain.commands.table, dptrain.report.release; " + (
        "print([m for m in ('torch', 'matplotlib', 'typst', 'jinja2', 'numpy', 'sqlalchemy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
