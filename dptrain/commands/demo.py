"""`dptrain demo`."""

from __future__ import annotations

from dptrain.commands.command import Command
from dptrain.terminal.words import Word, yes_or_no

DEMO = Command(
    name="demo",
    line="the whole way on real or made-up chest X-rays, in minutes",
    run="dptrain.commands.acts.demo:demo",
    about="""\
Train on real chest X-rays where they are found (a given root, ../shared/data, a cached or fresh download of the
public original), else on made-up ones; watch the dataset lock; audit; write the report.""",
    words={
        "data.root": Word(str, "a folder that holds the data sets", None),
        "run": Word(str, "the run folder", "runs/demo"),
        "epsilon": Word(float, "the budget and the target", 8.0),
        "audit": Word(yes_or_no, "measure the risk for each patient", True),
    },
    examples=("dptrain demo", "dptrain demo data.root=/data run=runs/demo epsilon=3"),
)
