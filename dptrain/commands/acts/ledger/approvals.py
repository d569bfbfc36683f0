"""Who signs: approvers and rules; requests that are signed on other machines; the inventory of keys."""

from __future__ import annotations

from dataclasses import asdict
from operator import itemgetter
from pathlib import Path

from dptrain.commands.acts.ledger.desk import decided, opened
from dptrain.commands.command import Call
from dptrain.errors import EXIT_DONE, ConfigError
from dptrain.ledger import requests
from dptrain.ledger.approvals import DEFAULT, FOUNDING
from dptrain.ledger.decisions import approver_body, rule_body
from dptrain.ledger.keys import CONTROLLER, unlock
from dptrain.ledger.kinds import RULED
from dptrain.ledger.places import keys_place
from dptrain.ledger.requests import Request
from dptrain.terminal import secrets
from dptrain.terminal.output import Output


def approver(call: Call) -> int:
    """Name an approver."""
    out, words = Output(as_json=call.as_json), call.words
    ledger, keys = opened(words)
    name, role, public, algorithm, reason = itemgetter("name", "role", "public", "algorithm", "reason")(words)
    body = approver_body(name, role=role, public=public, algorithm=algorithm, reason=reason)
    if decided(words, ledger, keys, body, out):
        out.say(f"{name} signs no more." if public is None else f"{name} signs as {role} from now on.")
        out.give({"approver": name, "role": role, "public": public})
    return EXIT_DONE


def rule(call: Call) -> int:
    """Set a rule."""
    out, words = Output(as_json=call.as_json), call.words
    ledger, keys = opened(words)
    kind, signatures, asked, reason = itemgetter("kind", "signatures", "roles", "reason")(words)
    roles: dict[str, int] = {}
    for part in asked.split(",") if asked else ():
        role, _, number = part.partition(":")
        if not number.strip().isdigit():
            raise ConfigError(f"roles={asked} is no list like dpo:1,controller:1.")
        roles[role.strip()] = int(number)
    body = rule_body(kind, signatures=signatures, roles=roles, reason=reason)
    if decided(words, ledger, keys, body, out):
        out.say(body.tell(None))
        out.give({"kind": body.kind, "signatures": body.signatures, "roles": body.roles})
    return EXIT_DONE


def sign(call: Call) -> int:
    """Show a request in full, and sign it."""
    out, words = Output(as_json=call.as_json), call.words
    path = Path(words["file"])
    request = Request.read(path)
    out.table("You are about to sign", ("what", "value"), request.told(), right=())
    key, folder, url = itemgetter("key", "ledger.keys", "ledger.url")(words)
    key = key or Path(keys_place(folder, url)) / CONTROLLER
    signer = unlock(Path(key), secrets.passphrase())
    request = requests.sign(request, signer)
    request.write(path)
    count = len(request.approval.signatures)
    out.say(f"Signed. {path} holds {count} signature{'' if count == 1 else 's'}.")
    out.give({"request": str(path), "signatures": count, "public": signer.public, "told": dict(request.told())})
    return EXIT_DONE


def apply(call: Call) -> int:
    """Apply a signed request."""
    out = Output(as_json=call.as_json)
    ledger, _ = opened(call.words)
    request = Request.read(Path(call.words["file"]))
    entry = requests.carry_out(ledger, request)
    signed_by = ledger.signed_by(entry)
    out.say(f"Entry {entry.seq} ({entry.kind}) is recorded: {request.body.tell(None)}")
    out.say(f"Signed by {', '.join(signed_by)}.")
    out.give({"entry": entry.seq, "kind": entry.kind, "hash": entry.hash.hex(), "signed_by": signed_by})
    return EXIT_DONE


def keys(call: Call) -> int:
    """Every key that the ledger names, and the rules."""
    out = Output(as_json=call.as_json)
    ledger, _ = opened(call.words)
    with ledger.view() as (_, state):
        approvers = sorted(state.approvers.values(), key=lambda one: one.seq)
        rules = {kind: state.rules.get(kind, DEFAULT) for kind in RULED}
        site, recovery, retired = state.site_keys, state.recovery, dict(state.retired)
    rows = [("site", "site", "in force", "every entry and head", "ed25519", site[-1][-16:])]
    rows += [
        (
            one.name,
            one.role,
            f"in force since entry {one.seq}",
            "what the rules ask for",
            one.algorithm,
            one.public[-16:],
        )
        for one in approvers
    ]
    rows.append(("recovery code", "any", "in force", "new keys, in place of one approver", "ed25519", recovery[-16:]))
    rows += [("site", "site", "retired", "nothing more", "ed25519", public[-16:]) for public in site[:-1]]
    rows += [(name, "", "retired", "nothing more", "", public[-16:]) for public, name in retired.items()]
    names = ("whose", "role", "state", "signs", "algorithm", "public")
    out.table(f"Keys of {ledger.store.name}", names, rows, right=())
    for kind, asked in rules.items():
        roles = ", ".join(f"{number} by a {role}" for role, number in sorted(asked.roles.items()))
        out.say(f"  {kind.ljust(10)} {asked.signatures} to sign ({roles or 'of any role'})")
    out.say(f"  {' and '.join(FOUNDING)}: every rule above at once.")
    out.give(
        {
            "keys": [dict(zip(names, row, strict=True)) for row in rows],
            "rules": {kind: asdict(asked) for kind, asked in rules.items()},
        }
    )
    return EXIT_DONE
