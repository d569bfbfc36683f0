"""Entries, their hash chain, signed heads, and the witness that makes a rollback visible.

An entry's hash covers every column (length-prefixed, so that no two contents meet) and the hash before it. The
site signs each hash; the controller countersigns what only the controller may decide. A head is a signed
statement "entry n of this site has hash h"; whoever else keeps one can prove a later rollback or fork.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dptrain.errors import LedgerRefused
from dptrain.files import utc_now
from dptrain.ledger.keys import Keys, signed_by
from dptrain.plain import Json

ENTRY_VERSION = 2
ENTRY_VERSIONS = (1, 2)  # 1: the controller signs the entry's hash; 2: approvers sign a decision


@dataclass(frozen=True)
class Entry:
    """One line of the ledger. `body` may be shown; `sealed` is for the steward alone (overlaps, exclusions)."""

    seq: int
    version: int
    kind: str
    time: str
    body: str
    sealed: str
    prev: bytes
    hash: bytes
    signature: bytes
    countersignature: bytes | None

    @property
    def facts(self) -> Json:
        """The body as a dict."""
        return read_json(self.body)

    @property
    def secrets(self) -> Json:
        """The sealed part as a dict."""
        return read_json(self.sealed)


@dataclass(frozen=True)
class SignedHead:
    """The newest entry as the site signs it. `entries` counts from 1."""

    site: str
    entries: int
    hash: str
    time: str
    public_key: str
    signature: str

    def to_dict(self) -> Json:
        """Plain values for JSON."""
        return asdict(self)

    @property
    def message(self) -> bytes:
        """What is signed."""
        return b"dptrain.head\0" + _prefixed(
            self.site.encode(), str(self.entries).encode(), bytes.fromhex(self.hash), self.time.encode()
        )

    def valid(self) -> bool:
        """Whether the signature is the named key's. (Whether the key is the site's, the ledger knows.)"""
        try:
            return signed_by(self.public_key, bytes.fromhex(self.signature), self.message)
        except ValueError:
            return False

    @classmethod
    def from_dict(cls, values: Json) -> SignedHead:
        """Back from :meth:`to_dict`. Raises ValueError for anything else."""
        try:
            made = cls(**{name: values[name] for name in cls.__dataclass_fields__})
            if not isinstance(made.entries, int) or not all(
                isinstance(part, str) for part in (made.site, made.hash, made.time, made.public_key, made.signature)
            ):
                raise ValueError
            bytes.fromhex(made.hash)
        except (KeyError, TypeError, ValueError):
            raise ValueError("not a signed head") from None
        return made


def write_json(value: Json) -> str:
    """Canonical JSON: sorted names, no blanks, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def read_json(text: str) -> Json:
    """JSON of an entry. Raises LedgerRefused for anything that :func:`write_json` would not write."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except ValueError:
        raise LedgerRefused("An entry of the ledger cannot be read: it is damaged.") from None
    if not isinstance(value, dict):
        raise LedgerRefused("An entry of the ledger cannot be read: it is damaged.")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(name)


def entry_hash(entry: Entry) -> bytes:
    """SHA-256 over every column of an entry but its own hash and the site's signature, length-prefixed."""
    columns = [
        str(entry.seq).encode(),
        str(entry.version).encode(),
        entry.kind.encode(),
        entry.time.encode(),
        entry.body.encode(),
        entry.sealed.encode(),
        entry.prev,
    ]
    if entry.version > 1:  # in version 1 the countersignature is over this hash
        columns.append(entry.countersignature or b"")
    return hashlib.sha256(b"dptrain.entry\0" + _prefixed(*columns)).digest()


def make_entry(
    keys: Keys, seq: int, prev: bytes, kind: str, body: Json, sealed: Json, approval: bytes | None
) -> Entry:
    """An entry that follows the one with hash `prev`, signed by the site. `approval`: what its approvers signed."""
    columns = (seq, ENTRY_VERSION, kind, utc_now(), write_json(body), write_json(sealed), prev)
    digest = entry_hash(Entry(*columns, b"", b"", approval))
    return Entry(*columns, digest, keys.sign(b"dptrain.site\0" + digest), approval)


def fault_of(entry: Entry, seq: int, prev: bytes) -> str | None:
    """What is wrong with an entry's place, version or hash; None where nothing is."""
    if entry.seq != seq:
        return f"entry {seq} is missing" if entry.seq > seq else f"entry {entry.seq} appears again"
    if entry.version not in ENTRY_VERSIONS:
        return f"entry {seq} has the unknown version {entry.version}"
    if entry.prev != prev:
        return f"entry {seq} does not follow the entry before it"
    if entry_hash(entry) != entry.hash:
        return f"entry {seq} ({entry.kind}) was altered: its hash does not match its content"
    return None


def site_fault(entry: Entry, site: str) -> str | None:
    """What is wrong with the site's signature, given the key in force at its place; None where nothing is."""
    if not signed_by(site, entry.signature, b"dptrain.site\0" + entry.hash):
        return f"entry {entry.seq} ({entry.kind}) does not carry this site's signature"
    return None


def controller_fault(entry: Entry, controllers: Sequence[str]) -> str | None:
    """What is wrong with the controller's signature of an entry of version 1; None where nothing is."""
    message = b"dptrain.controller\0" + entry.hash
    if any(signed_by(public, entry.countersignature or b"", message) for public in controllers):
        return None
    return f"entry {entry.seq} ({entry.kind}) carries a signature that is not the controller's: it is forged"


def sign_head(keys: Keys, entries: int, digest: bytes, time: str | None = None) -> SignedHead:
    """The head as this site signs it, now or as of `time`."""
    unsigned = SignedHead(keys.site, entries, digest.hex(), time or utc_now(), keys.site_public, "")
    return SignedHead(**{**asdict(unsigned), "signature": keys.sign(unsigned.message).hex()})


def read_witness(place: str, *, timeout: float = 10.0) -> list[SignedHead]:
    """The heads that a witness holds: a file or http(s) URL with one JSON head a line (or one JSON list).

    Raises LedgerRefused where the witness cannot be reached or holds no head: without it a rollback could not
    be seen, so nothing is granted.
    """
    try:
        if place.startswith(("http://", "https://")):
            from urllib.request import urlopen

            with urlopen(place, timeout=timeout) as answer:
                text = answer.read(16 * 2**20).decode()
        else:
            text = Path(place).expanduser().read_text()
    except (OSError, ValueError) as error:
        raise LedgerRefused(
            f"The witness {place} cannot be read ({type(error).__name__}), so nobody can tell whether this ledger "
            "was rolled back.",
            remedy="Restore the witness, or check ledger.witness.",
        ) from None
    try:
        stripped = text.strip()
        values = json.loads(stripped) if stripped.startswith("[") else [json.loads(s) for s in stripped.splitlines()]
        heads = [SignedHead.from_dict(value) for value in values]
        if not heads or not all(found.valid() for found in heads):
            raise ValueError
    except (ValueError, RecursionError):
        raise LedgerRefused(
            f"The witness {place} holds no valid signed head of a ledger.",
            remedy="Export one with `dptrain ledger heads to=FILE` while the ledger is known to be sound.",
        ) from None
    return heads


def _prefixed(*parts: bytes) -> bytes:
    return b"".join(struct.pack("<Q", len(part)) + part for part in parts)
