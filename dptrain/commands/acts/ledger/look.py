"""Looking: where the cohorts stand, what was entered, whether it is sound, and the head for somebody else to keep."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from dptrain.commands.acts.ledger.desk import no_run, opened, show_one, state_of
from dptrain.commands.command import Call
from dptrain.errors import EXIT_DONE, EXIT_REFUSED_BY_LEDGER, ConfigError
from dptrain.ledger import kinds
from dptrain.ledger.face import Ledger
from dptrain.ledger.keys import Keys
from dptrain.ledger.places import keys_place, ledger_place
from dptrain.ledger.store import WAIT_SECONDS, Store, must_exist
from dptrain.ledger.verify import UNREAD
from dptrain.plan import Plan
from dptrain.terminal.output import Output, number


def show(call: Call) -> int:
    """Where the cohorts stand; one of them in full."""
    out = Output(as_json=call.as_json)
    ledger, _ = opened(call.words)
    if call.words["cohort"] is not None:
        status = ledger.status(call.words["cohort"])
        counts = ledger.steward(call.words["cohort"]) if "--steward" in call.flags else None
        show_one(status, out)
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
            state_of(status),
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


def history(call: Call) -> int:
    """The entries."""
    out = Output(as_json=call.as_json)
    ledger, _ = opened(call.words)
    if call.words["cohort"] is not None:
        ledger.status(call.words["cohort"])  # refuses an unknown one
    shown, seen = [], set()
    grants: dict[int, tuple[str | None, str | None]] = {}
    plans: dict[str | None, Plan] = {}
    runs: dict[str, str] = {}
    for entry in ledger.entries():
        body = entry.facts
        cohort, run = body.get("cohort") or (body.get("name") if entry.kind == "register" else None), body.get("run")
        if entry.kind == "reserve":
            runs[body["run"]], plans[body["run"]] = body["cohort"], Plan.from_dict(body["plan"])
        if entry.kind == "admit":
            grants[entry.seq] = (cohort, run)
        if entry.kind == "finish":
            cohort, run = grants[body["admission"]]
        cohort = cohort or runs.get(run or "")
        seen.add(run)
        if call.words["cohort"] not in (None, cohort) or call.words["run"] not in (None, run):
            continue
        shown.append((entry, body, cohort, run))
    if call.words["run"] is not None and call.words["run"] not in seen:
        raise no_run(call.words["run"], seen)
    shown = shown[-call.words["last"] :]
    out.give(
        [
            {"seq": entry.seq, "time": entry.time, "kind": entry.kind, "hash": entry.hash.hex(), "body": body}
            for entry, body, _, _ in shown
        ]
    )
    rows = [
        (
            str(entry.seq),
            entry.time.replace("T", " ").replace("Z", ""),
            entry.kind,
            cohort or "",
            run or "",
            kinds.read(entry).tell(plans.get(run)),
            ", ".join(ledger.signed_by(entry)) or "site",
            entry.hash.hex()[:12],
        )
        for entry, body, cohort, run in shown
    ]
    columns = ("#", "time (UTC)", "entry", "cohort", "run", "what", "signed by", "hash")
    out.table(f"Ledger {ledger.store.name}", columns, rows, right=(0,))
    return EXIT_DONE


def verify(call: Call) -> int:
    """Read everything again."""
    out = Output(as_json=call.as_json)
    must_exist(Store(ledger_place(call.words["ledger.url"])))
    keys = Keys.load(keys_place(call.words["ledger.keys"], call.words["ledger.url"]))
    witness = call.words["ledger.witness"] or os.environ.get("DPTRAIN_WITNESS") or None
    ledger = Ledger(ledger_place(call.words["ledger.url"]), keys, witness=witness, wait=WAIT_SECONDS)
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


def heads(call: Call) -> int:
    """The newest entry, signed."""
    out = Output(as_json=call.as_json)
    ledger, _ = opened(call.words)
    head = ledger.head()
    line = json.dumps(head.to_dict(), sort_keys=True)
    if call.words["to"] is None:
        print(line)
        return EXIT_DONE
    path = Path(call.words["to"]).expanduser()
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
