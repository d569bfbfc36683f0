"""Decisions that several people sign, on machines of their own; and what does not count as one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks._ledger_site import COHORT, Site, approve
from dptrain.errors import ConfigError, LedgerRefused
from dptrain.ledger import Controller, Ledger, chain, requests
from dptrain.ledger.approvals import Approval, Decision
from dptrain.ledger.kinds import NameApprover, SetRule, Unlock
from dptrain.ledger.requests import Request


class Curve:
    """An ECDSA P-256 key, as smart cards hold it."""

    algorithm = "ecdsa-p256"

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.public = spki(self.key.public_key())

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message, ec.ECDSA(hashes.SHA256()))


class Rsa:
    """An RSA key with PSS."""

    algorithm = "rsa-pss"

    def __init__(self, bits: int = 3072) -> None:
        self.key = rsa.generate_private_key(65537, bits)
        self.public = spki(self.key.public_key())

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())


def spki(key: Any) -> str:
    """The public key as the ledger takes it."""
    der: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return der.hex()


@pytest.fixture(scope="module")
def people() -> dict[str, Any]:
    """A DPO with a smart card, a security officer with RSA, a deputy."""
    return {"dpo": Curve(), "security": Rsa(), "deputy": Controller(Ed25519PrivateKey.generate())}


@pytest.fixture
def board(site: Site, people: dict[str, Any]) -> Site:
    """Four approvers; a budget and an unlock need 2 of them, one a DPO."""
    for role, key in people.items():
        site.ledger.name_approver(
            role.title(),
            role=role,
            public=key.public,
            algorithm=key.algorithm,
            reason="x",
            controller=site.controller,
        )
    two: dict[str, Any] = {"signatures": 2, "roles": {"dpo": 1}, "reason": "four eyes"}
    site.ledger.set_rule("budget", **two, controller=site.controller)
    with pytest.raises(LedgerRefused, match="needs 2 signatures"):
        site.ledger.set_rule("unlock", **two, controller=site.controller)
    body = SetRule(kind="unlock", **two)
    requests.carry_out(site.ledger, signed(requests.draw_up(site.ledger, body), site.controller, people["dpo"]))
    site.ledger.lock(COHORT, reason="complaint")
    return site


def signed(request: Request, *signers: Any) -> Request:
    """By all of them."""
    for signer in signers:
        request = requests.sign(request, signer)
    return request


def unlock(site: Site) -> Request:
    """A request to unlock."""
    return requests.draw_up(site.ledger, Unlock(cohort=COHORT, reason="settled"))


def test_two_of_four_with_a_dpo_across_machines(board: Site, people: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "unlock.json"
    unlock(board).write(path)
    told = dict(Request.read(path).told())
    assert (told["decision"], told["cohort"], told["in short"]) == ("unlock", f'"{COHORT}"', "settled")
    for signer in (people["deputy"], people["dpo"]):
        requests.sign(Request.read(path), signer).write(path)
    board.ledger.lock(COHORT, reason="an entry in between voids nothing")
    entry = requests.carry_out(board.ledger, Request.read(path))
    assert board.ledger.signed_by(entry) == ["Deputy (deputy)", "Dpo (dpo)"]
    assert board.ledger.signed_by(board.ledger.entries()[0]) == []
    assert board.again().verify() == []
    with pytest.raises(LedgerRefused, match="applied before, by entry"):
        requests.carry_out(board.ledger, Request.read(path))
    assert board.again().verify() == []


def foreign(request: Request) -> Request:
    return signed(request, Controller(Ed25519PrivateKey.generate()))


def altered_body(request: Request) -> Request:
    return replace(request, body=Unlock(cohort=COHORT, reason="something else"))


def altered(request: Request, **changes: Any) -> Request:
    decision = replace(request.decision, **changes)
    return replace(request, approval=replace(request.approval, decision=decision))


def twice(request: Request) -> Request:
    signatures = (*request.approval.signatures, request.approval.signatures[0])
    return replace(request, approval=replace(request.approval, signatures=signatures))


def lent(request: Request) -> Request:
    """One person's signature under another's name."""
    first, second = request.approval.signatures
    forged = replace(second, signature=first.signature)
    return replace(request, approval=replace(request.approval, signatures=(first, forged)))


@pytest.mark.parametrize(
    ("who", "change", "what"),
    [
        (("controller",), None, "needs 2 signatures"),
        (("dpo",), None, "needs 2 signatures"),
        (("controller", "deputy"), None, "1 by a dpo"),
        (("controller", "dpo"), foreign, "foreign key"),
        (("controller", "dpo"), altered_body, "altered"),
        (("controller", "dpo"), lambda r: altered(r, last_day="2099-01-01"), "forged"),
        (("controller", "dpo"), lambda r: altered(r, last_day="2020-01-01"), "until 2020-01-01 only"),
        (("controller", "dpo"), lambda r: altered(r, site="00" * 16), "another site"),
        (("controller", "dpo"), lambda r: altered(r, kind="budget"), "altered"),
        (("controller", "dpo"), lambda r: altered(r, head="ab" * 32), "another ledger"),
        (("controller", "dpo"), lambda r: altered(r, entries=99), "another ledger"),
        (("controller", "dpo"), lambda r: altered(r, nonce="ab" * 16), "forged"),
        (("dpo",), twice, "twice"),
        (("controller", "dpo"), lent, "forged"),
    ],
)
def test_what_is_no_approval(
    board: Site,
    people: dict[str, Any],
    who: tuple[str, ...],
    change: Callable[[Request], Request] | None,
    what: str,
) -> None:
    """Refused where it is applied; and where the site's key wrote it all the same, by whoever reads."""
    keys = {**people, "controller": board.controller}
    request = signed(unlock(board), *(keys[name] for name in who))
    request = request if change is None else change(request)
    before = board.ledger.head().hash
    with pytest.raises(LedgerRefused, match=what):
        requests.carry_out(board.ledger, request)
    assert board.ledger.head().hash == before
    account = board.again()
    with account.write() as (connection, _):
        account.append(connection, "unlock", request.body.shown(), None, request.approval)
    with pytest.raises(LedgerRefused, match=what):
        board.ledger.status(COHORT)
    assert what in account.verify()[0].what


def test_a_request_that_was_altered_between_machines_is_not_signed(board: Site, tmp_path: Path) -> None:
    path = tmp_path / "unlock.json"
    unlock(board).write(path)
    values = json.loads(path.read_text())
    values["body"]["cohort"] = "another"
    path.write_text(json.dumps(values))
    with pytest.raises(LedgerRefused, match="altered"):
        Request.read(path)
    for wrong in ("", "{}", "[1]", "nonsense", json.dumps({**values, "more": 1}), "[" * 100_000):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match="no request"):
            Request.read(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        Request.read(tmp_path / "none.json")


def test_a_request_is_not_signed_twice_or_after_its_last_day(board: Site) -> None:
    once = signed(unlock(board), board.controller)
    with pytest.raises(LedgerRefused, match="already"):
        requests.sign(once, board.controller)
    with pytest.raises(LedgerRefused, match="only"):
        requests.sign(altered(unlock(board), last_day="2020-01-01"), board.controller)


def test_a_clock_set_back_makes_no_decision_valid_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    request = signed(requests.draw_up(site.ledger, Unlock(cohort=COHORT, reason="x"), days=0), site.controller)
    monkeypatch.setattr(chain, "utc_now", lambda: "2099-01-01T00:00:00Z")
    site.ledger.lock(COHORT, reason="later")
    monkeypatch.undo()
    with pytest.raises(LedgerRefused, match="only"):
        requests.carry_out(site.ledger, request)


def test_another_copy_is_not_what_was_seen(site: Site, board: Site, people: dict[str, Any], tmp_path: Path) -> None:
    """A decision on one ledger does not count on another that has the same keys."""
    other = Ledger.create(str(tmp_path / "other.sqlite"), site.keys)
    request = signed(unlock(board), board.controller, people["dpo"])
    with pytest.raises(LedgerRefused, match="another ledger"):
        requests.carry_out(other, request)


def test_a_retired_key_signs_no_more(board: Site, people: dict[str, Any]) -> None:
    body = NameApprover(name="Deputy", role="deputy", public=None, algorithm="ed25519", reason="left the house")
    requests.carry_out(board.ledger, signed(requests.draw_up(board.ledger, body), board.controller, people["dpo"]))
    request = signed(unlock(board), people["deputy"], people["dpo"])
    with pytest.raises(LedgerRefused, match="retired key"):
        requests.carry_out(board.ledger, request)
    again = replace(body, name="New", public=people["deputy"].public)  # nor comes it back under another name
    request = signed(requests.draw_up(board.ledger, again), board.controller, people["dpo"])
    with pytest.raises(LedgerRefused, match="is, or was, another"):
        requests.carry_out(board.ledger, request)


def test_nobody_shrinks_the_rules_alone(board: Site, people: dict[str, Any]) -> None:
    """One signature must not be enough to make one signature enough, nor to name a DPO of one's own."""
    own = Curve()
    bodies: list[Any] = [
        SetRule(kind="unlock", signatures=1, roles={}, reason="quicker"),
        SetRule(kind="permit", signatures=1, roles={}, reason="quicker"),
        NameApprover(name="Mine", role="dpo", public=own.public, algorithm=own.algorithm, reason="mine"),
        NameApprover(name="Dpo", role="dpo", public=None, algorithm="ed25519", reason="away with them"),
    ]
    for body in bodies:
        for key in (board.controller, people["dpo"]):
            with pytest.raises(LedgerRefused, match="needs"):
                requests.carry_out(board.ledger, signed(requests.draw_up(board.ledger, body), key))
    away = signed(requests.draw_up(board.ledger, bodies[-1]), board.controller, people["dpo"])
    with pytest.raises(LedgerRefused, match="never be met again"):
        requests.carry_out(board.ledger, away)
    assert board.again().verify() == []


def test_a_lost_key_is_replaced_with_the_recovery_code(board: Site, people: dict[str, Any]) -> None:
    from dptrain.ledger import recovery

    code = recovery(board.keys.recovery_code or "")
    new = Curve()
    body = NameApprover(name="Dpo", role="dpo", public=new.public, algorithm=new.algorithm, reason="card lost")
    request = signed(requests.draw_up(board.ledger, body), board.controller, code)
    requests.carry_out(board.ledger, request)
    requests.carry_out(board.ledger, signed(unlock(board), board.controller, new))
    with pytest.raises(LedgerRefused, match="foreign key"):
        requests.carry_out(board.ledger, signed(unlock(board), new, code))
    assert board.again().verify() == []


@pytest.mark.parametrize(
    ("algorithm", "public", "what"),
    [
        ("dsa", "00", "no algorithm"),
        ("ed25519", "00", "no public key"),
        ("rsa-pss", lambda: Rsa(2048).public, "2048 bits"),
        ("ecdsa-p256", lambda: spki(ec.generate_private_key(ec.SECP384R1()).public_key()), "secp384r1"),
        ("ecdsa-p256", lambda: Rsa().public, "no public key"),
    ],
)
def test_weak_and_foreign_keys_are_not_named(file_site: Site, algorithm: str, public: Any, what: str) -> None:
    facts: dict[str, Any] = {"role": "dpo", "reason": "x", "controller": file_site.controller}
    with pytest.raises(ConfigError, match=what):
        file_site.ledger.name_approver(
            "Dpo", public=public() if callable(public) else public, algorithm=algorithm, **facts
        )


def test_an_approval_reads_back_and_nothing_else_does(file_site: Site) -> None:
    body = {"cohort": COHORT, "reason": "x"}
    with file_site.ledger.view() as (_, state):
        made = approve(state, "unlock", body, file_site.controller)
    assert Approval.from_bytes(made.to_bytes()) == made
    good = json.loads(made.to_bytes())
    for change in ({"more": 1}, {"decision": {**good["decision"], "entries": "3"}}, {"signatures": [1]},
                   {"decision": {**good["decision"], "last_day": "zzzz"}}, {"decision": None}):  # fmt: skip
        with pytest.raises(ValueError, match="no approval"):
            Approval.from_bytes(json.dumps({**good, **change}, sort_keys=True, separators=(",", ":")).encode())
    for content in (b"", b"\xff", b"[]", made.to_bytes() + b" ", bytes(64)):
        with pytest.raises(ValueError, match="no approval"):
            Approval.from_bytes(content)
    assert isinstance(made.decision, Decision)


# -- last days, withdrawn permissions, the controller's name ------------------------------------------------------


def test_a_budget_ends_with_its_last_day(file_site: Site) -> None:
    site = file_site
    facts: dict[str, Any] = {"delta": 1e-3, "forecast": (), "reason": "until then", "controller": site.controller}
    epsilon = site.ledger.status(COHORT).budget_epsilon or 0.0
    with pytest.raises(ConfigError, match="no day"):
        site.ledger.budget(COHORT, epsilon=epsilon, last_day="soon", **facts)
    site.ledger.budget(COHORT, epsilon=epsilon, last_day="2999-12-31", **facts)
    site.ledger.reserve(site.plan, COHORT, run="in time", fingerprint=site.fingerprint).commit(5)
    site.ledger.budget(COHORT, epsilon=epsilon, last_day="2020-01-01", **facts)
    with pytest.raises(LedgerRefused, match="granted until 2020-01-01, which is over"):
        site.ledger.reserve(site.plan, COHORT, run="late", fingerprint=site.fingerprint)
    site.ledger.resume("in time").commit(10)  # what was granted in time goes on
    like = next(entry for entry in site.ledger.entries() if entry.kind == "reserve")
    account = site.again()
    with account.write() as (connection, _):
        account.append(connection, "reserve", {**like.facts, "run": "late"}, like.secrets)
    with pytest.raises(LedgerRefused, match="after the last day"):
        site.ledger.status(COHORT)
    assert "after the last day" in account.verify()[0].what


def test_a_permission_ends_and_is_withdrawn(file_site: Site) -> None:
    site = file_site
    site.ledger.lock(COHORT, reason="complaint")
    facts: dict[str, Any] = {"purpose": "audit", "run": "x", "fingerprint": site.fingerprint}
    late = site.ledger.permit("audit", COHORT, site.controller, reason="once", last_day="2020-01-01")
    number = site.ledger.permit("audit", COHORT, site.controller, reason="once", last_day="2999-01-01")
    site.ledger.revoke(number, reason="changed our mind", controller=site.controller)
    with pytest.raises(LedgerRefused, match="no permission that is still open"):
        site.ledger.revoke(number, reason="again", controller=site.controller)
    with pytest.raises(LedgerRefused, match="locked"):
        site.ledger.admit(COHORT, **facts)
    for permit, what in ((late, "had ended"), (number, "withdrawn")):
        body = {"cohort": COHORT, "version": 0, "run": "x", "purpose": "audit", "basis": "permit", "permit": permit}
        with pytest.raises(LedgerRefused, match=what), site.ledger.write() as (connection, _):
            site.ledger.append(connection, "admit", body)
    good = site.ledger.permit("audit", COHORT, site.controller, reason="once", last_day="2999-01-01")
    assert site.ledger.admit(COHORT, **facts).basis == "permit"
    with pytest.raises(LedgerRefused, match="still open"):
        site.ledger.revoke(good, reason="too late", controller=site.controller)
    assert site.again().verify() == []


def test_the_controller_has_a_name(file_site: Site) -> None:
    assert file_site.ledger.controller() is None
    person = {
        "name": "Klinikum Nord gGmbH",
        "represented_by": "Dr. A. Beispiel",
        "contact": "datenschutz@nord.example",
    }
    file_site.ledger.name_controller(**person, controller=file_site.controller)
    assert file_site.again().controller() == person
    with pytest.raises(LedgerRefused, match="not the controller's key"):
        file_site.ledger.name_controller("X", represented_by="Y", controller=Controller(Ed25519PrivateKey.generate()))
