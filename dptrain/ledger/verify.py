"""`verify`: read everything again, from the first entry on, and name the first thing that is wrong."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

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
            _check(book, connection, witness or book.witness, faults)
    except LedgerRefused as error:
        faults.append(Fault("file", None, error.message))
    return faults


def _check(book: Book, connection: Connection, witness: str | None, faults: list[Fault]) -> None:
    if book.store.sqlite:
        answer = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check")]
        if answer != ["ok"]:
            faults.append(Fault("file", None, f"SQLite finds the file damaged: {answer[0]}"))
        if _definitions(connection) != _expected():
            faults.append(Fault("file", None, "the definitions of the tables are not those of this schema"))
    snapshots = connection.execute(sa.select(store.snapshot)).all()
    snap = snapshots[0] if snapshots else None
    state = State()
    rows = connection.execution_options(yield_per=1000).execute(
        sa.select(store.entries).order_by(store.entries.c.seq)
    )
    hashes: dict[int, bytes] = {}
    snapshot_seen, snapshot_differs = snap is None, False
    for row in rows:
        number = state.seq + 1
        try:
            entry = read_entry(row)
            follow(state, entry, hashes.get)
            hashes[entry.seq] = entry.hash
        except LedgerRefused as error:
            faults.append(Fault("entries", number, error.message))
            return
        if snap is not None and snap.seq == state.seq:
            snapshot_seen = True
            snapshot_differs = snap.state != state.dump()
    keys = book.keys
    if snap is not None and not isinstance(snap.state, str):
        faults.append(Fault("snapshot", None, "the snapshot is not what the entries say"))
    elif snap is not None:
        if not snapshot_seen or len(snapshots) != 1 or snap.id != 1:
            faults.append(Fault("snapshot", None, "the snapshot belongs to no entry of this ledger"))
        elif not signed_by(state.site_keys[-1], blob(snap.signature), snapshot_message(snap.seq, snap.state)):
            faults.append(Fault("snapshot", None, "the snapshot does not carry the site's signature"))
        elif snapshot_differs and State.parse(snap.state).seq:  # one of another program is not ours to compare
            faults.append(Fault("snapshot", None, "the snapshot is not what the entries say"))
    tops = connection.execute(sa.select(store.head)).all()
    if (
        len(tops) != 1
        or tops[0].id != 1
        or tops[0].seq != state.seq
        or blob(tops[0].hash).hex() != state.hash
        or tops[0].site != state.site
    ):
        faults.append(
            Fault(
                "head",
                state.seq + 1,
                f"entry {state.seq} is the last, but the head row names another: entries are missing",
            )
        )
    if state.seq == 0:
        faults.append(Fault("entries", 1, "the founding entry is missing"))
        return
    if state.site != keys.site or state.secret_check != keys.secret_check:
        faults.append(Fault("keys", None, "these are not this ledger's keys: members cannot be checked"))
        return
    for table, fault in (
        ("patients", members.fault_of_patients(connection, state, keys)),
        ("records", members.fault_of_records(connection, state, keys)),
    ):
        if fault is not None:
            faults.append(Fault(table, None, fault))
    if witness is not None:
        try:
            heads = read_witness(witness)
        except LedgerRefused as error:
            faults.append(Fault(UNREAD, None, error.message))
            return
        if any(head.site != state.site for head in heads):
            faults.append(Fault(UNREAD, None, f"The witness {witness} holds a head of another site's ledger."))
            return
        try:
            book.descends(connection, state, heads)
        except LedgerRefused as error:
            faults.append(Fault("witness", None, error.message))


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
