"""The audit of a training: reference models, attacks, confirmation, canaries, and the files it leaves.

Everything here reads the cohort under a grant of the ledger whose purpose is `audit`; it charges nothing, and
everything it writes lies below `restricted/audit/` (folders 0700, files 0600).
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dptrain import data
from dptrain.audit import bounds, masks, patients, reference, statistics
from dptrain.audit.games.checks import canary_check, residual_checks, untested
from dptrain.audit.games.population import choose_trainer, gather, train_references
from dptrain.audit.games.release import confirm
from dptrain.audit.promise import promise_of, promised_json
from dptrain.audit.results import Summary, by_unit, summarise
from dptrain.audit.work import Work, asked, digest
from dptrain.errors import ConfigError
from dptrain.files import make_folder, utc_now, whole_or_nothing, write_json
from dptrain.ledger import Grant
from dptrain.models.network import device_of
from dptrain.plan import Plan
from dptrain.records import Audit, RunFolder
from dptrain.records.audit import AUDIT_SCHEMA
from dptrain.settings import Settings, to_yaml
from dptrain.settings.kept import changed
from dptrain.training import inputs
from dptrain.training.planning import open_status, plan_for
from dptrain.vocabulary import Purpose, RunStatus

Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What the audit left: the folder, audit.json's content, and whether the guarantee is broken."""

    folder: RunFolder
    audit: Audit
    broken: str | None


def audit_run(path: str | Path, words: list[str], *, say: Say = print) -> Result:
    """Audit a finished run. `words`: overrides of audit.*, ledger.*, data.root, training.device
    and training.chunk.

    Raises:
        ConfigError: no run, a run without reproducible configuration, or one that has not finished.
        LedgerRefused: a changed manifest, or a locked cohort without permission.
    """
    run = inputs.load_run(path)
    if run.facts.status == RunStatus.RUNNING:
        raise ConfigError(f"{run.folder.path} has not finished.", remedy="Resume it with training.resume=… first.")
    settings = override(run.settings, words)
    run.folder.note_access("audit")
    identity = str(run.facts.id)
    earlier = finished(run.folder, asked(settings, run.plan, identity))
    if earlier is not None:
        return _again(earlier, say)
    return _audit(settings, run.plan, identity, run.folder, say)


def audit_settings(settings: Settings, *, say: Say = print) -> Result:
    """Audit what a recipe's training would do, without a run: its plan is made as `train` would make it."""
    _, _, status = open_status(settings)
    plan = plan_for(settings, status)
    # no time in it: the same command finds what it left
    place = settings.training.run or f"runs/audit-{settings.name}-{asked(settings, plan, '')[:12]}"
    folder = RunFolder(place)
    if folder.facts.exists():
        raise ConfigError(f"{place} holds a run.", remedy=f"Audit it with run={place}, or name another training.run.")
    folder.path.mkdir(parents=True, exist_ok=True)
    with whole_or_nothing(folder.config) as file:
        file.write(to_yaml(settings))
    identity = "audit-" + hashlib.sha256(f"{plan.digest}{os.path.abspath(place)}".encode()).hexdigest()[:16]
    return _audit(settings, plan, identity, folder, say)


def finished(folder: RunFolder, number: str, fingerprint: str | None = None) -> Result | None:
    """The result of the same audit, if it was finished before (of the same cohort, where `fingerprint` is given)."""
    try:
        audit = Audit.of(json.loads(folder.audit_json.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
    if audit.schema != AUDIT_SCHEMA or audit.asked_sha256 != number:
        return None
    if fingerprint is not None and audit.cohort_sha256 != digest(fingerprint):
        return None
    return Result(folder, audit, _broken(audit))


def _again(held: Result, say: Say) -> Result:
    say(
        f"this audit was finished at {held.audit.created}; nothing is trained, nothing is asked of the ledger "
        f"(for another one, change a setting or remove {held.folder.audit_json})"
    )
    return held


def _broken(audit: Audit) -> str | None:
    """The sentence of a broken guarantee, from audit.json."""
    canary, promised = audit.canary, audit.promised.epsilon if audit.promised else None
    failed = [row.name for row in audit.checks if row.confirmed]
    if failed:
        return (
            "The guarantee is broken: on made-up patients the released steps are not what the plan promises, and a "
            f"fresh run says so too ({', '.join(failed)})."
        )
    if canary is None or not canary.broken:
        return None
    bound = bounds.LowerBound(
        epsilon=canary.epsilon_lower or 0.0,
        method=canary.method or "",
        confidence=canary.confidence or 0.0,
        canaries=canary.count or 0,
        trainings=canary.trainings or 0,
        promised=math.inf if promised is None else promised,
        curve=canary.beyond_curve,
        broken=True,
    )
    return bounds.broken_sentence(bound, audit.unit or "patient")


# what a word may start with that changes where things lie and how to audit, and nothing of the training
ALLOWED = ("audit.", "ledger.", "data.root=", "training.device=", "training.chunk=")


def override(settings: Settings, words: list[str]) -> Settings:
    """A run's settings with where things lie and how to audit changed; nothing that changes the training."""
    for word in words:
        if "=" not in word or not word.startswith(ALLOWED):
            raise ConfigError(
                f"'{word}' cannot be set for the audit of a run: it would audit another training.",
                remedy=f"Allowed are {', '.join(f'{name}…' for name in ALLOWED)}.",
            )
    return changed(settings, words)


def _audit(settings: Settings, plan: Plan, identity: str, folder: RunFolder, say: Say) -> Result:
    begun = time.monotonic()
    config = settings.audit
    ledger, keys, status = open_status(settings)
    say(f"reading and hashing {settings.data.name}")
    cohort = data.scan(settings.data, keys)
    data.require_binding(cohort, ledger.binding(status.name, cohort.fingerprint))
    number = asked(settings, plan, identity)
    earlier = finished(folder, number, cohort.fingerprint)
    if earlier is not None:
        return _again(earlier, say)
    grant = ledger.admit(status.name, purpose=Purpose.AUDIT, run=identity, fingerprint=cohort.fingerprint)
    try:
        make_folder(folder.restricted, private=True)
        make_folder(folder.audit, private=True)
        material, people = gather(settings, cohort, grant, plan, config)
        unit, units = by_unit(people)
        by_patient = config.unit_column is None
        if by_patient:
            unit, units = np.arange(material.patients), people
        need = statistics.models_needed(len(units.pseudonym), config.false_discovery_rate, patients.FOLDS)
        if config.models < need:
            say(f"{config.models} reference models are too few for verdicts by {plan.unit}: {need} are needed")
        promise = promise_of(plan)
        work = Work(folder.audit / "work", settings, material, plan, cohort.fingerprint)
        coins = work.member(config.models, len(units.pseudonym))
        member = coins[:, unit]
        population = dataclasses.replace(material, plan=reference.half_plan(plan))
        device = device_of(settings.training.device)
        trainer, why = choose_trainer(material, config, device)
        config = dataclasses.replace(config, trainer=trainer)
        if why:
            say(why)
        scores = train_references(population, member, config, work, device, "training reference models")
        say("attacking")
        summary = summarise(
            scores,
            coins,
            unit[material.patient.numpy()],
            units,
            config,
            trained=material.trained,
            tpr=promise.tpr() if by_patient else None,  # the promise is to one patient id
            auc_ceiling=1.0 if promise.curve is None or not by_patient else float(promise.curve.auc),
            task=material.task,
        )
        if config.game == "release":
            full = dataclasses.replace(material, plan=plan)
            confirmed = confirm(full, scores, member, summary, config, work, device)
            summary.audit = dataclasses.replace(summary.audit, confirmed=confirmed)
        say("testing the mechanism on made-up patients")
        checks = residual_checks(dataclasses.replace(material, plan=plan), config, device)
        canary, weak = canary_check(dataclasses.replace(material, plan=plan), promise, config, device, work)
        audit = dataclasses.replace(
            summary.audit,
            created=utc_now(),
            game=config.game,
            attack=config.attack,
            verdicts_by=patients.TEST,
            promised=promised_json(promise),
            canary=canary,
            checks=checks,
            withheld=(*summary.audit.withheld, *weak, *untested(plan, checks)),
            masks_sha256=masks.digest(coins),
            plan_sha256=plan.digest,
            unit=config.unit_column or plan.unit,
            trainer=trainer,
            asked_sha256=number,
            cohort_sha256=digest(cohort.fingerprint),
            seconds=round(time.monotonic() - begun, 1),
        )
        # it stands for the whole: gone before the others change, written when they are
        folder.audit_json.unlink(missing_ok=True)
        _write_rows(folder.audit / "patients.csv", summary)
        with whole_or_nothing(folder.audit / "scores.npz", "wb") as file:
            np.savez_compressed(
                file,
                scores=scores.astype(np.float32),
                member=member,
                patient=material.patient.numpy(),
                trained=material.trained,
            )
        write_json(folder.audit_json, audit.to_json())
        _finish(grant, folder)
        work.remove()
    finally:
        if not grant.closed:
            grant.close(RunStatus.INTERRUPTED, steps_run=0)
    return Result(folder, audit, _broken(audit))


def _finish(grant: Grant, folder: RunFolder) -> None:
    """End the grant with the hashes of what was written. What the ledger does not bind is no audit."""
    written = folder.hashes(folder.audit_json, folder.audit / "patients.csv", folder.audit / "scores.npz")
    try:
        grant.close(RunStatus.COMPLETE, steps_run=0, results=written)
    except BaseException:
        folder.audit_json.unlink()
        raise


def _write_rows(path: Path, summary: Summary) -> None:
    """patients.csv: one line a patient, pseudonymised."""
    with whole_or_nothing(path, private=True) as file:
        if summary.rows:
            writer = csv.DictWriter(file, list(summary.rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(summary.rows)
