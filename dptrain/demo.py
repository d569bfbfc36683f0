"""`dptrain demo`: the whole way in minutes, with the commands that a person would type.

From a manifest to a registered cohort with a signed budget, a private training, a second training that the
ledger refuses, the audit and the report. Everything lies below one folder; nothing else is touched.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from pathlib import Path

from dptrain.errors import EXIT_DONE, EXIT_REFUSED_BY_LEDGER, ConfigError, DptrainError
from dptrain.terminal.words import Word, parse_words, yes_or_no

HELP = """\
usage: dptrain demo [data.root=FOLDER] [run=runs/demo] [epsilon=8] [audit=yes]

Train on real chest X-rays where they are found (a given root, ../shared/data, a cached or fresh download of the
public original), else on made-up ones; watch the dataset lock; audit; write the report.

  dptrain demo
  dptrain demo data.root=/data run=runs/demo epsilon=3"""

MARK = ".dptrain-demo"
PASSPHRASE = "for demonstration only"
RECIPE = "chest_xray_pneumonia"


def demo_main(argv: list[str]) -> int:
    """Run the demo; returns an exit code."""
    if any(word in ("-h", "--help") for word in argv):
        print(HELP)
        return EXIT_DONE
    spec = {
        "data.root": Word(str, "a folder that holds the data sets", None),
        "run": Word(str, "the run folder", "runs/demo"),
        "epsilon": Word(float, "the budget and the target", 8.0),
        "audit": Word(yes_or_no, "measure the risk for each patient", True),
    }
    words = parse_words(argv, spec)
    from dptrain.samples.sources import find_demo_data

    begun = time.monotonic()
    run = Path(words["run"])
    root = None if words["data.root"] is None else Path(words["data.root"])
    data = find_demo_data(root, say=lambda text: print(text, flush=True))
    print(f"data: {data.description}", flush=True)
    site = _fresh(run)
    places = [f"ledger.url={site / 'ledger.sqlite'}", f"ledger.keys={site / 'keys'}"]
    os.environ.setdefault("DPTRAIN_PASSPHRASE", PASSPHRASE)
    recipe = [f"recipe={RECIPE}", "data.image_shape=[1,128,128]", *data.overrides]  # 288 px would take ten minutes
    epsilon = f"{words['epsilon']:g}"
    print(f"ledger and keys: {site} (the controller's passphrase of this demo is '{PASSPHRASE}')")

    _step("The site makes its keys and its ledger.", ["ledger", "init", *places])
    _step(
        "The steward registers the cohort: every image is checked and hashed; the size is declared.",
        ["ledger", "register", *recipe, f"public_size={data.public_size}", "owner=Radiology", *places],
    )
    _step(
        "The steward declares the ImageNet weights public, by their hash.",
        ["ledger", "weights", f"recipe={RECIPE}", *places],
    )
    _step(
        "The controller signs a budget.",
        ["ledger", "budget", f"cohort={RECIPE}", f"epsilon={epsilon}", *recipe, "reason=demonstration", *places],
    )
    train = ["train", *recipe, f"privacy.target_epsilon={epsilon}", *places]
    _step("The engineer trains. Every step is paid before it runs.", [*train, f"training.run={run}"])
    _step(
        "Once more: the budget is spent, so the dataset is locked.",
        [*train, f"training.run={run}-again"],
        expect=EXIT_REFUSED_BY_LEDGER,
    )
    if words["audit"]:
        _step("The auditor measures the risk that remains, patient by patient.", ["audit", f"run={run}", *places])
    _step("The report for the data protection officer.", ["report", f"run={run}", *places])
    report = run / "restricted" / "report"
    print(f"\ndone in {time.monotonic() - begun:.0f} s")
    print(f"  PDF:  {report / 'report.pdf'}\n  HTML: {report / 'report.html'}")
    print(f"  The controller may now decide:  dptrain release run={run} items=model recipient=…   (--help says more)")
    return EXIT_DONE


def _fresh(run: Path) -> Path:
    """An empty site folder beside the run; an earlier demo's folders are removed, nothing else is."""
    from dptrain.files import make_folder

    site = run.with_name(f"{run.name}-site")
    for folder in (run, site, run.with_name(f"{run.name}-again")):
        if not folder.exists():
            continue
        if not (site / MARK).exists():
            raise ConfigError(f"{folder} is in the way and was not made by a demo.", remedy="Name another run=… .")
        if folder != site:
            shutil.rmtree(folder)
    if site.exists():
        shutil.rmtree(site)
    make_folder(site, private=True)
    (site / MARK).touch()
    return site


def _step(what: str, words: list[str], *, expect: int = EXIT_DONE) -> None:
    """Print what happens and the command, run it, and stop where it does not end as it should."""
    from dptrain.cli import main

    print(f"\n— {what}\n$ dptrain {shlex.join(words)}", flush=True)
    code = main(words)
    if code != expect:
        raise DptrainError(f"'dptrain {words[0]}' ended with exit code {code} instead of {expect}.")
    if expect != EXIT_DONE:
        print(f"(exit code {code}, as it should)")
