"""Who decides what, and how a decision is signed.

What needs approval is signed as a *decision*: this site, this kind of entry, the SHA-256 of its canonical body, the
head that was seen, a nonce, a last day. The entry that carries it stands wherever it is applied, so that another
entry in between voids nothing; it is applied once, on the ledger that was seen, until its last day.

Approvers stand in the chain, with a role each. A rule for each kind says how many of them must sign, and how many
of which role; without a rule the controller alone decides (or a deputy). The rules themselves and the list of
approvers are changed only by what satisfies every rule in force: whoever could shrink a rule could ignore it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from enum import StrEnum

from dptrain.errors import LedgerRefused
from dptrain.files import utc_now
from dptrain.ledger.chain import Entry, read_json, write_json
from dptrain.ledger.signing import Signer, verified
from dptrain.ledger.state import Approver, Rule, State
from dptrain.plain import Json

SCHEMA = "dptrain.decision/1"
Ancestor = Callable[[int], bytes | None]


class Role(StrEnum):
    """What an approver is."""

    CONTROLLER = "controller"  # of the processing (GDPR Art. 4(7)), or who decides in its name
    DEPUTY = "deputy"  # stands in for the controller
    OFFICER = "dpo"  # data protection officer (Art. 37 to 39)
    SECURITY = "security"  # information security officer


@dataclass(frozen=True)
class Decision:
    """What approvers sign.

    Attributes:
        site: id of the site; kind: of entry; body: SHA-256 (hex) of the canonical body.
        entries, head: number and hash of the newest entry when it was drawn up.
        nonce: 32 hex digits; a nonce is applied once.
        last_day: YYYY-MM-DD; afterwards the decision cannot be applied any more.
    """

    site: str
    kind: str
    body: str
    entries: int
    head: str
    nonce: str
    last_day: str

    @property
    def message(self) -> bytes:
        """What is signed."""
        return b"dptrain.decision\0" + write_json({"schema": SCHEMA, **asdict(self)}).encode()

    @classmethod
    def draw_up(cls, state: State, kind: str, body: Json, *, days: int) -> Decision:
        """A new decision, on the ledger as it is, that can be applied for so many days."""
        text = write_json(body)
        last_day = str(date.fromisoformat(day_of(state, utc_now())) + timedelta(days=days))
        return cls(state.site, kind, body_hash(text), state.seq, state.hash, secrets.token_hex(16), last_day)

    def signed(self, signer: Signer) -> Signature:
        """One approver's signature."""
        return Signature(signer.public, signer.algorithm, signer.sign(self.message).hex())


@dataclass(frozen=True)
class Signature:
    """One approver's signature; hex."""

    public: str
    algorithm: str
    signature: str

    def valid(self, decision: Decision) -> bool:
        """Whether the key made it over this decision."""
        try:
            return verified(self.algorithm, self.public, bytes.fromhex(self.signature), decision.message)
        except ValueError:
            return False


@dataclass(frozen=True)
class Approval:
    """A decision and who signed it: what the column `countersignature` of an entry holds."""

    decision: Decision
    signatures: tuple[Signature, ...]

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        signatures = [asdict(signature) for signature in self.signatures]
        return write_json({"decision": asdict(self.decision), "signatures": signatures}).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Approval:
        """Back from :meth:`to_bytes`. Raises ValueError for anything else."""
        try:
            values = read_json(content.decode())
            decision = Decision(**values.pop("decision"))
            signatures = tuple(Signature(**one) for one in values.pop("signatures"))
            made = cls(decision, signatures)
            texts = [text for one in (decision, *signatures) for name, text in vars(one).items() if name != "entries"]
            date.fromisoformat(decision.last_day)
            if values or type(decision.entries) is not int or not all(isinstance(text, str) for text in texts):
                raise ValueError
            if made.to_bytes() != content or len(decision.last_day) != 10:
                raise ValueError
        except (AttributeError, KeyError, LedgerRefused, RecursionError, TypeError, ValueError):
            raise ValueError("no approval") from None
        return made


def body_hash(text: str) -> str:
    """SHA-256 (hex) of a canonical body."""
    return hashlib.sha256(text.encode()).hexdigest()


# -- rules -------------------------------------------------------------------------------------------------------

DEFAULT = Rule(1, {Role.CONTROLLER: 1})
FOUNDING = ("approver", "rule")  # kinds that change who decides: they must satisfy every rule in force
RECOVERABLE = ("approver", "rotate")  # kinds in which the recovery key stands for any one approver


def rules_for(state: State, kind: str) -> list[Rule]:
    """The rules that an entry of this kind must satisfy."""
    if kind in FOUNDING:
        return [DEFAULT, *state.rules.values()]
    return [state.rules.get(kind, DEFAULT)]


def missing(rule: Rule, roles: Sequence[str]) -> str | None:
    """What is missing from signatures by holders of these roles (`any`: the recovery key); None where nothing is."""
    counts = Counter(Role.CONTROLLER if role == Role.DEPUTY else role for role in roles)
    jokers = counts.pop("any", 0)
    short = {role: number - counts[role] for role, number in rule.roles.items() if number > counts[role]}
    if len(roles) >= rule.signatures and sum(short.values()) <= jokers:
        return None
    of_roles = ", ".join(f"{number} by a {role}" for role, number in sorted(rule.roles.items()))
    plural = "" if rule.signatures == 1 else "s"
    return f"needs {rule.signatures} signature{plural} ({of_roles or 'of any role'}) and has {len(roles)}"


def within_reach(rule: Rule, approvers: Sequence[Approver]) -> bool:
    """Whether the approvers in force could satisfy a rule at all."""
    return missing(rule, [approver.role for approver in approvers]) is None


def signers(state: State, kind: str, approval: Approval) -> list[Approver]:
    """Who signed, in the order of the signatures. Raises ValueError, naming what is wrong with a signature."""
    in_force = {approver.public: approver for approver in state.approvers.values()}
    if kind in RECOVERABLE:
        in_force[state.recovery] = Approver("recovery", "any", state.recovery, "ed25519", 0)
    signed: list[Approver] = []
    for signature in approval.signatures:
        approver = in_force.get(signature.public)
        if approver is None:
            retired = signature.public in state.retired
            raise ValueError(f"carries the signature of a {'retired' if retired else 'foreign'} key: it is forged")
        if approver in signed:
            raise ValueError(f"carries the signature of {approver.name} twice")
        if signature.algorithm != approver.algorithm or not signature.valid(approval.decision):
            raise ValueError("carries a signature that is not the approver's: it is forged")
        signed.append(approver)
    return signed


def fault_of_approval(state: State, entry: Entry, ancestor: Ancestor) -> str | None:
    """What is wrong with an entry's approval, as the ledger stood before it; None where nothing is.

    Args:
        ancestor: number -> hash of that entry of this ledger, or None.
    """
    try:
        approval = Approval.from_bytes(entry.countersignature or b"")
    except ValueError:
        return "carries an approval that cannot be read"
    return fault_of_decision(
        state, approval, ancestor, kind=entry.kind, text=entry.body, day=day_of(state, entry.time)
    )


def fault_of_decision(
    state: State, approval: Approval, ancestor: Ancestor, *, kind: str, text: str, day: str
) -> str | None:
    """What stands against applying a decision on this day; None where nothing does."""
    decision = approval.decision
    if decision.site != state.site:
        return "was decided for another site"
    if decision.kind != kind or decision.body != body_hash(text):
        return "is not what was signed: it was altered"
    if decision.nonce in state.nonces:
        return f"was applied before, by entry {state.nonces[decision.nonce]}"
    seen = ancestor(decision.entries)
    if seen is None or seen.hex() != decision.head:
        return "was decided on another ledger, or on another copy of this one"
    if day > decision.last_day:
        return f"could be applied until {decision.last_day} only"
    try:
        roles = [approver.role for approver in signers(state, kind, approval)]
    except ValueError as error:
        return str(error)
    return next((what for rule in rules_for(state, kind) if (what := missing(rule, roles)) is not None), None)


def day_of(state: State, time: str) -> str:
    """The day by the newest time that anybody wrote: a clock that is set back makes nothing valid again."""
    return max(state.time, time)[:10]


def over(last_day: str | None, day: str) -> bool:
    """Whether a last day has passed on this day."""
    return last_day is not None and day > last_day
