"""`dptrain ledger …`: what the data steward and the controller do, with tables for people and JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dptrain.errors import EXIT_DONE, EXIT_REFUSED_BY_LEDGER, EXIT_USAGE, ConfigError, LedgerRefused
from dptrain.files import file_sha256
from dptrain.terminal import secrets
from dptrain.terminal.output import Output, number
from dptrain.terminal.words import Word, parse_words, suggest, yes_or_no

if TYPE_CHECKING:
    from dptrain.ledger.keys import Controller, Keys
    from dptrain.ledger.ledger import Ledger
    from dptrain.ledger.status import CohortStatus
    from dptrain.plan import Mechanism


@dataclass(frozen=True)
class ScanResult:
    """What registration learns from the data: keys and hashes, never pixels. `source`, `licence`: of public data."""

    name: str
    patients: Mapping[bytes, Sequence[bytes]]
    unit: str
    issuer: str
    cautions: tuple[str, ...] = ()
    source: str | None = None
    licence: str | None = None


Scan = Callable[[Sequence[str], "Keys"], ScanResult]
Forecast = Callable[[Sequence[str], int, float, "float | None"], "tuple[Mechanism, ...]"]


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _given(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("it must be a whole number, 1 or more")
    return int(text)


def _kind(text: str) -> str:
    if text not in KINDS:
        raise ValueError(f"a budget is open or planned. {suggest(text, KINDS)}")
    return text


KINDS = ("open", "planned")
PLACES = {
    "ledger.url": Word(_given, "path of the ledger (SQLite), or postgresql://… (default: DPTRAIN_LEDGER)", None),
    "ledger.keys": Word(_given, "folder of the keys (default: DPTRAIN_KEYS, or `keys` beside the ledger)", None),
    "ledger.witness": Word(_given, "file or URL with signed heads that somebody else keeps (DPTRAIN_WITNESS)", None),
}
COHORT = Word(str, "name of a registered cohort")
REASON = Word(str, "why, in a sentence; it is signed and shown")
SETTINGS = ("recipe", "data", "model", "privacy", "optimizer", "training", "audit", "report", "debug", "name")

SPECS: dict[str, dict[str, Word]] = {
    "init": {},
    "keygen": {},
    "register": {
        "public_size": Word(int, "N, the number of training patients declared to the public"),
        "owner": Word(str, "who answers for the cohort; named in every refusal"),
        "cohort": Word(str, "its name (default: the recipe's)", None),
        "public": Word(yes_or_no, "yes: public data that gates nothing; the controller signs", False),
        "source": Word(str, "where public data come from (default: the recipe's)", None),
        "licence": Word(str, "licence of public data (default: the recipe's)", None),
        "overlaps": Word(_names, "cohorts with patients in common, comma-separated", ()),
        "caution": Word(str, "a sentence that every report must carry", None),
    },
    "budget": {
        "cohort": COHORT,
        "epsilon": Word(float, "what is granted"),
        "reason": REASON,
        "delta": Word(float, "default: min(1e-5, 1/(10 N))", None),
        "kind": Word(_kind, "open (any runs) or planned (exactly the declared ones)", "open"),
        "minimum_charge": Word(float, "below this remainder the cohort is locked (default: 1 % of epsilon)", None),
        "advice": Word(str, "what the data protection officer advised", None),
        "expected_batch_size": Word(int, "forecast: expected patients a step of a typical run", None),
        "steps": Word(int, "forecast: steps of a typical run", None),
        "noise_multiplier": Word(float, "forecast: its noise (default: the least that epsilon allows)", None),
        "runs": Word(int, "forecast: so many such runs (planned: the declaration)", 1),
    },
    "weights": {
        "source": Word(str, "where the weights come from"),
        "licence": Word(str, "their licence"),
        "file": Word(str, "the file", None),
        "sha256": Word(str, "or its SHA-256", None),
    },
    "show": {"cohort": Word(str, "one cohort, with its runs (default: all)", None)},
    "history": {
        "cohort": Word(str, "only this cohort", None),
        "run": Word(str, "only this run", None),
        "last": Word(_count, "so many entries, 1 or more", 30),
    },
    "verify": {},
    "heads": {"to": Word(str, "append the signed head to this file, for somebody else to keep", None)},
    "lock": {"cohort": COHORT, "reason": REASON},
    "unlock": {"cohort": COHORT, "reason": REASON},
    "permit": {
        "cohort": COHORT,
        "purpose": Word(str, "evaluate or audit"),
        "reason": REASON,
        "run": Word(str, "only for this run (default: whichever comes first)", None),
        "other_ledger": Word(yes_or_no, "yes: this run was trained under another ledger", False),
    },
    "withdraw": {
        "issuer": Word(str, "who gave the patient's id"),
        "patient": Word(str, "the id (default: asked for, so that no shell history keeps it)", None),
        "new_issuer": Word(yes_or_no, "yes: no cohort with ids of this issuer is registered yet", False),
    },
    "close": {"run": Word(str, "a run that died and will not be resumed"), "reason": REASON},
    "rotate": {
        "what": Word(str, "site, controller, secret or recovery"),
        "recovery": Word(yes_or_no, "yes: sign with the recovery code instead of the controller's key", False),
    },
    "backup": {"to": Word(str, "a file that does not exist yet")},
    "migrate": {},
}

# name -> (what it does, examples)
HELP: dict[str, tuple[str, str]] = {
    "init": (
        "Make the site's keys (where there are none) and an empty ledger.",
        "dptrain ledger init\n"
        "  dptrain ledger init ledger.url=postgresql://ledger@db/dptrain ledger.keys=/etc/dptrain/keys",
    ),
    "keygen": ("Make the site's keys only.", "dptrain ledger keygen ledger.keys=/etc/dptrain/keys"),
    "register": (
        "Check and hash every record, and register the cohort or a new version of it. Nothing is charged.",
        'dptrain ledger register recipe=chest_xray_pneumonia public_size=2180 owner="Radiology"',
    ),
    "budget": (
        "Grant (epsilon, delta) to a cohort, or raise it; signed by the controller.",
        "dptrain ledger budget cohort=chest epsilon=8 recipe=chest_xray_pneumonia reason='pneumonia study'\n"
        "  dptrain ledger budget cohort=chest epsilon=3 expected_batch_size=100 steps=1000 reason='pilot'\n"
        "  dptrain ledger budget cohort=chest epsilon=3 kind=planned expected_batch_size=600 steps=200 reason=plan",
    ),
    "weights": (
        "Declare starting weights public, by the hash of their file; signed by the controller.",
        "dptrain ledger weights file=resnet18.safetensors source='MONAI model zoo' licence=Apache-2.0",
    ),
    "show": ("Where the cohorts stand.", "dptrain ledger show\n  dptrain ledger show cohort=chest --json"),
    "history": ("The entries, newest last.", "dptrain ledger history cohort=chest last=50"),
    "verify": (
        "Read everything again and name the first bad entry (exit code 3 if there is one).",
        "dptrain ledger verify ledger.witness=/mnt/dpo/heads.jsonl",
    ),
    "heads": (
        "The newest entry, signed: whoever keeps it can prove a later rollback.",
        "dptrain ledger heads to=/mnt/dpo/heads.jsonl",
    ),
    "lock": ("Lock a cohort by hand. Anyone may.", "dptrain ledger lock cohort=chest reason='complaint of 3 May'"),
    "unlock": (
        "Take back a lock by hand; signed by the controller.",
        "dptrain ledger unlock cohort=chest reason='complaint settled'",
    ),
    "permit": (
        "Permit one evaluation or audit of a locked cohort; signed by the controller.",
        "dptrain ledger permit cohort=chest purpose=audit run=demo reason='yearly review'",
    ),
    "withdraw": (
        "Leave a patient out of everything from now on. What was spent stays spent; no id is recorded.",
        "dptrain ledger withdraw issuer='St. Mary'",
    ),
    "close": (
        "Close a run that died: what it paid stays paid, leases that never began go back (open budgets).",
        "dptrain ledger close run=sweep-3 reason='machine was taken down'",
    ),
    "rotate": (
        "Replace a key (docs/ledger.md, Keys).",
        "dptrain ledger rotate what=site\n  dptrain ledger rotate what=controller recovery=yes",
    ),
    "backup": ("Write a sound copy of a SQLite ledger.", "dptrain ledger backup to=/backup/ledger-2026-05-03.sqlite"),
    "migrate": ("Bring an older ledger to this program's schema (back it up first).", "dptrain ledger migrate"),
}
SHOWN_RUNS = 30
TURNS = 10  # at most, to find a forecast's order and noise; two or three are usual
MOST_RUNS = 1000  # of a declaration
FLAGS = {"show": ("--steward",)}


def usage() -> str:
    """Text of `dptrain ledger --help`."""
    width = max(map(len, HELP))
    lines = "\n".join(f"  {name.ljust(width)}  {text}" for name, (text, _) in HELP.items())
    places = "\n".join(f"  {name.ljust(15)} {word.help}" for name, word in PLACES.items())
    return (
        "dptrain ledger: who may use which patients, and what it cost them\n\n"
        "usage: dptrain ledger COMMAND [name=value …] [--json]      dptrain ledger COMMAND --help\n\n"
        f"{lines}\n\nevery command takes\n{places}\n\n"
        "The controller's passphrase comes from DPTRAIN_PASSPHRASE, or is asked for."
    )


def command_usage(name: str) -> str:
    """Text of `dptrain ledger NAME --help`."""
    text, examples = HELP[name]
    words = {**SPECS[name], **PLACES}
    width = max(map(len, words))
    lines = "\n".join(
        f"  {word.ljust(width)}  {spec.help}{' (required)' if spec.default is ... else ''}"
        for word, spec in words.items()
    )
    more = "\n\nSettings as for `dptrain train` (recipe=…, data.…, privacy.…) may follow."
    flags = "".join(f" [{flag}]" for flag in ("--json", *FLAGS.get(name, ())))
    return (
        f"{text}\n\nusage: dptrain ledger {name} [name=value …]{flags}\n\n{lines}"
        f"{more if name in ('register', 'budget') else ''}\n\nexamples:\n  {examples}"
    )


def main(argv: Sequence[str], *, scan: Scan | None = None, forecast: Forecast | None = None) -> int:
    """Run `dptrain ledger …`; returns an exit code.

    Args:
        scan: (settings, keys) -> ScanResult, for `register`.
        forecast: (settings, N, epsilon, delta) -> mechanisms of one run, for `budget` with settings.

    Raises DptrainError for everything that a person can mend.
    """
    words = list(argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return EXIT_DONE if words else EXIT_USAGE
    name = words.pop(0)
    if name not in SPECS:
        raise ConfigError(f"There is no command 'ledger {name}'.", remedy=suggest(name, list(SPECS)))
    if any(word in ("-h", "--help") for word in words):
        print(command_usage(name))
        return EXIT_DONE
    flags = [word for word in words if word.startswith("--")]
    for flag in flags:
        if flag not in ("--json", *FLAGS.get(name, ())):
            raise ConfigError(f"'ledger {name}' takes no {flag}.", remedy="It takes --json and --help.")
    words = [word for word in words if not word.startswith("--")]
    settings: list[str] = []
    if name in ("register", "budget"):
        settings = [word for word in words if _is_setting(word)]
        words = [word for word in words if not _is_setting(word)]
    values = parse_words(words, {**SPECS[name], **PLACES})
    out = Output(as_json="--json" in flags)
    if name == "register":
        return _register(values, settings, scan, out)
    if name == "budget":
        return _budget(values, settings, forecast, out)
    if name == "show":
        return _show(values, out, steward="--steward" in flags)
    return RUN[name](values, out)


def _is_setting(word: str) -> bool:
    name = word.partition("=")[0].lstrip("+~")
    return name in SETTINGS or ("." in name and not name.startswith("ledger."))


def _open(values: Mapping[str, Any]) -> tuple[Ledger, Keys]:
    from dptrain.ledger.places import open_ledger

    return open_ledger(values["ledger.url"], values["ledger.keys"], values["ledger.witness"])


def _controller(keys: Keys) -> Controller:
    return keys.controller(secrets.passphrase())


def _init(values: Mapping[str, Any], out: Output) -> int:
    from dptrain.ledger.keys import Keys
    from dptrain.ledger.ledger import Ledger
    from dptrain.ledger.places import keys_place, ledger_place

    folder, place = Path(keys_place(values["ledger.keys"], values["ledger.url"])), ledger_place(values["ledger.url"])
    made = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    keys = Keys.create(folder, secrets.passphrase(new=True)) if made else Keys.load(folder)
    try:
        ledger = Ledger.create(place, keys)
    except BaseException:
        if made:
            keys.forget()  # nobody has seen their recovery code
        raise
    head = ledger.head()
    out.say(f"The ledger of site {keys.site[:8]}… is at {ledger.store.name}.")
    if made:
        _say_keys(keys, out)
    out.say(
        "Next: register a cohort (dptrain ledger register --help); give the head to whoever shall be able to prove "
        "a rollback (dptrain ledger heads --help)."
    )
    facts = {"ledger": ledger.store.name, "keys": str(folder), "site": keys.site, "head": head.to_dict()}
    out.give({**facts, "recovery_code": keys.recovery_code})
    return EXIT_DONE


def _say_keys(keys: Keys, out: Output) -> None:
    out.say(
        f"The keys are in {keys.folder} (controller.json may move to the controller's own machine).\n"
        f"Recovery code, shown this once: {keys.recovery_code}\n"
        "Print it and lock it away: it replaces a lost key, and nothing else can."
    )


def _keygen(values: Mapping[str, Any], out: Output) -> int:
    from dptrain.ledger.keys import Keys
    from dptrain.ledger.places import keys_place

    keys = Keys.create(keys_place(values["ledger.keys"], values["ledger.url"]), secrets.passphrase(new=True))
    _say_keys(keys, out)
    facts = {"keys": str(keys.folder), "site": keys.site, "controller": keys.controller_public}
    out.give({**facts, "recovery_code": keys.recovery_code})
    return EXIT_DONE


def _register(values: Mapping[str, Any], settings: Sequence[str], scan: Scan | None, out: Output) -> int:
    if scan is None:
        raise ConfigError("this program was built without a data floor: it cannot read a manifest.")
    from dptrain.ledger.grants import PublicDeclaration

    ledger, keys = _open(values)
    controller = _controller(keys) if values["public"] else None
    found = scan(settings, keys)
    source, licence = values["source"] or found.source, values["licence"] or found.licence
    if values["public"] and not (source and licence):
        raise ConfigError("a public cohort needs its source and its licence.", remedy="Give source=… licence=… .")
    public = PublicDeclaration(_one_line(source), _one_line(licence)) if values["public"] else None
    cautions = [_one_line(text) for text in (*found.cautions, values["caution"]) if text]
    name = values["cohort"] or found.name
    made = ledger.register(
        name,
        unit=found.unit,
        issuer=found.issuer,
        public_size=values["public_size"],
        patients=found.patients,
        owner=values["owner"],
        public=public,
        overlaps=values["overlaps"],
        cautions=cautions,
        controller=controller,
    )
    out.say(
        f"Registered '{made.name}', version {made.version}: N = {made.public_size} declared, unit {made.unit}, owner "
        f"{values['owner']}, fingerprint {made.fingerprint[:16]}…. Nothing was charged."
    )
    if public is not None:
        out.say(f"It is public ({public.source}; {public.licence}): its charges are recorded and gate nothing.")
    elif ledger.status(name).kind is None:
        use = next((word for word in settings if word.startswith("recipe=")), "recipe=…")
        out.say(f"Next: a budget (dptrain ledger budget cohort={name} epsilon=… {use} reason=…).")
    out.give(made)
    return EXIT_DONE


def _one_line(text: str | None) -> str:
    """Text of a configuration file, where a paragraph may have several lines."""
    return " ".join(str(text).split())


def _budget(values: Mapping[str, Any], settings: Sequence[str], forecast: Forecast | None, out: Output) -> int:
    from dptrain.ledger import gate

    ledger, keys = _open(values)
    before = ledger.status(values["cohort"])
    gate.check_epsilon(values["epsilon"])
    controller = _controller(keys)
    mechanisms = _forecast(values, settings, forecast, before)
    ledger.budget(
        values["cohort"],
        kind=values["kind"],
        epsilon=values["epsilon"],
        delta=values["delta"],
        forecast=mechanisms,
        minimum_charge=values["minimum_charge"],
        reason=values["reason"],
        advice=values["advice"],
        controller=controller,
    )
    status = ledger.status(values["cohort"])
    out.say("Signed.")
    _show_one(status, out)
    out.give(status)
    return EXIT_DONE


def _forecast(
    values: Mapping[str, Any], settings: Sequence[str], forecast: Forecast | None, status: CohortStatus
) -> tuple[Mechanism, ...]:
    from dptrain.plan import Mechanism

    if not 1 <= values["runs"] <= MOST_RUNS:
        raise ConfigError(f"runs={values['runs']} must be at least 1, and at most {MOST_RUNS}.")
    batch, steps, noise = values["expected_batch_size"], values["steps"], values["noise_multiplier"]
    if batch is None and steps is None and noise is None:
        if settings and forecast is not None:
            one = forecast(settings, status.public_size, values["epsilon"], values["delta"])
            chosen = any(word.lstrip("+").startswith("privacy.noise_multiplier=") for word in settings)
            if (values["kind"] == "open" or values["runs"] > 1) and not chosen:
                training, *rest = one  # so much noise that all of them together fit the budget
                one = (_with_noise(training, values, status, also=tuple(rest) * values["runs"]), *rest)
            return one * int(values["runs"])
        if values["kind"] == "open" and status.order is not None:
            return ()  # a raise keeps its order
        raise ConfigError(
            "a budget needs a forecast of its use: an open one gets its RDP order from it, a planned one its runs.",
            remedy="Give recipe=…, or expected_batch_size=… steps=… (and noise_multiplier=…).",
        )
    if batch is None or steps is None or settings:
        raise ConfigError("a forecast is either recipe=… (and settings), or expected_batch_size=… and steps=….")
    typical = Mechanism(batch / status.public_size, 1.0 if noise is None else noise, steps)
    if noise is None:
        typical = _with_noise(typical, values, status)
    return (typical,) * int(values["runs"])


def _with_noise(
    one: Mechanism, values: Mapping[str, Any], status: CohortStatus, also: tuple[Mechanism, ...] = ()
) -> Mechanism:
    """The mechanism with the least noise at which all `runs` of it stay within epsilon, by the budget's own gate.

    An open budget takes the order that is best for its forecast, and a forecast at that order's noise may have a
    better one: each turn needs no more noise than the one before. A raise keeps its order.
    """
    from dptrain import accounting
    from dptrain.plan import default_delta

    epsilon, steps = values["epsilon"], one.steps * values["runs"]
    before = next((budget for budget in status.budgets if budget.kind == "open"), None)
    delta = values["delta"]
    if delta is None:
        delta = default_delta(status.public_size)
        if before is not None and values["kind"] == "open":
            delta = before.delta
    noise = accounting.calibrate_noise(epsilon, delta, one.sample_rate, steps, also=also)
    if values["kind"] == "planned":
        return replace(one, noise_multiplier=noise)
    order = None if before is None else before.order
    for _ in range(TURNS):
        used = (replace(one, noise_multiplier=noise, steps=steps), *also)
        best = accounting.best_order(epsilon, delta, used) if before is None else before.order
        noise = accounting.calibrate_noise(
            epsilon, delta, one.sample_rate, steps, also=also, accountant="rdp", order=best
        )
        if best == order:
            break
        order = best
    return replace(one, noise_multiplier=noise)


def _weights(values: Mapping[str, Any], out: Output) -> int:
    if (values["file"] is None) == (values["sha256"] is None):
        raise ConfigError("give either file=… or sha256=….")
    sha = values["sha256"]
    if values["file"] is not None:
        try:
            sha = file_sha256(values["file"])
        except OSError as error:
            raise ConfigError(f"{values['file']} cannot be read: {error.strerror}.") from None
    ledger, keys = _open(values)
    ledger.declare_weights(sha, source=values["source"], licence=values["licence"], controller=_controller(keys))
    out.say(f"Declared public: weights {sha[:16]}… ({values['source']}; {values['licence']}).")
    out.give({"sha256": sha})
    return EXIT_DONE


def _show(values: Mapping[str, Any], out: Output, *, steward: bool) -> int:
    ledger, _ = _open(values)
    if values["cohort"] is not None:
        status = ledger.status(values["cohort"])
        counts = ledger.steward(values["cohort"]) if steward else None
        _show_one(status, out)
        if counts is not None:
            out.say("\nFor the steward alone (never for a report):")
            for name, count in counts.items():
                out.say(f"  {name.replace('_', ' ')}: {count}")
        out.give(status if counts is None else {**asdict(status), "steward": counts})
        return EXIT_DONE
    statuses = [ledger.status(name) for name in ledger.cohorts()]
    out.give(statuses)
    if not statuses:
        out.say(f"The ledger {ledger.store.name} holds no cohort yet (dptrain ledger register --help).")
        return EXIT_DONE
    rows = [
        (
            status.name,
            status.owner,
            f"{status.public_size} {status.unit}s",
            status.kind or "none",
            number(status.budget_epsilon),
            "" if status.budget_delta is None else f"{status.budget_delta:.2g}",
            number(status.spent_epsilon) if status.kind not in (None, "public") else "",
            number(status.remaining_epsilon),
            str(len(status.runs)),
            _state(status),
        )
        for status in statuses
    ]
    out.table(
        f"Ledger {ledger.store.name}",
        ("cohort", "owner", "declared", "budget", "ε granted", "δ", "ε spent", "ε left", "runs", "state"),
        rows,
        right=(4, 5, 6, 7, 8),
    )
    accountants = sorted({status.accountant for status in statuses if status.accountant})
    if accountants:
        out.say(f"ε by {', '.join(accountants)}; add/remove adjacency of the declared unit.")
    if not statuses[0].witness:
        out.say("No witness is set: a restored older copy of this ledger could not be told from the true one.")
    return EXIT_DONE


def _state(status: CohortStatus) -> str:
    if status.locked:
        return "LOCKED"
    if status.kind is None:
        return "no budget"
    return "public" if status.public else "open"


def _bar(part: float, width: int = 24) -> str:
    filled = min(width, max(0, round(part * width)))
    return "█" * filled + "░" * (width - filled)


def _show_one(status: CohortStatus, out: Output) -> None:
    from dptrain.ledger.status import promise, steps

    out.say(f"{status.name}, version {status.version}: {_state(status)}")
    out.say(f"  owner      {status.owner}")
    out.say(f"  declared   N = {status.public_size} {status.unit}s, ids of '{status.issuer}', add/remove adjacency")
    if status.public:
        out.say(f"  public     {status.source} ({status.licence}); charges are recorded and gate nothing")
    for budget in status.budgets:
        out.say(f"  granted    {promise(status, budget.epsilon, budget=budget)}, {budget.kind}, {budget.date[:10]}")
        out.say(f"             reason: {budget.reason}" + (f"; advice: {budget.advice}" if budget.advice else ""))
        part = budget.spent_epsilon / budget.epsilon
        out.say(f"  spent      epsilon = {number(budget.spent_epsilon)}  {_bar(part)} {part:.1%} of epsilon")
        out.say(
            f"  left       epsilon = {number(budget.remaining_epsilon)}"
            + (
                f" (locks below {number(budget.minimum_charge)})"
                if budget.kind == "open"
                else f": {len(budget.unused)} of {len(budget.planned)} declared mechanisms"
            )
        )
        for mechanism in dict.fromkeys(budget.planned):
            left = f": {budget.unused.count(mechanism)} left" if budget.kind == "planned" else " (forecast)"
            count = budget.planned.count(mechanism)
            out.say(
                f"             {count} × {mechanism.what}: rate {mechanism.sample_rate:.6g}, {mechanism.steps} steps,"
                f" noise_multiplier={mechanism.noise_multiplier!r}{left}"
            )
    if not status.budgets and not status.public:
        out.say(f"  granted    nothing yet (dptrain ledger budget cohort={status.name} epsilon=… recipe=… reason=…)")
    if status.locked:
        out.say(f"  locked     {status.lock_reason}")
    if status.overlaps:
        out.say(f"  overlaps   {', '.join(status.overlaps)} (their runs count here too)")
    for caution in status.cautions:
        out.say(f"  caution    {caution}")
    shown = status.runs[-SHOWN_RUNS:]
    if shown:
        elsewhere = any(run.cohort != status.name for run in shown)
        rows = [
            (
                run.run,
                *((run.cohort,) if elsewhere else ()),
                run.date[:10],
                steps(run),
                _alone(run.epsilon_pld, private=run.private),
                f"{run.delta:.2g}",
                "" if run.share is None else f"{run.share:.1%}",
                number(run.epsilon_gate_after),
                run.status,
            )
            for run in shown
        ]
        earlier = len(status.runs) - len(shown)
        columns = ("date", "steps", "ε alone (PLD)", "at δ", "of its RDP", "ε after (gate)", "status")
        out.table(
            f"Runs (the newest {len(shown)}; {earlier} earlier ones: --json)" if earlier else "Runs",
            ("run", *(("on",) if elsewhere else ()), *columns),
            rows,
            right=range(2 + elsewhere, 7 + elsewhere),
        )
    if status.head is not None:
        witness = "set" if status.witness else "none set: a rollback could not be detected"
        out.say(f"  head       entry {status.head.entries}, {status.head.hash[:16]}…; witness: {witness}")


def _alone(epsilon: float | None, *, private: bool) -> str:
    if not private:
        return "∞"
    return "at close" if epsilon is None else number(epsilon)


def _history(values: Mapping[str, Any], out: Output) -> int:
    ledger, _ = _open(values)
    if values["cohort"] is not None:
        ledger.status(values["cohort"])  # refuses an unknown one
    found, seen = [], set()
    grants: dict[int, tuple[str | None, str | None]] = {}
    plans: dict[str, Mapping[str, Any]] = {}
    runs: dict[str, str] = {}
    for entry in ledger.entries():
        body = entry.facts
        cohort, run = body.get("cohort") or (body.get("name") if entry.kind == "register" else None), body.get("run")
        if entry.kind == "reserve":
            runs[body["run"]], plans[body["run"]] = body["cohort"], body["plan"]
        if entry.kind == "admit":
            grants[entry.seq] = (cohort, run)
        if entry.kind == "finish":
            cohort, run = grants[body["admission"]]
        cohort = cohort or runs.get(run or "")
        seen.add(run)
        if values["cohort"] not in (None, cohort) or values["run"] not in (None, run):
            continue
        found.append((entry, body, cohort, run))
    if values["run"] is not None and values["run"] not in seen:
        raise _no_run(values["run"], seen)
    found = found[-values["last"] :]
    out.give(
        [
            {"seq": entry.seq, "time": entry.time, "kind": entry.kind, "hash": entry.hash.hex(), "body": body}
            for entry, body, _, _ in found
        ]
    )
    rows = [
        (
            str(entry.seq),
            entry.time.replace("T", " ").replace("Z", ""),
            entry.kind,
            cohort or "",
            run or "",
            _what(entry.kind, body, plans.get(run or "", {})),
            "controller" if entry.countersignature is not None else "site",
            entry.hash.hex()[:12],
        )
        for entry, body, cohort, run in found
    ]
    columns = ("#", "time (UTC)", "entry", "cohort", "run", "what", "signed by", "hash")
    out.table(f"Ledger {ledger.store.name}", columns, rows, right=(0,))
    return EXIT_DONE


def _no_run(name: str, known: Iterable[str | None]) -> LedgerRefused:
    names = [run for run in known if run is not None]
    return LedgerRefused(
        f"The ledger knows no run '{name}'.", remedy=suggest(name, names) if names else "It has no runs yet."
    )


def _what(kind: str, body: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """One line about an entry, from its public part and the plan of its run."""
    match kind:
        case "genesis":
            return f"site {body['site'][:8]}…"
        case "register":
            public = "; public" if body["public"] else ""
            return (
                f"version {body['version']}, N = {body['public_size']} {body['unit']}s, owner {body['owner']}{public}"
            )
        case "budget":
            text = f"{body['kind']} ε = {body['epsilon']:g}, δ = {body['delta']:.2g}, {body['unit']}, add/remove"
            by = f"RDP of order {body['order']:g}" if body["kind"] == "open" else "joint PLD"
            return f"{'changed to ' if body['changes'] else ''}{text}, by {by}: {body['reason']}"
        case "reserve":
            return f"{plan['steps']} steps, noise {plan['noise_multiplier']:.4g}, batch {plan['expected_batch_size']}"
        case "commit":
            return f"steps below {body['through']} paid"
        case "calibrate":
            return "the calibration's one draw begins"
        case "resume":
            return f"attempt {body['attempt']}"
        case "close":
            alone = body["epsilon_pld"]
            terms = f"PLD, δ = {plan['delta']:.2g}, {plan['unit']}, add/remove"
            text = "" if alone is None else f", ε = {alone:.4g} alone ({terms})"
            note = f" ({body['note']})" if body["note"] else ""
            return f"{body['status']}: {body['steps_run']} steps ran, {body['committed']} paid{text}{note}"
        case "admit":
            return f"{body['purpose']} ({body['basis']})"
        case "finish":
            return f"grant {body['admission']} {body['status']}"
        case "weights":
            return f"{body['sha256'][:12]}… {body['source']} ({body['licence']})"
        case "rotate":
            return f"new {body['what']} key"
        case "release":
            purpose = f" for {body['purpose']}" if body.get("purpose") else ""  # older entries have no such field
            return f"{', '.join(body['items'])} to {body['recipient']}{purpose}"
        case "withdraw":
            return "a patient is left out from now on"
        case _:
            return str(body.get("reason", ""))


def _verify(values: Mapping[str, Any], out: Output) -> int:
    from dptrain.ledger.keys import Keys
    from dptrain.ledger.ledger import Ledger
    from dptrain.ledger.places import keys_place, ledger_place
    from dptrain.ledger.store import WAIT_SECONDS, Store, must_exist
    from dptrain.ledger.verify import UNREAD

    must_exist(Store(ledger_place(values["ledger.url"])))
    keys = Keys.load(keys_place(values["ledger.keys"], values["ledger.url"]))
    witness = values["ledger.witness"] or os.environ.get("DPTRAIN_WITNESS") or None
    ledger = Ledger(ledger_place(values["ledger.url"]), keys, witness=witness, wait=WAIT_SECONDS)
    faults = ledger.verify(witness)
    unread = [fault for fault in faults if fault.where == UNREAD]
    sound = len(unread) == len(faults)
    out.give({"sound": sound, "witness": witness is not None and not unread, "faults": faults})
    if not sound:
        first = faults[0]
        where = f"first bad entry: {first.entry}" if first.entry is not None else f"in: {first.where}"
        out.say(f"NOT SOUND ({where})")
        for fault in faults:
            out.say(f"  {fault.what}")
        out.say("Restore the newest sound backup (docs/ledger.md, Recovery). Until then, grant nothing.")
        return EXIT_REFUSED_BY_LEDGER
    head = ledger.head()
    out.say(f"Sound: {head.entries} entries, head {head.hash[:16]}…, every signature, hash and table agrees.")
    for fault in unread:
        out.say(f"The witness says nothing: not checked whether this is an older copy. {fault.what}")
        out.say("Check ledger.witness and run verify again; this is no reason to change the ledger.")
    if unread:
        return EXIT_REFUSED_BY_LEDGER
    if witness is None:
        out.say("Not checked: whether this is an older copy. Only a witness shows that (ledger.witness=…).")
    else:
        out.say("It descends from every head that the witness holds.")
    return EXIT_DONE


def _heads(values: Mapping[str, Any], out: Output) -> int:
    ledger, _ = _open(values)
    head = ledger.head()
    line = json.dumps(head.to_dict(), sort_keys=True)
    if values["to"] is None:
        print(line)
        return EXIT_DONE
    path = Path(values["to"]).expanduser()
    try:
        with open(path, "a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from None
    out.say(f"Entry {head.entries} ({head.hash[:16]}…), signed, appended to {path}.")
    out.give(head)
    return EXIT_DONE


def _lock(values: Mapping[str, Any], out: Output) -> int:
    ledger, _ = _open(values)
    ledger.lock(values["cohort"], reason=values["reason"])
    out.say(f"'{values['cohort']}' is locked. Only the controller can unlock it.")
    out.give({"cohort": values["cohort"], "locked": True})
    return EXIT_DONE


def _unlock(values: Mapping[str, Any], out: Output) -> int:
    ledger, keys = _open(values)
    ledger.unlock(values["cohort"], reason=values["reason"], controller=_controller(keys))
    status = ledger.status(values["cohort"])
    out.say(f"The lock by hand is gone; '{status.name}' is {_state(status)}.")
    out.give({"cohort": status.name, "locked": status.locked})
    return EXIT_DONE


def _permit(values: Mapping[str, Any], out: Output) -> int:
    ledger, keys = _open(values)
    run = values["run"]
    with ledger.view() as (_, state):
        known = list(state.runs)
    if run is not None and run not in known and not values["other_ledger"]:
        refusal = _no_run(run, known)
        raise LedgerRefused(
            refusal.message,
            remedy=f"{refusal.remedy} Was it trained under another ledger? Then add other_ledger=yes.",
        )
    number = ledger.permit(values["purpose"], values["cohort"], _controller(keys), reason=values["reason"], run=run)
    whose = "any run" if run is None else f"run '{run}'"
    out.say(f"Permitted (entry {number}): one {values['purpose']} of '{values['cohort']}', for {whose}.")
    out.give({"permit": number, "run": run})
    return EXIT_DONE


def _withdraw(values: Mapping[str, Any], out: Output) -> int:
    from dptrain.ledger.keys import normal_issuer

    ledger, keys = _open(values)
    patient, issuer = values["patient"], normal_issuer(values["issuer"])
    with ledger.view() as (_, state):
        issuers = sorted({version.issuer for version in state.versions})
    if issuer not in issuers and not values["new_issuer"]:
        known = f"Known: {', '.join(repr(name) for name in issuers)}." if issuers else "None is known yet."
        raise LedgerRefused(
            f"No registered cohort has ids of the issuer '{values['issuer']}': nobody was withdrawn.",
            remedy=f"{known} To withdraw a patient before this issuer's first registration, add new_issuer=yes.",
        )
    if patient is None:
        if sys.stdin.isatty():
            patient = secrets.hidden("Patient id (not shown)")
        else:
            patient = sys.stdin.readline().strip()
    key = keys.patient_key(issuer, patient)
    known_id = _in_a_cohort(ledger, key)
    ledger.withdraw(key)
    out.say(
        "Recorded. The patient is left out of every draw, evaluation and audit from now on; what was spent stays."
    )
    if known_id:
        out.say("This id is in one of the registered cohorts.")
    else:
        out.say(
            "This id is in no registered cohort: is it written as in the manifest? If a cohort is registered with it "
            "later, the patient is left out."
        )
    out.give({"withdrawn": True, "in_a_cohort": known_id})
    return EXIT_DONE


def _in_a_cohort(ledger: Ledger, key: bytes) -> bool:
    """Whether a patient key belongs to a version of any cohort. For the steward alone."""
    import sqlalchemy as sa

    from dptrain.ledger import store

    with ledger.view() as (connection, state):
        klass = connection.execute(sa.select(store.patients.c.klass).where(store.patients.c.key == key)).scalar()
        return klass in state.classes and bool(state.classes[klass].versions)


def _close(values: Mapping[str, Any], out: Output) -> int:
    ledger, _ = _open(values)
    grant = ledger.resume(values["run"])
    receipt = grant.close("interrupted", grant.committed, note=values["reason"])
    if receipt is None:
        raise LedgerRefused("this run is no training.")
    out.say(
        f"Run '{receipt.run}' is closed: {receipt.steps_charged} of {receipt.steps_planned} steps stay charged "
        f"({values['reason']})."
    )
    out.give(receipt)
    return EXIT_DONE


def _rotate(values: Mapping[str, Any], out: Output) -> int:
    from dptrain.ledger.keys import recovery

    what = values["what"]
    if what not in ("site", "controller", "secret", "recovery"):
        raise ConfigError(f"'{what}' cannot be rotated: site, controller, secret or recovery can.")
    ledger, keys = _open_for_rotation(values)
    if values["recovery"]:
        signer = recovery(secrets.recovery_code())
    else:
        signer = _controller(keys)
    if what == "site":
        ledger.rotate_site_key(signer)
    elif what == "controller":
        ledger.rotate_controller_key(signer, secrets.new_passphrase())
    elif what == "recovery":
        made = ledger.rotate_recovery_code(signer)
        out.say(f"New recovery code, shown this once: {made.recovery_code}")
    else:
        ledger.rotate_secret(signer)
        out.say("Every patient key and record hash has changed. Register each cohort again before its next run.")
    out.say(f"The {what} key was replaced. Back up {keys.folder}; the earlier backup does not open this ledger.")
    out.give({"rotated": what})
    return EXIT_DONE


def _open_for_rotation(values: Mapping[str, Any]) -> tuple[Ledger, Keys]:
    """As :func:`_open`; where only the site's key is lost, the ledger opens without it, to have it replaced."""
    from dptrain.ledger.keys import Keys
    from dptrain.ledger.ledger import Ledger
    from dptrain.ledger.places import keys_place, ledger_place
    from dptrain.ledger.store import WAIT_SECONDS

    if values["what"] != "site":
        return _open(values)
    keys = Keys.load(keys_place(values["ledger.keys"], values["ledger.url"]), site_key_lost=True)
    return Ledger(ledger_place(values["ledger.url"]), keys, witness=None, wait=WAIT_SECONDS), keys


def _backup(values: Mapping[str, Any], out: Output) -> int:
    ledger, _ = _open(values)
    path = ledger.backup(values["to"])
    head = ledger.head()
    out.say(
        f"A sound copy up to entry {head.entries} or later is at {path}. Keep it with the head, not with the keys."
    )
    out.give({"backup": str(path), "head": head.to_dict()})
    return EXIT_DONE


def _migrate(values: Mapping[str, Any], out: Output) -> int:
    from dptrain.ledger import store
    from dptrain.ledger.places import ledger_place

    place = store.Store(ledger_place(values["ledger.url"]))
    store.must_exist(place)
    with place.bare() as connection:
        before = store.schema_of(connection)
        store.migrate(connection)
    out.say(f"Schema {before} → {store.SCHEMA}." if before != store.SCHEMA else f"Schema {before} is the newest.")
    out.give({"before": before, "now": store.SCHEMA})
    return EXIT_DONE


RUN: dict[str, Callable[[Mapping[str, Any], Output], int]] = {
    "init": _init,
    "keygen": _keygen,
    "weights": _weights,
    "history": _history,
    "verify": _verify,
    "heads": _heads,
    "lock": _lock,
    "unlock": _unlock,
    "permit": _permit,
    "withdraw": _withdraw,
    "close": _close,
    "rotate": _rotate,
    "backup": _backup,
    "migrate": _migrate,
}
