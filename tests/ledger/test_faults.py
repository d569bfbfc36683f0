"""Crashes, races and failing disks, a few of each; `make test-ledger` counts thousands."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks._faulty_disk import AVAILABLE, MODES
from benchmarks._ledger_site import COHORT, Postgres, Site, make_site, small_plan
from benchmarks.ledger_faults import MANY_RUNS, OPERATIONS, disk_round, kill_rounds, race_rounds, server_rounds
from dptrain.errors import LedgerRefused
from dptrain.ledger import Ledger
from tests.ledger.conftest import Home


@pytest.fixture
def roomy(place: str, home: Home) -> Iterator[Site]:
    """A ledger whose budget is never exhausted here."""
    made = make_site(place, home.keys, home.controller, runs=MANY_RUNS, plan=small_plan(noise_multiplier=4000.0))
    yield made
    made.ledger.close()


def test_killed_at_random_moments(roomy: Site, rng: random.Random) -> None:
    counts = kill_rounds(roomy, 120, rng)
    assert counts["kills"] == 120
    assert min(counts["in_reserve"], counts["in_commit"], counts["in_close"]) > 3
    assert counts["released"] > 50
    assert counts["resumed"] > 20


def test_sixteen_race_for_the_last_budget(site: Site, rng: random.Random) -> None:
    site.ledger.close()
    counts = race_rounds(site, 6, rng)
    assert counts["races"] == 6
    assert counts["winners"] >= 6  # at least one winner whenever one fits


def test_two_machines_race_with_clocks_years_apart(site: Site, rng: random.Random) -> None:
    site.ledger.close()
    counts = race_rounds(site, 3, rng, count=2, clocks=True)
    assert counts["winners"] >= 3
    assert counts["set_back"] > 3


@pytest.mark.skipif(not AVAILABLE, reason="Python's sqlite3 is not linked dynamically")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_disk_operation_fails_once(tmp_path: Path, home: Home, operation: str) -> None:
    for mode in MODES:
        (tmp_path / mode).mkdir()
        counts = disk_round(tmp_path / mode, home.keys, operation, mode, thin=9)
        assert counts["refused"] >= 1


@pytest.mark.slow
def test_a_server_that_dies(server: Postgres, home: Home, rng: random.Random) -> None:
    url = server.database()
    site = make_site(url, home.keys, home.controller, runs=MANY_RUNS, plan=small_plan(noise_multiplier=4000.0))
    site.ledger.close()
    counts = server_rounds(server, site, 6, rng)
    assert counts["errors"] > 0
    assert counts["in_transaction"] > 0


def test_a_connection_killed_in_mid_transaction(server: Postgres, home: Home) -> None:
    site = make_site(server.database(), home.keys, home.controller)
    grant = site.ledger.reserve(site.plan, COHORT, run="one", fingerprint=site.fingerprint)

    def half_a_commit() -> None:
        with site.ledger.write() as (connection, _):
            site.ledger.append(connection, "commit", {"run": "one", "attempt": 1, "through": 5})
            mine = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            server.server.psql(f"SELECT pg_terminate_backend({mine});")
            connection.exec_driver_sql("SELECT 1")

    with pytest.raises(LedgerRefused, match="does not answer"):
        half_a_commit()
    assert site.ledger.run("one").committed == 0
    grant.commit(5)  # the same object goes on with a new connection
    assert site.again().run("one").committed == 5
    assert site.ledger.verify() == []


def test_a_vanished_server_is_one_sentence(home: Home) -> None:
    with pytest.raises(LedgerRefused) as caught:
        Ledger.open("postgresql://nobody:secret@127.0.0.1:9/none", home.keys, wait=2)
    assert "does not answer" in caught.value.message
    assert "\n" not in caught.value.message
    assert "secret" not in str(caught.value)


def test_a_full_file_system(home: Home, tmp_path: Path) -> None:
    """A small tmpfs where this account may mount one."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this account may not mount")
    try:
        site = make_site(str(small / "ledger.sqlite"), home.keys, home.controller, runs=500)

        def fill() -> None:
            for number in range(500):
                site.ledger.reserve(site.plan, COHORT, run=f"r{number}", fingerprint=site.fingerprint)

        with pytest.raises(LedgerRefused, match="disk is full") as caught:
            fill()
        assert "Nothing was recorded" in caught.value.message
        entries = site.ledger.head().entries
        assert site.again().verify() == []
        (small / "more").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", "remount,size=2m", str(small)], check=True)
        site.ledger.reserve(site.plan, COHORT, run="after", fingerprint=site.fingerprint)
        assert site.ledger.head().entries == entries + 1
        site.ledger.close()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_limit_on_the_file_s_size(file_site: Site) -> None:
    """The same for any account: the kernel refuses to let the file grow."""
    file_site.ledger.close()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limit = os.path.getsize(file_site.place) + 8192
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            for number in range(3):
                file_site.ledger.reserve(file_site.plan, COHORT, run=f"{number}", fingerprint=file_site.fingerprint)
        except LedgerRefused:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert file_site.again().verify() == []
    file_site.ledger.reserve(file_site.plan, COHORT, run="after", fingerprint=file_site.fingerprint)


def test_a_torn_last_page_is_rolled_back(file_site: Site, tmp_path: Path) -> None:
    """Power fails while pages of a transaction are being written: the journal brings the old ones back."""
    copy = tmp_path / "torn.sqlite"
    before = Path(file_site.place).read_bytes()
    raw = sqlite3.connect(file_site.place, isolation_level=None)
    raw.execute("PRAGMA synchronous=EXTRA")
    raw.execute("PRAGMA cache_size=1")
    raw.execute("BEGIN IMMEDIATE")
    raw.execute("UPDATE entries SET body = body || ' '")
    raw.execute("UPDATE patients SET class = class + 1")  # more pages than the cache holds: some are on disk already
    raw.execute("DELETE FROM records")
    shutil.copyfile(file_site.place, copy)
    shutil.copyfile(f"{file_site.place}-journal", f"{copy}-journal")
    raw.execute("ROLLBACK")
    raw.close()
    after = copy.read_bytes()
    written = [at for at in range(0, len(before), 4096) if after[at : at + 4096] != before[at : at + 4096]]
    assert written  # the transaction was caught in the middle of its writes
    with open(copy, "r+b") as file:
        file.seek(written[-1] + 2048)
        file.write(os.urandom(2048))  # half of the last page that it wrote
    spoiled = shutil.copyfile(copy, tmp_path / "no-journal.sqlite")
    torn = Ledger.open(copy, file_site.keys)
    assert torn.verify() == []
    assert torn.head().hash == file_site.ledger.head().hash
    torn.reserve(file_site.plan, COHORT, run="after", fingerprint=file_site.fingerprint)
    unsaved = Ledger(spoiled, file_site.keys, witness=None, wait=1.0)
    assert unsaved.verify()  # without its journal the damage shows


def test_a_file_held_by_another_program(file_site: Site) -> None:
    holder = sqlite3.connect(file_site.place, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(LedgerRefused, match="held by another program") as caught:
        Ledger.open(file_site.place, file_site.keys, wait=0.2)
    assert "\n" not in caught.value.message
    holder.execute("ROLLBACK")
    Ledger.open(file_site.place, file_site.keys, wait=0.2)


def test_a_file_that_may_only_be_read(file_site: Site) -> None:
    """As another account would meet it."""
    if os.geteuid() != 0:
        pytest.skip("needs another account to become")
    file_site.ledger.close()
    folder = Path(file_site.place).parent
    for path in (folder, *folder.parents):
        if path == Path(tempfile.gettempdir()):
            break
        path.chmod(0o755)
    os.chmod(file_site.place, 0o644)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            ledger = Ledger.open(file_site.place, file_site.keys)
            ledger.status(COHORT)  # looking is allowed
            ledger.reserve(file_site.plan, COHORT, run="x", fingerprint=file_site.fingerprint)
        except LedgerRefused as error:
            os.write(writer, error.message.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as file:
        message = file.read()
    assert "cannot be written by this account" in message
    assert file_site.again().verify() == []


def test_no_ledger_or_none_that_can_be_read(file_site: Site, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(os.urandom(8192))
    (tmp_path / "empty").touch()
    cases = {
        "absent": "no ledger",
        "noise": "damaged",
        "empty": "holds no ledger",
        "absent/deeper": "no ledger",
    }
    for name, what in cases.items():
        with pytest.raises(LedgerRefused, match=what) as caught:
            Ledger.open(tmp_path / name, file_site.keys)
        assert "\n" not in caught.value.message
    with pytest.raises(LedgerRefused, match="already"):
        Ledger.create(file_site.place, file_site.keys)
    Ledger.create(tmp_path / "empty", file_site.keys)  # a creation that died is simply done again


def test_children_of_a_fork_and_threads_share_a_ledger(site: Site) -> None:
    import threading

    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            try:
                grant = site.ledger.reserve(site.plan, COHORT, run=f"c{number}", fingerprint=site.fingerprint)
                grant.commit(10)
                grant.close("interrupted", 0)
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    site.ledger.lock(COHORT, reason="x")
    site.ledger.unlock(COHORT, reason="y", controller=site.controller)
    threads = [threading.Thread(target=site.ledger.status, args=(COHORT,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(site.ledger.status(COHORT).runs) == 3
    assert site.ledger.verify() == []
