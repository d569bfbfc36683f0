"""`dptrain audit`: words in, plain sentences out; exit code 6 where the guarantee is broken."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dptrain.audit.run import audit_run, audit_settings
from dptrain.commands.acts.sweep import compose_and_run, is_sweep, job_settings, job_words, write_outcome
from dptrain.commands.command import Call
from dptrain.errors import EXIT_DONE, EXIT_GUARANTEE_BROKEN, ConfigError, DptrainError, quiet
from dptrain.plain import Json
from dptrain.settings import load

if TYPE_CHECKING:
    from omegaconf import DictConfig


def audit(call: Call) -> int:
    """Audit a run, a recipe, or several recipes."""
    path, words = call.words["run"], call.settings
    if path is None and not any(word.startswith(("recipe=", "data.", "name=")) for word in words):
        raise ConfigError("There is nothing to audit.", remedy="Give run=<folder of a run> or recipe=<task>.")
    if is_sweep(words):
        if path is not None:
            raise ConfigError("A sweep audits recipes, not runs.", remedy="Leave run=… out, or -m.")
        return sweep(words)
    result = audit_settings(load(words)) if path is None else audit_run(path, list(words))
    tell(result.audit.to_json())
    print(f"results (restricted, not covered by epsilon): {result.folder.audit}")
    if result.broken is not None:
        print(result.broken, file=sys.stderr)
        return EXIT_GUARANTEE_BROKEN
    return EXIT_DONE


def sweep(words: Sequence[str]) -> int:
    """Audits of several settings through Hydra, on one machine or many (hydra/launcher=joblib, submitit_slurm)."""
    rows = compose_and_run("audit", words, sweep_job)
    for row in rows:
        print(f"\n{row['trial']}: {row['message']}")
        if row["audit"] is not None:
            tell(json.loads(Path(row["audit"]).read_text(encoding="utf-8")))
    codes = [row["code"] for row in rows]
    return EXIT_GUARANTEE_BROKEN if EXIT_GUARANTEE_BROKEN in codes else max(codes, default=EXIT_DONE)


def sweep_job(config: DictConfig) -> int:
    """One audit of a sweep; one that is refused is written down, and the others go on.

    It prints nothing that it measured: launchers keep what a job prints in files of their own.
    """
    quiet()
    row: Json = {"trial": job_words(), "code": EXIT_DONE, "audit": None}
    try:
        result = audit_settings(job_settings(config))
        row["audit"] = str(result.folder.audit / "audit.json")
        row["message"] = result.broken or str(result.folder.audit)
        row["code"] = EXIT_DONE if result.broken is None else EXIT_GUARANTEE_BROKEN
    except DptrainError as error:
        row.update(code=error.exit_code, message=str(error))
    write_outcome(row)
    return int(row["code"])


def estimate(auc: float | None, low: float | None, high: float | None, **_: object) -> str:
    """An AUC with its interval; few models or patients may have given none."""
    if auc is None:
        return "not measurable: too few models had the patient in or out"
    return f"{auc:.3f} (no interval)" if low is None or high is None else f"{auc:.3f} ({low:.3f} to {high:.3f})"


def tell(audit: Json) -> None:
    """The findings in plain sentences."""
    unit = audit.get("unit", "patient")
    print(
        f"\n{audit['models']} reference models, each trained on a random half of {audit['patients']} {unit}s "
        f"({audit['trainer']}, {audit['seconds']:.0f} s in all)"
    )
    lost = audit.get("not_finite") or {"models": 0, "records": 0}
    if lost["models"] or lost["records"]:
        print(f"left out, since scores were not finite: {lost['models']} models, {lost['records']} records")
    if audit["exposed"] is not None:
        exposed, verdicts = audit["exposed"], audit["verdicts"]
        print(
            f"exposed: {exposed['count']} of {audit['patients']} {unit}s ({exposed['share']:.1%}, 95 % interval "
            f"{exposed['low']:.1%} to {exposed['high']:.1%}); not shown: {verdicts['not_shown']}; "
            f"inconclusive: {verdicts['inconclusive']}"
        )
    if audit["auc"] is not None:
        auc, ceiling = audit["auc"], audit["auc"]["ceiling"]
        print(
            f"AUC of an attack on one {unit}: mean {auc['mean']:.3f} ({auc['low']:.3f} to {auc['high']:.3f}), "
            f"median {auc['median']:.3f}; 0.5 is guessing, {ceiling:.3f} is allowed"
        )
        print(
            f"largest AUC: {auc['max']:.3f}; where nothing leaks, the largest of {audit['patients']} stays below "
            f"{auc['max_by_chance']:.3f} in 95 of 100 audits, so it is not held against what is allowed for one"
        )
    for rate, reached in audit["tpr_at"].items():
        need = next((row["need"] for row in audit["withheld"] if row["what"] == f"tpr_at_{rate}"), None)
        note = f"; extrapolated; counted from {need} models" if need is not None else ""
        print(
            f"TPR at {float(rate):.0%} FPR: mean {reached['mean']:.1%} "
            f"(allowed at most {reached['ceiling']:.1%}){note}"
        )
    if audit["new_scan"]:
        print(f"recognised by a new record: AUC {estimate(**audit['new_scan'])}")
    if audit["confirmed"]:
        print(
            f"confirmed on fresh models: {audit['confirmed']['confirmed']} of {audit['confirmed']['tested']} tested"
        )
    if audit["canary"]:
        canary, promised = audit["canary"], audit["promised"]["epsilon"]
        promise = "nothing was promised" if promised is None else f"{promised:.3g} is promised"
        print(
            f"canaries: epsilon is at least {canary['epsilon_lower']:.2f} ({canary['count']} {canary['kind']}, "
            f"{canary['trainings']} trainings, {canary['method']}); {promise}"
        )
    for row in audit["withheld"]:
        if row["what"].startswith("tpr_at_"):
            continue  # its extrapolation stands above
        models = "fresh" if row["what"] == "confirmed" else "reference"
        print(f"withheld: {row['what']} needs {row['need']} {models} models, there are {row['have']}")
