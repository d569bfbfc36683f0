"""`dptrain audit`: words in, plain sentences out; exit code 6 where the guarantee is broken."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dptrain.audit.run import audit_run, audit_settings
from dptrain.commands.acts.sweep import compose_and_run, is_sweep, job_settings, job_words, write_outcome
from dptrain.commands.command import Call
from dptrain.errors import EXIT_DONE, EXIT_GUARANTEE_BROKEN, ConfigError, DptrainError, quiet
from dptrain.records.audit import Audit, NewScan
from dptrain.records.shape import Record
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
    tell(result.audit)
    print(f"results (restricted, not covered by epsilon): {result.folder.audit}")
    if result.broken is not None:
        print(result.broken, file=sys.stderr)
        return EXIT_GUARANTEE_BROKEN
    return EXIT_DONE


def sweep(words: Sequence[str]) -> int:
    """Audits of several settings through Hydra, on one machine or many (hydra/launcher=joblib, submitit_slurm)."""
    trials = [Trial.of(row) for row in compose_and_run("audit", words, sweep_job)]
    for trial in trials:
        print(f"\n{trial.words}: {trial.message}")
        if trial.audit is not None:
            tell(Audit.of(json.loads(Path(trial.audit).read_text(encoding="utf-8"))))
    codes = [trial.code for trial in trials]
    return EXIT_GUARANTEE_BROKEN if EXIT_GUARANTEE_BROKEN in codes else max(codes, default=EXIT_DONE)


@dataclass(frozen=True, kw_only=True)
class Trial(Record):
    """How one audit of a sweep ended. words: by which it differs; audit: its file, where there is one."""

    words: str = ""
    code: int = EXIT_DONE
    message: str = ""
    audit: str | None = None


def sweep_job(config: DictConfig) -> int:
    """One audit of a sweep; one that is refused is written down, and the others go on.

    It prints nothing that it measured: launchers keep what a job prints in files of their own.
    """
    quiet()
    words = job_words()
    try:
        result = audit_settings(job_settings(config))
        trial = Trial(
            words=words,
            code=EXIT_DONE if result.broken is None else EXIT_GUARANTEE_BROKEN,
            message=result.broken or str(result.folder.audit),
            audit=str(result.folder.audit / "audit.json"),
        )
    except DptrainError as error:
        trial = Trial(words=words, code=error.exit_code, message=str(error))
    write_outcome(trial)
    return trial.code


def estimate(measured: NewScan) -> str:
    """An AUC with its interval; few models or patients may have given none."""
    auc, low, high = measured.auc, measured.low, measured.high
    if auc is None:
        return "not measurable: too few models had the patient in or out"
    return f"{auc:.3f} (no interval)" if low is None or high is None else f"{auc:.3f} ({low:.3f} to {high:.3f})"


def number(value: float | None, form: str = ".3f") -> str:
    """A number of the audit, which may be none."""
    return "unknown" if value is None else format(value, form)


def tell(audit: Audit) -> None:
    """The findings in plain sentences."""
    for line in lines(audit):
        print(line)


def exposure(audit: Audit, unit: str) -> Iterator[str]:
    """Who is exposed, who leaves a trace, and what so many models can say at all."""
    if (exposed := audit.exposed) is not None and (verdicts := audit.verdicts) is not None:
        above = "" if exposed.above is None else f" (AUC shown to be above {exposed.above:g})"
        yield (
            f"exposed{above}: {exposed.count} of {audit.patients} {unit}s ({number(exposed.share, '.1%')}, 95 % "
            f"interval {number(exposed.low, '.1%')} to {number(exposed.high, '.1%')}); not shown: "
            f"{verdicts.not_shown}; inconclusive: {verdicts.inconclusive}"
        )
    if audit.traced is not None:
        yield f"trace shown: {audit.traced.count} of {audit.patients} {unit}s, exposed or not (more with more models)"
    if audit.true_auc:
        shares = "; ".join(
            f"{number(row.auc, 'g')}: {number(row.low, '.0%')} to {number(row.high, '.0%')}" for row in audit.true_auc
        )
        yield f"{unit}s whose true AUC is at least (95 % limits, whatever the number of models) {shares}"
    if (smallest := audit.smallest_seen) is not None:
        trace, effect = ("none" if auc is None else f"{auc:.2f}" for auc in (smallest.trace, smallest.exposed))
        yield f"smallest AUC of one {unit} that 8 of 10 such audits see: trace {trace}, exposed {effect}"


def mechanism(audit: Audit) -> Iterator[str]:
    """What canaries and checks say of the promise."""
    if (canary := audit.canary) is not None:
        epsilon = None if audit.promised is None else audit.promised.epsilon
        promise = "nothing was promised" if epsilon is None else f"{epsilon:.3g} is promised"
        yield (
            f"canaries: epsilon is at least {number(canary.epsilon_lower, '.2f')} ({canary.count} {canary.kind}, "
            f"{canary.trainings} trainings, {canary.method}); {promise}"
        )
        if canary.provable is not None:
            yield f"canaries: with every guess right they would have proved {canary.provable:.2f}"
    if audit.checks:
        failed = [row.name for row in audit.checks if row.failed]
        smallest = min(row.p_value if row.p_value is not None else 1.0 for row in audit.checks)
        yield (
            f"mechanism on made-up patients (any epsilon): {len(audit.checks)} statistics, "
            f"{'failed: ' + ', '.join(failed) if failed else 'all as promised'}; smallest p-value {smallest:.2g}"
        )


def lines(audit: Audit) -> Iterator[str]:
    """The findings, a line each."""
    unit = audit.unit or "patient"
    yield (
        f"\n{audit.models} reference models, each trained on a random half of {audit.patients} {unit}s "
        f"({audit.trainer}, {number(audit.seconds, '.0f')} s in all)"
    )
    lost = audit.not_finite
    if lost is not None and (lost.models or lost.records):
        yield f"left out, since scores were not finite: {lost.models} models, {lost.records} records"
    yield from exposure(audit, unit)
    if (auc := audit.auc) is not None:
        yield (
            f"AUC of an attack on one {unit}: mean {number(auc.mean)} ({number(auc.low)} to {number(auc.high)}), "
            f"median {number(auc.median)}; 0.5 is guessing, {number(auc.ceiling)} is allowed"
        )
        yield (
            f"largest AUC: {number(auc.max)}; where nothing leaks, the largest of {audit.patients} stays below "
            f"{number(auc.max_by_chance)} in 95 of 100 audits, so it is not held against what is allowed for one"
        )
    for rate, reached in audit.tpr_at.items():
        need = next((row.need for row in audit.withheld if row.what == f"tpr_at_{rate}"), None)
        note = f"; extrapolated; counted from {need} models" if need is not None else ""
        yield (
            f"TPR at {float(rate):.0%} FPR: mean {number(reached.mean, '.1%')} "
            f"(allowed at most {number(reached.ceiling, '.1%')}){note}"
        )
    if audit.new_scan is not None:
        yield f"recognised by a new record: AUC {estimate(audit.new_scan)}"
    if (links := audit.suspected_links) is not None and links.pairs:
        yield (
            f"suspected links: {links.patients} {unit}s in {links.pairs} pairs may be one person under two ids, and "
            "then look safer than the person is (linked_to in patients.csv; audit.unit_column audits persons)"
        )
    if audit.confirmed is not None:
        yield f"confirmed on fresh models: {audit.confirmed.confirmed} of {audit.confirmed.tested} tested"
    yield from mechanism(audit)
    for row in audit.withheld:
        if row.what.startswith("tpr_at_"):
            continue  # its extrapolation stands above
        if row.what == "canaries":
            enough = "no number of them is enough" if row.need is None else f"{row.need} a training could"
            yield f"withheld: {row.have} canaries cannot refute the promise, whatever the training does; {enough}"
            continue
        if row.what == "residual":
            yield "withheld: the test of the mechanism; the network is random itself and cannot be computed twice"
            continue
        models = "fresh" if row.what == "confirmed" else "reference"
        yield f"withheld: {row.what} needs {row.need} {models} models, there are {row.have}"
