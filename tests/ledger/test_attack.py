"""Mistakes and tricks against the ledger, one by one; each was tried and got through before it was mended."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks._ledger_site import COHORT, Site, people, small_plan
from dptrain.commands.table import run
from dptrain.errors import EXIT_REFUSED_BY_LEDGER, EXIT_USAGE, ConfigError, LedgerRefused
from dptrain.ledger import Keys, Ledger, PublicDeclaration, charges, charging
from dptrain.ledger.charges import Charge
from dptrain.ledger.facts import ReleaseTerms
from tests.ledger.conftest import Home
from tests.ledger.test_commands import Desk, desk, make_up_data

__all__ = ["desk"]


def in_a_child(act: Callable[[], object]) -> str:
    """What a forked child is told when it does something."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            act()
            os.write(writer, b"done")
        except LedgerRefused as error:
            os.write(writer, error.message.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


# -- one charge, two releases ------------------------------------------------------------------------------------


def test_a_forked_copy_of_a_grant_pays_for_nothing(file_site: Site) -> None:
    """Two processes with one grant would run the same steps with other noise, for one charge."""
    grant = file_site.ledger.reserve(file_site.plan, COHORT, run="one", fingerprint=file_site.fingerprint)
    grant.commit(5)
    pay = [lambda: grant.commit(5), lambda: grant.commit(10), grant.begin_calibration]
    for act in (*pay, lambda: grant.require(0), grant.close):
        assert "another process" in in_a_child(act)  # type: ignore[arg-type]
    assert in_a_child(grant.require) == "done"  # to read is one thing, to train another
    grant.commit(10)
    grant.close()


def test_a_step_is_handed_out_once(file_site: Site) -> None:
    """A second training with the grant of the first would release the same steps again."""
    grant = file_site.ledger.reserve(file_site.plan, COHORT, run="one", fingerprint=file_site.fingerprint)
    grant.commit(10)
    for step in (0, 1, 5):  # a resumed run skips what was lost
        grant.require(step)
    for step in (0, 1, 5):
        with pytest.raises(LedgerRefused, match="ran already"):
            grant.require(step)
    grant.require(6)
    resumed = file_site.ledger.resume("one")
    with pytest.raises(LedgerRefused, match="ran already"):
        resumed.require(8)  # paid, and perhaps run by the process that died


def test_parts_of_steps_are_no_steps(file_site: Site) -> None:
    grant = file_site.ledger.reserve(file_site.plan, COHORT, run="one", fingerprint=file_site.fingerprint)
    for through in (3.5, math.nan, "4", None):
        with pytest.raises(ConfigError, match="whole number"):
            grant.commit(through)  # type: ignore[arg-type]
    grant.commit(3)
    for step in (2.5, math.nan, -1):
        with pytest.raises((ConfigError, LedgerRefused)):
            grant.require(step)  # type: ignore[arg-type]
    with pytest.raises(LedgerRefused, match="not paid"):
        grant.require(3)
    for ran in (2.5, math.nan, -1, 4):
        with pytest.raises((ConfigError, LedgerRefused)):
            grant.close("complete", ran)  # type: ignore[arg-type]
    for lease in (math.nan, 2.5, 0, -3):
        with pytest.raises(ConfigError, match="lease"):
            file_site.ledger.reserve(
                file_site.plan,
                COHORT,
                run="two",
                fingerprint=file_site.fingerprint,
                lease=lease,  # type: ignore[arg-type]
            )


def test_a_permission_is_used_up_even_if_the_first_use_died(file_site: Site) -> None:
    """A use that dies may be begun again; once one has ended, the permission is gone."""
    site = file_site
    site.ledger.lock(COHORT, reason="complaint")
    site.ledger.permit("audit", COHORT, site.controller, reason="yearly", run="one")
    facts: dict[str, Any] = {"purpose": "audit", "run": "one", "fingerprint": site.fingerprint}
    site.ledger.admit(COHORT, **facts)  # dies
    site.ledger.admit(COHORT, **facts).close()
    with pytest.raises(LedgerRefused, match="locked"):
        site.ledger.admit(COHORT, **facts)
    site.ledger.permit("audit", COHORT, site.controller, reason="once more", run="one")
    site.ledger.admit(COHORT, **facts)  # dies
    site.ledger.admit(COHORT, **facts)
    assert site.ledger.verify() == []


def test_data_that_were_public_once_are_so_no_more(file_site: Site) -> None:
    """A cohort declared public by mistake, and corrected in its next version: the first version's data stay shut."""
    site, patients = file_site, people(file_site.keys, 100, 120)
    facts: dict[str, Any] = {"unit": "patient", "issuer": "clinic", "public_size": 20, "owner": "R"}
    public = PublicDeclaration("a mistake", "CC0")
    first = site.ledger.register("open", **facts, patients=patients, public=public, controller=site.controller)
    more = {**patients, **people(site.keys, 120, 121)}
    site.ledger.register("open", **facts, patients=more)
    free = small_plan(noise_multiplier=0.0, max_grad_norm=math.inf)
    with pytest.raises(LedgerRefused, match="without noise"):
        site.ledger.reserve(free, "open", run="free", fingerprint=first.fingerprint)
    with pytest.raises(LedgerRefused, match="no budget"):
        site.ledger.reserve(site.plan, "open", run="free", fingerprint=first.fingerprint)
    with pytest.raises(LedgerRefused, match="no budget"):
        site.ledger.admit("open", purpose="evaluate", run="x", fingerprint=first.fingerprint)


def _forged_reserve(site: Site, run: str, **changes: Any) -> Ledger:
    """What the training account can write with the site's key: a well-signed reserve that nobody granted."""
    like = next(entry for entry in site.ledger.entries() if entry.kind == "reserve")
    account = site.again()
    with account.write() as (connection, state):
        account.append(connection, "reserve", {**like.facts, "run": run, **changes}, like.secrets)
        account.write_snapshot(connection, state)
    return account


def test_rules_are_checked_when_entries_are_read(file_site: Site) -> None:
    """A well-signed reserve beyond the budget: nobody opens, runs or commits on such a ledger."""
    site = file_site
    grant = site.ledger.reserve(site.plan, COHORT, run="one", fingerprint=site.fingerprint)
    grant.commit(2)
    for number in range(site.capacity):
        _forged_reserve(site, f"forged {number}")
    acts: list[Callable[[], object]] = [
        lambda: grant.commit(4),
        lambda: grant.close("interrupted", 2),
        lambda: site.ledger.status(COHORT),
        lambda: site.again().resume("one"),
    ]
    for act in acts:
        with pytest.raises(LedgerRefused, match="grants more than the budget"):
            act()
    with pytest.raises(LedgerRefused, match="grants more than the budget"):
        site.again()
    assert "grants more" in site.again_blind().verify()[0].what


def test_an_understated_charge_is_found(file_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program with wrong mathematics, or somebody with the site's key, wrote a grant that costs too little."""
    site = file_site
    true = charges.charge_of(site.plan.mechanisms)
    small = Charge(charges.pack([number // 1000 for number in charges.unpack(true.step or "")]), None)
    with monkeypatch.context() as wrong:
        wrong.setattr(charging, "charge_of", lambda _: small)
        with pytest.raises(LedgerRefused, match="less than its plan costs"):
            site.ledger.reserve(site.plan, COHORT, run="cheap", fingerprint=site.fingerprint)
    site.ledger.reserve(site.plan, COHORT, run="one", fingerprint=site.fingerprint)
    _forged_reserve(site, "cheap", charge=small.to_dict())
    with pytest.raises(LedgerRefused, match="less than its plan costs"):
        site.again().reserve(site.plan, COHORT, run="two", fingerprint=site.fingerprint)
    faults = site.again().verify()
    assert [fault.entry for fault in faults] == [5]
    assert "costs" in faults[0].what


# -- words -------------------------------------------------------------------------------------------------------

HOSTILE = ("a\nb", "a\x1b[2J", "\udcff", "a\u202eb", "x" * 5000, " ", "a\x00b", "a\u2028b")


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_text_that_would_forge_or_break_what_people_read(file_site: Site, text: str) -> None:
    """Line breaks forge lines of `show`; escapes rule the terminal; lone surrogates stop every later `show`."""
    site, store = file_site, file_site.ledger
    before = store.head().hash
    facts: dict[str, Any] = {
        "unit": "patient", "issuer": "clinic", "public_size": 20, "owner": "R", "patients": people(site.keys, 0, 3),
    }  # fmt: skip
    budget: dict[str, Any] = {"epsilon": 1.0, "forecast": site.plan.mechanisms, "controller": site.controller}
    acts: list[Callable[[], object]] = [
        lambda: store.register(text, **facts),
        lambda: store.register("new", **{**facts, "owner": text}),
        lambda: store.register("new", **{**facts, "unit": text}),
        lambda: store.register("new", **{**facts, "issuer": text}),
        lambda: store.register("new", **facts, cautions=[text]),
        lambda: store.register("new", **facts, public=PublicDeclaration(text, "x"), controller=site.controller),
        lambda: store.budget(COHORT, **budget, reason=text),
        lambda: store.budget(COHORT, **budget, reason="x", advice=text),
        lambda: store.declare_weights("0" * 64, source=text, licence="x", controller=site.controller),
        lambda: store.permit("audit", COHORT, site.controller, reason=text),
        lambda: store.permit("audit", COHORT, site.controller, reason="x", run=text),
        lambda: store.lock(COHORT, reason=text),
        lambda: store.unlock(COHORT, reason=text, controller=site.controller),
        lambda: store.reserve(site.plan, COHORT, run=text, fingerprint=site.fingerprint),
        lambda: store.admit(COHORT, purpose="audit", run=text, fingerprint=site.fingerprint),
    ]
    for number, act in enumerate(acts):
        with pytest.raises(ConfigError):
            print("request", number, act())
    assert store.head().hash == before
    grant = store.reserve(site.plan, COHORT, run="one", fingerprint=site.fingerprint)
    grant.commit(10)
    with pytest.raises(ConfigError):
        grant.close(note=text)
    grant.close()
    plain: dict[str, Any] = {"items": ("model",), "recipient": "x"}
    for words in ({"items": (text,)}, {"recipient": text}, {"purpose": text}, {"advice": text},
                  {"without_audit": text}, {"without_advice": text}, {"accepted": (text,)},
                  {"hashes": {text: "ab" * 32}}, {"hashes": {"model": text}}, {"assessment": text},
                  {"accept_exposed": 1.5}, {"accept_exposed": math.nan}, {"items": ()}):  # fmt: skip
        with pytest.raises(ConfigError):
            store.record_release("one", ReleaseTerms(**{**plain, **words}), site.controller)


def test_ids_of_any_script_and_none_that_is_no_text(home: Home) -> None:
    keys = home.keys
    ids = ["患者-17", "Ø'Brien; DROP TABLE", "١٧", "𝒳", "x" * 100_000, "\u202ea", "a\tb"]
    assert len({keys.patient_key("клиника", text) for text in ids}) == len(ids)
    for issuer, patient in (("\udcff", "1"), ("clinic", "\udcff")):
        with pytest.raises(ConfigError) as caught:
            keys.patient_key(issuer, patient)
        assert "udcff" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("epsilon=inf recipe=chest", "finite"),
        ("epsilon=1e308 recipe=chest", "protects nobody"),
        ("epsilon=1e-320 recipe=chest", ""),
        ("epsilon=1 delta=nan recipe=chest", "delta"),
        ("epsilon=1 delta=-1 recipe=chest", "delta"),
        ("epsilon=1 delta=0 recipe=chest", "delta"),
        ("epsilon=1 minimum_charge=nan recipe=chest", "minimum_charge"),
        ("epsilon=1 minimum_charge=-1 recipe=chest", "minimum_charge"),
        ("epsilon=1 minimum_charge=inf recipe=chest", "minimum_charge"),
        ("epsilon=1 recipe=chest runs=1000000000000", "runs"),
        ("epsilon=1 expected_batch_size=10 steps=20 runs=1000000000000", "runs"),
        ("epsilon=1 expected_batch_size=10 steps=0", "steps"),
        ("epsilon=1 expected_batch_size=10 steps=-1", "steps"),
        ("epsilon=1 expected_batch_size=0 steps=1", "rate"),
        ("epsilon=1 expected_batch_size=-3 steps=1", "rate"),
        ("epsilon=1 expected_batch_size=10 steps=20 noise_multiplier=0", "noise"),
        ("epsilon=1 expected_batch_size=10 steps=20 noise_multiplier=nan", "noise"),
        ("epsilon=1 expected_batch_size=10 steps=20 noise_multiplier=inf", "noise"),
        ("epsilon=1 expected_batch_size=10 steps=20 noise_multiplier=-1", "noise"),
        (f"epsilon=1 expected_batch_size=10 steps={10**30}", ""),
    ],
)
def test_hostile_numbers_in_a_budget(desk: Desk, words: str, what: str) -> None:
    desk("register public_size=20 owner=Radiology")
    before = desk.json("heads")["hash"]
    for kind in ("open", "planned"):
        try:
            said = desk(f"budget cohort=chest reason=x kind={kind} {words}", expect=EXIT_USAGE)
        except AssertionError:
            said = desk(f"budget cohort=chest reason=x kind={kind} {words}", expect=EXIT_REFUSED_BY_LEDGER)
        assert what in said
        assert len(said) < 600
    assert desk.json("heads")["hash"] == before


@pytest.mark.parametrize("size", ["-1", "0", "1" + "0" * 400, "nan", "1e3"])
def test_hostile_sizes_of_a_cohort(desk: Desk, size: str) -> None:
    assert "public_size" in desk(f"register owner=x public_size={size}", expect=EXIT_USAGE)


def test_an_empty_place_is_not_the_default_place(desk: Desk) -> None:
    """`ledger.witness=$HEADS` with HEADS unset must not mean: no witness."""
    for word in ("ledger.url", "ledger.keys", "ledger.witness"):
        with pytest.raises(ConfigError, match=word):
            run(["ledger", "show", f"{word}="])


# -- places ------------------------------------------------------------------------------------------------------


def test_a_first_look_says_how_to_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = Desk(tmp_path, capsys)
    for command in ("show", "history", "verify", "heads", "migrate", "backup to=x"):
        said = nowhere(command, expect=EXIT_REFUSED_BY_LEDGER)
        assert "There is no ledger at" in said
        assert "yet" in said
        assert "dptrain ledger init" in said


def test_what_init_makes_is_closed_whatever_the_umask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPTRAIN_PASSPHRASE", "correct horse")
    before = os.umask(0)
    try:
        make_up_data(monkeypatch)
        made = Desk(tmp_path / "new", capsys)
        made("init")
        made("register public_size=20 owner=Radiology")
        made(f"backup to={tmp_path / 'copy'}")
    finally:
        os.umask(before)
    for path in (tmp_path / "new", *(tmp_path / "new").rglob("*"), tmp_path / "copy"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_failed_init_leaves_nothing_and_shows_the_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys whose recovery code nobody has seen are keys with a part lost."""
    monkeypatch.setenv("DPTRAIN_PASSPHRASE", "correct horse")
    desk = Desk(tmp_path, capsys)
    (tmp_path / "ledger.sqlite").mkdir()
    desk("init", expect=EXIT_REFUSED_BY_LEDGER)
    assert not (tmp_path / "keys").exists()
    (tmp_path / "ledger.sqlite").rmdir()
    (tmp_path / "keys").mkdir()  # an empty folder is no obstacle
    assert len(desk.json("init")["recovery_code"]) == 39


def test_keys_in_a_folder_that_others_may_write(own: Home) -> None:
    own.keys.folder.chmod(0o770)
    with pytest.raises(LedgerRefused, match="other accounts"):
        Keys.load(own.keys.folder)


def test_a_ledger_behind_a_link(file_site: Site, tmp_path: Path) -> None:
    """A symbolic link is the same file, with the same journal; a second hard name would have another journal."""
    link = tmp_path / "elsewhere" / "link.sqlite"
    link.parent.mkdir()
    link.symlink_to(file_site.place)
    through = Ledger.open(link, file_site.keys)
    through.reserve(file_site.plan, COHORT, run="one", fingerprint=file_site.fingerprint)
    assert file_site.ledger.run("one").status == "open"
    os.link(file_site.place, tmp_path / "hard.sqlite")
    for place in (file_site.place, tmp_path / "hard.sqlite"):
        with pytest.raises(LedgerRefused, match="second name"):
            Ledger.open(place, file_site.keys)
    (tmp_path / "hard.sqlite").unlink()
    dangling = tmp_path / "dangling.sqlite"
    dangling.symlink_to(tmp_path / "nowhere" / "x.sqlite")
    with pytest.raises(LedgerRefused):
        Ledger.open(dangling, file_site.keys)


def test_a_fork_while_a_thread_holds_the_ledger(file_site: Site) -> None:
    """The child's copy of the lock would never be freed."""
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with file_site.ledger.view():
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(20)
    child = os.fork()
    if child == 0:
        import signal

        signal.alarm(15)
        os._exit(0 if file_site.ledger.cohorts() == [COHORT] else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    leave.set()
    thread.join()
    assert status == 0


def test_a_witness_with_very_many_heads_or_very_deep(file_site: Site, tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    line = json.dumps(file_site.ledger.head().to_dict())
    heads.write_text("\n".join([line] * 3))
    Ledger.open(file_site.place, file_site.keys, witness=str(heads))
    heads.write_text("[" * 200_000)
    with pytest.raises(LedgerRefused, match="no valid signed head"):
        Ledger.open(file_site.place, file_site.keys, witness=str(heads))
    head = replace(file_site.ledger.head(), hash="00" * 32)
    many = [replace(head, entries=number) for number in range(1, 300_000)]
    with file_site.ledger.view() as (connection, state):
        longer = replace(state, seq=300_000)
        with pytest.raises(LedgerRefused, match="fork"):
            file_site.ledger.descends(connection, longer, many)


# -- budgets -----------------------------------------------------------------------------------------------------


def test_a_budget_lowered_below_what_was_spent(site: Site) -> None:
    """After a restored backup the controller lowers a budget; the cohort locks, and says by how much."""
    for number in range(2):
        grant = site.ledger.reserve(site.plan, COHORT, run=f"r{number}", fingerprint=site.fingerprint)
        grant.commit(10)
        grant.close()
    before = site.ledger.status(COHORT)
    site.ledger.budget(
        COHORT, epsilon=(before.budget_epsilon or 0) * 0.7, forecast=(), reason="restored", controller=site.controller
    )
    after = site.ledger.status(COHORT)
    assert after.locked
    assert after.spent_epsilon > (after.budget_epsilon or math.inf)
    assert after.remaining_epsilon == 0
    with pytest.raises(LedgerRefused, match="locked"):
        site.ledger.reserve(site.plan, COHORT, run="x", fingerprint=site.fingerprint)
    assert site.ledger.verify() == []


def test_a_snapshot_of_another_program_is_read_past(file_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from dptrain.ledger import state as states

    monkeypatch.setattr(states, "STATE_VERSION", 1)
    with file_site.ledger.write() as (connection, state):
        file_site.ledger.write_snapshot(connection, state)
    monkeypatch.undo()
    again = file_site.again()
    assert again.cohorts() == [COHORT]
    assert again.verify() == []


# -- delta adds up too -------------------------------------------------------------------------------------------


def test_many_budgets_do_not_add_up_to_a_large_delta(file_site: Site) -> None:
    """Each below 1/N, their sum above it: the promise would allow one patient to be published outright."""

    def sign() -> None:
        file_site.ledger.budget(
            COHORT, kind="planned", epsilon=5, delta=0.3 / 20, forecast=small_plan().mechanisms, reason="x",
            controller=file_site.controller,
        )  # fmt: skip

    for _ in range(3):
        sign()
    with pytest.raises(LedgerRefused, match="their sum must stay below"):
        sign()


def test_a_lock_by_hand_is_not_answered_with_a_cheaper_run(file_site: Site) -> None:
    file_site.ledger.lock(COHORT, reason="complaint")
    with pytest.raises(LedgerRefused) as refused:
        file_site.ledger.reserve(file_site.plan, COHORT, run="t", fingerprint=file_site.fingerprint)
    said = str(refused.value)
    assert "ledger unlock" in said
    assert "costs less" not in said


def test_a_declared_evaluation_is_not_admitted_again_after_the_close(file_site: Site) -> None:
    """It was carried out while the run was open; a close that does not mention it must not forget it."""
    site = file_site
    grant = site.ledger.reserve(site.plan, COHORT, run="one", fingerprint=site.fingerprint)
    grant.commit(site.plan.steps)
    with site.ledger.admit(COHORT, purpose="evaluate", run="one", fingerprint=site.fingerprint) as own:
        assert own.basis == "declared"
    grant.close()
    assert site.ledger.run("one").did == ["evaluate"]


def test_a_start_from_a_snapshot_knows_the_order_of_events(file_site: Site) -> None:
    """Names in a snapshot stand in the order of their letters; the runs ended in another."""
    site = file_site
    for name in ("zebra", "ape"):
        grant = site.ledger.reserve(site.plan, COHORT, run=name, fingerprint=site.fingerprint)
        grant.commit(site.plan.steps)
        grant.close()
    with site.ledger.write() as (connection, state):
        site.ledger.append(connection, "lock", {"cohort": COHORT, "reason": "x"})
        site.ledger.write_snapshot(connection, state)
    before = site.ledger.status(COHORT)
    assert [run.run for run in before.runs] == ["zebra", "ape"]
    assert site.again().status(COHORT).runs == before.runs


# -- tables beside the chain -------------------------------------------------------------------------------------


def _tampered(site: Site, statement: str, *values: object) -> None:
    import sqlite3

    with sqlite3.connect(site.place) as raw:
        raw.execute(statement, values)


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("DELETE FROM patients", "patients"),
        ("UPDATE patients SET class = 1 WHERE class <> 1", "patients"),  # the withdrawn row is put back
        ("UPDATE patients SET class = 'one'", "patients"),
        ("UPDATE patients SET unit = 1", "patients"),
        ("DELETE FROM records", "records"),
    ],
)
def test_no_grant_on_tables_that_are_not_what_the_entries_say(file_site: Site, statement: str, what: str) -> None:
    """With `patients` emptied, or a withdrawn patient's row put back, a run would draw who withdrew."""
    site = file_site
    site.ledger.reserve(site.plan, COHORT, run="one", fingerprint=site.fingerprint).commit(5)
    site.ledger.withdraw(site.keys.patient_key("clinic", "4"))
    _tampered(site, statement)
    ledger = site.again()
    more = people(site.keys, 0, 30)
    acts: list[Callable[[], object]] = [
        lambda: ledger.register("x", unit="patient", issuer="clinic", public_size=30, patients=more, owner="R"),
        lambda: ledger.withdraw(site.keys.patient_key("clinic", "5")),
    ]
    if what == "patients":
        acts += [
            lambda: ledger.reserve(site.plan, COHORT, run="two", fingerprint=site.fingerprint),
            lambda: ledger.resume("one"),
            lambda: ledger.admit(COHORT, purpose="audit", run="one", fingerprint=site.fingerprint),
        ]
    for act in acts:
        with pytest.raises(LedgerRefused, match=f"table of {what} is not the one"):
            act()
    assert [fault.where for fault in ledger.verify()] == [what]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE head SET hash = 'text'",
        "UPDATE head SET hash = hex(hash)",
        "UPDATE head SET seq = 'three'",
        "UPDATE head SET site = x'00'",
        "UPDATE snapshot SET signature = 'text'",
        "UPDATE snapshot SET state = x'00'",
        "UPDATE entries SET hash = 'text' WHERE seq = 1",
    ],
)
def test_a_column_of_another_type_is_named_not_a_crash(file_site: Site, statement: str) -> None:
    with file_site.ledger.write() as (connection, state):
        file_site.ledger.write_snapshot(connection, state)
    _tampered(file_site, statement)
    assert file_site.again_blind().verify() != []
    if "snapshot" in statement:
        assert file_site.again().status(COHORT).name == COHORT  # the chain is read instead
        return
    _tampered(file_site, "DELETE FROM snapshot")
    with pytest.raises(LedgerRefused, match="cannot be trusted"):
        file_site.again_blind().status(COHORT)
    if "head" in statement:
        with pytest.raises(LedgerRefused, match="cannot be trusted"):
            file_site.ledger.status(COHORT)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda grant: pickle.loads(pickle.dumps(grant))])
def test_a_grant_is_not_copied(file_site: Site, make: Callable[[Any], Any]) -> None:
    """A copy would hand out every paid step a second time."""
    grant = file_site.ledger.reserve(file_site.plan, COHORT, run="one", fingerprint=file_site.fingerprint)
    grant.commit(5)
    with pytest.raises(LedgerRefused, match="copied"):
        make(grant)
    grant.close()
