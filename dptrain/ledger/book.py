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
from dptrain.files import utc_now
from dptrain.ledger import members, store
from dptrain.ledger.approvals import (
    Ancestor,
    Approval,
    Decision,
    day_of,
    fault_of_approval,
    fault_of_decision,
    missing,
    rules_for,
    signers,
)
from dptrain.ledger.bodies import Body
from dptrain.ledger.chain import (
    Entry,
    SignedHead,
    controller_fault,
    fault_of,
    make_entry,
    read_witness,
    site_fault,
    write_json,
)
from dptrain.ledger.judge import judge, overdrawn
from dptrain.ledger.keys import Keys, signed_by
from dptrain.ledger.kinds import apply, keys_for, needs_controller
from dptrain.ledger.signing import Signer
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
        self._thorough = False  # whether the state was made from the first entry on, every rule checked
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
            if not self._thorough:  # a snapshot is signed by the site alone: nothing is granted on its word
                self._state = None
            yield connection, self._catch_up(connection, any_site_key=any_site_key, thorough=True)

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

    def _catch_up(self, connection: Connection, *, any_site_key: bool = False, thorough: bool = False) -> State:
        """The state at the ledger's head, every new entry checked. Raises LedgerRefused for any fault.

        Args:
            thorough: begin with the first entry, and compute again what budgets and charges rest on.
        """
        if self._state is None:
            self._check_seen(connection)
            self._state = State() if thorough else self._from_snapshot(connection)
            self._thorough = thorough
        state = self._state
        rows = connection.execute(
            sa.select(store.entries).where(store.entries.c.seq > state.seq).order_by(store.entries.c.seq)
        )
        for row in rows:
            follow(state, read_entry(row), self.ancestor(connection), thorough=self._thorough)
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
        if here is None or blob(here).hex() != state.hash or state.seq != row.seq or overdrawn(state):
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
        self._state, self._thorough = State(), True
        self.add(connection, founding)

    def add(self, connection: Connection, body: Body, approval: Signer | Approval | None = None) -> Entry:
        """Write an entry that says this; committed by the caller's block.

        Args:
            approval: of a kind that needs it: the approvers' signatures, or the one key that signs now.

        Raises LedgerRefused where the approval is missing or does not do, or the entry breaks a rule.
        """
        if self._state is None:
            raise LedgerRefused("the ledger is not open for writing.")
        if approval is not None:
            if not isinstance(approval, Approval):
                approval = self._sign(self._state, body, approval)
            self._check_approval(connection, self._state, body, approval)
        elif body.COUNTERSIGNED:
            raise LedgerRefused(
                f"A {body.KIND} entry needs the controller's signature.",
                remedy="Unlock the controller's key and run again.",
            )
        entry = self.append(connection, body.KIND, body.shown(), body.hidden(), approval)
        judge(self._state, entry, thorough=True)
        return entry

    def _sign(self, state: State, body: Body, signer: Signer) -> Approval:
        """A decision by one signer, drawn up and signed now. Raises LedgerRefused where one is not enough."""
        decision = Decision.draw_up(state, body.KIND, body.shown(), days=1)
        approval = Approval(decision, (decision.signed(signer),))
        try:
            roles = [approver.role for approver in signers(state, body.KIND, approval)]
        except ValueError:
            raise LedgerRefused(
                "This key is not the controller's key of this ledger: its signature would count for nothing.",
                remedy="Use the controller.json that belongs to this site; after a rotation, the newest one.",
            ) from None
        for rule in rules_for(state, body.KIND):
            if (short := missing(rule, roles)) is not None:
                raise LedgerRefused(
                    f"This {body.KIND} {short}.",
                    remedy="Write a request (the same with to=FILE), then `dptrain ledger sign file=FILE`, `apply`.",
                )
        return approval

    def _check_approval(self, connection: Connection, state: State, body: Body, approval: Approval) -> None:
        fault = fault_of_decision(
            state,
            approval,
            self.ancestor(connection),
            kind=body.KIND,
            text=write_json(body.shown()),
            day=day_of(state, utc_now()),
        )
        if fault is not None:
            raise LedgerRefused(
                f"This {body.KIND} {fault}. Nothing was recorded.",
                remedy="Write a new request on this ledger (to=FILE) and have it signed.",
            )

    def append(
        self,
        connection: Connection,
        kind: str,
        body: Json,
        sealed: Json | None = None,
        approval: Approval | None = None,
    ) -> Entry:
        """Sign an entry, fold it into the state, write it and move the head: what :meth:`add` does in the end."""
        if self._state is None:
            raise LedgerRefused("the ledger is not open for writing.")
        state = self._state
        approved = None if approval is None else approval.to_bytes()
        entry = make_entry(self.keys, state.seq + 1, bytes.fromhex(state.hash), kind, body, sealed or {}, approved)
        apply(state, entry)
        connection.execute(sa.insert(store.entries), vars(entry))
        connection.execute(
            sa.update(store.head).where(store.head.c.id == 1).values(site=state.site, seq=entry.seq, hash=entry.hash)
        )
        if kind != "commit" and state.seq - self._snapshot_seq >= SNAPSHOT_EVERY:
            self.write_snapshot(connection, state)
        return entry

    def ancestor(self, connection: Connection) -> Ancestor:
        """The hash of an entry of this ledger, by its number."""

        def look(seq: int) -> bytes | None:
            digest = connection.execute(sa.select(store.entries.c.hash).where(store.entries.c.seq == seq)).scalar()
            return None if digest is None else blob(digest)

        return look

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
        for seen in heads or ():
            if seen.site != state.site or seen.public_key not in state.site_keys:
                raise LedgerRefused(
                    "The witness holds a head of another site's ledger.",
                    remedy="Check ledger.witness and ledger.url.",
                )
        if not heads:
            return
        wanted = {seen.entries: seen.hash for seen in heads}
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


def follow(state: State, entry: Entry, ancestor: Ancestor, *, thorough: bool = True) -> None:
    """Check an entry's place, hash, signatures and rules, and fold it in. Raises LedgerRefused naming the entry.

    Args:
        ancestor: number -> hash of that entry of the ledger.
        thorough: also compute again what budgets and charges rest on (:func:`judge`).
    """
    fault = fault_of(entry, state.seq + 1, bytes.fromhex(state.hash))
    if fault is None:
        fault = signature_fault(state, entry, ancestor)
    if fault is not None:
        raise untrusted(fault)
    apply(state, entry)
    try:
        judge(state, entry, thorough=thorough)
    except LedgerRefused as error:
        raise untrusted(error.message) from None


def signature_fault(state: State, entry: Entry, ancestor: Ancestor) -> str | None:
    """What is wrong with an entry's signatures, given the keys in force at its place; None where nothing is."""
    if entry.kind != "genesis" and not state.site_keys:
        return "the founding entry is missing"
    if entry.version < state.version:
        return f"entry {entry.seq} has the version {entry.version} of an earlier program"
    site, controllers = keys_for(state, entry)
    fault = site_fault(entry, site)
    if fault is not None:
        return fault
    if entry.countersignature is None:
        lacks = needs_controller(entry.kind)
        return f"entry {entry.seq} ({entry.kind}) lacks the controller's signature" if lacks else None
    if entry.version == 1:
        return controller_fault(entry, controllers)
    fault = fault_of_approval(state, entry, ancestor)
    return None if fault is None else f"entry {entry.seq} ({entry.kind}) {fault}"


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
