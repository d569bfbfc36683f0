"""From score matrices to what the audit says: aggregates for the report, one line for each patient."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dptrain.audit import groups, patients, statistics
from dptrain.audit.scores import Array
from dptrain.cells import to_hide
from dptrain.settings import AuditConfig

SCHEMA = "dptrain.audit/1"
RATES = (0.01, 0.05, 0.1)
GRID = tuple(round(0.5 + 0.01 * step, 2) for step in range(51))
FEWEST = 8  # reference models below which no AUC is given at all


@dataclass(frozen=True)
class People:
    """What is known of the audited patients beside their scores, each [P].

    pseudonym: hexadecimal, keyed by the site. label: class, `mixed` where records differ. columns: groups.
    """

    pseudonym: Sequence[str]
    label: np.ndarray
    columns: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Summary:
    """audit: the JSON's content, without what only the run knows. rows: one a patient. exposed: bool [P]."""

    audit: dict[str, Any]
    rows: list[dict[str, Any]]
    exposed: np.ndarray
    area: statistics.Area


def summarise(
    scores: Array,
    member: np.ndarray,
    patient: np.ndarray,
    people: People,
    config: AuditConfig,
    *,
    trained: np.ndarray | None = None,
    tpr: Callable[[float], float] | None = None,
    auc_ceiling: float = 1.0,
    task: str = "binary",
    generator: np.random.Generator | None = None,
) -> Summary:
    """All statistics of one population game.

    Args:
        scores: [M, R]; member: bool [M, P]; patient: [R].
        trained: bool [R]; the others were never trained on (new-scan attack). None: all were.
        tpr: the promised trade-off, FPR -> largest TPR; None: nothing was promised.
        task: of the scores, see :func:`dptrain.audit.patients.pooled_evidence`.
    """
    draw = generator or np.random.default_rng()
    trained = np.ones(len(patient), dtype=bool) if trained is None else trained
    count = member.shape[1]
    records = np.bincount(patient[trained], minlength=count)
    good, told = patients.measurable(scores)
    audit: dict[str, Any] = {"models": len(scores), "references": int(good.sum()), "patients": count, "withheld": []}
    audit["not_finite"] = {"models": int(np.sum(~good)), "records": int(np.sum(~told))}
    scores, member, patient, trained = scores[good][:, told], member[good], patient[told], trained[told]
    models = len(scores)
    own, owner = scores[:, trained], patient[trained]
    if models < FEWEST:
        return _nothing(audit, count, config)

    evidence, fold = patients.crossfit(own, member, owner, attack=config.attack, task=task)
    area = statistics.stratified_auc(evidence, member, fold)
    inflation = patients.inflation(own, member, owner, draw, attack=config.attack, task=task)
    area = dataclasses.replace(area, inflation=inflation)
    low, high = statistics.auc_interval(area)
    p = patients.p_values(own, member, owner, fold)
    q = statistics.benjamini_hochberg(p)
    verdict = statistics.verdicts(
        q, high, false_discovery_rate=config.false_discovery_rate, tolerance=config.tolerance
    )
    exposed = verdict == statistics.VERDICTS[0]
    possible = statistics.smallest_p_value(area) <= config.false_discovery_rate / max(count, 1)
    rates = {rate: statistics.tpr_at(evidence, member, rate, area) for rate in RATES}
    fpr, tpr_measured = statistics.pooled_roc(evidence, member)
    baseline = patients.best_record_auc(own, member, owner, fold)
    mean_low, mean_high = statistics.mean_interval(statistics.fold_auc, evidence, member, fold)

    audit["exposed"] = None
    audit["verdicts"] = None
    if possible:
        hits = int(exposed.sum())
        share = statistics.wilson(hits, count)
        audit["exposed"] = {"count": hits, "share": hits / max(count, 1), "low": share[0], "high": share[1]}
        audit["verdicts"] = {name.replace(" ", "_"): int(np.sum(verdict == name)) for name in statistics.VERDICTS}
    else:
        need = statistics.models_needed(count, config.false_discovery_rate, patients.FOLDS)
        _withhold(audit, "verdicts", models, need)
        exposed = np.zeros(count, dtype=bool)
    audit["confirmed"] = None
    audit["roc"] = {"fpr": _list(fpr), "tpr": _list(tpr_measured)}
    audit["auc"] = {
        "mean": number_of(np.nanmean(area.auc)),
        "median": number_of(np.nanmedian(area.auc)),
        "max": number_of(np.nanmax(area.auc)),
        "max_by_chance": number_of(statistics.largest_by_chance(area)),
        "low": number_of(mean_low),
        "high": number_of(mean_high),
        "ceiling": auc_ceiling,
    }
    audit["survival"] = {
        "auc": list(GRID),
        "share": statistics.survival(area.auc, GRID),
        "null": statistics.survival(_null_auc(area, draw), GRID),
    }
    audit["tpr_at"] = {}
    for rate, found in rates.items():
        few = bool(np.mean(found.extrapolated) > 0.5)
        interval = statistics.mean_interval(partial(statistics.fold_tpr, fpr=rate), evidence, member, fold)
        audit["tpr_at"][f"{rate:g}"] = {
            "mean": number_of(np.nanmean(found.tpr)),
            "median": number_of(np.nanmedian(found.tpr)),
            "max": number_of(np.nanmax(found.tpr)),
            "low": number_of(interval[0]),
            "high": number_of(interval[1]),
            "pooled": number_of(float(np.interp(rate, fpr, tpr_measured))),
            "ceiling": 1.0 if tpr is None else float(tpr(rate)),
            "extrapolated": few,
        }
        if few:
            _withhold(audit, f"tpr_at_{rate:g}", models, math.ceil(2.2 / rate))
    audit["baseline_max"] = {
        "mean": number_of(np.nanmean(baseline)),
        "max": number_of(np.nanmax(baseline)),
        "by_records": _by_records(baseline, area.auc, records, config.small_cell),
    }
    audit["groups"], audit["suppressed"] = {}, []
    if possible:
        bands = groups.record_band(records)
        strata = np.char.add(np.char.add(people.label.astype(str), "|"), bands.astype(str))
        columns = {"class": people.label, "records": bands, **people.columns}
        found_groups = groups.by_group(exposed, columns, strata, draw, small_cell=config.small_cell)
        audit["groups"], audit["suppressed"] = found_groups.table, found_groups.suppressed
    audit["new_scan"], scan_auc = _new_scan(scores, member, patient, trained, config, task)

    rows = []
    for i in range(count):
        row: dict[str, Any] = {
            "patient": people.pseudonym[i],
            "records": int(records[i]),
            "class": str(people.label[i]),
            "auc": number_of(area.auc[i]),
            "auc_low": number_of(low[i]),
            "auc_high": number_of(high[i]),
            "p_value": number_of(p[i]),
            "q_value": number_of(q[i]),
            "verdict": str(verdict[i]) if possible else "withheld",
        }
        for rate, found in rates.items():
            name = f"tpr_at_{rate * 100:g}pct"
            row[name] = number_of(found.tpr[i])
            row[f"{name}_low"], row[f"{name}_high"] = number_of(found.low[i]), number_of(found.high[i])
            row[f"{name}_extrapolated"] = bool(found.extrapolated[i])
        row["new_scan_auc"] = number_of(scan_auc[i])
        row["best_record_auc"] = number_of(baseline[i])
        row["confirmed"] = row["fresh_auc"] = None  # filled where the release game tried the patient
        rows.append(row)
    return Summary(audit, rows, exposed, area)


def _nothing(audit: dict[str, Any], count: int, config: AuditConfig) -> Summary:
    """Too few models for any number."""
    need = max(FEWEST, statistics.models_needed(count, config.false_discovery_rate, patients.FOLDS))
    _withhold(audit, "verdicts", audit["references"], need)
    _withhold(audit, "references", audit["references"], FEWEST)
    empty = ("exposed", "verdicts", "confirmed", "roc", "auc", "survival", "baseline_max", "new_scan")
    audit.update(dict.fromkeys(empty))
    audit.update(tpr_at={}, groups={}, suppressed=[])
    nan = np.full(count, np.nan)
    none = np.zeros((1, count), dtype=int)
    return Summary(audit, [], np.zeros(count, dtype=bool), statistics.Area(nan, nan, none, none))


def _withhold(audit: dict[str, Any], what: str, have: int, need: int) -> None:
    audit["withheld"].append({"what": what, "have": have, "need": need})


def _null_auc(area: statistics.Area, generator: np.random.Generator) -> Array:
    """AUCs that as many patients without any trace would show by chance (normal approximation)."""
    spread = statistics.null_spread(area)
    repeats = max(1, 20000 // max(area.auc.size, 1))
    return np.asarray(np.clip(0.5 + generator.normal(size=(repeats, area.auc.size)) * spread, 0, 1).ravel())


def _by_records(baseline: Array, pooled: Array, records: np.ndarray, small_cell: int) -> list[dict[str, Any]]:
    """How the baseline grows with the number of records, beside the pooled AUC that does not."""
    bands = np.where(records > 0, groups.record_band(records), "")
    names, sizes = np.unique(bands[bands != ""], return_counts=True)
    members = {name: np.flatnonzero(bands == name).tolist() for name in names.tolist()}
    hidden = to_hide(members, np.flatnonzero(bands == "").tolist(), small_cell)
    return [
        {
            "records": name,
            "patients": size,
            "best_record": number_of(np.nanmean(baseline[bands == name])),
            "pooled": number_of(np.nanmean(pooled[bands == name])),
        }
        for name, size in zip(names.tolist(), sizes.tolist(), strict=True)
        if name not in hidden
    ]


def _new_scan(
    scores: Array,
    member: np.ndarray,
    patient: np.ndarray,
    trained: np.ndarray,
    config: AuditConfig,
    task: str,
) -> tuple[dict[str, Any] | None, Array]:
    """Is a patient recognised by a record that no model was trained on?"""
    auc = np.full(member.shape[1], np.nan)
    fresh = ~trained
    who = np.unique(patient[fresh])
    if who.size < config.small_cell:
        return None, auc
    position = np.searchsorted(who, patient[fresh])
    evidence, fold = patients.crossfit(scores[:, fresh], member[:, who], position, attack=config.attack, task=task)
    auc[who] = statistics.fold_auc(evidence, member[:, who], fold)
    low, high = statistics.mean_interval(statistics.fold_auc, evidence, member[:, who], fold)
    summary = {
        "auc": number_of(np.nanmean(auc)),
        "low": number_of(low),
        "high": number_of(high),
        "patients": int(who.size),
    }
    return summary, auc


def number_of(value: float | np.floating[Any]) -> float | None:
    """A number for JSON; None for NaN and infinity."""
    number = float(value)
    return number if math.isfinite(number) else None


def _list(values: Array) -> list[float]:
    return [float(value) for value in values]
