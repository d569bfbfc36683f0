"""`dptrain evaluate`."""

from __future__ import annotations

from dptrain.commands.command import Command
from dptrain.commands.places import PLACES
from dptrain.terminal.words import OneOf, Word
from dptrain.vocabulary import Split

EVALUATE = Command(
    name="evaluate",
    line="score a run on its test patients",
    run="dptrain.commands.acts.evaluate:evaluate",
    about="""\
Score a finished run: complete the evaluation that its plan declared, where that did not end. Another one is a new
request, refused (exit code 3) once the cohort is locked.""",
    words={
        "run": Word(str, "the run folder"),
        "split": Word(OneOf(tuple(Split)), "test, validation, calibration or train", "test"),
        **PLACES,
    },
    examples=("dptrain evaluate run=runs/demo", "dptrain evaluate run=runs/demo split=validation"),
    codes=(3, 5),
)
