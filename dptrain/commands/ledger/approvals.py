"""Who signs: approvers and rules; requests that are signed on other machines; the inventory of keys."""

from __future__ import annotations

from dptrain.commands.command import Command
from dptrain.commands.ledger.family import JSON, REASON, TO
from dptrain.commands.places import PLACES
from dptrain.terminal.words import OneOf, Word

ROLES = ("controller", "deputy", "dpo", "security")
ALGORITHMS = ("ed25519", "ecdsa-p256", "rsa-pss")
FILE = Word(str, "the request")

APPROVER = Command(
    name="ledger approver",
    line="Name somebody whose signature counts, give them another key, or take it from them.",
    run="dptrain.commands.acts.ledger.approvals:approver",
    words={
        "name": Word(str, "of the approver"),
        "role": Word(OneOf(ROLES), ", ".join(ROLES)),
        "reason": REASON,
        "public": Word(str, "the public key in hex (default: none, the approver signs no more)", None),
        "algorithm": Word(OneOf(ALGORITHMS), ", ".join(ALGORITHMS), "ed25519"),
        "to": TO,
        **PLACES,
    },
    flags=JSON,
    examples=("dptrain ledger approver name='D. Muster' role=dpo public=5f0c… reason='appointed 1 March'",),
    codes=(3,),
)

RULE = Command(
    name="ledger rule",
    line="Say how many must sign a kind of entry, and how many of which role.",
    run="dptrain.commands.acts.ledger.approvals:rule",
    words={
        "kind": Word(str, "kind of entry: budget, release, permit, …"),
        "signatures": Word(int, "so many"),
        "reason": REASON,
        "roles": Word(str, "of them at least, for instance dpo:1,controller:1", None),
        "to": TO,
        **PLACES,
    },
    flags=JSON,
    examples=("dptrain ledger rule kind=budget signatures=2 roles=dpo:1 reason='four eyes'",),
    codes=(3,),
)

SIGN = Command(
    name="ledger sign",
    line="Show what a request decides, and sign it: needs the file and your key, no ledger.",
    run="dptrain.commands.acts.ledger.approvals:sign",
    words={
        "file": FILE,
        "key": Word(str, "your sealed key (default: controller.json in ledger.keys)", None),
        **PLACES,
    },
    flags=JSON,
    examples=("dptrain ledger sign file=budget.json", "dptrain ledger sign file=budget.json key=dpo.json"),
    codes=(3,),
)

APPLY = Command(
    name="ledger apply",
    line="Write the entry that a signed request decides.",
    run="dptrain.commands.acts.ledger.approvals:apply",
    words={"file": FILE, **PLACES},
    flags=JSON,
    examples=("dptrain ledger apply file=budget.json",),
    codes=(3,),
)

INVENTORY = Command(
    name="ledger keys",
    line="The keys that the ledger names: whose, since when, what they may sign.",
    run="dptrain.commands.acts.ledger.approvals:keys",
    words=PLACES,
    flags=JSON,
    examples=("dptrain ledger keys --json",),
    codes=(3,),
)
