"""The keys and the file: make them, replace them, copy them, bring them to a newer schema."""

from __future__ import annotations

from pathlib import Path

from dptrain.commands.acts.ledger.desk import controller_of, opened
from dptrain.commands.command import Call
from dptrain.errors import EXIT_DONE
from dptrain.ledger import store
from dptrain.ledger.face import Ledger
from dptrain.ledger.keys import Keys, new_signer, recovery
from dptrain.ledger.places import keys_place, ledger_place
from dptrain.ledger.store import WAIT_SECONDS
from dptrain.terminal import secrets
from dptrain.terminal.output import Output
from dptrain.terminal.words import Words


def init(call: Call) -> int:
    """Keys and an empty ledger."""
    out = Output(as_json=call.as_json)
    folder = Path(keys_place(call.words["ledger.keys"], call.words["ledger.url"]))
    place = ledger_place(call.words["ledger.url"])
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


def keygen(call: Call) -> int:
    """Keys only."""
    out = Output(as_json=call.as_json)
    approver = call.words["approver"]
    if approver is not None:
        signer = new_signer(Path(approver), secrets.passphrase(new=True))
        out.say(f"Your key is in {approver}; keep it to yourself. Its public half, for the controller:")
        out.say(signer.public)
        out.give({"public": signer.public, "algorithm": signer.algorithm})
        return EXIT_DONE
    keys = Keys.create(keys_place(call.words["ledger.keys"], call.words["ledger.url"]), secrets.passphrase(new=True))
    _say_keys(keys, out)
    facts = {"keys": str(keys.folder), "site": keys.site, "controller": keys.controller_public}
    out.give({**facts, "recovery_code": keys.recovery_code})
    return EXIT_DONE


def rotate(call: Call) -> int:
    """Replace a key."""
    out = Output(as_json=call.as_json)
    what = call.words["what"]
    ledger, keys = _open_for_rotation(call.words)
    if call.words["recovery"]:
        signer = recovery(secrets.recovery_code())
    else:
        signer = controller_of(keys)
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


def _open_for_rotation(words: Words) -> tuple[Ledger, Keys]:
    """As :func:`opened`; where only the site's key is lost, the ledger opens without it, to have it replaced."""
    if words["what"] != "site":
        return opened(words)
    keys = Keys.load(keys_place(words["ledger.keys"], words["ledger.url"]), site_key_lost=True)
    return Ledger(ledger_place(words["ledger.url"]), keys, witness=None, wait=WAIT_SECONDS), keys


def backup(call: Call) -> int:
    """A sound copy."""
    out = Output(as_json=call.as_json)
    ledger, _ = opened(call.words)
    path = ledger.backup(call.words["to"])
    head = ledger.head()
    out.say(
        f"A sound copy up to entry {head.entries} or later is at {path}. Keep it with the head, not with the keys."
    )
    out.give({"backup": str(path), "head": head.to_dict()})
    return EXIT_DONE


def migrate(call: Call) -> int:
    """A newer schema."""
    out = Output(as_json=call.as_json)
    place = store.Store(ledger_place(call.words["ledger.url"]))
    store.must_exist(place)
    with place.bare() as connection:
        before = store.schema_of(connection)
        store.migrate(connection)
    out.say(f"Schema {before} → {store.SCHEMA}." if before != store.SCHEMA else f"Schema {before} is the newest.")
    out.give({"before": before, "now": store.SCHEMA})
    return EXIT_DONE
