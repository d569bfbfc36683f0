"""What the cohort's budget was, is and has left."""

from __future__ import annotations

from dptrain.report.blocks import Block, Section, figure, p, rows, section, table
from dptrain.report.language import Language
from dptrain.report.phrases import charged, guarantee
from dptrain.report.shapes import Facts, HistoryRow


def budget(facts: Facts, t: Language) -> Section:
    """What the cohort's budget was, is and has left."""
    spent, cohort = facts.budget, facts.cohort
    particulars = rows(
        [
            (t("budget.kind"), t.known("kind", spent.kind) if spent.kind else ""),
            (t("budget.delta"), t.power(spent.delta) if spent.delta else ""),
            (t("budget.order"), t.shortest(spent.order) if spent.order else ""),
            (t("budget.minimum"), t.shortest(spent.minimum_charge, 3) if spent.minimum_charge else ""),
            (t("budget.owner"), cohort.owner or ""),
        ]
    )
    blocks = [*_standing(facts, t), *([particulars] if particulars["rows"] else [])]
    if not cohort.public and spent.epsilon is not None:
        blocks.append(p(t("budget.two", gate=t.epsilon(spent.this), pld=guarantee(facts, t))))
    if spent.history:
        blocks.append(history_table(spent.history, t))
    return section("budget", t, blocks)


def _standing(facts: Facts, t: Language) -> list[Block]:
    spent, cohort = facts.budget, facts.cohort
    if cohort.public:
        return [p(t("budget.public"))]
    if spent.epsilon is None:
        return [p(t("budget.unknown"))]
    values = {
        "total": t.number(spent.epsilon, 2),
        "before": t.epsilon(spent.before),
        "this": t.epsilon(spent.this),
        "after": t.epsilon(spent.after),
        "remaining": t.remaining(spent.remaining),
    }
    sentence = t("budget.sentence", cohort=cohort.name or t("unknown"), **values)
    blocks = [p(sentence), figure("budget", t, **values)]
    if spent.locked:
        blocks.append(p(t("budget.locked", minimum=t.shortest(spent.minimum_charge, 3))))
    return blocks


def history_table(history: tuple[HistoryRow, ...], t: Language) -> Block:
    """Every charge of a cohort, one a line."""
    head = [t("budget.history.run"), t("budget.history.date"), t("budget.history.steps"), t("budget.history.pld")]
    head.append(t("budget.history.after"))
    body = [
        [
            row.run + (t("budget.history.this") if row.this else ""),
            t.date(row.date[:10]),
            t.integer(row.steps),
            charged(row, t),
            "–" if row.gate_after is None else t.epsilon(row.gate_after),
        ]
        for row in history
    ]
    return table(t("budget.history"), head, body, t("budget.history.note"))
