"""The report on a cohort: all spending, by which runs, what remains, and what more runs like the last would cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from dptrain import __version__
from dptrain.files import utc_now
from dptrain.plain import Json
from dptrain.records.shape import clean, number
from dptrain.report.blocks import Block, big_number, drawing, heading, numbers, p, rows, section, table
from dptrain.report.document import frame
from dptrain.report.facts import cohort_history
from dptrain.report.language import Language
from dptrain.report.sections.budget import history_table
from dptrain.report.shapes import CohortBudget, CohortHead, CohortPlace, CohortReport, Forecast, Granted
from dptrain.vocabulary import BudgetKind

if TYPE_CHECKING:
    from dptrain.ledger import CohortStatus

FORECASTS = (1, 2, 3)


def cohort_facts(status: CohortStatus, *, made: str | None = None) -> CohortReport:
    """Everything the report on a cohort says."""
    head = status.head
    return CohortReport(
        made=made or utc_now(),
        program=__version__,
        cohort=CohortPlace(
            name=clean(status.name),
            version=status.version,
            unit=clean(status.unit),
            owner=clean(status.owner),
            public=status.public,
            public_size=status.public_size,
            overlaps=tuple(clean(name) for name in status.overlaps),
            cautions=tuple(clean(text) for text in status.cautions),
            source=clean(status.source or ""),
            licence=clean(status.licence or ""),
        ),
        budget=_budget(status),
        history=cohort_history(status),
        forecast=forecast(status),
        head=None if head is None else CohortHead(hash=head.hash, entries=head.entries, time=head.time),
        site=clean(status.site),
        witness=status.witness,
    )


def _budget(status: CohortStatus) -> CohortBudget:
    granted = tuple(
        Granted(
            date=clean(budget.date),
            kind=budget.kind,
            epsilon=number(budget.epsilon),
            reason=clean(budget.reason),
            advice=clean(budget.advice or ""),
        )
        for budget in status.budgets
    )
    return CohortBudget(
        kind=status.kind,
        epsilon=number(status.budget_epsilon),
        delta=number(status.budget_delta),
        order=number(status.order),
        spent=number(status.spent_epsilon),
        remaining=number(status.remaining_epsilon),
        minimum_charge=number(status.minimum_charge),
        locked=status.locked,
        share_used=number(status.spent_epsilon / status.budget_epsilon if status.budget_epsilon else None),
        granted=granted,
    )


def forecast(status: CohortStatus) -> tuple[Forecast, ...]:
    """What one, two and three more runs like the last would make of the open budget: exact, since RDP adds up.

    Empty where there is no open budget, no run yet, or the last one was not private.
    """
    from dptrain.accounting import epsilon_after

    opened = next((budget for budget in status.budgets if budget.kind == BudgetKind.OPEN), None)
    charged = [run for run in status.runs if run.epsilon_gate]
    if opened is None or not charged:
        return ()
    spent = math.fsum(run.epsilon_gate or 0.0 for run in charged)
    last = charged[-1]
    ahead = []
    for more in FORECASTS:
        after = epsilon_after(spent, last.epsilon_gate or 0.0, more, opened.order, opened.delta)
        ahead.append(
            Forecast(
                runs=more,
                like=clean(last.run),
                spent=after,
                remaining=max(0.0, opened.epsilon - after),
                possible=after <= opened.epsilon,
            )
        )
    return tuple(ahead)


def document(facts: CohortReport, t: Language) -> Json:
    """The report on a cohort as sections of blocks."""
    return frame(
        t,
        [
            section("cohort.standing", t, _standing(facts, t)),
            section("cohort.spending", t, _spending(facts, t)),
            section("cohort.forecast", t, _ahead(facts, t) + _chain(facts, t)),
        ],
        title=t("cohort.title"),
        subject=facts.cohort.name,
        edition=t("cohort.edition"),
        edition_note=t("cohort.edition.note"),
        running=t("cohort.running", cohort=facts.cohort.name),
        made=t("made", date=t.date(facts.made), version=facts.program),
        tick={},
    )


def _standing(facts: CohortReport, t: Language) -> list[Block]:
    """What is spent and what remains."""
    cohort, budget = facts.cohort, facts.budget
    blocks = [p(t("budget.public" if cohort.public else "cohort.none"))]
    if budget.epsilon is not None:
        values = {
            "total": t.number(budget.epsilon, 2),
            "spent": t.epsilon(budget.spent),
            "remaining": t.remaining(budget.remaining),
        }
        caption, alt = t("figure.budget.caption"), t("figure.cohort_budget.alt", **values)
        blocks = [numbers(_numbers(facts, t)), drawing("cohort_budget", caption, alt)]
    if budget.locked:
        blocks.append(p(t("budget.locked", minimum=t.shortest(budget.minimum_charge, 3))))
    particulars = [
        (t("budget.owner"), cohort.owner),
        (t("cohort.size"), t.integer(cohort.public_size)),
        (t("term.patient"), t.known("unit", cohort.unit)),
        (t("budget.kind"), t.known("kind", budget.kind) if budget.kind else ""),
        (t("budget.delta"), t.power(budget.delta) if budget.delta else ""),
        (t("budget.order"), t.shortest(budget.order) if budget.order else ""),
        (t("cohort.overlaps"), ", ".join(cohort.overlaps)),
        (t("cohort.cautions"), " · ".join(t.quote(text) for text in cohort.cautions)),
    ]
    return [*blocks, rows(particulars)]


def _numbers(facts: CohortReport, t: Language) -> list[Block]:
    """The three numbers of the first page: spent, runs, runs that are left."""
    budget = facts.budget
    spent = t(
        "number.spent.note.locked" if budget.locked else "number.spent.note",
        after=t.epsilon(budget.spent),
        total=t.number(budget.epsilon, 2),
        remaining=t.remaining(budget.remaining),
    )
    more = t.integer(sum(row.possible for row in facts.forecast)) if facts.forecast else "–"
    return [
        big_number(t.percent(budget.share_used, 0), t("number.spent"), spent),
        big_number(t.integer(len(facts.history)), t("cohort.runs"), t("cohort.runs.note")),
        big_number(more, t("cohort.more"), t("cohort.more.note", most=t.integer(FORECASTS[-1]))),
    ]


def _spending(facts: CohortReport, t: Language) -> list[Block]:
    """Every charge, and every signed budget."""
    blocks = [history_table(facts.history, t) if facts.history else p(t("cohort.no_runs"))]
    if facts.budget.granted:
        head = [
            t("budget.history.date"),
            t("cohort.granted.epsilon"),
            t("cohort.granted.reason"),
            t("signature.advice"),
        ]
        body = [
            [
                t.date(row.date[:10]),
                t.number(row.epsilon, 2),
                t.quote(row.reason) if row.reason else "–",
                t.quote(row.advice) if row.advice else "–",
            ]
            for row in facts.budget.granted
        ]
        blocks.append(table(t("cohort.granted"), head, body, text_columns=True))
    return blocks


def _ahead(facts: CohortReport, t: Language) -> list[Block]:
    """What more runs like the last would cost."""
    if not facts.forecast:
        return [p(t("cohort.forecast.none"))]
    head = [
        t("cohort.forecast.runs"),
        t("budget.history.after"),
        t("figure.budget.remaining"),
        t("cohort.forecast.possible"),
    ]
    body = [
        [
            t.integer(row.runs),
            t.epsilon(row.spent),
            t.remaining(row.remaining),
            t("answer.yes" if row.possible else "answer.no"),
        ]
        for row in facts.forecast
    ]
    text = t("cohort.forecast.text", run=facts.forecast[0].like)
    return [p(text), table(t("cohort.forecast.table"), head, body)]


def _chain(facts: CohortReport, t: Language) -> list[Block]:
    """The head of the ledger's chain."""
    blocks = [heading(t("integrity.title"))]
    head = facts.head
    if head is not None:
        pairs = [
            (t("integrity.head"), head.hash),
            (t("integrity.entries"), t.integer(head.entries)),
            (t("integrity.time"), t.date(head.time)),
            (t("integrity.site"), facts.site),
        ]
        blocks.append(rows(pairs))
    blocks.append(p(t("integrity.witness.yes" if facts.witness else "integrity.witness.no")))
    return blocks


def write(status: CohortStatus, lang: str, target: Path) -> Path:
    """Write HTML, PDF and facts of a cohort into `target` (0700: charges are public, plans for them may not be)."""
    from dptrain.report import faces
    from dptrain.report.build import write_faces

    t = Language(lang)
    facts = cohort_facts(status)
    made = faces.of_document(document(facts, t), facts, t)
    write_faces(target, made, "controller", lang, private=True)
    return target
