"""What the ledger says of a run, for whoever compares a page with it: every entry read and checked again, in order.

Nothing is taken from a snapshot here: whoever asks this asks because a paper may have been changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import sqlalchemy as sa

from dptrain.errors import LedgerRefused
from dptrain.ledger import rules, store
from dptrain.ledger.book import Book, follow, read_entry
from dptrain.ledger.chain import SignedHead, sign_head
from dptrain.ledger.facts import Bound, GateFacts
from dptrain.ledger.kinds import Close, Reserve
from dptrain.ledger.looking import bound_of
from dptrain.ledger.state import RunState, State, Version
from dptrain.ledger.status import CohortStatus, status_of


@dataclass(frozen=True)
class Evidence:
    """A run, as the entries up to `head` have it.

    Attributes:
        bound: the hashes that its entries carry, and the releases.
        run, version: its charge and plan, and the version of the cohort that it was granted on.
        gate: the public gate around it: before its reservation, and when it was closed; None while it is open.
        status: where its cohort stood at `head`.
        head: the newest of these entries, signed by the site for this purpose.
        hashes, keys: of every entry up to `head` its hash, and the site's key that was in force after it; entry n at
            n - 1.
    """

    bound: Bound
    run: RunState
    version: Version
    gate: GateFacts | None
    status: CohortStatus
    head: SignedHead
    hashes: tuple[str, ...]
    keys: tuple[str, ...]

    def holds(self, head: SignedHead) -> bool:
        """Whether this head is one of this ledger, signed with the site's key of that time."""
        place = head.entries - 1
        return (
            0 <= place < len(self.hashes)
            and (head.site, head.hash) == (self.head.site, self.hashes[place])
            and head.public_key == self.keys[place]
            and head.valid()
        )


def evidence(book: Book, run: str, *, at: int | None = None, made: str | None = None) -> Evidence:
    """What the entries up to number `at` (None: all) say of a run.

    Args:
        made: the time that the head is signed with (ISO 8601, UTC); None: now.

    Raises LedgerRefused for a run that they do not know, a chain that is not sound, or one that ends before `at`.
    """
    with book.view() as (connection, state):
        last = state.seq if at is None else at
        if last > state.seq:
            raise LedgerRefused(
                f"This ledger has {state.seq} entries; entry {last} is not among them: an older copy was restored.",
                remedy="Name the newest ledger (docs/ledger.md, Recovery).",
            )
        replayed, gate, before = State(), None, 0.0
        hashes: list[str] = []
        keys: list[str] = []
        rows = connection.execute(
            sa.select(store.entries).where(store.entries.c.seq <= last).order_by(store.entries.c.seq)
        )
        for row in rows:
            entry = read_entry(row)
            own = entry.kind in (Reserve.KIND, Close.KIND) and entry.facts["run"] == run
            if own and entry.kind == Reserve.KIND:
                before = rules.gate_facts(replayed, str(entry.facts["cohort"])).spent_before
            follow(replayed, entry, book.ancestor(connection), thorough=False)
            if own and entry.kind == Close.KIND:
                gate = replace(rules.gate_facts(replayed, replayed.runs[run].cohort), spent_before=before)
            hashes.append(replayed.hash)
            keys.append(replayed.site_keys[-1])
        granted = rules.run(replayed, run)
        head = sign_head(book.keys, replayed.seq, bytes.fromhex(replayed.hash), made)
        return Evidence(
            bound=bound_of(replayed, run),
            run=granted,
            version=replayed.version_of(granted),
            gate=gate,
            status=status_of(replayed, granted.cohort, head, witness=book.witness is not None),
            head=head,
            hashes=tuple(hashes),
            keys=tuple(keys),
        )
