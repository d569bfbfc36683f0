"""The tables and how they are reached: one code path for SQLite and PostgreSQL.

Every change runs in one transaction that first takes the ledger's write lock (`BEGIN IMMEDIATE`; on PostgreSQL
`SELECT … FOR UPDATE` on the head row), appends exactly one entry, moves the head and commits durably. Readers see
one consistent snapshot. Whatever goes wrong, the transaction is rolled back and the error becomes one sentence.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from dptrain.errors import ConfigError, LedgerRefused

T = TypeVar("T")
SCHEMA = "0001"  # the newest migration that this program knows
SCHEMAS = ("0001",)  # oldest first
WAIT_SECONDS = 60.0

metadata = sa.MetaData()
entries = sa.Table(
    "entries",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("time", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("sealed", sa.Text, nullable=False),
    sa.Column("prev", sa.LargeBinary, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.Column("signature", sa.LargeBinary, nullable=False),
    sa.Column("countersignature", sa.LargeBinary, nullable=True),
)
head = sa.Table(
    "head",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("site", sa.Text, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
)
snapshot = sa.Table(
    "snapshot",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("signature", sa.LargeBinary, nullable=False),
)
patients = sa.Table(
    "patients",
    metadata,
    sa.Column("key", sa.LargeBinary(32), primary_key=True),
    sa.Column("class", sa.Integer, nullable=False, key="klass"),
    sa.Column("unit", sa.Integer, nullable=True),
    sqlite_with_rowid=False,
)
records = sa.Table(
    "records",
    metadata,
    sa.Column("hash", sa.LargeBinary(32), primary_key=True),
    sa.Column("patient", sa.LargeBinary(32), nullable=False),
    sqlite_with_rowid=False,
)
sa.Index("patients_class", patients.c.klass)
# The partial index patients_unit is made by the migration alone: naming it here would import both dialects.


def normal_url(place: str | os.PathLike[str]) -> URL:
    """A path or a URL as SQLAlchemy's URL. Raises ConfigError for a store that is neither kind."""
    text = os.fspath(place)
    if "://" not in text:
        return URL.create("sqlite", database=str(Path(text).expanduser().absolute()))
    try:
        url = make_url(text)
    except ArgumentError:
        raise ConfigError("the ledger's URL cannot be read.", remedy="Use a path or postgresql://…") from None
    name = url.get_backend_name()
    if name == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if name != "sqlite":
        raise ConfigError(
            f"a ledger cannot be kept in '{name}'.", remedy="Use a path (SQLite) or a URL postgresql://…"
        )
    if not url.database or url.database == ":memory:":
        raise ConfigError("a ledger in memory would forget what was spent.", remedy="Name a file.")
    return url.set(drivername="sqlite", database=str(Path(url.database).absolute()))


class Store:
    """Connections to one ledger. Safe to use from several threads, and from a child after a fork."""

    def __init__(self, place: str | os.PathLike[str], *, wait: float = WAIT_SECONDS) -> None:
        self.url = normal_url(place)
        self.name = self.url.render_as_string(hide_password=True)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        if self.sqlite:
            self.name = str(self.url.database)
        self.wait = wait
        self._engine: Engine | None = None
        self._pid = 0

    @property
    def engine(self) -> Engine:
        """The engine of this process; a forked child makes its own and leaves its parent's connections alone."""
        if self._engine is None or self._pid != os.getpid():
            if self._engine is not None:
                self._engine.dispose(close=False)
            self._engine = self._make()
            self._pid = os.getpid()
        return self._engine

    def _make(self) -> Engine:
        try:
            if self.sqlite:
                engine = sa.create_engine(self.url, connect_args={"timeout": self.wait}, pool_size=2)
                event.listen(engine, "connect", _sqlite_connect)
                event.listen(engine, "begin", _sqlite_begin)
                return engine
            options = {"connect_timeout": max(2, int(min(self.wait, 10))), "application_name": "dptrain"}
            engine = sa.create_engine(self.url, connect_args=options, pool_size=2, pool_pre_ping=False)
        except ImportError:
            raise ConfigError(
                "the PostgreSQL driver is not installed.", remedy="Install the extra: dptrain[postgresql]."
            ) from None
        wait = int(self.wait * 1000)

        @event.listens_for(engine, "connect")
        def _connect(connection: Any, _: Any) -> None:
            with connection.cursor() as cursor:
                cursor.execute("SET synchronous_commit = on")
                cursor.execute(f"SET lock_timeout = {wait}")
                cursor.execute(f"SET idle_in_transaction_session_timeout = {max(60_000, 2 * wait)}")
            connection.commit()

        return engine

    def close(self) -> None:
        """Let go of every connection."""
        if self._engine is not None:
            self._engine.dispose(close=self._pid == os.getpid())
            self._engine = None

    def missing(self) -> bool:
        """Whether this is a file that does not exist (a server is asked when it is used)."""
        return self.sqlite and not os.path.exists(str(self.url.database))

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view; changes nothing."""
        with self._speaking("read"), self.engine.connect() as connection, connection.begin():
            if not self.sqlite:
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """The write lock and one transaction, committed durably at the end or not at all."""
        with self._speaking("written"), self.engine.connect() as connection:
            connection = connection.execution_options(dptrain_write=True)
            with connection.begin():
                if not self.sqlite:
                    connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                connection.execute(sa.select(head.c.seq).where(head.c.id == 1).with_for_update())
                yield connection

    @contextmanager
    def bare(self) -> Iterator[Connection]:
        """The write lock without a head row: only for making and migrating tables."""
        with self._speaking("written"), self.engine.connect() as connection:
            connection = connection.execution_options(dptrain_write=True)
            with connection.begin():
                yield connection

    @contextmanager
    def _speaking(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, self.engine.dialect.dbapi.Error) as error:  # type: ignore[union-attr]
            raise self._in_words(error, doing) from None

    def _in_words(self, error: Exception, doing: str) -> LedgerRefused:
        original = getattr(error, "orig", None) or error
        text = str(original).lower()
        where = f"The ledger {self.name}"
        nothing = " Nothing was recorded." if doing == "written" else ""
        for signs, sentence, remedy in _SENTENCES:
            if any(sign in text for sign in signs):
                return LedgerRefused(f"{where} {sentence}{nothing}", remedy=remedy)
        if self.sqlite:
            return LedgerRefused(f"{where} could not be {doing} ({type(original).__name__}).{nothing}")
        if getattr(error, "connection_invalidated", False) or "connect" in text or "server" in text:
            return LedgerRefused(
                f"{where} does not answer: the connection to the server failed or broke off. What had been "
                "committed stays charged; nothing else was recorded.",
                remedy="Start the server or check the network; then run again, or resume the run.",
            )
        return LedgerRefused(f"{where} could not be {doing} ({type(original).__name__}).{nothing}")


_SENTENCES: tuple[tuple[tuple[str, ...], str, str | None], ...] = (
    (
        ("database is locked", "lock timeout", "locknotavailable", "canceling statement due to lock"),
        "is held by another program and did not become free in time.",
        "Wait for the other command to end; if none is running, look for a program that keeps the file open.",
    ),
    (
        ("readonly database", "read-only", "permission denied"),
        "cannot be written by this account.",
        "Give this account the right to write the ledger and its folder, or run as the account that has it.",
    ),
    (
        ("disk is full", "no space left", "could not extend file", "diskfull"),
        "could not be written because the disk is full.",
        "Free some space and run again; what was charged before stays charged.",
    ),
    (
        ("disk i/o error", "input/output error"),
        "could not be read or written: the disk reported an error.",
        "Check the disk, then run `dptrain ledger verify`.",
    ),
    (
        ("malformed", "not a database", "file is encrypted", "corrupt"),
        "is damaged: this is no readable ledger.",
        "Run `dptrain ledger verify`, and restore the newest backup (docs/ledger.md, Recovery).",
    ),
    (
        ("no such table", "does not exist", "undefinedtable"),
        "holds no ledger.",
        "Make one with `dptrain ledger init`, or check ledger.url.",
    ),
    (("unable to open",), "cannot be opened.", "Check the path and the rights on its folder."),
)


def _sqlite_connect(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun by hand, below
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=DELETE")
    cursor.execute("PRAGMA synchronous=EXTRA")
    cursor.execute("PRAGMA trusted_schema=OFF")
    cursor.execute("PRAGMA cache_size=-65536")
    cursor.close()


def _sqlite_begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("dptrain_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def chunks(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """The values, so many at a time."""
    iterator = iter(values)
    while chunk := list(islice(iterator, size)):
        yield chunk


def insert_rows(connection: Connection, table: sa.Table, rows: Iterable[tuple[object, ...]]) -> None:
    """Insert many rows (every column, in order) as fast as the store can, within the transaction."""
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    if connection.dialect.name == "sqlite":
        holders = ", ".join("?" for _ in table.columns)
        for chunk in chunks(rows, 20_000):
            connection.exec_driver_sql(f"INSERT INTO {table.name} ({names}) VALUES ({holders})", chunk)
        return
    raw: Any = connection.connection.driver_connection
    with raw.cursor() as cursor, cursor.copy(f"COPY {table.name} ({names}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def schema_of(connection: Connection) -> str:
    """The schema's version as the tables state it."""
    return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one())


def must_exist(store: Store) -> None:
    """Raises LedgerRefused where there is no file yet."""
    if store.missing():
        raise LedgerRefused(
            f"There is no ledger at {store.name} yet.",
            remedy="Make one with `dptrain ledger init`, or name another with DPTRAIN_LEDGER or ledger.url=….",
        )


def check_schema(store: Store) -> None:
    """Raises LedgerRefused unless the tables are of the version that this program writes."""
    must_exist(store)
    if store.sqlite and os.stat(str(store.url.database)).st_nlink > 1:
        raise LedgerRefused(
            f"The ledger {store.name} has a second name (a hard link): after a crash under one, the other would not "
            "see the journal.",
            remedy="Remove the other name; for a copy use `dptrain ledger backup`.",
        )
    with store.read() as connection:
        schema = schema_of(connection)
    if schema == SCHEMA:
        return
    if schema in SCHEMAS:
        raise LedgerRefused(
            f"The ledger {store.name} has the older schema {schema}; this program writes {SCHEMA}.",
            remedy="Back it up, then run `dptrain ledger migrate`.",
        )
    raise LedgerRefused(
        f"The ledger {store.name} has schema {schema}, which this program (schema {SCHEMA}) does not know: it was "
        "made by a newer program, or it is damaged.",
        remedy="Use the newer program; an older one must not write to it.",
    )


def migrate(connection: Connection, to: str = "head") -> None:
    """Bring the tables to a schema version by Alembic, inside the caller's transaction (:meth:`Store.bare`).

    Raises LedgerRefused where the tables are newer than this program.
    """
    from alembic import command
    from alembic.config import Config

    if sa.inspect(connection).has_table("alembic_version") and schema_of(connection) not in SCHEMAS:
        raise LedgerRefused(
            "The ledger has a schema that this program does not know.",
            remedy="Use the newer program; an older one must not write to it.",
        )
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, to)
