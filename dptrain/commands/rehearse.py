"""`dptrain rehearse`."""

from __future__ import annotations

from dptrain.commands.command import Command, Takes
from dptrain.terminal.words import Word


def limit(text: str) -> float:
    """Seconds, 1 to 3600. Raises ValueError for anything else."""
    seconds = float(text)
    if not 1 <= seconds <= 3600:
        raise ValueError("it must be a number of seconds from 1 to 3600")
    return seconds


REHEARSE = Command(
    name="rehearse",
    line="the training at the plan's noise on made-up records; free",
    run="dptrain.commands.acts.rehearse:rehearse",
    about="""\
Trains the network under the plan, with its rate, clip and noise, on made-up records of the cohort's shape. Reads
nothing private and charges nothing. Says whether it learns at all, what a step takes in time and memory, and what
was measured with the recipe on its public data. Curves, pictures and settings lie in FOLDER for TensorBoard.""",
    words={
        "public_size": Word(
            int, "the number of training patients declared public (default: what the ledger declares)", None
        ),
        "seconds": Word(limit, "stop after about so many seconds", 40.0),
        "out": Word(str, "folder for TensorBoard (default: runs/rehearsal-NAME)", None),
    },
    takes=Takes.SETTINGS,
    flags={"--json": "the same for a program"},
    examples=(
        "dptrain rehearse public_size=2215 recipe=chest_xray_pneumonia privacy.target_epsilon=1",
        "dptrain rehearse public_size=800 model=densenet121 data.image_shape=[1,64,64] privacy.steps=50",
    ),
    codes=(3, 4),
    sections=("privacy", "optimizer"),
)
