"""`dptrain report`: a run's report, a cohort's report, and the check that a report still matches its run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

from dptrain.commands.command import Call
from dptrain.commands.places import PLACES
from dptrain.errors import EXIT_DATA_UNREADABLE, EXIT_DONE, EXIT_REFUSED_BY_LEDGER, LedgerRefused
from dptrain.ledger import Ledger, open_ledger
from dptrain.records.folder import RunFolder
from dptrain.report import cohort
from dptrain.report.build import build
from dptrain.report.language import Language
from dptrain.report.release import standing
from dptrain.report.shapes import Facts
from dptrain.report.verify import verify
from dptrain.terminal.words import Words
from dptrain.vocabulary import LANGUAGES


def with_run(words: Words, folder: str | Path) -> Words:
    """The words, with what they leave out taken from the run's `config.yaml` where that can be read."""
    try:
        config = yaml.safe_load(RunFolder(folder).config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        config = None
    stored: dict[str, str | None] = {}
    for name in ("report.lang", *PLACES):
        group_name, key = name.split(".")
        group = config.get(group_name) if isinstance(config, dict) else None
        value = group.get(key) if isinstance(group, dict) else None
        stored[name] = value if isinstance(value, str) else None
    lang = stored.pop("report.lang")
    filled = {name: words[name] or value for name, value in stored.items()}
    return {**words, **filled, "lang": words.get("lang") or (lang if lang in LANGUAGES else LANGUAGES[0])}


def reach(words: Words, places: Words) -> Ledger | None:
    """The ledger at the words' places :func:`with_run`; None where it cannot be opened and no word asked for one."""
    try:
        return open_ledger(*(places[name] for name in PLACES))[0]
    except LedgerRefused:
        if any(words[name] for name in PLACES):
            raise
        return None


def report(call: Call) -> int:
    """Write the controller's edition of a run's report."""
    folder = call.words["run"]
    words = with_run(call.words, folder)
    target = build(folder, words["lang"], ledger=standing(reach(call.words, words), folder))
    print(f"controller's edition (confidential): {target}")
    print(f"  PDF   {target / 'report.pdf'}\n  HTML  {target / 'report.html'}")
    _say_missing(target)
    return EXIT_DONE


def _say_missing(target: Path) -> None:
    facts, t = Facts.of(json.loads((target / "facts.json").read_text(encoding="utf-8"))), Language("en")
    for name in facts.warnings:
        print(f"  note  {t(f'warning.{name}')}", file=sys.stderr)


def report_ledger(call: Call) -> int:
    """Write the report on a cohort."""
    words = call.words
    ledger, _ = open_ledger(*(words[name] for name in PLACES))
    status = ledger.status(words["cohort"])
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in status.name)
    target = cohort.write(status, words["lang"] or LANGUAGES[0], Path(words["out"] or f"reports/{safe}"))
    print(f"report on the cohort: {target}\n  PDF   {target / 'report.pdf'}\n  HTML  {target / 'report.html'}")
    return EXIT_DONE


def report_verify(call: Call) -> int:
    """Compare every report below a run folder with the run."""
    folder = call.words["run"]
    ties = verify(folder, ledger=reach(call.words, with_run(call.words, folder)))
    for tie in ties:
        state = {True: "ok      ", False: "DIFFERS ", None: "unknown "}[tie.ok]
        print(f"{state} {tie.what}" + (f" ({tie.why})" if tie.why else ""))
    broken = sum(tie.ok is False for tie in ties)
    print("everything that could be compared matches" if not broken else f"{broken} of {len(ties)} no longer match")
    if any(tie.ok is False and tie.ledger for tie in ties):
        return EXIT_REFUSED_BY_LEDGER
    return EXIT_DONE if not broken else EXIT_DATA_UNREADABLE
