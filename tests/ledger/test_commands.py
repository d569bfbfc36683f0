"""`dptrain ledger …` as people and programs use it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks._ledger_site import PASSPHRASE, people, small_plan
from dptrain.commands.acts.ledger import controller, steward
from dptrain.commands.acts.ledger.steward import ScanResult
from dptrain.commands.table import COMMANDS, run
from dptrain.errors import EXIT_DONE, EXIT_REFUSED_BY_LEDGER, EXIT_USAGE, DptrainError, LedgerRefused
from dptrain.ledger import Keys, open_ledger
from dptrain.ledger.chain import sign_head
from dptrain.plan import Mechanism


class Desk:
    """A person at a terminal."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.places = [f"ledger.url={folder / 'ledger.sqlite'}", f"ledger.keys={folder / 'keys'}"]
        self.capsys = capsys

    def __call__(self, line: str, *more: str, expect: int = EXIT_DONE) -> str:
        """Type a command; returns what is printed."""
        self.capsys.readouterr()
        said = ""
        try:
            code = run(["ledger", *line.split(), *more, *self.places])
        except DptrainError as error:
            code, said = error.exit_code, str(error)
        assert code == expect, said
        return said or self.capsys.readouterr().out

    def json(self, line: str, *more: str) -> Any:
        """The same for a program."""
        return json.loads(self(line, *more, "--json"))


def scan(words: Sequence[str], keys: Keys) -> ScanResult:
    """A data floor of 20 patients, or as many as data.n says."""
    count = int(dict(word.split("=") for word in words).get("data.n", 20))
    cautions = ("joined\npatients\n",)  # as a configuration file may hold it
    return ScanResult("chest", people(keys, 0, count), "patient", "clinic", cautions, "made up\n", "CC0")


def one_run(words: Sequence[str], size: int, epsilon: float, delta: float | None) -> tuple[Mechanism, ...]:
    """What a recipe would train."""
    assert list(words) in (["recipe=chest"], ["recipe=chest", "privacy.noise_multiplier=8"])
    assert size == 20
    return small_plan().mechanisms


def make_up_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registration and forecasts see the data floor above."""
    monkeypatch.setattr(steward, "scan", scan)
    monkeypatch.setattr(controller, "one_run", one_run)


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A desk with the passphrase at hand, and a founded ledger."""
    monkeypatch.setenv("DPTRAIN_PASSPHRASE", PASSPHRASE)
    make_up_data(monkeypatch)
    made = Desk(tmp_path, capsys)
    said = made("init")
    assert "Recovery code, shown this once" in said
    return made


def test_the_bar_is_the_share_that_adds_up_and_the_room_is_what_fits(desk: Desk) -> None:
    desk("register public_size=20 owner=Radiology recipe=chest")
    desk("budget cohort=chest epsilon=2 delta=0.001 recipe=chest", "reason=first study")
    ledger, _ = open_ledger(*[place.partition("=")[2] for place in desk.places])
    status = ledger.status("chest")
    assert (status.budgets[0].share, status.budgets[0].room) == (0, None)
    costly = small_plan(noise_multiplier=30.0)
    ledger.reserve(costly, "chest", run="first", fingerprint=status.fingerprint)
    budget = ledger.status("chest").budgets[0]
    assert budget.share == pytest.approx(sum(run.share or 0 for run in ledger.status("chest").runs))
    shown = desk("show cohort=chest")
    assert f"{budget.share:.1%} of its RDP" in shown
    assert f"room for {budget.room} more run" in shown
    assert budget.room is not None
    assert 0 < budget.room < 100
    for number in range(budget.room):
        ledger.reserve(costly, "chest", run=f"more-{number}", fingerprint=status.fingerprint)
    with pytest.raises(LedgerRefused):
        ledger.reserve(costly, "chest", run="too-many", fingerprint=status.fingerprint)


def test_the_way_of_a_cohort(desk: Desk, tmp_path: Path) -> None:
    assert "no cohort yet" in desk("show")
    said = desk("register public_size=20 owner=Radiology recipe=chest")
    assert "Nothing was charged" in said
    assert "recipe=chest reason=" in said
    assert "no budget" in desk("show")
    shown = desk("budget cohort=chest epsilon=2 delta=0.001 recipe=chest", "reason=first study", "advice=DPO: agreed")
    for word in ("unit: patient", "add/remove", "delta = 0.001", "RDP of order", "first study", "DPO: agreed"):
        assert word in shown
    ledger, _ = open_ledger(*[place.partition("=")[2] for place in desk.places])
    status = ledger.status("chest")
    grant = ledger.reserve(small_plan(), "chest", run="demo", fingerprint=status.fingerprint)
    grant.commit(10)
    grant.close()
    dead = ledger.reserve(small_plan(noise_multiplier=90.0), "chest", run="dead", fingerprint=status.fingerprint)
    dead.commit(1)
    table = desk("show cohort=chest")
    assert "demo" in table
    assert "10/10" in table
    assert "at close" in table
    assert "1 paid, 10 reserved" in table
    assert "% of its RDP, which adds up" in table
    assert "of its RDP" in table
    assert "1 of 10 steps stay charged" in desk("close run=dead", "reason=power cut")
    facts = desk.json("show cohort=chest")
    assert facts["accountant"].startswith("RDP of order")
    assert [run["steps"] for run in facts["runs"]] == [10, 1]
    assert desk.json("show")[0]["name"] == "chest"
    heads = tmp_path / "heads.jsonl"
    desk(f"heads to={heads}")
    assert "descends" in desk(f"verify ledger.witness={heads}")
    assert desk.json("heads")["entries"] == 10
    assert desk.json("verify") == {"sound": True, "witness": False, "faults": []}
    desk("lock cohort=chest", "reason=complaint")
    assert "LOCKED" in desk("show")
    assert "Permitted" in desk("permit cohort=chest purpose=audit run=demo", "reason=yearly review")
    desk("unlock cohort=chest", "reason=settled")
    assert "one of the registered cohorts" in desk("withdraw issuer=clinic patient=3")
    assert "withdrawn: 1" in desk("show cohort=chest --steward")
    assert "withdrawn" not in desk("show cohort=chest").lower()
    (tmp_path / "weights.bin").write_bytes(b"weights")
    assert "Declared public" in desk(f"weights file={tmp_path / 'weights.bin'} licence=MIT", "source=model zoo")
    assert "copy" in desk(f"backup to={tmp_path / 'copy.sqlite'}")
    assert "0001" in desk("migrate")
    rows = desk.json("history last=100")
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    assert {row["kind"] for row in desk.json("history run=demo")} == {"reserve", "commit", "close", "permit"}
    text = desk("history cohort=chest")
    assert "steps below 10 paid" in text
    assert "power cut" in text
    assert "controller" in text


def test_rotation_by_command(desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    desk("register public_size=20 owner=Radiology")
    desk("rotate what=site")
    assert "Register each cohort again" in desk("rotate what=secret")
    assert "version 2" in desk("register public_size=20 owner=Radiology")
    monkeypatch.setenv("DPTRAIN_NEW_PASSPHRASE", "another passphrase")
    desk("rotate what=controller")
    assert "does not open" in desk("rotate what=recovery", expect=EXIT_REFUSED_BY_LEDGER)
    monkeypatch.setenv("DPTRAIN_PASSPHRASE", "another passphrase")
    code = desk("rotate what=recovery").partition("once: ")[2].split()[0]
    (tmp_path / "keys" / "site.pem").unlink()
    assert "missing" in desk("show", expect=EXIT_REFUSED_BY_LEDGER)
    monkeypatch.setenv("DPTRAIN_RECOVERY", code)
    desk("rotate what=site recovery=yes")
    assert "Sound" in desk("verify")


def test_a_public_cohort_by_command(desk: Desk) -> None:
    assert "gate nothing" in desk("register public_size=20 owner=Bench public=yes cohort=open_data")
    assert desk.json("show cohort=open_data")["source"] == "made up"
    assert "public" in desk("show")


def test_a_forecast_in_words(desk: Desk) -> None:
    desk("register public_size=20 owner=Radiology")
    desk("budget cohort=chest epsilon=3 delta=0.001 expected_batch_size=10 steps=20 reason=pilot")
    shown = desk("budget cohort=chest epsilon=4 reason=more")  # a raise needs no forecast
    assert "epsilon = 4" in shown
    shown = desk(
        "budget cohort=chest epsilon=9 delta=0.001 kind=planned expected_batch_size=10 steps=20 runs=2 reason=two"
    )
    assert "2 of 2 declared mechanisms" in shown
    assert "2 × training: rate 0.5, 20 steps, noise_multiplier=" in shown
    desk("budget cohort=chest epsilon=9 delta=0.001 kind=planned recipe=chest runs=2 reason=three")
    first, second = desk.json("show cohort=chest")["budgets"][1:]
    assert first["spent_epsilon"] == second["spent_epsilon"] == 0
    assert second["planned"][0]["noise_multiplier"] < 8  # as much as two runs at epsilon = 9 need, not what one needs


@pytest.mark.parametrize(
    ("line", "code", "what"),
    [
        ("shw", EXIT_USAGE, "show"),
        ("show cohrt=x", EXIT_USAGE, "cohort"),
        ("show --jsn", EXIT_USAGE, "--json"),
        ("show cohort=nowhere", EXIT_REFUSED_BY_LEDGER, "No cohort"),
        ("register owner=x", EXIT_USAGE, "public_size"),
        ("register public_size=many owner=x", EXIT_USAGE, "public_size"),
        ("register public_size=0 owner=x", EXIT_USAGE, "at least 1"),
        ("budget cohort=nowhere epsilon=1 reason=x", EXIT_REFUSED_BY_LEDGER, "No cohort"),
        ("weights source=x licence=y", EXIT_USAGE, "file="),
        ("weights file=/nowhere source=x licence=y", EXIT_USAGE, "cannot be read"),
        ("rotate what=everything", EXIT_USAGE, "it must be site or controller"),
        ("permit cohort=x purpose=sell reason=y", EXIT_USAGE, "evaluate or audit"),
        ("withdraw issuer= patient=3", EXIT_USAGE, "issuer"),
        ("close run=nothing reason=x", EXIT_REFUSED_BY_LEDGER, "no run"),
        ("init", EXIT_REFUSED_BY_LEDGER, "already"),
        ("keygen", EXIT_USAGE, "never overwritten"),
        ("heads to=/nowhere/heads", EXIT_USAGE, "cannot be written"),
    ],
)
def test_bad_use(desk: Desk, line: str, code: int, what: str) -> None:
    assert what in desk(line, expect=code)


def test_a_withdrawal_for_nobody_is_no_quiet_success(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typo in the issuer or in the id would leave a patient in every draw while the steward believes otherwise."""
    desk("register public_size=20 owner=Radiology")
    before = desk.json("heads")["hash"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("secret-3\n"))
    said = desk("withdraw", "issuer=Clinic Z", expect=EXIT_REFUSED_BY_LEDGER)
    assert "'Clinic Z'" in said
    assert "clinic" in said.partition("\n")[2]
    assert "new_issuer=yes" in said
    assert "secret-3" not in said
    assert desk.json("heads")["hash"] == before
    said = desk("withdraw patient=17777", "issuer= Clinic ")  # written otherwise, the same issuer
    assert "Recorded" in said
    assert "no registered cohort" in said
    assert "17777" not in said
    assert desk.json("withdraw issuer=clinic patient=3") == {"withdrawn": True, "in_a_cohort": True}
    assert desk.json("withdraw issuer=clinic patient=3") == {"withdrawn": True, "in_a_cohort": True}  # twice is once
    beforehand = desk.json("withdraw issuer=elsewhere patient=3 new_issuer=yes")
    assert beforehand == {"withdrawn": True, "in_a_cohort": False}
    assert desk.json("show cohort=chest --steward")["steward"]["withdrawn"] == 1


def test_small_typos_are_no_quiet_answers(desk: Desk) -> None:
    desk("register public_size=20 owner=Radiology")
    desk("budget cohort=chest epsilon=2 delta=0.001 recipe=chest", "reason=first study")
    ledger, _ = open_ledger(*[place.partition("=")[2] for place in desk.places])
    ledger.reserve(small_plan(), "chest", run="demo", fingerprint=ledger.status("chest").fingerprint)
    before = desk.json("heads")["hash"]
    for line, code, what in (
        ("history cohort=chst", EXIT_REFUSED_BY_LEDGER, "chest"),
        ("history run=dmo", EXIT_REFUSED_BY_LEDGER, "demo"),
        ("history last=-5", EXIT_USAGE, "1 or more"),
        ("history last=0", EXIT_USAGE, "1 or more"),
        ("permit cohort=chest purpose=audit run=dmo reason=x", EXIT_REFUSED_BY_LEDGER, "demo"),
        ("budget cohort=chest epsilon=1 kind=opne reason=x", EXIT_USAGE, "open"),
    ):
        said = desk(line, expect=code)
        assert what in said, line
        assert "forecast" not in said
    assert desk.json("heads")["hash"] == before
    assert "run 'demo'" in desk("permit cohort=chest purpose=audit run=demo reason=x")
    assert "any run" in desk("permit cohort=chest purpose=audit reason=x")
    assert "'abroad'" in desk("permit cohort=chest purpose=evaluate run=abroad other_ledger=yes reason=x")
    assert len(desk.json("history last=1")) == 1
    assert [row["kind"] for row in desk.json("history run=abroad")] == ["permit"]


@pytest.mark.parametrize("words", ["recipe=chest", "expected_batch_size=20 steps=10", "recipe=chest runs=3"])
def test_an_open_budgets_forecast_is_of_runs_that_fit(desk: Desk, words: str) -> None:
    """The noise that `show` lists for a forecast must be one with which that use is granted, and no more."""
    desk("register public_size=20 owner=Radiology")
    desk(f"budget cohort=chest epsilon=3 delta=0.001 minimum_charge=0 {words} reason=pilot")
    (budget,) = desk.json("show cohort=chest")["budgets"]
    noise = {mechanism["noise_multiplier"] for mechanism in budget["planned"]}
    assert len(noise) == 1
    ledger, _ = open_ledger(*[place.partition("=")[2] for place in desk.places])
    fingerprint = ledger.status("chest").fingerprint
    for number in range(len(budget["planned"])):
        plan = small_plan(noise_multiplier=noise.copy().pop())
        ledger.reserve(plan, "chest", run=f"run{number}", fingerprint=fingerprint)
    assert ledger.status("chest").spent_epsilon == pytest.approx(3, rel=1e-3)


def test_a_forecast_with_a_noise_of_its_own_keeps_it(desk: Desk) -> None:
    desk("register public_size=20 owner=Radiology")
    desk("budget cohort=chest epsilon=3 delta=0.001 recipe=chest privacy.noise_multiplier=8 reason=pilot")
    (budget,) = desk.json("show cohort=chest")["budgets"]
    assert [mechanism["noise_multiplier"] for mechanism in budget["planned"]] == [8.0]


def test_bad_budgets_by_command(desk: Desk) -> None:
    desk("register public_size=20 owner=Radiology")
    for words, code, what in (
        ("epsilon=-1 recipe=chest", EXIT_USAGE, "above 0"),
        ("epsilon=inf recipe=chest", EXIT_USAGE, "Usual values lie between 0.5"),
        ("epsilon=nan recipe=chest", EXIT_USAGE, "above 0"),
        ("epsilon=1 delta=0.2 recipe=chest", EXIT_REFUSED_BY_LEDGER, "too large"),
        ("epsilon=1", EXIT_USAGE, "forecast"),
        ("epsilon=1 steps=3", EXIT_USAGE, "forecast"),
        ("epsilon=1 steps=3 expected_batch_size=21", EXIT_USAGE, "not a probability"),
        ("epsilon=1 steps=3 expected_batch_size=2 recipe=chest", EXIT_USAGE, "either"),
        ("epsilon=1 recipe=chest runs=0", EXIT_USAGE, "at least 1"),
        ("epsilon=1 kind=yearly recipe=chest", EXIT_USAGE, "open or planned"),
    ):
        assert what in desk(f"budget cohort=chest reason=x {words}", expect=code), words


def test_an_unsound_ledger_says_where(desk: Desk, tmp_path: Path) -> None:
    import sqlite3

    desk("register public_size=20 owner=Radiology")
    raw = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
    raw.execute("UPDATE entries SET body = replace(body, 'Radiology', 'Radiologie')")
    raw.close()
    said = desk("verify", expect=EXIT_REFUSED_BY_LEDGER)
    assert "first bad entry: 2" in said
    with pytest.raises(LedgerRefused, match="entry 2"):
        run(["ledger", "show", *desk.places])


def test_a_witness_that_says_nothing_is_no_reason_to_restore(desk: Desk, tmp_path: Path) -> None:
    """A mistyped path of the witness must not lead the steward to roll a sound ledger back."""
    desk("register public_size=20 owner=Radiology")
    (tmp_path / "empty").write_text("")
    other = sign_head(Keys.create(tmp_path / "other", PASSPHRASE), 3, bytes(32))
    (tmp_path / "other.jsonl").write_text(json.dumps(other.to_dict()))
    for place in ("absent", "empty", "other.jsonl", "."):
        said = desk(f"verify ledger.witness={tmp_path / place}", expect=EXIT_REFUSED_BY_LEDGER)
        assert "Sound: 2 entries" in said
        assert "not checked" in said
        assert "NOT SOUND" not in said
        assert "estore the newest" not in said
    told = json.loads(desk(f"verify ledger.witness={tmp_path / 'absent'} --json", expect=EXIT_REFUSED_BY_LEDGER))
    assert (told["sound"], told["witness"], len(told["faults"])) == (True, False, 1)
    _, keys = open_ledger(*[place.partition("=")[2] for place in desk.places])
    later = sign_head(keys, 9, bytes(32)).to_dict()  # a true head of this site, of entries that are gone
    (tmp_path / "later").write_text(json.dumps(later))
    said = desk(f"verify ledger.witness={tmp_path / 'later'}", expect=EXIT_REFUSED_BY_LEDGER)
    assert "NOT SOUND (in: witness)" in said
    assert "rolled back" in said


def test_without_a_passphrase_or_a_terminal(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DPTRAIN_PASSPHRASE")
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    desk("register public_size=20 owner=Radiology")
    desk("lock cohort=chest reason=x")
    assert "passphrase is needed" in desk("unlock cohort=chest reason=x", expect=EXIT_REFUSED_BY_LEDGER)


def test_help_for_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ledger"]) == EXIT_USAGE
    assert run(["ledger", "--help"]) == EXIT_DONE
    text = capsys.readouterr().out
    for name in [name for name in COMMANDS if name.startswith("ledger ")]:
        assert name.removeprefix("ledger ") in text
        assert run([*name.split(), "--help"]) == EXIT_DONE
        said = capsys.readouterr().out
        assert "examples:" in said
        assert f"dptrain {name}" in said
        assert all(len(line) <= 120 for line in said.splitlines())


def test_show_imports_nothing_heavy_and_starts_fast(desk: Desk, tmp_path: Path) -> None:
    desk("register public_size=20 owner=Radiology")
    code = (
        "import sys\n"
        "from dptrain.commands.table import run\n"
        f"run(['ledger', 'show', {desk.places[0]!r}, {desk.places[1]!r}])\n"
        "heavy = {'torch', 'monai', 'opacus', 'numpy', 'scipy', 'dp_accounting', 'alembic', 'hydra', 'matplotlib'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    begun = time.process_time(), os.times().children_user
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stderr
    assert "Radiology" in done.stdout
    assert os.times().children_user - begun[1] < 1.5  # seconds of work, whatever else the machine does


def test_a_budget_that_two_sign_on_machines_of_their_own(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """keygen, approver, rule; then the budget is refused here, and signed there."""
    desk("register public_size=20 owner=Radiology recipe=chest")
    key, request = tmp_path / "dpo.json", tmp_path / "budget.json"
    monkeypatch.setenv("DPTRAIN_PASSPHRASE", "a passphrase of the dpo")
    public = desk(f"keygen approver={key}").split()[-1]
    monkeypatch.setenv("DPTRAIN_PASSPHRASE", PASSPHRASE)
    desk(f"approver role=dpo public={public}", "name=D. Muster", "reason=appointed")
    desk("rule kind=budget signatures=2 roles=dpo:1", "reason=four eyes")
    budget = ("budget cohort=chest epsilon=2 delta=0.001 recipe=chest", "reason=first study")
    assert "needs 2 signatures" in desk(*budget, expect=EXIT_REFUSED_BY_LEDGER)
    assert "Nothing was recorded" in desk(*budget, f"to={request}")
    assert "first study" in desk(f"sign file={request}")
    assert "needs 2 signatures" in desk(f"apply file={request}", expect=EXIT_REFUSED_BY_LEDGER)
    assert "already" in desk(f"sign file={request}", expect=EXIT_REFUSED_BY_LEDGER)
    monkeypatch.setenv("DPTRAIN_PASSPHRASE", "a passphrase of the dpo")
    assert "holds 2 signatures" in desk(f"sign file={request} key={key}")
    assert "D. Muster (dpo)" in desk(f"apply file={request}")
    assert "applied before" in desk(f"apply file={request}", expect=EXIT_REFUSED_BY_LEDGER)
    assert "Muster" in desk("history")
    inventory = desk("keys")
    for word in ("D. Muster", "recovery code", "2 to sign", public[-16:]):
        assert word in inventory
    desk("verify")


def test_the_controller_is_named_and_a_permission_withdrawn(desk: Desk) -> None:
    desk("register public_size=20 owner=Radiology recipe=chest")
    assert "Nobody has named" in desk("controller")
    desk("controller", "name=Klinikum Nord", "represented_by=Dr. A. Beispiel")
    assert "Klinikum Nord, represented by Dr. A. Beispiel" in desk("controller")
    said = desk("permit cohort=chest purpose=audit reason=yearly last_day=2999-01-01")
    number = said.partition("entry ")[2].partition(")")[0]
    assert "is withdrawn" in desk(f"revoke permit={number} reason=off")
    assert "no permission" in desk(f"revoke permit={number} reason=off", expect=EXIT_REFUSED_BY_LEDGER)
