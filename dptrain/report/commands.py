"""`dptrain report`: a run's report, a cohort's report, and the check that a report still matches its run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dptrain.errors import EXIT_DATA_UNREADABLE, EXIT_DONE, EXIT_USAGE, ConfigError, LedgerRefused
from dptrain.report.language import LANGUAGES
from dptrain.terminal.words import Word, parse_words

if TYPE_CHECKING:
    from dptrain.ledger import CohortStatus, Ledger

USAGE = """\
usage: dptrain report run=FOLDER [lang=en|de]
       dptrain report ledger cohort=NAME [lang=en|de] [out=FOLDER]
       dptrain report verify run=FOLDER

The first writes the controller's edition of a run's report to FOLDER/restricted/report: report.html, report.pdf,
facts.json. `ledger` reports on a cohort: all spending, what remains, what more runs would cost. `verify` compares
every report below a run folder with the run and says what no longer matches (exit code 5 where something does not).
The public edition is written by `dptrain release`.

further settings of all three: ledger.url=… ledger.keys=… ledger.witness=…
What is left out is taken from the run's own configuration (report.lang, ledger.…), then from the environment.

examples:
  dptrain report run=runs/demo lang=de
  dptrain report ledger cohort=chest_xray_pneumonia lang=de
  dptrain report verify run=runs/demo
"""


def language(text: str) -> str:
    """A language code."""
    if text not in LANGUAGES:
        raise ValueError(f"known are {', '.join(LANGUAGES)}")
    return text


LEDGER_WORDS = {
    "ledger.url": Word(str, "place of the ledger (file or database URL)", None),
    "ledger.keys": Word(str, "folder of the ledger's keys", None),
    "ledger.witness": Word(str, "file or URL of a head kept elsewhere", None),
}
LANG = Word(language, "de or en", None)


def main(argv: list[str]) -> int:
    """Run `dptrain report …`; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help", "help") or "--help" in argv:
        print(USAGE)
        return EXIT_DONE if argv else EXIT_USAGE
    if argv[0] == "ledger":
        return ledger_main(argv[1:])
    if argv[0] == "verify":
        return verify_main(argv[1:])
    return run_main(argv)


def with_run(words: dict[str, Any], folder: str | Path) -> dict[str, Any]:
    """The words, with what they leave out taken from the run's `config.yaml` where that can be read."""
    import yaml

    from dptrain.records.folder import RunFolder

    try:
        config = yaml.safe_load(RunFolder(folder).config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        config = None
    found = {}
    for name in ("report.lang", *LEDGER_WORDS):
        part, key = name.split(".")
        group = config.get(part) if isinstance(config, dict) else None
        value = group.get(key) if isinstance(group, dict) else None
        found[name] = value if isinstance(value, str) else None
    lang = found.pop("report.lang")
    filled = {name: words[name] or value for name, value in found.items()}
    return {**words, **filled, "lang": words.get("lang") or (lang if lang in LANGUAGES else LANGUAGES[0])}


def reach(words: dict[str, Any], places: dict[str, Any]) -> Ledger | None:
    """The ledger at the words' places :func:`with_run`; None where it cannot be opened and no word asked for one."""
    from dptrain.ledger import open_ledger

    try:
        return open_ledger(*(places[name] for name in LEDGER_WORDS))[0]
    except LedgerRefused:
        if any(words[name] for name in LEDGER_WORDS):
            raise
        return None


def standing(ledger: Ledger | None, folder: str | Path) -> CohortStatus | None:
    """The status of a run's cohort, where the ledger knows that run."""
    import json

    if ledger is None:
        return None
    try:
        run = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
        status = ledger.status(str(run["cohort"]["name"]))
    except (OSError, ValueError, KeyError, TypeError, LedgerRefused):
        return None
    return status if any(charge.run == run.get("id") for charge in status.runs) else None


def run_main(argv: list[str]) -> int:
    """`dptrain report run=…`"""
    from dptrain.report.build import build

    words = parse_words(argv, {"run": Word(str, "folder of the run"), "lang": LANG, **LEDGER_WORDS})
    folder = words["run"]
    filled = with_run(words, folder)
    target = build(folder, filled["lang"], ledger=standing(reach(words, filled), folder))
    print(f"controller's edition (confidential): {target}")
    print(f"  PDF   {target / 'report.pdf'}\n  HTML  {target / 'report.html'}")
    _say_missing(target)
    return EXIT_DONE


def _say_missing(target: Path) -> None:
    import json

    from dptrain.report.language import Language

    facts, t = json.loads((target / "facts.json").read_text(encoding="utf-8")), Language("en")
    for name in facts["warnings"]:
        print(f"  note  {t(f'warning.{name}')}", file=sys.stderr)


def ledger_main(argv: list[str]) -> int:
    """`dptrain report ledger cohort=…`"""
    from dptrain.ledger import open_ledger
    from dptrain.report import cohort

    spec = {
        "cohort": Word(str, "name of the cohort"),
        "lang": LANG,
        "out": Word(str, "folder to write to; default reports/COHORT", None),
        **LEDGER_WORDS,
    }
    words = parse_words(argv, spec)
    ledger, _ = open_ledger(*(words[name] for name in LEDGER_WORDS))
    status = ledger.status(words["cohort"])
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in status.name)
    target = cohort.write(status, words["lang"] or LANGUAGES[0], Path(words["out"] or f"reports/{safe}"))
    print(f"report on the cohort: {target}\n  PDF   {target / 'report.pdf'}\n  HTML  {target / 'report.html'}")
    return EXIT_DONE


def verify_main(argv: list[str]) -> int:
    """`dptrain report verify run=FOLDER`; the folder alone will do."""
    from dptrain.report.verify import verify

    folders = [word for word in argv if "=" not in word or Path(word).is_dir()]
    spec = {"run": Word(str, "folder of the run", None), **LEDGER_WORDS}
    words = parse_words([word for word in argv if word not in folders], spec)
    folders += [words["run"]] if words["run"] else []
    if len(folders) != 1:
        raise ConfigError("verify takes one run folder.", remedy="dptrain report verify run=runs/demo")
    ties = verify(folders[0], ledger=reach(words, with_run(words, folders[0])))
    for tie in ties:
        state = {True: "ok      ", False: "DIFFERS ", None: "unknown "}[tie.ok]
        print(f"{state} {tie.what}" + (f" ({tie.why})" if tie.why else ""))
    broken = sum(tie.ok is False for tie in ties)
    print("everything that could be compared matches" if not broken else f"{broken} of {len(ties)} no longer match")
    return EXIT_DONE if not broken else EXIT_DATA_UNREADABLE
