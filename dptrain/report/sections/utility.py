"""What the model is good for, and for whom."""

from __future__ import annotations

from dptrain.records.parts import Estimate
from dptrain.report.blocks import Block, Section, drawing, figure, heading, p, section, table
from dptrain.report.language import Language
from dptrain.report.phrases import METRIC_DIGITS, estimate
from dptrain.report.sections.risk import withheld_groups
from dptrain.report.shapes import Facts, Gap, UtilityFacts, UtilityGroup


def utility(facts: Facts, t: Language) -> Section:
    """What the model is good for."""
    results = facts.utility
    if results is None:
        return section("utility", t, [p(t("utility.none" if facts.is_controllers else "utility.unreleased"))])
    level = t("level", value=t.integer(100 * (results.bootstrap.level or 0.95)))
    blocks: list[Block] = []
    if results.overall:
        blocks += [_sentence(results, level, t), _metric_table(t("utility.overall"), results.overall, t, level)]
    for name, metrics in results.by_class.items():
        blocks.append(_metric_table(t("utility.class", name=name), metrics, t, level))
    for column, cells in results.groups.items():
        blocks += _group(column, cells, results.main or "", t)
    blocks += [_gap(gap, t) for gap in results.gaps]
    blocks += withheld_groups(results.suppressed, t)
    blocks += _calibration(results, t)
    return section("utility", t, blocks, marked=True)


def _sentence(results: UtilityFacts, level: str, t: Language) -> Block:
    return p(
        t(
            "utility.sentence",
            split=t.known("split", results.split),
            patients=t.integer(results.patients),
            records=t.integer(results.records),
            replicates=t.integer(results.bootstrap.replicates),
            level=level,
        )
    )


def _group(column: str, cells: dict[str, UtilityGroup], main: str, t: Language) -> list[Block]:
    described = [
        t(
            "utility.group.item",
            value=value,
            estimate=estimate(cell.metrics[main], t),
            patients=t.integer(cell.patients),
        )
        for value, cell in cells.items()
        if main in cell.metrics
    ]
    if not described:
        return []
    caption = t("utility.group", column=t.known("column", column), metric=t.known("metric", main))
    alt = t("figure.groups.alt", column=t.known("column", column), list="; ".join(described))
    return [drawing(f"utility_group:{column}", caption, alt)]


def _gap(gap: Gap, t: Language) -> Block:
    return p(
        t(
            "utility.gap.apart" if gap.intervals_overlap is False else "utility.gap",
            column=t.known("column", gap.column),
            worst=gap.worst,
            best=gap.best,
            difference=t.number(gap.difference, METRIC_DIGITS),
        )
    )


def _calibration(results: UtilityFacts, t: Language) -> list[Block]:
    """How far probabilities and sets can be believed."""
    blocks: list[Block] = []
    if results.reliability:
        error = results.overall.get("calibration_error")
        shown = t.number(error.value, METRIC_DIGITS) if error else t("unknown")
        blocks += [heading(t("utility.calibration")), figure("reliability", t, error=shown)]
    if results.temperature is not None:
        blocks.append(p(t("utility.temperature", value=t.number(results.temperature, 2))))
    conformal = results.conformal
    if conformal is not None:
        goal = t.percent(None if conformal.alpha is None else 1 - conformal.alpha, 0)
        coverage, size = t.percent(conformal.coverage), t.number(conformal.set_size, 2)
        blocks.append(p(t("utility.conformal", goal=goal, coverage=coverage, size=size)))
    return blocks


def _metric_table(caption: str, metrics: dict[str, Estimate], t: Language, level: str) -> Block:
    head = [t("utility.metric"), t("utility.value"), t("utility.interval", level=level)]
    body = [
        [
            t.known("metric", name),
            t.number(cell.value, METRIC_DIGITS),
            t.interval(cell.low, cell.high, digits=METRIC_DIGITS) or "–",
        ]
        for name, cell in metrics.items()
    ]
    return table(caption, head, body)
