"""Measured risk: by count and group, never by name."""

from __future__ import annotations

from dptrain.report.blocks import Block, Section, bullets, drawing, figure, heading, p, rows, section, table
from dptrain.report.language import Language
from dptrain.report.phrases import share_interval
from dptrain.report.shapes import AucFacts, AuditFacts, Facts, GroupRisk, Hidden, WithheldFacts


def risk(facts: Facts, t: Language) -> Section:
    """Measured risk."""
    audit = facts.audit
    if audit is None:
        return section("risk", t, [p(t("risk.none" if facts.is_controllers else "risk.unreleased"))])
    blocks = _counts(audit, t)
    if audit.survival is not None:
        blocks.append(figure("survival", t, mean=t.number(audit.auc.mean, 3)))
    blocks.append(_particulars(facts, audit, t))
    for column, cells in audit.groups.items():
        caption = t("risk.group", column=t.known("column", column))
        alt = t("figure.groups.alt", column=t.known("column", column), list="; ".join(_shares(cells, t)))
        blocks.append(drawing(f"risk_group:{column}", caption, alt))
    blocks += withheld_groups(audit.suppressed, t)
    blocks += _canary(facts, audit, t)
    blocks += _mechanism(audit, t)
    blocks += _withheld("risk.withheld", list(audit.missing), t)
    blocks += _withheld("risk.extrapolated", list(audit.extrapolated), t)
    blocks += [heading(t("risk.limits")), p(t("risk.limits.text"))]
    return section("risk", t, blocks, marked=True)


def _counts(audit: AuditFacts, t: Language) -> list[Block]:
    """How many are exposed, by verdict, and confirmed."""
    exposed, verdicts = audit.exposed, audit.verdicts.to_json()
    sentence = t(
        "risk.sentence",
        references=t.integer(audit.references),
        patients=t.integer(audit.patients),
        game=t.known("game", audit.game),
    )
    count = t("risk.exposed.none")
    if exposed.count is not None:
        count = t(
            "risk.exposed.sentence" if exposed.above is None else "risk.exposed.effect",
            above=t.number(exposed.above, 2),
            count=t.integer(exposed.count),
            patients=t.integer(audit.patients),
            share=t.percent(exposed.share),
            interval=share_interval(exposed, t),
        )
    blocks = [p(sentence), p(count), *_effects(audit, t)]
    if None not in verdicts.values():
        body = [[t(f"audit_verdict.{name}"), t.integer(number)] for name, number in verdicts.items()]
        head = [t("risk.verdict"), t("risk.patients")]
        note = t("risk.verdicts.note" if audit.exposed.above is None else "risk.verdicts.note.effect")
        blocks.append(table(t("risk.verdicts"), head, body, note))
    if audit.confirmed is not None:
        tested, confirmed = t.integer(audit.confirmed.tested), t.integer(audit.confirmed.confirmed)
        blocks.append(p(t("risk.confirmed", tested=tested, confirmed=confirmed)))
    return blocks


def _effects(audit: AuditFacts, t: Language) -> list[Block]:
    """Who leaves a trace, how many truly are at risk, and what so many models could have seen (newer audits)."""
    said = []
    if audit.traced is not None and audit.traced.count is not None:
        count, patients = t.integer(audit.traced.count), t.integer(audit.patients)
        said.append(t("risk.traced", count=count, patients=patients, share=t.percent(audit.traced.share)))
    if audit.true_auc:
        shares = [
            t("risk.true_auc.item", auc=t.number(row.auc, 2), low=t.percent(row.low), high=t.percent(row.high))
            for row in audit.true_auc
        ]
        said.append(t("risk.true_auc", list="; ".join(shares)))
    smallest = audit.smallest_seen
    if smallest is not None:
        none = t("risk.smallest.none")
        trace, exposed = (none if auc is None else t.number(auc, 2) for auc in (smallest.trace, smallest.exposed))
        said.append(t("risk.smallest", trace=trace, exposed=exposed))
    return [p(text) for text in said]


def _particulars(facts: Facts, audit: AuditFacts, t: Language) -> Block:
    auc, scan = audit.auc, audit.new_scan
    new_scan = ""
    if scan is not None:
        interval = t.interval(scan.low, scan.high) or t("unknown")
        new_scan = t("risk.new_scan.value", auc=t.number(scan.auc, 3), interval=interval)
    return rows(
        [
            (t("risk.game"), t.known("game", audit.game)),
            (t("risk.attack"), t.known("attack", audit.attack)),
            (t("risk.auc"), t.number(auc.mean, 3) if auc.mean is not None else ""),
            (t("risk.auc.max"), _largest_auc(auc, t)),
            (t("risk.baseline"), _baseline(facts, audit, t)),
            (t("risk.new_scan"), new_scan),
        ]
    )


def _largest_auc(auc: AucFacts, t: Language) -> str:
    """The largest AUC of all patients, never without the remark that chance alone makes it large."""
    if auc.max is None:
        return ""
    if auc.max_by_chance is None:
        return t("risk.auc.max.plain", auc=t.number(auc.max, 3))
    return t("risk.auc.max.value", auc=t.number(auc.max, 3), chance=t.number(auc.max_by_chance, 3))


def _baseline(facts: Facts, audit: AuditFacts, t: Language) -> str:
    """The best-record baseline; the controller's edition alone shows it, by its name and not as a risk."""
    baseline = audit.baseline_max
    if not facts.is_controllers or baseline.mean is None:
        return ""
    return t("risk.baseline.value", mean=t.number(baseline.mean, 3), most=t.number(baseline.max, 3))


def _shares(cells: dict[str, GroupRisk], t: Language) -> list[str]:
    return [
        t(
            "risk.group.item",
            value=value,
            share=t.percent(cell.share),
            interval=t.interval(cell.low, cell.high, percent=True, digits=1) or t("unknown"),
            patients=t.integer(cell.patients),
        )
        for value, cell in cells.items()
    ]


def _canary(facts: Facts, audit: AuditFacts, t: Language) -> list[Block]:
    canary = audit.canary
    if canary is None:
        return []
    promised, key = facts.privacy.epsilon, "risk.canary.broken" if canary.broken else "risk.canary.text"
    if not canary.broken and canary.provable is not None and promised is not None and canary.provable <= promised:
        key = "risk.canary.weak"
    text = t(
        key,
        provable=t.number(canary.provable, 2),
        count=t.integer(canary.count),
        trainings=t.integer(canary.trainings),
        bound=t.number(canary.epsilon_lower, 2),
        confidence=t.percent(canary.confidence, 0),
        epsilon=t.epsilon(facts.privacy.epsilon, facts.privacy.infinite),
    )
    return [heading(t("risk.canary")), p(text)]


def _mechanism(audit: AuditFacts, t: Language) -> list[Block]:
    """The test of the mechanism itself, which can fail at any epsilon (newer audits)."""
    if any(row.what == "residual" for row in audit.withheld):
        return [heading(t("risk.mechanism")), p(t("risk.mechanism.withheld"))]
    if not audit.checks:
        return []
    confirmed = [t.known("detector", row.name) for row in audit.checks if row.confirmed]
    names = [t.known("detector", row.name) for row in audit.checks]
    key = "risk.mechanism.broken" if confirmed else "risk.mechanism.text"
    return [heading(t("risk.mechanism")), p(t(key, names="; ".join(confirmed or names)))]


def _withheld(key: str, withheld: list[WithheldFacts], t: Language) -> list[Block]:
    """What is not said, or only marked, since there are too few models."""
    if not withheld:
        return []
    items = [
        t(f"{key}.item", what=t.known("withheld", row.what), have=t.integer(row.have), need=t.integer(row.need))
        for row in withheld
    ]
    return [heading(t(key)), bullets(items)]


def withheld_groups(suppressed: tuple[Hidden, ...], t: Language) -> list[Block]:
    """Cells that are too small to be shown, by name."""
    if not suppressed:
        return []
    names = [f"{t.known('column', row.group)}: {row.value}" for row in suppressed]
    return [p(t("group.suppressed", names="; ".join(names)))]
