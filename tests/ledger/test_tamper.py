"""Whatever is changed, removed, reordered, forged or rolled back is found, and the first bad entry is named."""

from __future__ import annotations

import http.server
import json
import random
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks._ledger_site import COHORT, PASSPHRASE, Site, approve, make_site, people
from dptrain.errors import LedgerRefused
from dptrain.ledger import Controller, Keys, Ledger, book, chain
from dptrain.ledger.approvals import Approval
from tests.ledger.conftest import Home


@pytest.fixture(scope="module")
def rich(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A ledger with every kind of row: several cohorts, linked and withdrawn patients, a snapshot."""
    place = tmp_path_factory.mktemp("rich") / "ledger.sqlite"
    site = make_site(str(place), home.keys, home.controller, runs=9)
    ledger, keys = site.ledger, site.keys
    twin = {keys.patient_key("elsewhere", "z"): people(keys, 3, 4).popitem()[1]}
    ledger.register("twin", unit="patient", issuer="elsewhere", public_size=9, patients=twin, owner="Cardiology")
    ledger.withdraw(keys.patient_key("clinic", "5"))
    ledger.declare_weights("cd" * 32, source="zoo", licence="MIT", controller=home.controller)
    grant = ledger.reserve(site.plan, COHORT, run="one", fingerprint=site.fingerprint)
    grant.commit(10)
    grant.close()
    with ledger.write() as (connection, state):
        ledger.write_snapshot(connection, state)
    ledger.reserve(site.plan, COHORT, run="two", fingerprint=site.fingerprint)
    assert ledger.verify() == []
    ledger.close()
    return site


@pytest.fixture
def copied(rich: Site, tmp_path: Path) -> Site:
    """A copy of the rich ledger to be spoiled."""
    place = tmp_path / "copy.sqlite"
    shutil.copyfile(rich.place, place)
    ledger = Ledger(place, rich.keys, witness=None, wait=1.0)
    return Site(str(place), rich.keys, rich.controller, ledger, rich.plan, rich.fingerprint, rich.capacity)


def flipped(value: Any, rng: random.Random) -> Any:
    """The value with one bit changed."""
    if value is None:
        return 1
    if isinstance(value, int):
        return value ^ (1 << rng.randrange(8))
    if isinstance(value, str):
        data = bytearray(value.encode())
        place = rng.randrange(len(data)) if data else 0
        data[place] ^= 1 << rng.randrange(5)
        return data.decode()
    data = bytearray(value)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def test_any_flipped_bit_in_any_table_is_found(copied: Site, rng: random.Random) -> None:
    raw = sqlite3.connect(copied.place, isolation_level=None)
    tables = [name for (name,) in raw.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    assert sorted(tables) == ["alembic_version", "entries", "head", "patients", "records", "snapshot"]
    tried = 0
    for table in tables:
        columns = [row[1] for row in raw.execute(f"PRAGMA table_info({table})")]
        rows = raw.execute(f"SELECT * FROM {table}").fetchall()
        assert rows, f"{table} must hold something to spoil"
        if table in ("patients", "records"):
            rows = rng.sample(rows, 6) + [row for row in rows if table == "patients" and row[2] is not None]
        for row in rows:
            for column, value in zip(columns, row):
                where = " AND ".join(f"{name} IS ?" for name in columns)
                try:
                    changed = raw.execute(
                        f"UPDATE {table} SET {column} = ? WHERE {where}", ((spoiled := flipped(value, rng)), *row)
                    )
                except sqlite3.IntegrityError:
                    continue  # another row has that key already
                assert changed.rowcount == 1
                faults = copied.ledger.verify()
                assert faults, f"{table}.{column} was changed and nobody saw it"
                if table == "entries":
                    assert faults[0].entry is not None
                    assert faults[0].entry <= row[0] + 1
                now = [spoiled if name == column else kept for name, kept in zip(columns, row)]
                raw.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (value, *now))
                tried += 1
    assert copied.ledger.verify() == []
    assert tried > 120


def test_any_flipped_bit_in_the_file_is_found_or_means_nothing(copied: Site, rng: random.Random) -> None:
    whole = Path(copied.place).read_bytes()
    truth = "\n".join(sqlite3.connect(copied.place).iterdump())
    found = 0
    for _ in range(120):
        data = bytearray(whole)
        data[rng.randrange(100, len(data))] ^= 1 << rng.randrange(8)
        Path(copied.place).write_bytes(data)
        ledger = Ledger(copied.place, copied.keys, witness=None, wait=1.0)
        faults = ledger.verify()
        ledger.close()
        found += bool(faults)
        if not faults:
            assert "\n".join(sqlite3.connect(copied.place).iterdump()) == truth
    assert found > 20


@pytest.mark.parametrize(
    ("damage", "entry"),
    [
        ("DELETE FROM entries WHERE seq = 4", 4),
        ("DELETE FROM entries WHERE seq = 1", 1),
        ("DELETE FROM entries WHERE seq = (SELECT max(seq) FROM entries)", 10),
        ("UPDATE entries SET seq = -seq WHERE seq IN (4, 5); UPDATE entries SET seq = 9 + seq WHERE seq < 0", 4),
        ("UPDATE entries SET seq = seq + 1 WHERE seq = (SELECT max(seq) FROM entries)", 10),
        ("UPDATE entries SET countersignature = NULL WHERE kind = 'budget'", 3),
        ("UPDATE entries SET countersignature = signature WHERE kind = 'budget'", 3),
        ("UPDATE entries SET kind = 'gift' WHERE seq = 6", 6),
        ("UPDATE entries SET body = CAST(body AS BLOB) WHERE seq = 6", 6),
        ("UPDATE entries SET version = 3 WHERE seq = 6", 6),
        ("DELETE FROM patients WHERE key = (SELECT min(key) FROM patients)", None),
        ("DELETE FROM records", None),
        ("DELETE FROM head", 11),
        ("INSERT INTO head SELECT 2, site, seq, hash FROM head", 11),
        ("UPDATE snapshot SET state = replace(state, '\"committed\":10', '\"committed\":11')", None),
    ],
)
def test_removed_reordered_or_altered(copied: Site, damage: str, entry: int | None) -> None:
    raw = sqlite3.connect(copied.place)
    raw.executescript(damage)
    raw.commit()
    raw.close()
    faults = copied.ledger.verify()
    assert faults
    assert faults[0].entry == entry


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM entries WHERE seq = 10",
        "UPDATE entries SET body = replace(body, '\"lease\":1', '\"lease\":2') WHERE seq = 10",
        "UPDATE entries SET body = CAST(body AS BLOB) WHERE seq = 10",
        "UPDATE entries SET signature = hash WHERE seq = 10",
        "UPDATE entries SET kind = 'gift' WHERE seq = 10",
        "UPDATE entries SET version = 1 WHERE seq = 10",
        "DELETE FROM head",
        "UPDATE head SET seq = seq + 1",
        "UPDATE head SET hash = randomblob(32)",
        "UPDATE head SET site = 'another'",
    ],
)
def test_nothing_is_granted_on_a_bad_head(copied: Site, damage: str) -> None:
    raw = sqlite3.connect(copied.place)
    raw.executescript(damage)
    raw.close()
    with pytest.raises(LedgerRefused, match="cannot be trusted"):
        Ledger.open(copied.place, copied.keys)
    with pytest.raises(LedgerRefused, match="cannot be trusted"):
        copied.ledger.reserve(copied.plan, COHORT, run="x", fingerprint=copied.fingerprint)


def test_a_spoiled_snapshot_is_read_past(copied: Site) -> None:
    """It is only a shortcut: the chain decides."""
    raw = sqlite3.connect(copied.place)
    raw.execute("UPDATE snapshot SET state = replace(state, '\"units\":', '\"units\":9')")
    raw.commit()
    raw.close()
    assert Ledger.open(copied.place, copied.keys).status(COHORT).spent_epsilon > 0


def test_a_grant_by_a_program_that_began_from_a_snapshot_is_sound(file_site: Site) -> None:
    """It holds classes 8 to 13 in the order of their names as text; the chain's reader in that of the entries."""
    ledger, keys = file_site.ledger, file_site.keys
    for number in range(6):
        ledger.register(
            f"other {number}", unit="patient", issuer="clinic", public_size=9, owner="Cardiology",
            patients=people(keys, number, number + 1),
        )  # fmt: skip
    for number in range(6):
        ledger.withdraw(keys.patient_key("clinic", str(number)))
    with ledger.write() as (connection, state):
        assert max(state.classes) > 9
        ledger.write_snapshot(connection, state)
    again = file_site.again()
    grant = again.reserve(file_site.plan, COHORT, run="one", fingerprint=file_site.fingerprint)
    assert len(grant.excluded) == 6
    assert again.verify() == []


def test_a_forged_budget_is_found_by_name(copied: Site) -> None:
    """The training account holds the site's key, but not the controller's."""
    forger = Controller(Ed25519PrivateKey.generate())
    with pytest.raises(LedgerRefused, match="not the controller's key"):
        copied.ledger.budget(
            COHORT, epsilon=50, delta=1e-3, forecast=copied.plan.mechanisms, reason="x", controller=forger
        )
    real = copied.ledger.entries()[2]
    assert real.kind == "budget"
    forged = {**real.facts, "epsilon": 50.0, "units": real.facts["units"] * 10, "changes": 3}
    with copied.ledger.write() as (connection, state):
        copied.ledger.append(connection, "budget", forged, None, approve(state, "budget", forged, forger))
    faults = copied.ledger.verify()
    assert faults[0].entry == 11
    assert "forged" in faults[0].what
    with pytest.raises(LedgerRefused, match="forged"):
        Ledger.open(copied.place, copied.keys)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda facts: {"units": facts["units"] * 10}, "more than"),
        (lambda facts: {"units": facts["units"] + facts["units"] // 1000}, "more than"),
        (lambda facts: {"epsilon": facts["epsilon"] * 0.99}, "more than"),
        (lambda facts: {"delta": facts["delta"] / 2}, "more than"),
        (lambda facts: {"order_index": facts["order_index"] + 1}, "order"),
        (lambda facts: {"order_index": -1}, "order"),
        (lambda facts: {"epsilon": 1e9}, "no open budget"),
    ],
)
def test_a_signed_budget_whose_units_its_terms_do_not_allow(
    copied: Site, change: Callable[[dict[str, Any]], dict[str, Any]], what: str
) -> None:
    """A program with wrong mathematics, or somebody with all the keys, signed more than (epsilon, delta) holds."""
    real = copied.ledger.entries()[2]
    with copied.ledger.write() as (connection, state):
        same = {**real.facts, "changes": 3}
        copied.ledger.append(connection, "budget", same, None, approve(state, "budget", same, copied.controller))
    assert copied.ledger.verify() == []
    forged = {**real.facts, **change(real.facts), "changes": 3}
    with copied.ledger.write() as (connection, state):
        copied.ledger.append(connection, "budget", forged, None, approve(state, "budget", forged, copied.controller))
    copied.ledger.lock(COHORT, reason="a later entry")
    faults = copied.again().verify()
    assert [fault.entry for fault in faults] == [12]
    assert "entry 12" in faults[0].what
    assert what in faults[0].what


def test_a_decision_is_applied_once(copied: Site) -> None:
    """It carries a nonce: what was signed once cannot be played again."""
    body = {"cohort": COHORT, "reason": "settled"}
    copied.ledger.unlock(COHORT, reason="settled", controller=copied.controller)
    approval = Approval.from_bytes(copied.ledger.entries()[-1].countersignature or b"")
    with copied.ledger.write() as (connection, _):
        copied.ledger.append(connection, "unlock", body, None, approval)
    faults = copied.ledger.verify()
    assert (faults[0].entry, "applied before, by entry 11" in faults[0].what) == (12, True)
    with pytest.raises(LedgerRefused, match="applied before"):
        Ledger.open(copied.place, copied.keys)


def test_a_signature_cannot_be_moved_to_another_budget(copied: Site) -> None:
    """The controller signs the body: more cannot be made of it."""
    real = copied.ledger.entries()[2]
    approval = Approval.from_bytes(real.countersignature or b"")
    with copied.ledger.write() as (connection, _):
        copied.ledger.append(connection, "budget", {**real.facts, "changes": 3}, None, approval)
    assert "altered" in copied.ledger.verify()[0].what


# -- rollback and forks --------------------------------------------------------------------------------------------


def test_a_restored_older_copy_shows_against_a_witness_only(file_site: Site, tmp_path: Path) -> None:
    older = tmp_path / "older.sqlite"
    shutil.copyfile(file_site.place, older)
    witness = tmp_path / "heads.jsonl"
    for run in ("one", "two"):
        grant = file_site.ledger.reserve(file_site.plan, COHORT, run=run, fingerprint=file_site.fingerprint)
        grant.commit(10)
        grant.close()
        with open(witness, "a") as file:
            file.write(json.dumps(file_site.ledger.head().to_dict()) + "\n")
    assert Ledger.open(file_site.place, file_site.keys, witness=str(witness)).verify() == []
    shutil.copyfile(older, file_site.place)
    with pytest.raises(LedgerRefused, match="older copy"):
        file_site.ledger.status(COHORT)  # this program saw more
    with pytest.raises(LedgerRefused, match="older copy"):
        file_site.ledger.status(COHORT)  # and does not forget it
    blind = Ledger.open(file_site.place, file_site.keys)
    assert blind.verify() == []
    assert not blind.status(COHORT).witness
    with pytest.raises(LedgerRefused, match="rolled back: it has 3 entries, but the witness has seen 9"):
        Ledger.open(file_site.place, file_site.keys, witness=str(witness))
    assert blind.verify(str(witness))[0].where == "witness"
    # the copy goes its own way until it is as long: a fork
    for number in range(6):
        grant = blind.reserve(file_site.plan, COHORT, run=f"f{number}", fingerprint=file_site.fingerprint)
        grant.close("interrupted", 0)
    with pytest.raises(LedgerRefused, match="fork"):
        Ledger.open(file_site.place, file_site.keys, witness=str(witness))
    watched = Ledger(file_site.place, file_site.keys, witness=str(witness), wait=1.0)
    for act in (
        lambda: watched.reserve(file_site.plan, COHORT, run="x", fingerprint=file_site.fingerprint),
        lambda: watched.resume("f0"),
        lambda: watched.admit(COHORT, purpose="evaluate", run="one", fingerprint=file_site.fingerprint),
    ):
        with pytest.raises(LedgerRefused, match="fork"):
            act()


def test_a_deleted_tail_with_a_mended_head_shows_against_a_witness(file_site: Site, tmp_path: Path) -> None:
    grant = file_site.ledger.reserve(file_site.plan, COHORT, run="one", fingerprint=file_site.fingerprint)
    grant.commit(10)
    head = file_site.ledger.head()
    witness = tmp_path / "head.json"
    witness.write_text(json.dumps([head.to_dict()]))
    raw = sqlite3.connect(file_site.place)
    raw.executescript(
        "DELETE FROM entries WHERE seq > 4; UPDATE head SET seq = 4, hash = (SELECT hash FROM entries WHERE seq = 4)"
    )
    raw.close()
    assert Ledger.open(file_site.place, file_site.keys).verify() == []
    with pytest.raises(LedgerRefused, match="rolled back"):
        Ledger.open(file_site.place, file_site.keys, witness=str(witness))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A witness on the web."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args: Any) -> None:
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()


def test_a_witness_on_the_web_and_bad_witnesses(file_site: Site, tmp_path: Path, web: str) -> None:
    head = file_site.ledger.head()
    good = tmp_path / "heads.jsonl"
    good.write_text(json.dumps(head.to_dict()))
    Ledger.open(file_site.place, file_site.keys, witness=f"{web}/heads.jsonl")
    later = {**head.to_dict(), "time": "2031-01-01T00:00:00Z"}  # an altered signature's message
    for content in ("", "nonsense", "[]", json.dumps(later), json.dumps({**head.to_dict(), "signature": "00"})):
        good.write_text(content)
        with pytest.raises(LedgerRefused, match="no valid signed head"):
            Ledger.open(file_site.place, file_site.keys, witness=str(good))
    for absent in (str(tmp_path / "absent"), f"{web}/absent", "http://127.0.0.1:9/none"):
        with pytest.raises(LedgerRefused, match="witness"):
            Ledger.open(file_site.place, file_site.keys, witness=absent)
    other = Keys.create(tmp_path / "other", PASSPHRASE)
    good.write_text(json.dumps(chain.sign_head(other, 3, bytes(32)).to_dict()))
    with pytest.raises(LedgerRefused, match="another site"):
        Ledger.open(file_site.place, file_site.keys, witness=str(good))


# -- time ----------------------------------------------------------------------------------------------------------


def test_a_clock_set_back_changes_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines with clocks years apart, one set back on the way: the order is the sequence number's."""
    times = iter(["2031-01-01T00:00:00Z", "1999-01-01T00:00:00Z"] * 20)
    monkeypatch.setattr(chain, "utc_now", lambda: next(times))
    machines = [site.again(), site.again()]
    for number in range(3):
        grant = machines[number % 2].reserve(site.plan, COHORT, run=f"r{number}", fingerprint=site.fingerprint)
        grant.commit(10)
        grant.close()
    with pytest.raises(LedgerRefused, match="budget"):
        machines[0].reserve(site.plan, COHORT, run="x", fingerprint=site.fingerprint)
    assert [run.run for run in machines[0].status(COHORT).runs] == ["r0", "r1", "r2"]
    assert machines[1].verify() == []


# -- unknown things fail closed ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "change", "what"),
    [
        ("gift", {}, "does not know"),
        ("register", {"adjacency": "replace_one", "version": 2}, "adjacency"),
        ("budget", {"adjacency": "replace_one"}, "adjacency"),
        ("budget", {"unit": "image"}, "unit"),
        ("budget", {"orders_version": 2}, "orders"),
        ("budget", {"kind": "renewable"}, "kind"),
        ("reserve", {"run": "x", "charge": {"step": None, "rest": None, "orders_version": 7}}, "orders"),
        ("reserve", {"run": "x", "plan": {"version": 9}}, "lacks something"),
        ("reserve", {"run": "x", "budget": None}, "no budget"),
        ("commit", {"run": "two", "attempt": 1, "through": 11}, "outside"),
        ("close", {"run": "two", "attempt": 1, "steps_run": 5, "committed": 0}, "unpaid"),
        ("close", {"run": "two", "attempt": 1, "status": "refunded"}, "status"),
        ("budget", {"refund": True}, "something unknown"),
        ("budget", {"units": "many"}, "something unknown"),
        ("budget", {"units": True}, "something unknown"),
        ("reserve", {"run": "x", "classes": []}, "something unknown"),
    ],
)
def test_what_the_program_does_not_know_it_does_not_grant(
    copied: Site, kind: str, change: dict[str, Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer or mistaken program wrote a well-signed entry that this one does not understand."""
    last = {entry.kind: entry for entry in copied.ledger.entries() if entry.kind != "register" or entry.seq == 2}
    like = last.get(kind)
    body = {**(like.facts if like and kind != "commit" else {}), **change}
    sealed = like.secrets if like else {}
    with copied.ledger.write() as (connection, state):
        approval = approve(state, kind, body, copied.controller) if kind == "budget" else None
        monkeypatch.setattr(book, "apply", lambda state, entry: setattr(state, "seq", entry.seq))
        copied.ledger.append(connection, kind, body, sealed, approval)
        monkeypatch.undo()
    with pytest.raises(LedgerRefused, match=what):
        Ledger.open(copied.place, copied.keys)
    assert copied.ledger.verify()[0].entry == 11


def test_infinity_is_no_entry(copied: Site) -> None:
    body = {**copied.ledger.entries()[2].facts, "epsilon": float("inf")}
    with pytest.raises(ValueError, match="JSON"), copied.ledger.write() as (connection, _):
        copied.ledger.append(connection, "budget", body)
    with pytest.raises(LedgerRefused, match="damaged"):
        chain.read_json('{"epsilon": Infinity}')
    assert copied.ledger.verify() == []
