"""What the controller signs: budgets, weights, permissions, the end of a lock."""

from __future__ import annotations

from dptrain.commands.command import Command, Takes
from dptrain.commands.ledger.family import COHORT, JSON, LAST_DAY, REASON, TO
from dptrain.commands.places import PLACES
from dptrain.terminal.words import OneOf, Word, yes_or_no
from dptrain.vocabulary import PICTURES, BudgetKind, Purpose

BUDGET = Command(
    name="ledger budget",
    line="Grant (epsilon, delta) to a cohort, or raise it; signed by the controller.",
    run="dptrain.commands.acts.ledger.controller:budget",
    words={
        "cohort": COHORT,
        "epsilon": Word(float, "what is granted"),
        "reason": REASON,
        "delta": Word(float, "its delta (default: min(1e-5, 1/(10 N)))", None),
        "kind": Word(OneOf(tuple(BudgetKind)), "open (any runs) or planned (exactly the declared ones)", "open"),
        "minimum_charge": Word(float, "below this remainder the cohort is locked (default: 1 % of epsilon)", None),
        "advice": Word(str, "what the data protection officer advised", None),
        "expected_batch_size": Word(int, "forecast: expected patients a step of a typical run", None),
        "steps": Word(int, "forecast: steps of a typical run", None),
        "noise_multiplier": Word(float, "forecast: its noise (default: the least that epsilon allows)", None),
        "runs": Word(int, "forecast: so many such runs (planned: the declaration)", 1),
        "last_day": LAST_DAY,
        "to": TO,
        **PLACES,
    },
    takes=Takes.SETTINGS,
    flags=JSON,
    examples=(
        "dptrain ledger budget cohort=chest epsilon=8 recipe=chest_xray_pneumonia reason='pneumonia study'",
        "dptrain ledger budget cohort=chest epsilon=3 expected_batch_size=100 steps=1000 reason='pilot'",
        "dptrain ledger budget cohort=chest epsilon=3 kind=planned expected_batch_size=600 steps=200 reason=plan",
    ),
    codes=(3,),
)

WEIGHTS = Command(
    name="ledger weights",
    line="Declare starting weights public, by the hash of their file; signed by the controller.",
    run="dptrain.commands.acts.ledger.controller:weights",
    words={
        "source": Word(str, "where the weights come from (default: what a recipe's weights say)", None),
        "licence": Word(str, "their licence (known only for weights that an installed package brings)", None),
        "file": Word(str, "the file", None),
        "sha256": Word(str, "or its SHA-256; or recipe=… for the weights that its network brings", None),
        "to": TO,
        **PLACES,
    },
    takes=Takes.SETTINGS,
    flags=JSON,
    examples=(
        "dptrain ledger weights file=resnet18.safetensors source='MONAI model zoo' licence=Apache-2.0",
        "dptrain ledger weights recipe=chest_xray_pneumonia",
    ),
    codes=(3,),
)

PERMIT = Command(
    name="ledger permit",
    line="Permit one evaluation or audit of a locked cohort, or pictures; signed by the controller.",
    run="dptrain.commands.acts.ledger.controller:permit",
    words={
        "cohort": COHORT,
        "purpose": Word(
            OneOf((Purpose.EVALUATE, Purpose.AUDIT, PICTURES)), "evaluate, audit, or pictures of an attack"
        ),
        "reason": REASON,
        "run": Word(str, "only for this run (default: whichever comes first)", None),
        "other_ledger": Word(yes_or_no, "yes: this run was trained under another ledger", False),
        "last_day": LAST_DAY,
        "to": TO,
        **PLACES,
    },
    flags=JSON,
    examples=(
        "dptrain ledger permit cohort=chest purpose=audit run=demo reason='yearly review'",
        "dptrain ledger permit cohort=chest purpose=pictures last_day=2027-12-31 reason='training of staff'",
    ),
    codes=(3,),
)

UNLOCK = Command(
    name="ledger unlock",
    line="Take back a lock by hand; signed by the controller.",
    run="dptrain.commands.acts.ledger.controller:unlock",
    words={"cohort": COHORT, "reason": REASON, "to": TO, **PLACES},
    flags=JSON,
    examples=("dptrain ledger unlock cohort=chest reason='complaint settled'",),
    codes=(3,),
)

REVOKE = Command(
    name="ledger revoke",
    line="Withdraw a permission that was not used yet; signed by the controller.",
    run="dptrain.commands.acts.ledger.controller:revoke",
    words={"permit": Word(int, "number of its entry"), "reason": REASON, "to": TO, **PLACES},
    flags=JSON,
    examples=("dptrain ledger revoke permit=17 reason='the review is off'",),
    codes=(3,),
)

CONTROLLER = Command(
    name="ledger controller",
    line="Who the controller of the processing is: shown, or named and signed.",
    run="dptrain.commands.acts.ledger.controller:controller",
    words={
        "name": Word(str, "the legal person", None),
        "represented_by": Word(str, "who represents it", None),
        "contact": Word(str, "where to reach it", None),
        "to": TO,
        **PLACES,
    },
    flags=JSON,
    examples=(
        "dptrain ledger controller",
        "dptrain ledger controller name='Klinikum Nord gGmbH' represented_by='Dr. A. Beispiel'",
    ),
    codes=(3,),
)
