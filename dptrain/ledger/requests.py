"""Decisions across machines: drawn up where the ledger is, signed where the key is, applied where the ledger is.

A request is a JSON file: the decision, the body that it speaks of, and the signatures so far. Whoever signs needs the
file and a key, and neither the ledger nor the network. What is signed is told from the body itself, whose hash the
decision names: nothing else in the file counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dptrain.errors import ConfigError, LedgerRefused
from dptrain.files import utc_now, whole_or_nothing
from dptrain.ledger.approvals import Approval, Decision, Signature, body_hash
from dptrain.ledger.bodies import Body
from dptrain.ledger.book import Book
from dptrain.ledger.chain import Entry, read_json, write_json
from dptrain.ledger.checks import whole
from dptrain.ledger.kinds import KINDS
from dptrain.ledger.signing import Signer

SCHEMA = "dptrain.request/1"
DAYS = 30
MOST_BYTES = 2**20


@dataclass(frozen=True)
class Request:
    """A decision to be signed, and what it speaks of."""

    body: Body
    approval: Approval

    @property
    def decision(self) -> Decision:
        """What is signed."""
        return self.approval.decision

    def told(self) -> list[tuple[str, str]]:
        """What is decided, as (name, value) for the eyes of whoever signs; all of the body, nothing else."""
        seen = f"entry {self.decision.entries}, {self.decision.head[:16]}…"
        rows = [("decision", self.decision.kind), ("in short", self.body.tell(None))]
        rows += [(name, json.dumps(value, ensure_ascii=False)) for name, value in self.body.shown().items()]
        return [*rows, ("site", self.decision.site), ("ledger seen", seen), ("last day", self.decision.last_day)]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises ConfigError where it cannot be written."""
        values = {
            "schema": SCHEMA,
            "decision": asdict(self.decision),
            "body": self.body.shown(),
            "signatures": [asdict(signature) for signature in self.approval.signatures],
        }
        try:
            with whole_or_nothing(path, "wb", private=True) as file:
                file.write((json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}.") from None

    @classmethod
    def read(cls, path: Path) -> Request:
        """Back from :meth:`write`.

        Raises ConfigError for a file that cannot be read or is no request, LedgerRefused for one whose body is not
        the one that its decision names.
        """
        try:
            with open(path, "rb") as file:
                content = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
        try:
            if len(content) > MOST_BYTES:
                raise ValueError
            values = read_json(content.decode())
            if values.pop("schema") != SCHEMA:
                raise ValueError
            decision = Decision(**values.pop("decision"))
            signatures = tuple(Signature(**one) for one in values.pop("signatures"))
            approval = Approval.from_bytes(Approval(decision, signatures).to_bytes())
            shown = values.pop("body")
            body = KINDS[decision.kind].read(shown, {})
            if values:
                raise ValueError
        except (AttributeError, KeyError, LedgerRefused, RecursionError, TypeError, ValueError):
            raise ConfigError(
                f"{path} is no request that this program knows.",
                remedy="Write one with to=FILE, for instance `dptrain ledger budget … to=FILE`.",
            ) from None
        if body_hash(write_json(shown)) != decision.body or body_hash(write_json(body.shown())) != decision.body:
            raise LedgerRefused(
                f"{path} was altered: its content is not what its decision names. Nothing was signed or recorded.",
                remedy="Ask for the file again, and compare it on both machines (sha256sum).",
            )
        return cls(body, approval)


def draw_up(book: Book, body: Body, *, days: int = DAYS) -> Request:
    """A request for a decision on this ledger as it is now; it can be applied for so many days."""
    days = whole("days", days, least=0, most=366)
    with book.view() as (_, state):
        return Request(body, Approval(Decision.draw_up(state, body.KIND, body.shown(), days=days), ()))


def sign(request: Request, signer: Signer) -> Request:
    """The request with one more signature.

    Raises LedgerRefused where the key signed already, or the last day is over by this machine's clock.
    """
    if request.decision.last_day < utc_now()[:10]:
        raise LedgerRefused(
            f"This request could be applied until {request.decision.last_day} only.", remedy="Ask for a new one."
        )
    signatures: Sequence[Signature] = request.approval.signatures
    if any(signature.public == signer.public for signature in signatures):
        raise LedgerRefused("This key has signed the request already.")
    made = (*signatures, request.decision.signed(signer))
    return replace(request, approval=Approval(request.decision, made))


def carry_out(book: Book, request: Request) -> Entry:
    """Write the entry that was decided. Raises LedgerRefused where the approval does not do, with what is missing."""
    with book.write() as (connection, _):
        return book.add(connection, request.body, request.approval)
