"""`dptrain report`: of a run, of a cohort, and the check that a report still matches its run."""

from __future__ import annotations

from dptrain.commands.command import Command
from dptrain.commands.places import PLACES
from dptrain.terminal.words import OneOf, Word
from dptrain.vocabulary import LANGUAGES

LANG = Word(OneOf(LANGUAGES), "the report's language", None)
FILLED = "What is left out is taken from the run's configuration (report.lang, ledger.…), then from the environment."

REPORT = Command(
    name="report",
    line="write the data protection officer's report",
    run="dptrain.commands.acts.report:report",
    about="""\
Write the controller's edition of a run's report to FOLDER/restricted/report: report.html, report.pdf, facts.json.
The public edition is written by `dptrain release`.""",
    words={"run": Word(str, "folder of the run"), "lang": LANG, **PLACES},
    examples=("dptrain report run=runs/demo lang=de",),
    notes=FILLED,
    codes=(3,),
)

REPORT_LEDGER = Command(
    name="report ledger",
    line="report on a cohort: all spending, what remains, what more runs would cost",
    run="dptrain.commands.acts.report:report_ledger",
    words={
        "cohort": Word(str, "name of the cohort"),
        "lang": LANG,
        "out": Word(str, "folder to write to (default: reports/COHORT)", None),
        **PLACES,
    },
    examples=("dptrain report ledger cohort=chest_xray_pneumonia lang=de",),
    codes=(3,),
)

REPORT_VERIFY = Command(
    name="report verify",
    line="compare every report below a run folder with the run, and say what no longer matches",
    run="dptrain.commands.acts.report:report_verify",
    words={"run": Word(str, "folder of the run (its path alone will do)"), **PLACES},
    bare="run",
    examples=("dptrain report verify run=runs/demo", "dptrain report verify runs/demo"),
    notes=FILLED,
    codes=(3, 5),
)
