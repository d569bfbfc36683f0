"""`dptrain plan`."""

from __future__ import annotations

from dptrain.commands.command import Command, Takes
from dptrain.terminal.words import Word

PLAN = Command(
    name="plan",
    line="what a training would promise and cost; touches no data",
    run="dptrain.commands.acts.plan:plan",
    about="What would a training promise, and what would it cost? Touches no data and no ledger.",
    words={"public_size": Word(int, "the number of training patients declared public, never a private count")},
    takes=Takes.SETTINGS,
    flags={
        "-m": "a sweep: each trial, and the budget that all of them need together",
        "--json": "the same for a program",
    },
    examples=(
        "dptrain plan public_size=2215 privacy.expected_batch_size=600 privacy.steps=200 privacy.target_epsilon=3",
        "dptrain plan public_size=2215 recipe=chest_xray_pneumonia privacy.target_epsilon=1",
        "dptrain plan -m public_size=2215 recipe=chest_xray_pneumonia privacy.target_epsilon=1,2,4 optimizer.lr=1,2",
        "dptrain plan public_size=800 privacy.expected_batch_size=64 privacy.epochs=20 privacy.steps=null",
    ),
    sections=("privacy",),
)
