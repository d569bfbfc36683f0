"""`dptrain attack`."""

from __future__ import annotations

from dptrain.commands.command import Command, Takes
from dptrain.terminal.words import Word

ATTACK = Command(
    name="attack",
    line="try to reconstruct patients: without protection, and under the promise",
    run="dptrain.commands.acts.attack:attack",
    about="""\
Try to reconstruct patients, without protection and under the promise. Three games: lineup (who of so many was trained
on? Held against the bound of the promise), message (the picture in what one hospital sends), weights (the picture in
what is released). Charges nothing; needs the ledger's leave for an audit. Everything it writes is restricted:
restricted/attack/attack.json (aggregates) and figure.png.""",
    words={"run": Word(str, "the run folder; without one, recipe=… says what is attacked", None)},
    takes=Takes.HYDRA,
    examples=(
        "dptrain attack recipe=chest_xray_pneumonia",
        "dptrain attack run=runs/demo attack.game=lineup attack.trials=100",
        "dptrain attack run=runs/demo attack.game=lineup attack.targets=canaries     # tests the engine",
        "dptrain attack recipe=chest_xray_pneumonia attack.epsilons=128,1000 attack.pictures=public",
    ),
    notes="""\
Of a run attack.…, ledger.…, data.root and training.device can be set. Pictures of patients are drawn on demand only,
and of cohorts that are declared public; elsewhere it takes a permission of the controller with a last day
(dptrain ledger permit purpose=pictures, then attack.pictures=permitted), or the command ends with exit code 3.
Exit code 6: a line-up names the right patient more often than the promise allows, twice in a row.
An attack that was interrupted goes on where it stopped when the same command is given again.""",
    codes=(3, 5, 6),
    sections=("attack",),
)
