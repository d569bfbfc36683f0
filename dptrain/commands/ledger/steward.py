"""What the data steward does: register a cohort, withdraw a patient, lock, close."""

from __future__ import annotations

from dptrain.commands.command import Command, Takes
from dptrain.commands.ledger.family import COHORT, JSON, REASON
from dptrain.commands.places import PLACES
from dptrain.terminal.words import Word, yes_or_no


def names(text: str) -> tuple[str, ...]:
    """Names, comma-separated."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


REGISTER = Command(
    name="ledger register",
    line="Check and hash every record, and register the cohort or a new version of it. Nothing is charged.",
    run="dptrain.commands.acts.ledger.steward:register",
    words={
        "public_size": Word(int, "N, the number of training patients declared to the public"),
        "owner": Word(str, "who answers for the cohort; named in every refusal"),
        "cohort": Word(str, "its name (default: the recipe's)", None),
        "public": Word(yes_or_no, "yes: public data that gates nothing; the controller signs", False),
        "source": Word(str, "where public data come from (default: the recipe's)", None),
        "licence": Word(str, "licence of public data (default: the recipe's)", None),
        "overlaps": Word(names, "cohorts with patients in common, comma-separated", ()),
        "caution": Word(str, "a sentence that every report must carry", None),
        **PLACES,
    },
    takes=Takes.SETTINGS,
    flags=JSON,
    examples=('dptrain ledger register recipe=chest_xray_pneumonia public_size=2180 owner="Radiology"',),
    codes=(3, 5),
)

WITHDRAW = Command(
    name="ledger withdraw",
    line="Leave a patient out of everything from now on. What was spent stays spent; no id is recorded.",
    run="dptrain.commands.acts.ledger.steward:withdraw",
    words={
        "issuer": Word(str, "who gave the patient's id"),
        "patient": Word(str, "the id (default: asked for, so that no shell history keeps it)", None),
        "new_issuer": Word(yes_or_no, "yes: no cohort with ids of this issuer is registered yet", False),
        **PLACES,
    },
    flags=JSON,
    examples=("dptrain ledger withdraw issuer='St. Mary'",),
    codes=(3,),
)

LOCK = Command(
    name="ledger lock",
    line="Lock a cohort by hand. Anyone may.",
    run="dptrain.commands.acts.ledger.steward:lock",
    words={"cohort": COHORT, "reason": REASON, **PLACES},
    flags=JSON,
    examples=("dptrain ledger lock cohort=chest reason='complaint of 3 May'",),
    codes=(3,),
)

CLOSE = Command(
    name="ledger close",
    line="Close a run that died: what it paid stays paid, leases that never began go back (open budgets).",
    run="dptrain.commands.acts.ledger.steward:close",
    words={"run": Word(str, "a run that died and will not be resumed"), "reason": REASON, **PLACES},
    flags=JSON,
    examples=("dptrain ledger close run=sweep-3 reason='machine was taken down'",),
    codes=(3,),
)
