"""Schemas, migrations, URLs: what is made is what is declared, and a newer schema is refused."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from benchmarks._ledger_site import COHORT, Site, make_site
from dptrain.errors import ConfigError, LedgerRefused
from dptrain.ledger import Ledger, store
from tests.ledger.conftest import Home

FIRST = Path(__file__).parent / "schema_0001.sql"


def test_the_migrations_make_what_the_tables_declare(site: Site) -> None:
    with site.ledger.store.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, store.metadata)
        assert context.get_current_revision() == store.SCHEMA
    known = [each for each in differences if not (each[0] == "remove_index" and each[1].name == "patients_unit")]
    assert known == []


def test_migrations_form_one_line_that_the_program_knows() -> None:
    scripts = ScriptDirectory(str(Path(store.__file__).parent / "migrations"))
    line = [script.revision for script in scripts.walk_revisions()][::-1]
    assert tuple(line) == store.SCHEMAS
    assert scripts.get_heads() == [store.SCHEMA]


def test_every_earlier_schema_comes_up_with_its_content(home: Home, tmp_path: Path) -> None:
    """A ledger of the first schema, as it was written then, opens after migrating and grants."""
    for schema in store.SCHEMAS:
        place = tmp_path / f"{schema}.sqlite"
        raw = sqlite3.connect(place)
        raw.executescript(FIRST.with_name(f"schema_{schema}.sql").read_text())
        raw.close()
        bare = store.Store(str(place))
        with bare.bare() as connection:
            assert store.schema_of(connection) == schema
            store.migrate(connection)
        store.check_schema(bare)
        with bare.read() as connection:
            context = MigrationContext.configure(connection)
            names = [each[0] for each in compare_metadata(context, store.metadata)]
            assert set(names) <= {"remove_index"}
            assert connection.execute(sa.select(sa.func.count()).select_from(store.entries)).scalar_one() > 0


@pytest.mark.parametrize("schema", ["9999", "", "0001 "])
def test_a_schema_that_is_not_known_is_refused(file_site: Site, schema: str) -> None:
    raw = sqlite3.connect(file_site.place, isolation_level=None)
    raw.execute("UPDATE alembic_version SET version_num = ?", (schema,))
    raw.close()
    with pytest.raises(LedgerRefused, match="does not know"):
        Ledger.open(file_site.place, file_site.keys)
    with pytest.raises(LedgerRefused, match="does not know"), file_site.ledger.store.bare() as connection:
        store.migrate(connection)
    assert file_site.ledger.verify()[0].where == "file"


def test_an_older_schema_asks_to_be_migrated(file_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SCHEMA", "0002")
    monkeypatch.setattr(store, "SCHEMAS", ("0001", "0002"))
    with pytest.raises(LedgerRefused, match="older schema 0001") as caught:
        Ledger.open(file_site.place, file_site.keys)
    assert "dptrain ledger migrate" in str(caught.value)


def test_how_sqlite_is_used(file_site: Site) -> None:
    """Rollback journal, full durability, immediate transactions; never WAL."""
    with file_site.ledger.store.read() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
        }
    assert pragmas == {"journal_mode": "delete", "synchronous": 3}
    statements: list[str] = []
    sa.event.listen(file_site.ledger.store.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    file_site.ledger.lock(COHORT, reason="x")
    assert statements[0] == "BEGIN IMMEDIATE"
    assert not any("WAL" in statement.upper() for statement in statements)
    if os.name == "posix":
        assert stat.S_IMODE(os.stat(file_site.place).st_mode) == 0o600


def test_how_postgresql_is_used(home: Home, request: pytest.FixtureRequest) -> None:
    site = make_site(request.getfixturevalue("server").database(), home.keys, home.controller)
    statements: list[str] = []
    sa.event.listen(site.ledger.store.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    site.ledger.lock(COHORT, reason="x")
    assert any("FOR UPDATE" in statement for statement in statements)
    with site.ledger.store.read() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
        assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "repeatable read"
    site.ledger.close()


def test_places(tmp_path: Path) -> None:
    normal = store.normal_url
    assert normal("a/b").database == str(Path("a/b").absolute())
    assert normal(f"sqlite:///{tmp_path}/x").database == str(tmp_path / "x")
    assert normal("postgresql://u:p@h/d").drivername == "postgresql+psycopg"
    for bad in ("mysql://h/d", "sqlite://", "sqlite:///:memory:", "nonsense://", "://"):
        with pytest.raises(ConfigError):
            normal(bad)
