"""Founding a ledger, opening one, and writing a copy of it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import sqlalchemy as sa

from dptrain import __version__
from dptrain.errors import ConfigError, LedgerRefused
from dptrain.ledger import store
from dptrain.ledger.book import Book
from dptrain.ledger.kinds import Genesis


def found(book: Book) -> None:
    """Make the tables and the first entry, in one transaction.

    Raises LedgerRefused where there is a ledger already, or the place cannot be written.
    """
    keys, path = book.keys, str(book.store.url.database)
    if book.store.sqlite:
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise LedgerRefused(f"The ledger {path} cannot be written: {error.strerror}.") from None
    with book.store.bare() as connection:
        if sa.inspect(connection).has_table("entries"):
            raise LedgerRefused(
                f"There is a ledger at {book.store.name} already; ledgers are never overwritten.",
                remedy="Use it, or name another place.",
            )
        store.migrate(connection)
        connection.execute(sa.insert(store.head), {"id": 1, "site": keys.site, "seq": 0, "hash": bytes(32)})
        body = Genesis(
            site=keys.site,
            site_public=keys.site_public,
            controller_public=keys.controller_public,
            recovery_public=keys.recovery_public,
            secret_check=keys.secret_check,
            program=__version__,
            schema=store.SCHEMA,
        )
        book.begin(connection, body)


def check(book: Book) -> None:
    """Raises LedgerRefused unless this is the keys' ledger, undamaged at its head, and not rolled back."""
    store.check_schema(book.store)
    with book.view() as (connection, state):
        book.descends(connection, state, book.heads())


def backup(book: Book, place: str | os.PathLike[str]) -> Path:
    """Write a consistent copy of a SQLite ledger to a file that does not exist yet, and check that it opens."""
    path = Path(place).expanduser().absolute()
    if not book.store.sqlite:
        raise ConfigError(
            "a ledger in PostgreSQL is backed up by the server's own tools.",
            remedy="Use pg_dump or base backups.",
        )
    if path.exists():
        raise ConfigError(f"{path} exists; a backup never overwrites.")
    partial = path.with_name(f".{path.name}.partial")
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with contextlib.closing(sqlite3.connect(partial)) as target, book.view() as (connection, _):
            raw = connection.connection.driver_connection
            if raw is None:
                raise LedgerRefused("the ledger's connection is closed.")
            raw.backup(target)
        copy = Book(partial, book.keys, witness=None, wait=store.WAIT_SECONDS)
        check(copy)
        copy.close()
        os.replace(partial, path)
    except (OSError, sqlite3.Error) as error:
        raise LedgerRefused(f"The backup {path} could not be written ({type(error).__name__}).") from None
    finally:
        partial.unlink(missing_ok=True)
    return path
