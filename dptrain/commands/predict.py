"""`dptrain predict`."""

from __future__ import annotations

from dptrain.commands.command import Command
from dptrain.terminal.words import Word

PREDICT = Command(
    name="predict",
    line="a model's answers for new images, and how sure they are",
    run="dptrain.commands.acts.predict:predict",
    about="""\
Writes a CSV: a row for each image with the probability of each class, what remains possible, and how sure the model
may be. An image unlike those that the model was trained on is flagged; one that would mean nothing to it (another
scale of values, other channels, another modality) is refused, with the reason. New images are nobody's training
data: no ledger is asked.""",
    words={
        "run": Word(str, "folder of the run, or of an unpacked bundle"),
        "input": Word(str, "a folder of images, one image, or a CSV that lists them"),
        "out": Word(str, "the CSV to write", "predictions.csv"),
        "column": Word(str, "the column of a CSV that names the files", "file"),
    },
    flags={"--json": "the rows for a program too"},
    examples=(
        "dptrain predict run=runs/pneumonia input=new-images out=answers.csv",
        "dptrain predict run=runs/pneumonia input=list.csv column=path",
    ),
    notes="A CSV's other columns are kept beside the answers.",
    codes=(5,),
)
