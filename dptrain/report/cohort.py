"""The report on a cohort: all spending, by which runs, what remains, and what more runs like the last would cost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dptrain import __version__
from dptrain.files import utc_now
from dptrain.report.content import Block, heading, history_table, p, rows, section, table
from dptrain.report.facts import Facts, clean, cohort_history, number
from dptrain.report.language import Language
from dptrain.vocabulary import BudgetKind

if TYPE_CHECKING:
    from dptrain.ledger import CohortStatus

COHORT_SCHEMA = "dptrain.cohort-facts/1"
FORECASTS = (1, 2, 3)


def cohort_facts(status: CohortStatus, *, made: str | None = None) -> Facts:
    """Everything the report on a cohort says."""
    head = status.head
    return {
        "schema": COHORT_SCHEMA,
        "made": made or utc_now(),
        "program": __version__,
        "cohort": {
            "name": clean(status.name),
            "version": status.version,
            "unit": clean(status.unit),
            "owner": clean(status.owner),
            "public": status.public,
            "public_size": status.public_size,
            "overlaps": [clean(name) for name in status.overlaps],
            "cautions": [clean(text) for text in status.cautions],
            "source": clean(status.source or ""),
            "licence": clean(status.licence or ""),
        },
        "budget": {
            "kind": status.kind,
            "epsilon": number(status.budget_epsilon),
            "delta": number(status.budget_delta),
            "order": number(status.order),
            "spent": number(status.spent_epsilon),
            "remaining": number(status.remaining_epsilon),
            "minimum_charge": number(status.minimum_charge),
            "locked": status.locked,
            "share_used": number(status.spent_epsilon / status.budget_epsilon if status.budget_epsilon else None),
            "granted": [
                {
                    "date": clean(budget.date),
                    "kind": budget.kind,
                    "epsilon": number(budget.epsilon),
                    "reason": clean(budget.reason),
                    "advice": clean(budget.advice or ""),
                }
                for budget in status.budgets
            ],
        },
        "history": cohort_history(status),
        "forecast": forecast(status),
        "head": None if head is None else {"hash": head.hash, "entries": head.entries, "time": head.time},
        "site": clean(status.site),
        "witness": status.witness,
    }


def forecast(status: CohortStatus) -> list[Facts]:
    """What one, two and three more runs like the last would make of the open budget: exact, since RDP adds up.

    Empty where there is no open budget, no run yet, or the last one was not private.
    """
    from dptrain.accounting import epsilon_after

    opened = next((budget for budget in status.budgets if budget.kind == BudgetKind.OPEN), None)
    charged = [run for run in status.runs if run.epsilon_gate]
    if opened is None or not charged:
        return []
    spent = math.fsum(run.epsilon_gate or 0.0 for run in charged)
    last = charged[-1]
    found = []
    for more in FORECASTS:
        after = epsilon_after(spent, last.epsilon_gate or 0.0, more, opened.order, opened.delta)
        found.append(
            {
                "runs": more,
                "like": clean(last.run),
                "spent": after,
                "remaining": max(0.0, opened.epsilon - after),
                "possible": after <= opened.epsilon,
            }
        )
    return found


def document(facts: Facts, t: Language) -> dict[str, Any]:
    """The report on a cohort as sections of blocks."""
    cohort, budget, runs = facts["cohort"], facts["budget"], facts["history"]
    blocks: list[Block] = []
    if budget["epsilon"] is not None:
        blocks.append(
            {
                "kind": "numbers",
                "items": [
                    {
                        "value": t.percent(budget["share_used"], 0),
                        "label": t("number.spent"),
                        "note": t(
                            "number.spent.note.locked" if budget["locked"] else "number.spent.note",
                            after=t.epsilon(budget["spent"]),
                            total=t.number(budget["epsilon"], 2),
                            remaining=t.remaining(budget["remaining"]),
                        ),
                    },
                    {"value": t.integer(len(runs)), "label": t("cohort.runs"), "note": t("cohort.runs.note")},
                    {
                        "value": t.integer(sum(row["possible"] for row in facts["forecast"]))
                        if facts["forecast"]
                        else "–",
                        "label": t("cohort.more"),
                        "note": t("cohort.more.note", most=t.integer(FORECASTS[-1])),
                    },
                ],
            }
        )
        blocks.append(
            {
                "kind": "figure",
                "name": "cohort_budget",
                "caption": t("figure.budget.caption"),
                "alt": t(
                    "figure.cohort_budget.alt",
                    total=t.number(budget["epsilon"], 2),
                    spent=t.epsilon(budget["spent"]),
                    remaining=t.remaining(budget["remaining"]),
                ),
            }
        )
    else:
        blocks.append(p(t("budget.public" if cohort["public"] else "cohort.none")))
    if budget["locked"]:
        blocks.append(p(t("budget.locked", minimum=t.shortest(budget["minimum_charge"], 3))))
    blocks.append(
        rows(
            [
                (t("budget.owner"), cohort["owner"]),
                (t("cohort.size"), t.integer(cohort["public_size"])),
                (t("term.patient"), t.known("unit", cohort["unit"])),
                (t("budget.kind"), t.known("kind", budget["kind"]) if budget["kind"] else ""),
                (t("budget.delta"), t.power(budget["delta"]) if budget["delta"] else ""),
                (t("budget.order"), t.shortest(budget["order"]) if budget["order"] else ""),
                (t("cohort.overlaps"), ", ".join(cohort["overlaps"])),
                (t("cohort.cautions"), " · ".join(t.quote(text) for text in cohort["cautions"])),
            ]
        )
    )
    spending: list[Block] = []
    spending.append(history_table(runs, t) if runs else p(t("cohort.no_runs")))
    if budget["granted"]:
        head = [
            t("budget.history.date"),
            t("cohort.granted.epsilon"),
            t("cohort.granted.reason"),
            t("signature.advice"),
        ]
        body = [
            [
                t.date(row["date"][:10]),
                t.number(row["epsilon"], 2),
                t.quote(row["reason"]) if row["reason"] else "–",
                t.quote(row["advice"]) if row["advice"] else "–",
            ]
            for row in budget["granted"]
        ]
        spending.append({**table(t("cohort.granted"), head, body), "text_columns": True})
    ahead: list[Block] = []
    if facts["forecast"]:
        head = [
            t("cohort.forecast.runs"),
            t("budget.history.after"),
            t("figure.budget.remaining"),
            t("cohort.forecast.possible"),
        ]
        body = [
            [
                t.integer(row["runs"]),
                t.epsilon(row["spent"]),
                t.remaining(row["remaining"]),
                t("answer.yes" if row["possible"] else "answer.no"),
            ]
            for row in facts["forecast"]
        ]
        like = facts["forecast"][0]["like"]
        ahead += [p(t("cohort.forecast.text", run=like)), table(t("cohort.forecast.table"), head, body)]
    else:
        ahead.append(p(t("cohort.forecast.none")))
    chain: list[Block] = [heading(t("integrity.title"))]
    if facts["head"]:
        chain.append(
            rows(
                [
                    (t("integrity.head"), facts["head"]["hash"]),
                    (t("integrity.entries"), t.integer(facts["head"]["entries"])),
                    (t("integrity.time"), t.date(facts["head"]["time"])),
                    (t("integrity.site"), facts["site"]),
                ]
            )
        )
    chain.append(p(t("integrity.witness.yes" if facts["witness"] else "integrity.witness.no")))
    return {
        "lang": t.lang,
        "title": t("cohort.title"),
        "subject": cohort["name"],
        "edition": t("cohort.edition"),
        "edition_note": t("cohort.edition.note"),
        "running": t("cohort.running", cohort=cohort["name"]),
        "made": t("made", date=t.date(facts["made"]), version=facts["program"]),
        "contents": t("contents"),
        "page": t("page"),
        "mark": t("mark"),
        "tick": {},
        "blank": t("blank"),
        "see": t("see"),
        "sections": [
            section("cohort.standing", t, blocks),
            section("cohort.spending", t, spending),
            section("cohort.forecast", t, ahead + chain),
        ],
    }


def write(status: CohortStatus, lang: str, target: Path) -> Path:
    """Write HTML, PDF and facts of a cohort into `target` (0700: charges are public, plans for them may not be)."""
    from dptrain.report import faces
    from dptrain.report.build import write_faces

    t = Language(lang)
    facts = cohort_facts(status)
    doc = document(facts, t)
    drawings = faces.figures(doc, facts, t)
    made = {
        "facts.json": (json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode(),
        "report.html": faces.html(doc, drawings).encode(),
        "report.pdf": faces.pdf(doc, drawings, facts["made"]),
    }
    write_faces(target, made, "controller", lang, private=True)
    return target
