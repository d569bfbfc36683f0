"""From score matrices to what the audit says: aggregates for the report, one line for each patient."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dptrain.audit import effects, groups, patients, statistics
from dptrain.audit.links import suspected_links
from dptrain.audit.scores import Array
from dptrain.cells import to_hide
from dptrain.plain import Json
from dptrain.records.audit import (
    Auc,
    Audit,
    Baseline,
    ByRecords,
    Exposed,
    NewScan,
    NotFinite,
    Rate,
    SmallestSeen,
    Survival,
    SuspectedLinks,
    TrueShare,
    Verdicts,
    Withheld,
)
from dptrain.records.parts import curve
from dptrain.settings import AuditConfig

RATES = (0.01, 0.05, 0.1)
TRUE_AT_LEAST = (0.6, 0.75, 0.9)  # true AUCs whose share is bounded
GRID = tuple(round(0.5 + 0.01 * step, 2) for step in range(51))
FEWEST = 8  # reference models below which no AUC is given at all


@dataclass(frozen=True)
class People:
    """What is known of the audited patients beside their scores, each [P].

    pseudonym: hexadecimal, keyed by the site. label: class, `mixed` where records differ. columns: groups.
    unit: the person, family or other unit that a patient belongs to, "" for one alone; None: each is alone.
    """

    pseudonym: Sequence[str]
    label: np.ndarray
    columns: Mapping[str, np.ndarray]
    unit: np.ndarray | None = None


def by_unit(people: People) -> tuple[np.ndarray, People]:
    """(number of each patient's unit [P], what is known of the units); each has its first patient's pseudonym."""
    count = len(people.pseudonym)
    alone = np.char.add("\0", np.arange(count).astype(str))  # no column holds such a value
    names = alone if people.unit is None else np.where(people.unit.astype(str) == "", alone, people.unit.astype(str))
    _, first, unit = np.unique(names, return_index=True, return_inverse=True)

    def common(values: np.ndarray, otherwise: str) -> np.ndarray:
        shared = values[first].astype(object)
        shared[unit[values != values[first][unit]]] = otherwise
        return shared

    columns = {name: common(np.asarray(values), "").astype(str) for name, values in people.columns.items()}
    return unit, People([people.pseudonym[i] for i in first], common(people.label, "mixed"), columns)


@dataclass
class Summary:
    """audit: the record, without what only the run knows. rows: one a patient. traced: bool [P].

    The release game fills in what it confirms.
    """

    audit: Audit
    rows: list[Json]
    traced: np.ndarray
    area: statistics.Area


@dataclass(frozen=True)
class Attacked:
    """The attack on every patient, each [P] unless said otherwise.

    evidence, member, fold: [M, P], compared within a fold. possible: whether so many models allow a verdict at all.
    exposed_low: lower limits of the exposed, adjusted for their selection. rates: by false positive rate. fpr, tpr:
    the ROC over patients. baseline: AUC of the best record.
    """

    evidence: Array
    member: np.ndarray
    fold: np.ndarray
    area: statistics.Area
    low: Array
    high: Array
    p: Array
    q: Array
    verdict: np.ndarray
    exposed_low: Array
    possible: bool
    rates: dict[float, statistics.Rate]
    fpr: Array
    tpr: Array
    baseline: Array

    @property
    def exposed(self) -> np.ndarray:
        """bool [P]; nobody where no verdict is possible."""
        return np.asarray((self.verdict == statistics.VERDICTS[0]) & self.possible)

    @property
    def traced(self) -> np.ndarray:
        """bool [P], who leaves a trace, exposed or not; nobody where no verdict is possible."""
        return np.asarray(np.isin(self.verdict, statistics.VERDICTS[:2]) & self.possible)


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
    good, finite = patients.measurable(scores)
    audit = Audit(
        models=len(scores),
        references=int(good.sum()),
        patients=count,
        not_finite=NotFinite(models=int(np.sum(~good)), records=int(np.sum(~finite))),
        tpr_at={},
        groups={},
    )
    scores, member, patient, trained = scores[good][:, finite], member[good], patient[finite], trained[finite]
    models = len(scores)
    if models < FEWEST:
        return _nothing(audit, count, config)
    attacked = _attack(scores[:, trained], member, patient[trained], config, task, draw)
    survival = Survival(
        auc=GRID,
        share=tuple(statistics.survival(attacked.area.auc, GRID)),
        null=tuple(statistics.survival(_null_auc(attacked.area, draw), GRID)),
    )
    table = _by_group(attacked, people, records, draw, config) if attacked.possible else groups.Groups({}, [])
    new_scan, scan_auc = _new_scan(scores, member, patient, trained, config, task)
    audit = dataclasses.replace(
        audit,
        withheld=_withheld(attacked, models, config),
        **_exposure(attacked, config),
        roc=curve(attacked.fpr, attacked.tpr),
        auc=_auc(attacked, auc_ceiling),
        survival=survival,
        tpr_at={f"{rate:g}": _rate(attacked, rate, tpr) for rate in attacked.rates},
        baseline_max=Baseline(
            mean=number_of(np.nanmean(attacked.baseline)),
            max=number_of(np.nanmax(attacked.baseline)),
            by_records=_by_records(attacked.baseline, attacked.area.auc, records, config.small_cell),
        ),
        groups=table.table,
        suppressed=tuple(table.suppressed),
        new_scan=new_scan,
    )
    rows = _rows(attacked, people, records, scan_auc)
    audit = dataclasses.replace(audit, suspected_links=_link(rows, attacked, people))
    return Summary(audit, rows, attacked.traced, attacked.area)


def _link(rows: list[Json], attacked: Attacked, people: People) -> SuspectedLinks:
    """Name in the rows of those who may be one person under two ids the clearest partner; how many there are."""
    pairs = suspected_links(attacked.evidence, attacked.member)
    for one, other in reversed(pairs):  # the clearest stays
        rows[one]["linked_to"], rows[other]["linked_to"] = people.pseudonym[other], people.pseudonym[one]
    return SuspectedLinks(pairs=len(pairs), patients=len({one for pair in pairs for one in pair}))


def _attack(
    own: Array, member: np.ndarray, owner: np.ndarray, config: AuditConfig, task: str, draw: np.random.Generator
) -> Attacked:
    """Evidence, verdicts and rates from the scores of records that were trained on. own: [M, R]; owner: [R]."""
    count = member.shape[1]
    evidence, fold = patients.crossfit(own, member, owner, attack=config.attack, task=task)
    values, compared = patients.comparable(own, owner, evidence, fold, config.attack)
    area = statistics.stratified_auc(values, member, compared)
    inflation = patients.inflation(own, member, owner, draw, attack=config.attack, task=task)
    area = dataclasses.replace(area, inflation=inflation)
    low, high = statistics.auc_interval(area)
    p = patients.p_values(own, member, owner, fold)
    q = statistics.benjamini_hochberg(p)
    effect = effects.effects(area, config.exposed_above, config.false_discovery_rate)
    traced = np.nan_to_num(q, nan=1.0) <= config.false_discovery_rate
    verdict = statistics.verdicts(effect.exposed, traced, high, tolerance=config.tolerance)
    smallest = statistics.smallest_p_value(statistics.stratified_auc(evidence, member, fold))
    fpr, tpr = statistics.pooled_roc(evidence, member)
    return Attacked(
        evidence=values,
        member=member,
        fold=compared,
        area=area,
        low=low,
        high=high,
        p=p,
        q=q,
        verdict=verdict,
        exposed_low=effect.low,
        possible=bool(smallest <= config.false_discovery_rate / max(count, 1)),
        rates=statistics.tpr_rates(values, member, compared, RATES, area),
        fpr=fpr,
        tpr=tpr,
        baseline=patients.best_record_auc(own, member, owner, fold),
    )


def _exposure(attacked: Attacked, config: AuditConfig) -> Json:
    """Who is exposed or leaves a trace, how many truly are at risk, and what so many models could have seen."""
    area, compared = attacked.area, (attacked.evidence, attacked.member, attacked.fold)
    shares = effects.true_shares(*compared, area, TRUE_AT_LEAST)
    trace, exposed = (
        effects.smallest_seen(area, above, config.false_discovery_rate) for above in (0.5, config.exposed_above)
    )
    said: Json = {
        "true_auc": tuple(
            TrueShare(auc=value, low=low, high=high) for value, (low, high) in zip(TRUE_AT_LEAST, shares, strict=True)
        ),
        "smallest_seen": SmallestSeen(trace=trace, exposed=exposed),
    }
    if attacked.possible:
        verdicts = {name.replace(" ", "_"): int(np.sum(attacked.verdict == name)) for name in statistics.VERDICTS}
        said["exposed"] = _share(attacked.exposed, config.exposed_above)
        said["traced"] = _share(attacked.traced)
        said["verdicts"] = Verdicts(**verdicts)
    return said


def _share(chosen: np.ndarray, above: float | None = None) -> Exposed:
    """How many patients of all [P] are chosen, as a share with its interval."""
    count, hits = len(chosen), int(chosen.sum())
    low, high = statistics.wilson(hits, count)
    return Exposed(count=hits, share=hits / max(count, 1), low=low, high=high, above=above)


def _withheld(attacked: Attacked, models: int, config: AuditConfig) -> tuple[Withheld, ...]:
    """What so few models do not allow to be said, or only marked as extrapolated."""
    withheld = []
    if not attacked.possible:
        need = statistics.models_needed(len(attacked.verdict), config.false_discovery_rate, patients.FOLDS)
        withheld.append(Withheld(what="verdicts", have=models, need=need))
    folds = float(np.median([len(np.unique(column)) for column in attacked.fold.T]))
    for rate in attacked.rates:
        if _is_extrapolated(attacked, rate):
            withheld.append(Withheld(what=f"tpr_at_{rate:g}", have=models, need=math.ceil(2.2 * folds / rate)))
    return tuple(withheld)


def _is_extrapolated(attacked: Attacked, rate: float) -> bool:
    return bool(np.mean(attacked.rates[rate].extrapolated) > 0.5)


def _auc(attacked: Attacked, ceiling: float) -> Auc:
    auc = attacked.area.auc
    low, high = statistics.mean_interval(statistics.fold_auc, attacked.evidence, attacked.member, attacked.fold)
    return Auc(
        mean=number_of(np.nanmean(auc)),
        median=number_of(np.nanmedian(auc)),
        max=number_of(np.nanmax(auc)),
        max_by_chance=number_of(statistics.largest_by_chance(attacked.area)),
        low=number_of(low),
        high=number_of(high),
        ceiling=ceiling,
    )


def _rate(attacked: Attacked, rate: float, ceiling: Callable[[float], float] | None) -> Rate:
    """True positive rates at one false positive rate."""
    measured = attacked.rates[rate].tpr
    at_rate = partial(statistics.fold_tpr, fpr=rate, fprs=RATES)
    low, high = statistics.mean_interval(at_rate, attacked.evidence, attacked.member, attacked.fold)
    return Rate(
        mean=number_of(np.nanmean(measured)),
        median=number_of(np.nanmedian(measured)),
        max=number_of(np.nanmax(measured)),
        low=number_of(low),
        high=number_of(high),
        pooled=number_of(float(np.interp(rate, attacked.fpr, attacked.tpr))),
        ceiling=1.0 if ceiling is None else float(ceiling(rate)),
        extrapolated=_is_extrapolated(attacked, rate),
    )


def _by_group(
    attacked: Attacked, people: People, records: np.ndarray, draw: np.random.Generator, config: AuditConfig
) -> groups.Groups:
    bands = groups.record_band(records)
    strata = np.char.add(np.char.add(people.label.astype(str), "|"), bands.astype(str))
    columns = {"class": people.label, "records": bands, **people.columns}
    return groups.by_group(attacked.exposed, columns, strata, draw, small_cell=config.small_cell)


def _rows(attacked: Attacked, people: People, records: np.ndarray, scan_auc: Array) -> list[Json]:
    """patients.csv, one row a patient."""
    rows = []
    for i in range(len(records)):
        row: Json = {
            "patient": people.pseudonym[i],
            "records": int(records[i]),
            "class": str(people.label[i]),
            "auc": number_of(attacked.area.auc[i]),
            "auc_low": number_of(attacked.low[i]),
            "auc_high": number_of(attacked.high[i]),
            "p_value": number_of(attacked.p[i]),
            "q_value": number_of(attacked.q[i]),
            "verdict": str(attacked.verdict[i]) if attacked.possible else "withheld",
            "exposed_low": number_of(attacked.exposed_low[i]),
        }
        for rate, measured in attacked.rates.items():
            name = f"tpr_at_{rate * 100:g}pct"
            row |= {
                name: number_of(measured.tpr[i]),
                f"{name}_low": number_of(measured.low[i]),
                f"{name}_high": number_of(measured.high[i]),
                f"{name}_extrapolated": bool(measured.extrapolated[i]),
            }
        row |= {"new_scan_auc": number_of(scan_auc[i]), "best_record_auc": number_of(attacked.baseline[i])}
        row |= {"linked_to": None}
        row |= {"confirmed": None, "fresh_auc": None}  # filled where the release game tried the patient
        rows.append(row)
    return rows


def _nothing(audit: Audit, count: int, config: AuditConfig) -> Summary:
    """Too few models for any number."""
    need = max(FEWEST, statistics.models_needed(count, config.false_discovery_rate, patients.FOLDS))
    have = audit.references
    withheld = (Withheld(what="verdicts", have=have, need=need), Withheld(what="references", have=have, need=FEWEST))
    nan = np.full(count, np.nan)
    none = np.zeros((1, count), dtype=int)
    area = statistics.Area(nan, nan, none, none)
    return Summary(dataclasses.replace(audit, withheld=withheld), [], np.zeros(count, dtype=bool), area)


def _null_auc(area: statistics.Area, generator: np.random.Generator) -> Array:
    """AUCs that as many patients without any trace would show by chance (normal approximation)."""
    spread = statistics.null_spread(area)
    repeats = max(1, 20000 // max(area.auc.size, 1))
    return np.asarray(np.clip(0.5 + generator.normal(size=(repeats, area.auc.size)) * spread, 0, 1).ravel())


def _by_records(baseline: Array, pooled: Array, records: np.ndarray, small_cell: int) -> tuple[ByRecords, ...]:
    """How the baseline grows with the number of records, beside the pooled AUC that does not."""
    bands = np.where(records > 0, groups.record_band(records), "")
    names, sizes = np.unique(bands[bands != ""], return_counts=True)
    members = {name: np.flatnonzero(bands == name).tolist() for name in names.tolist()}
    hidden = to_hide(members, np.flatnonzero(bands == "").tolist(), small_cell)
    return tuple(
        ByRecords(
            records=name,
            patients=size,
            best_record=number_of(np.nanmean(baseline[bands == name])),
            pooled=number_of(np.nanmean(pooled[bands == name])),
        )
        for name, size in zip(names.tolist(), sizes.tolist(), strict=True)
        if name not in hidden
    )


def _new_scan(
    scores: Array,
    member: np.ndarray,
    patient: np.ndarray,
    trained: np.ndarray,
    config: AuditConfig,
    task: str,
) -> tuple[NewScan | None, Array]:
    """Is a patient recognised by a record that no model was trained on?"""
    auc = np.full(member.shape[1], np.nan)
    fresh = ~trained
    persons = np.unique(patient[fresh])
    if persons.size < config.small_cell:
        return None, auc
    position = np.searchsorted(persons, patient[fresh])
    evidence, fold = patients.crossfit(
        scores[:, fresh], member[:, persons], position, attack=config.attack, task=task
    )
    auc[persons] = statistics.fold_auc(evidence, member[:, persons], fold)
    low, high = statistics.mean_interval(statistics.fold_auc, evidence, member[:, persons], fold)
    mean = number_of(np.nanmean(auc))
    return NewScan(auc=mean, low=number_of(low), high=number_of(high), patients=int(persons.size)), auc


def number_of(value: float | np.floating) -> float | None:
    """A number for JSON; None for NaN and infinity."""
    number = float(value)
    return number if math.isfinite(number) else None
