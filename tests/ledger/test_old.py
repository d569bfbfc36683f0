"""A ledger that an earlier program wrote is read, verified and told as that program did; and it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from benchmarks._ledger_site import COHORT, small_plan
from dptrain.ledger import Keys, Ledger, chain, kinds, store
from dptrain.plan import Plan

OLD = Path(__file__).parent / "ledger_42972b7.json"
TABLES = (store.entries, store.head, store.snapshot, store.patients, store.records)


def cell(value: Any) -> Any:
    """A column as it was."""
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value


@pytest.fixture
def old() -> dict[str, Any]:
    """Every table and key of the ledger, its state, and its entries as told, by the program of commit 42972b7."""
    values: dict[str, Any] = json.loads(OLD.read_text())
    return values


@pytest.fixture
def keys(old: dict[str, Any], tmp_path: Path) -> Keys:
    """Its keys."""
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    for name, text in old["keys"].items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    return Keys.load(folder)


@pytest.fixture(params=["with its snapshot", "from its entries"])
def ledger(old: dict[str, Any], keys: Keys, place: str, request: pytest.FixtureRequest) -> Ledger:
    """The same rows, on both stores."""
    book = Ledger(place, keys, witness=None, wait=5.0)
    with book.store.bare() as connection:
        store.migrate(connection)
        for table in TABLES:
            rows = [dict(zip(table.columns.keys(), map(cell, row), strict=True)) for row in old["tables"][table.name]]
            if table is not store.snapshot or request.param == "with its snapshot":
                connection.execute(sa.insert(table), rows)
    return book


def only(now: Any, then: Any) -> Any:
    """What is there now, of what was known then."""
    if isinstance(then, dict):
        return {name: only(now[name], value) for name, value in then.items()}
    if isinstance(then, list) and len(then) == len(now):
        return [only(*pair) for pair in zip(now, then, strict=True)]
    return now


def test_it_is_read_and_verified_bit_for_bit(old: dict[str, Any], ledger: Ledger) -> None:
    assert ledger.verify() == []
    with ledger.view() as (_, state):
        now, then = json.loads(state.dump()), json.loads(old["state"])
    assert list(now["approvers"]) == ["controller"]
    assert now["approvers"]["controller"]["public"] == now["controller"]
    now = {**{name: now[name] for name in then}, "state_version": then["state_version"]}
    for table in ("budgets", "permits", "runs", "admissions", "classes", "weights"):
        assert set(now[table]) == set(then[table])
    assert {run["facts"] for run in now["runs"].values()} == {None}
    assert only(now, then) == then


def test_no_earlier_program_may_go_on_with_it(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would need one signature where a rule asks for two."""
    ledger.lock(COHORT, reason="a newer entry")
    monkeypatch.setattr(chain, "ENTRY_VERSION", 1)
    with ledger.write() as (connection, _):
        ledger.append(connection, "lock", {"cohort": COHORT, "reason": "an older one"})
    assert "earlier program" in ledger.verify()[0].what


def test_every_kind_is_in_it_and_told_as_before(old: dict[str, Any], ledger: Ledger) -> None:
    entries = ledger.entries()
    assert {entry.kind for entry in entries} == {*old["kinds"]}
    plans: dict[str | None, Plan] = {}
    lines = []
    for entry in entries:
        facts = entry.facts
        if entry.kind == "reserve":
            plans[facts["run"]] = Plan.from_dict(facts["plan"])
        lines.append(kinds.read(entry).tell(plans.get(facts.get("run"))))
    assert lines == old["told"]


def test_what_is_read_is_what_would_be_written(ledger: Ledger) -> None:
    """A typed body drops and changes nothing (fields that older entries lack come out as None)."""
    for entry in ledger.entries():
        body = kinds.read(entry)
        facts = {name: value for name, value in body.shown().items() if name in entry.facts or value}
        assert json.loads(json.dumps(facts)) == entry.facts
        assert json.loads(json.dumps(body.hidden())) == entry.secrets


def test_it_goes_on(old: dict[str, Any], ledger: Ledger) -> None:
    grant = ledger.resume("open still")
    grant.commit(10)
    grant.close()
    fingerprint = ledger.status(COHORT).fingerprint
    plan = small_plan(public_size=21, expected_batch_size=21)
    ledger.reserve(plan, COHORT, run="new", fingerprint=fingerprint).close("interrupted", 0)
    ledger.lock(COHORT, reason="over")
    controller = ledger.keys.controller(old["passphrase"])
    ledger.unlock(COHORT, reason="not yet", controller=controller)
    assert ledger.verify() == []


def test_the_table_of_kinds_names_each_once() -> None:
    for name, body in kinds.KINDS.items():
        assert name == body.KIND
        assert body.apply is not kinds.Body.apply  # type: ignore[attr-defined]
        assert body.tell is not kinds.Body.tell  # type: ignore[attr-defined]
        assert body.__doc__
