"""The book: one chain in one store, and the state that its entries make.

Writing and reading go through here. :meth:`Book.write` holds the write lock, folds in what others wrote since, and
commits durably or not at all; :meth:`Book.view` is a consistent look. Every entry that is read is checked for place,
hash and signatures before it counts. A signed snapshot of the state saves reading the chain from its start; whatever
is wrong with it, the chain is read instead.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dptrain.errors import LedgerRefused
from dptrain.ledger import members, store
from dptrain.ledger.bodies import Body
from dptrain.ledger.chain import Entry, SignedHead, fault_of, make_entry, read_witness, signature_fault
from dptrain.ledger.keys import Controller, Keys, signed_by
from dptrain.ledger.kinds import apply, keys_for, needs_controller
from dptrain.ledger.state import State
from dptrain.ledger.store import Store, chunks
from dptrain.plain import Json

SNAPSHOT_EVERY = 64


class Book:
    """A site's entries, in a SQLite file or a PostgreSQL database. Safe for threads, processes and forks."""

    def __init__(self, place: str | os.PathLike[str], keys: Keys, *, witness: str | None, wait: float) -> None:
        self.store = Store(place, wait=wait)
        self.keys = keys
        self.witness = witness
        self._state: State | None = None
        self._snapshot_seq = 0
        self._seen = (0, "")
        self._lock = threading.RLock()
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"Ledger({self.store.name})"

    def close(self) -> None:
        """Let go of the connections. The ledger itself needs no closing."""
        self.store.close()

    @contextmanager
    def write(self, *, any_site_key: bool = False) -> Iterator[tuple[Connection, State]]:
        """The write lock and the state at the head; committed durably at the end of the block, or not at all."""
        with self._whole(), self.store.write() as connection:
            yield connection, self._catch_up(connection, any_site_key=any_site_key)

    @contextmanager
    def view(self) -> Iterator[tuple[Connection, State]]:
        """One consistent look at the store and the state at its head."""
        with self._whole(), self.store.read() as connection:
            yield connection, self._catch_up(connection)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Forget the state where a block fails (the store may not hold what it did); remember the head otherwise."""
        if self._process != os.getpid():
            self._process = os.getpid()
            if self._lock.acquire(blocking=False):
                self._lock.release()
            else:  # a thread that did not come along through the fork holds it
                self._lock, self._state = threading.RLock(), None
        with self._lock:
            try:
                yield
            except BaseException:
                self._state = None
                raise
            if self._state is not None:
                self._seen = (self._state.seq, self._state.hash)

    def _catch_up(self, connection: Connection, *, any_site_key: bool = False) -> State:
        """The state at the ledger's head, every new entry checked. Raises LedgerRefused for any fault."""
        if self._state is None:
            self._check_seen(connection)
            self._state = self._from_snapshot(connection)
        state = self._state
        rows = connection.execute(
            sa.select(store.entries).where(store.entries.c.seq > state.seq).order_by(store.entries.c.seq)
        )
        for row in rows:
            follow(state, read_entry(row))
        top = connection.execute(sa.select(store.head)).all()
        if len(top) != 1 or top[0].seq != state.seq or blob(top[0].hash).hex() != state.hash:
            raise untrusted("its head and its entries disagree: entries were removed, or an older copy was restored")
        if state.seq == 0 or top[0].site != state.site:
            raise untrusted("its founding entry is missing or of another site")
        if state.site != self.keys.site:
            raise LedgerRefused(
                f"This ledger belongs to another site ({state.site[:8]}…; the keys are of {self.keys.site[:8]}…).",
                remedy="Name the keys of that site (DPTRAIN_KEYS), or another ledger (DPTRAIN_LEDGER).",
            )
        if state.secret_check != self.keys.secret_check:
            raise LedgerRefused(
                "The HMAC secret is not this ledger's: patients would not be recognised.",
                remedy="Restore secret.json from the backup of the keys (docs/ledger.md, Keys).",
            )
        if not any_site_key and state.site_keys[-1] != self.keys.site_public:
            raise LedgerRefused(
                "The site's key is not the one that this ledger names: it was replaced, or it is another site's.",
                remedy="Bring the newest site.pem and site.json to this machine (docs/ledger.md, Keys).",
            )
        return state

    def _check_seen(self, connection: Connection) -> None:
        """Raises LedgerRefused where the head that this process saw last is gone: an older copy was put in place."""
        seq, digest = self._seen
        if seq:
            here = connection.execute(sa.select(store.entries.c.hash).where(store.entries.c.seq == seq)).scalar()
            if here is None or blob(here).hex() != digest:
                raise untrusted(f"entry {seq}, which this program saw, is gone: an older copy was restored")

    def _from_snapshot(self, connection: Connection) -> State:
        """The last snapshot, if the site signed it and the chain agrees; else an empty state (replay everything)."""
        self._snapshot_seq = 0
        row = connection.execute(sa.select(store.snapshot).where(store.snapshot.c.id == 1)).first()
        if row is None or not isinstance(row.state, str):
            return State()
        if not signed_by(self.keys.site_public, blob(row.signature), snapshot_message(row.seq, row.state)):
            return State()
        state = State.parse(row.state)
        if not state.seq:
            return state
        here = connection.execute(sa.select(store.entries.c.hash).where(store.entries.c.seq == state.seq)).scalar()
        if here is None or blob(here).hex() != state.hash or state.seq != row.seq:
            return State()
        self._snapshot_seq = state.seq
        return state

    def write_snapshot(self, connection: Connection, state: State) -> None:
        text = state.dump()
        row = {
            "id": 1,
            "seq": state.seq,
            "state": text,
            "signature": self.keys.sign(snapshot_message(state.seq, text)),
        }
        connection.execute(sa.delete(store.snapshot))
        connection.execute(sa.insert(store.snapshot), row)
        self._snapshot_seq = state.seq

    def begin(self, connection: Connection, founding: Body) -> None:
        """Write the first entry into empty tables."""
        self._state = State()
        self.add(connection, founding)

    def add(self, connection: Connection, body: Body, controller: Controller | None = None) -> Entry:
        """Write an entry that says this; committed by the caller's block."""
        if body.COUNTERSIGNED and controller is None:
            raise LedgerRefused(
                f"A {body.KIND} entry needs the controller's signature.",
                remedy="Unlock the controller's key and run again.",
            )
        return self.append(connection, body.KIND, body.shown(), body.hidden(), controller)

    def append(
        self,
        connection: Connection,
        kind: str,
        body: Json,
        sealed: Json | None = None,
        controller: Controller | None = None,
    ) -> Entry:
        """Sign an entry, fold it into the state, write it and move the head. Committed by the caller's block."""
        if self._state is None:
            raise LedgerRefused("the ledger is not open for writing.")
        state = self._state
        entry = make_entry(self.keys, state.seq + 1, bytes.fromhex(state.hash), kind, body, sealed or {}, controller)
        apply(state, entry)
        connection.execute(sa.insert(store.entries), vars(entry))
        connection.execute(
            sa.update(store.head).where(store.head.c.id == 1).values(site=state.site, seq=entry.seq, hash=entry.hash)
        )
        if kind != "commit" and state.seq - self._snapshot_seq >= SNAPSHOT_EVERY:
            self.write_snapshot(connection, state)
        return entry

    def check_members(self, connection: Connection, state: State, *, records: bool = False) -> None:
        """Raises LedgerRefused where the tables of members are not what the entries say."""
        fault = members.fault_of_patients(connection, state, self.keys)
        if fault is None and records:
            fault = members.fault_of_records(connection, state, self.keys)
        if fault is not None:
            raise untrusted(fault)

    def heads(self) -> list[SignedHead] | None:
        return None if self.witness is None else read_witness(self.witness)

    def descends(self, connection: Connection, state: State, heads: list[SignedHead] | None) -> None:
        for found in heads or ():
            if found.site != state.site or found.public_key not in state.site_keys:
                raise LedgerRefused(
                    "The witness holds a head of another site's ledger.",
                    remedy="Check ledger.witness and ledger.url.",
                )
        if not heads:
            return
        wanted = {found.entries: found.hash for found in heads}
        newest = max(wanted)
        if newest > state.seq:
            raise LedgerRefused(
                f"This ledger was rolled back: it has {state.seq} entries, but the witness has seen {newest}.",
                remedy="An older copy was restored, or this is another copy. Find the newest one (docs/ledger.md, "
                "Recovery); until then nothing is granted.",
            )
        here = {}
        for some in chunks(wanted, 5_000):
            rows = connection.execute(
                sa.select(store.entries.c.seq, store.entries.c.hash).where(store.entries.c.seq.in_(some))
            )
            here.update({int(row.seq): blob(row.hash).hex() for row in rows})
        for number, digest in sorted(wanted.items()):
            if here.get(number) != digest:
                raise LedgerRefused(
                    f"This ledger is a fork: its entry {number} is not the one that the witness has seen.",
                    remedy="Two copies went separate ways. Find the true one (docs/ledger.md, Recovery); until then "
                    "nothing is granted.",
                )


def follow(state: State, entry: Entry) -> None:
    """Check an entry's place, hash and signatures, and fold it in. Raises LedgerRefused naming the entry."""
    fault = fault_of(entry, state.seq + 1, bytes.fromhex(state.hash))
    if fault is None:
        if entry.kind != "genesis" and not state.site_keys:
            fault = "the founding entry is missing"
        else:
            site, controllers = keys_for(state, entry)
            fault = signature_fault(entry, site, controllers, countersigned=needs_controller(entry.kind))
    if fault is not None:
        raise untrusted(fault)
    apply(state, entry)


def untrusted(fault: str) -> LedgerRefused:
    return LedgerRefused(
        f"This ledger cannot be trusted: {fault}. Nothing is granted.",
        remedy="Run `dptrain ledger verify`, and restore the newest sound backup (docs/ledger.md, Recovery).",
    )


def blob(value: object) -> bytes:
    """The bytes of a column; none for a value of another type, which is no hash and no signature."""
    return bytes(value) if isinstance(value, bytes | memoryview) else b""


def snapshot_message(seq: int, text: str) -> bytes:
    """What the site signs of a snapshot."""
    return b"dptrain.snapshot\0" + str(seq).encode() + b"\0" + text.encode()


def read_entry(row: Any) -> Entry:
    """A row of `entries`. Raises LedgerRefused where a column holds something of another type."""
    texts = (row.kind, row.time, row.body, row.sealed)
    blobs = (row.prev, row.hash, row.signature, b"" if row.countersignature is None else row.countersignature)
    if (
        not all(isinstance(text, str) for text in texts)
        or not all(isinstance(blob, bytes | memoryview) for blob in blobs)
        or not isinstance(row.version, int)
    ):
        raise untrusted(f"entry {row.seq} holds something that no entry holds")
    return Entry(
        int(row.seq),
        row.version,
        *texts,
        bytes(row.prev),
        bytes(row.hash),
        bytes(row.signature),
        None if row.countersignature is None else bytes(row.countersignature),
    )
