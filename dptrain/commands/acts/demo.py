"""`dptrain demo`: the whole way in minutes, with the commands that a person would type.

From a manifest to a registered cohort with a signed budget, a private training, a second training that the
ledger refuses, the audit and the report. Everything lies below one folder; nothing else is touched.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from pathlib import Path

from dptrain.commands import table
from dptrain.commands.command import Call
from dptrain.errors import EXIT_DONE, EXIT_REFUSED_BY_LEDGER, ConfigError, DptrainError
from dptrain.files import make_folder
from dptrain.samples.sources import find_demo_data
from dptrain.shipped import resolved

MARK = ".dptrain-demo"
PASSPHRASE = "for demonstration only"
RECIPE = "chest_xray_pneumonia"


def demo(call: Call) -> int:
    """Run the demo; returns an exit code."""
    words = call.words
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
    print(f"  The controller may now decide:  dptrain release run={run} items=model recipient=… purpose=… advice=…")
    print("  (it says what else it needs; until then the model lies in restricted/model)")
    return EXIT_DONE


def _fresh(run: Path) -> Path:
    """An empty site folder beside the run; an earlier demo's folders are removed, nothing else is."""
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
    print(f"\n— {what}\n$ dptrain {shlex.join(words)}", flush=True)
    try:
        code = table.run(words)
    except DptrainError as error:
        print(resolved(f"dptrain {words[0]}: {error}"), file=sys.stderr)
        code = error.exit_code
    if code != expect:
        raise DptrainError(f"'dptrain {words[0]}' ended with exit code {code} instead of {expect}.")
    if expect != EXIT_DONE:
        print(f"(exit code {code}, as it should)")
