"""Reconstruction attacks on a training: shown without protection, bounded with it.

Three games (:mod:`.games.lineup`, :mod:`.games.message`, :mod:`.games.weights`), each without protection and under
the promise. Everything here reads the cohort under a grant of the ledger, purpose `audit`; it charges nothing.
What it measures lies below `restricted/attack/` (folders 0700, files 0600) as aggregates; pictures of patients are
drawn only of public cohorts, or where the controller permitted it, into one file there. Who withdrew is never shown.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from dptrain import data
from dptrain.audit.games import pictures
from dptrain.audit.promise import promise_of
from dptrain.audit.rounds import NONE, Bench, play
from dptrain.audit.work import Kept, configuration, digest
from dptrain.errors import ConfigError, LedgerRefused
from dptrain.files import make_folder, utc_now, whole_or_nothing, write_json
from dptrain.ledger import CohortStatus, Ledger
from dptrain.models.network import device_of
from dptrain.plan import Plan
from dptrain.records import RunFolder
from dptrain.records.attack import ATTACK_SCHEMA, Attack
from dptrain.settings import AttackConfig, Settings, to_yaml
from dptrain.settings.kept import changed
from dptrain.settings.typed import plain
from dptrain.training import inputs
from dptrain.training.planning import open_status, plan_for
from dptrain.vocabulary import Purpose, RunStatus, Split

Say = Callable[[str], None]
ALLOWED = ("attack.", "ledger.", "data.root=", "training.device=", "training.chunk=")


@dataclass(frozen=True)
class Result:
    """What the attacks left: the folder, attack.json's content, and whether the guarantee is broken."""

    folder: RunFolder
    attack: Attack
    broken: str | None


def attack_run(path: str | os.PathLike[str], words: list[str], *, say: Say = print) -> Result:
    """Attack the training of a finished run. `words`: overrides of attack.*, ledger.*, data.root and training.device.

    Raises:
        ConfigError: no run, or one that has not finished. LedgerRefused: see :func:`attack_settings`.
    """
    run = inputs.load_run(path)
    if run.facts.status == RunStatus.RUNNING:
        raise ConfigError(f"{run.folder.path} has not finished.", remedy="Resume it with training.resume=… first.")
    for word in words:
        if "=" not in word or not word.startswith(ALLOWED):
            raise ConfigError(
                f"'{word}' cannot be set for an attack on a run: it would attack another training.",
                remedy=f"Allowed are {', '.join(f'{name}…' for name in ALLOWED)}.",
            )
    run.folder.note_access("attack")
    return _attack(changed(run.settings, words), run.plan, run.folder, say)


def attack_settings(settings: Settings, *, say: Say = print) -> Result:
    """Attack what a recipe's training would do, without a run.

    Raises:
        LedgerRefused: a changed manifest; a locked cohort without permission; pictures that are not permitted.
    """
    _, _, status = open_status(settings)
    plan = plan_for(settings, status)
    place = settings.training.run or f"runs/attack-{settings.name}-{asked(settings, plan)[:12]}"
    folder = RunFolder(place)
    if folder.facts.exists():
        raise ConfigError(
            f"{place} holds a run.", remedy=f"Attack it with run={place}, or name another training.run."
        )
    folder.path.mkdir(parents=True, exist_ok=True)
    with whole_or_nothing(folder.config) as file:
        file.write(to_yaml(settings))
    return _attack(settings, plan, folder, say)


def asked(settings: Settings, plan: Plan) -> str:
    """One number for an attack: two that have it ask the same question of the same training."""
    measured = {name: value for name, value in configuration(settings).items() if name != "audit"}
    return digest([measured, plain(settings.attack), plan.digest])


def finished(folder: RunFolder, number: str, fingerprint: str) -> Result | None:
    """The result of the same attack on the same cohort, if it was finished before."""
    try:
        attack = Attack.of(json.loads(folder.attack_json.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
    same = (attack.schema, attack.asked_sha256, attack.cohort_sha256) == (ATTACK_SCHEMA, number, digest(fingerprint))
    return Result(folder, attack, broken_sentence(attack)) if same else None


def broken_sentence(attack: Attack) -> str | None:
    """The sentence of a broken guarantee."""
    row = next((row for row in attack.rows if row.above), None)
    if row is None:
        return None
    return (
        f"The guarantee is broken: in a line-up of {row.candidates} the right {attack.unit or 'patient'} was named "
        f"in {row.successes} of {row.trials} trainings, twice over; the promise allows {row.bound:.1%}.\n"
        "What runs is not what was planned: look for the cause before anything of this run is used."
    )


def may_draw(ledger: Ledger, status: CohortStatus, config: AttackConfig) -> tuple[bool, str | None]:
    """Whether pictures are drawn, and the last day of the permission that it takes for a cohort that is not public.

    Raises LedgerRefused where they were asked for and may not be drawn.
    """
    if config.pictures == NONE:
        return False, None
    if status.public:
        return True, None
    until = ledger.pictures_until(status.name) if config.pictures == "permitted" else None
    if until is not None:
        return True, until
    raise LedgerRefused(
        f"Pictures of '{status.name}' are refused: it belongs to {status.owner} and is not declared public.",
        remedy="Numbers need no such leave (attack.pictures=none). For pictures ask the controller: `dptrain ledger "
        f"permit cohort={status.name} purpose=pictures last_day=… reason=…`, then attack.pictures=permitted.",
    )


def _attack(settings: Settings, plan: Plan, folder: RunFolder, say: Say) -> Result:
    begun = time.monotonic()
    ledger, keys, status = open_status(settings)
    drawn, until = may_draw(ledger, status, settings.attack)
    say(f"reading and hashing {settings.data.name}")
    cohort = data.scan(settings.data, keys)
    number = asked(settings, plan)
    earlier = finished(folder, number, cohort.fingerprint)
    if earlier is not None:
        say(f"this attack was finished at {earlier.attack.created}; nothing is trained, nothing asked of the ledger")
        return earlier
    identity = "attack-" + hashlib.sha256(f"{number}{os.path.abspath(folder.path)}".encode()).hexdigest()[:16]
    grant = ledger.admit(status.name, purpose=Purpose.AUDIT, run=identity, fingerprint=cohort.fingerprint)
    ended = RunStatus.INTERRUPTED
    try:
        make_folder(folder.restricted, private=True)
        make_folder(folder.attack, private=True)
        excluded = frozenset(grant.excluded)
        places = [p for p in cohort.split(Split.TRAIN) if not cohort.patients[p].excluded(excluded)]
        work = Kept(folder.attack / "work", digest([number, cohort.fingerprint, len(places)]))
        bench = Bench(settings, plan, cohort, grant, work, places, device_of(settings.training.device))
        rows, columns, left_out = play(bench, say)
        promise = promise_of(plan)
        attack = Attack(
            created=utc_now(),
            unit=plan.unit,
            patients=len(places),
            epsilon=promise.epsilon if math.isfinite(promise.epsilon) else None,
            infinite=math.isinf(promise.epsilon),
            delta=plan.delta,
            rows=tuple(rows),
            left_out=tuple(left_out),
            pictures=settings.attack.pictures,
            until=until,
            broken=any(row.above for row in rows),
            plan_sha256=plan.digest,
            asked_sha256=number,
            cohort_sha256=digest(cohort.fingerprint),
            seconds=round(time.monotonic() - begun, 1),
        )
        folder.attack_json.unlink(missing_ok=True)
        whose = f"{status.source}, {status.licence}" if status.public else f"to be destroyed after {until}"
        note = f"{settings.data.name}: {whose}. Restricted; not for diagnosis."
        pictures.draw(folder.attack / "figure.png", rows, columns if drawn else (), note)
        write_json(folder.attack_json, attack.to_json())
        work.remove()
        ended = RunStatus.COMPLETE
    finally:
        grant.close(ended, steps_run=0)
    return Result(folder, attack, broken_sentence(attack))
