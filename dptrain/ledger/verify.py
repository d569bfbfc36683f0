"""`verify`: read everything again, from the first entry on, and name the first thing that is wrong."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from dptrain.errors import LedgerRefused
from dptrain.ledger import members, store
from dptrain.ledger.book import Book, blob, follow, read_entry, snapshot_message
from dptrain.ledger.chain import read_witness
from dptrain.ledger.keys import signed_by
from dptrain.ledger.state import State

UNREAD = "witness, not checked"


@dataclass(frozen=True)
class Fault:
    """Something wrong. `entry` is the number of the first bad entry, None where a table or the file is bad.

    `where` is UNREAD for a witness that cannot be read or is of another ledger: that says nothing about this one.
    """

    where: str
    entry: int | None
    what: str


def verify(book: Book, witness: str | None = None) -> list[Fault]:
    """Every fault found, the first bad entry first; empty for a sound ledger.

    Checks, in this order: the file itself (SQLite's own integrity check), the schema's version, every entry's
    place, hash, site signature and countersignature, that every open budget's units follow from its epsilon, delta
    and order, that every grant was within its budget when it was given and left out the right classes of patients,
    the head row, the snapshot, the member tables against the digests in
    the chain, and descent from the witness's heads. A sound copy from yesterday passes: only a witness shows it.
    """
    faults: list[Fault] = []
    try:
        store.check_schema(book.store)
        with book.store.read() as connection:
            for fault in _faults(book, connection, witness or book.witness):
                faults.append(fault)  # one by one: those before an error are kept
    except LedgerRefused as error:
        faults.append(Fault("file", None, error.message))
    return faults


def _faults(book: Book, connection: Connection, witness: str | None) -> Iterator[Fault]:
    """What is wrong, in the order of :func:`verify`; each check rests on those before it."""
    if book.store.sqlite:
        yield from _of_file(connection)
    snapshots = connection.execute(sa.select(store.snapshot)).all()
    rows = connection.execution_options(yield_per=1000).execute(
        sa.select(store.entries).order_by(store.entries.c.seq)
    )
    state, hashes = State(), dict[int, bytes]()
    dump: str | None = None  # of the state that the snapshot is of
    for row in rows:
        number = state.seq + 1
        try:
            entry = read_entry(row)
            follow(state, entry, hashes.get)
            hashes[entry.seq] = entry.hash
        except LedgerRefused as error:
            yield Fault("entries", number, error.message)
            return
        if snapshots and snapshots[0].seq == state.seq:
            dump = state.dump()
    yield from _of_snapshot(snapshots, state, dump)
    yield from _of_head(connection, state)
    if state.seq == 0:
        yield Fault("entries", 1, "the founding entry is missing")
        return
    if state.site != book.keys.site or state.secret_check != book.keys.secret_check:
        yield Fault("keys", None, "these are not this ledger's keys: members cannot be checked")
        return
    for table, fault in (
        ("patients", members.fault_of_patients(connection, state, book.keys)),
        ("records", members.fault_of_records(connection, state, book.keys)),
    ):
        if fault is not None:
            yield Fault(table, None, fault)
    if witness is not None:
        yield from _of_witness(book, connection, state, witness)


def _of_file(connection: Connection) -> Iterator[Fault]:
    """SQLite's own check, and the definitions of the tables."""
    answer = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check")]
    if answer != ["ok"]:
        yield Fault("file", None, f"SQLite finds the file damaged: {answer[0]}")
    if _definitions(connection) != _expected():
        yield Fault("file", None, "the definitions of the tables are not those of this schema")


def _of_snapshot(snapshots: Sequence[Row[tuple[object, ...]]], state: State, dump: str | None) -> Iterator[Fault]:
    """The snapshot against the state that it is of: `dump`, or None where no entry has its number."""
    if not snapshots:
        return
    snapshot = snapshots[0]
    if not isinstance(snapshot.state, str):
        yield Fault("snapshot", None, "the snapshot is not what the entries say")
    elif dump is None or len(snapshots) != 1 or snapshot.id != 1:
        yield Fault("snapshot", None, "the snapshot belongs to no entry of this ledger")
    elif not signed_by(state.site_keys[-1], blob(snapshot.signature), snapshot_message(snapshot.seq, snapshot.state)):
        yield Fault("snapshot", None, "the snapshot does not carry the site's signature")
    elif snapshot.state != dump and State.parse(snapshot.state).seq:  # another program's is not ours to compare
        yield Fault("snapshot", None, "the snapshot is not what the entries say")


def _of_head(connection: Connection, state: State) -> Iterator[Fault]:
    """The head row against the last entry."""
    heads = connection.execute(sa.select(store.head)).all()
    if (
        len(heads) != 1
        or heads[0].id != 1
        or heads[0].seq != state.seq
        or blob(heads[0].hash).hex() != state.hash
        or heads[0].site != state.site
    ):
        what = f"entry {state.seq} is the last, but the head row names another: entries are missing"
        yield Fault("head", state.seq + 1, what)


def _of_witness(book: Book, connection: Connection, state: State, witness: str) -> Iterator[Fault]:
    """Descent from the heads that the witness has seen."""
    try:
        heads = read_witness(witness)
    except LedgerRefused as error:
        yield Fault(UNREAD, None, error.message)
        return
    if any(head.site != state.site for head in heads):
        yield Fault(UNREAD, None, f"The witness {witness} holds a head of another site's ledger.")
        return
    try:
        book.descends(connection, state, heads)
    except LedgerRefused as error:
        yield Fault("witness", None, error.message)


def _definitions(connection: Connection) -> list[tuple[str, ...]]:
    """How SQLite's own catalogue defines tables and indexes."""
    rows = connection.exec_driver_sql("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name")
    return [tuple(str(cell) for cell in row) for row in rows]


@functools.cache
def _expected() -> list[tuple[str, ...]]:
    """The same for an empty ledger of this schema."""
    with sa.create_engine("sqlite://").begin() as connection:
        store.migrate(connection)
        return _definitions(connection)
