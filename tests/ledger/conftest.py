"""A site's keys once a session; a fresh ledger on each store for each test."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks._ledger_site import PASSPHRASE, Postgres, Site, have_postgres, make_site
from dptrain.ledger import Controller, Keys


@dataclass(frozen=True)
class Home:
    """A site's keys, as created."""

    keys: Keys
    controller: Controller


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Keys of one site (scrypt takes its time, so once)."""
    keys = Keys.create(tmp_path_factory.mktemp("site") / "keys", PASSPHRASE)
    return Home(keys, keys.controller(PASSPHRASE))


@pytest.fixture
def own(home: Home, tmp_path: Path) -> Home:
    """The same keys in a folder that the test may change."""
    shutil.copytree(home.keys.folder, tmp_path / "own" / "keys")
    keys = Keys.load(tmp_path / "own" / "keys")
    keys.recovery_code = home.keys.recovery_code
    return Home(keys, home.controller)


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    """A PostgreSQL server; skips where there is none."""
    if not have_postgres():
        pytest.skip("pgserver is not installed")
    started = Postgres()
    yield started
    started.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty place for a ledger, on both stores."""
    if request.param == "sqlite":
        yield str(tmp_path / "ledger.sqlite")
        return
    running: Postgres = request.getfixturevalue("server")
    url = running.database()
    yield url
    running.drop(url)


@pytest.fixture
def site(place: str, home: Home) -> Iterator[Site]:
    """A ledger with a cohort of 20 patients and a budget for 3 runs, on both stores."""
    made = make_site(place, home.keys, home.controller)
    assert made.capacity == 3
    yield made
    made.ledger.close()


@pytest.fixture
def file_site(tmp_path: Path, home: Home) -> Iterator[Site]:
    """As `site`, on SQLite only."""
    made = make_site(str(tmp_path / "ledger.sqlite"), home.keys, home.controller)
    yield made
    made.ledger.close()


@pytest.fixture
def rng() -> random.Random:
    """Moments of faults; nothing secret."""
    return random.Random(20)
