"""One set of facts from a run folder, and the two editions of it.

Everything that a report says is read off the :class:`Facts` that :func:`read` returns; every face (HTML, PDF,
registry entry, model card, bundle metadata) is made from them alone, so a number stands in one place. Nothing
here looks at a patient: it reads `run.json`, `restricted/metrics.json` and `restricted/audit/audit.json`,
hashes the model and the configuration, and rearranges. Pieces that are missing, torn or of the wrong type
become entries of `missing`; they never end the report.

`schema/facts-1.json` describes the result.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dptrain import __version__
from dptrain.cells import SMALL_CELL
from dptrain.errors import ConfigError
from dptrain.files import file_sha256, utc_now
from dptrain.plain import Json
from dptrain.records import Attack, Audit, Fault, Metrics, Run, RunFolder, read_file
from dptrain.records.metrics import METRIC_NAMES, Group
from dptrain.records.run import Released
from dptrain.records.shape import Record, clean, disclosed, number
from dptrain.report.binding import binding, disclosed_binding, head_now
from dptrain.report.judgement import judged, odds
from dptrain.report.shapes import (
    AttackFacts,
    AuditFacts,
    BudgetFacts,
    CohortFacts,
    Facts,
    FileHash,
    Gap,
    HistoryRow,
    LedgerFacts,
    ModelFacts,
    Odds,
    PrivacyFacts,
    RunFacts,
    UtilityFacts,
    UtilityGroup,
)
from dptrain.vocabulary import TASKS, Edition

if TYPE_CHECKING:
    from dptrain.ledger import CohortStatus
    from dptrain.ledger.evidence import Evidence

T = TypeVar("T")


def read(
    folder: str | Path,
    *,
    ledger: Evidence | None = None,
    made: str | None = None,
    released: Released | None = None,
) -> Facts:
    """The controller's facts of a run folder.

    Args:
        ledger: what the ledger says of the run, where it can be reached: everything that it can say is compared with
            it, and the budget has its history.
        made: time of the report (ISO 8601, UTC); by default that of the ledger's head, or now.
        released: a decision to be shown in place of the one that the folder states.

    Raises:
        ConfigError: there is no such folder, or it holds nothing of a run.
    """
    place = _place(folder)
    run, metrics, audit = (
        read_file(place.facts, Run, "run"),
        read_file(place.metrics, Metrics, "metrics"),
        read_file(place.audit_json, Audit, "audit"),
    )
    attack = read_file(place.attack_json, Attack, "attack")
    record = run.record if released is None else replace(run.record, released=released)
    integrity, lost = _integrity(place, record)
    facts = Facts(
        edition=Edition.CONTROLLER.value,
        made=made or (utc_now() if ledger is None else ledger.head.time),
        program=__version__,
        run=RunFacts.of(record.to_json()),
        cohort=CohortFacts.of(record.cohort.to_json()),
        privacy=PrivacyFacts.of(_values(record.privacy)),
        odds=Odds.of({}),
        budget=_budget(record, None if ledger is None else ledger.status),
        ledger=replace(_ledger(record), now=head_now(ledger)),
        model=_model(record),
        integrity=integrity,
        binding=binding(place, record, ledger),
        not_covered=record.not_covered,
        checks=record.checks,
        utility=_utility(metrics.record) if metrics.readable else None,
        audit=_audit(audit.record) if audit.readable else None,
        attack=AttackFacts.of({"rows": [row.to_json() for row in attack.record.rows]}) if attack.readable else None,
        released=record.released,
        missing=tuple(
            sorted((*run.faults, *lost, *metrics.faults, *audit.faults), key=lambda fault: fault.why == "field")
        ),
        complete=False,
        warnings=(),
        verdict="",
        risks=(),
        open_checks=0,
        passed_checks=0,
    )
    return judged(replace(facts, odds=odds(facts.privacy, facts.audit)))


def public(facts: Facts) -> Facts:
    """The public edition: what the guarantee covers, plus what the recorded decision names.

    Utility, groups and audit are un-noised; each stays out unless `released.items` names it. What may be seen is what
    :mod:`dptrain.report.shapes` allows, and nothing else.
    """
    items = facts.items
    edition = replace(disclosed(facts, items), edition=Edition.PUBLIC.value, binding=disclosed_binding(facts))
    if edition.utility is not None:
        edition = replace(edition, utility=_of_known_names(edition.utility, facts.run.classes))
    missing = tuple(
        row
        for row in facts.missing
        if not (row.piece == "audit" and "audit" not in items)
        and not (row.piece == "metrics" and not items & {"metrics", "groups"})
    )
    edition = replace(edition, missing=missing, odds=odds(edition.privacy, edition.audit))
    return judged(edition)


def _of_known_names(utility: UtilityFacts, classes: tuple[str, ...]) -> UtilityFacts:
    """Results of the run's own classes, by measures that this program knows."""
    by_class = {
        name: {metric: cell for metric, cell in table.items() if metric in METRIC_NAMES}
        for name, table in utility.by_class.items()
        if name in classes
    }
    if utility.main not in METRIC_NAMES:
        utility = replace(utility, main=None, gaps=())
    return replace(utility, by_class=by_class)


def _place(folder: str | Path) -> RunFolder:
    place = RunFolder(folder)
    if not place.path.is_dir():
        raise ConfigError(f"{place.path} is no folder.", remedy="Name the folder that `dptrain train` printed.")
    pieces = (place.facts, place.config, place.metrics, place.audit_json, place.weights)
    if not any(path.exists() for path in pieces):
        raise ConfigError(
            f"{place.path} holds nothing of a run.", remedy="Name the folder that `dptrain train` printed."
        )
    return place


def _values(record: Record | None) -> Json:
    return {} if record is None else record.to_json()


def _budget(run: Run, status: CohortStatus | None) -> BudgetFacts:
    values = _values(run.gate)
    gate = run.gate
    before, after = (None, None) if gate is None else (gate.spent_before, gate.spent_after)
    total = None if gate is None else gate.budget_epsilon
    this = max(after - before, 0.0) if before is not None and after is not None else None
    return replace(
        BudgetFacts.of(values),
        epsilon=total,
        delta=None if gate is None else gate.budget_delta,
        before=before,
        this=this,
        after=after,
        share_used=after / total if after is not None and total else None,
        history=() if status is None else cohort_history(status, run.id),
    )


def cohort_history(status: CohortStatus, this: str | None = None) -> tuple[HistoryRow, ...]:
    """One row a run of the cohort: what it was charged, and what was spent after it."""
    return tuple(
        HistoryRow(
            run=clean(run.run),
            cohort=clean(run.cohort),
            date=clean(run.date),
            steps=run.steps,
            epsilon=number(run.epsilon_pld),
            private=run.private,
            gate_after=number(run.epsilon_gate_after),
            status=clean(run.status),
            this=run.run == this,
        )
        for run in status.runs
    )


def _ledger(run: Run) -> LedgerFacts:
    facts = LedgerFacts.of(_values(run.ledger))
    return replace(facts, site=facts.site or (None if run.ledger is None else run.ledger.head.site))


def _model(run: Run) -> ModelFacts:
    weights = {f"weights_{name}": value for name, value in _values(run.weights).items()}
    return ModelFacts.of({**_values(run.model), **weights})


def hash_or_none(path: Path) -> str | None:
    """SHA-256 of a file, or None where it cannot be read."""
    try:
        return file_sha256(path)
    except OSError:
        return None


def _integrity(place: RunFolder, run: Run) -> tuple[dict[str, FileHash], list[Fault]]:
    """Hashes as stated in run.json beside the hashes of what lies in the folder."""
    hashes: dict[str, FileHash] = {}
    lost = []
    for name, path, stated in (
        ("model", place.weights, None if run.model is None else run.model.sha256),
        ("config", place.config, run.config_sha256),
    ):
        real = hash_or_none(path)
        if real is None:
            lost.append(Fault(piece=name, why="absent"))
        match = None if stated is None or real is None else stated == real
        hashes[name] = FileHash(stated=stated, found=real, match=match)
    return hashes, lost


def _utility(metrics: Metrics) -> UtilityFacts:
    groups = {column: _in_order(table) for column, table in metrics.groups.items() if table}
    main_measures = list(dict.fromkeys(spec.metric for spec in TASKS.values()))
    main = next((name for name in main_measures if name in metrics.overall), next(iter(metrics.overall), None))
    values = metrics.to_json()
    bins = [
        row.to_json()
        for row in metrics.reliability
        if None not in (row.confidence, row.observed) and (row.count or 0) >= SMALL_CELL
    ]
    if metrics.conformal is not None:
        values["conformal"] = {**metrics.conformal.to_json(), "alpha": metrics.conformal.miscoverage}
    facts = UtilityFacts.of({**values, "groups": {}, "reliability": bins, "main": main})
    return replace(
        facts,
        by_class={name: table for name, table in facts.by_class.items() if table},
        groups={
            column: {value: UtilityGroup.of(cell.to_json()) for value, cell in table.items()}
            for column, table in groups.items()
        },
        gaps=_gaps(groups, main),
    )


def _in_order(table: dict[str, T]) -> dict[str, T]:
    """Groups as people count them: 'below 18' first, '2' before '10', words by the alphabet after the numbers."""

    def place(name: str) -> tuple[bool, float, bool, str]:
        lead = re.match(r"(below )?(-?\d+(?:\.\d+)?)", name)
        return (True, 0.0, True, name) if lead is None else (False, float(lead[2]), lead[1] is None, name)

    return dict(sorted(table.items(), key=lambda item: place(item[0])))


def _gaps(groups: dict[str, dict[str, Group]], main: str | None) -> tuple[Gap, ...]:
    """For each column: the best and the worst group by the main metric, and whether their intervals overlap."""
    gaps = []
    for column, table in groups.items():
        scored = [
            (cell.metrics[main], value) for value, cell in table.items() if main is not None and main in cell.metrics
        ]
        if len(scored) < 2:
            continue
        worst = min(scored, key=lambda one: one[0].value or 0.0)
        best = max(scored, key=lambda one: one[0].value or 0.0)
        low, high = best[0].low, worst[0].high
        gaps.append(
            Gap(
                column=column,
                metric=main,
                worst=worst[1],
                best=best[1],
                difference=(best[0].value or 0.0) - (worst[0].value or 0.0),
                intervals_overlap=None if low is None or high is None else low <= high,
            )
        )
    return tuple(gaps)


def _audit(audit: Audit) -> AuditFacts:
    values = audit.to_json()
    chance = None
    if audit.survival is not None and audit.survival.null is not None:
        chance = {"auc": audit.survival.auc, "null": audit.survival.null}
    facts = AuditFacts.of({**values, "references": audit.references or audit.models, "survival_by_chance": chance})
    return replace(
        facts,
        tpr_at={rate: cell for rate, cell in facts.tpr_at.items() if _is_float(rate)},
        groups={column: _in_order(table) for column, table in facts.groups.items() if table},
    )


def _is_float(text: str) -> bool:
    try:
        return number(float(text)) is not None
    except ValueError:
        return False
