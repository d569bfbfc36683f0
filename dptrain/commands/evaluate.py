"""`dptrain evaluate`."""

from __future__ import annotations

from dptrain.commands.command import Command
from dptrain.commands.places import PLACES
from dptrain.terminal.words import Word, suggest
from dptrain.vocabulary import Split


def split(text: str) -> str:
    """The name of a split. Raises ValueError for any other text."""
    if text not in list(Split):
        raise ValueError(suggest(text, list(Split)))
    return text


EVALUATE = Command(
    name="evaluate",
    line="score a run on its test patients",
    run="dptrain.commands.acts.evaluate:evaluate",
    about="Score a finished run again. A new request: refused (exit code 3) once the cohort is locked.",
    words={
        "run": Word(str, "the run folder"),
        "split": Word(split, "test, validation, calibration or train", "test"),
        **PLACES,
    },
    examples=("dptrain evaluate run=runs/demo", "dptrain evaluate run=runs/demo split=validation"),
    codes=(3, 5),
)
