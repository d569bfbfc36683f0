"""The first page: what is asked, what is promised, measured and spent, and what speaks against it."""

from __future__ import annotations

from dptrain.report.blocks import Block, Section, big_number, bullets, heading, numbers, rows, section
from dptrain.report.language import Language
from dptrain.report.phrases import METRIC_DIGITS, estimate, guarantee, main_estimate, share_interval, unit_word
from dptrain.report.shapes import Facts

BAD = {"guarantee_broken", "incomplete", "hash_mismatch", "ledger_differs", "infinite", "check_failed"}
TONES = {"broken": "bad", "mismatch": "bad", "incomplete": "bad", "none": "bad", "exposed": "warn"}


def decision(facts: Facts, t: Language) -> Section:
    """The first page."""
    blocks: list[Block] = []
    if facts.warnings:
        blocks.append({"kind": "warnings", "items": [_warning(name, facts, t) for name in facts.warnings]})
    blocks += [
        _verdict(facts, t),
        numbers([_promised(facts, t), _measured(facts, t), _spent(facts, t)]),
        _particulars(facts, t),
        heading(t("decision.risks")),
        bullets([_risk(name, facts, t) for name in facts.risks]),
    ]
    if facts.missing:
        missing = [
            t(f"missing.{row.why}", piece=t.known("file", row.piece), detail=row.detail) for row in facts.missing
        ]
        blocks += [heading(t("decision.missing")), bullets(missing)]
    return section("decision", t, blocks)


def _particulars(facts: Facts, t: Language) -> Block:
    """What is decided on, for whom, to what end."""
    run, cohort, released = facts.run, facts.cohort, facts.released
    whom = t(
        "decision.whom.value",
        cohort=cohort.name or t("unknown"),
        size=t.integer(cohort.public_size),
        unit=unit_word(facts, t),
    )
    task = t.known("task", run.task)
    what = t("decision.what.value", task=task, classes=", ".join(run.classes) or t("unknown"))
    return rows(
        [
            (t("decision.what"), what),
            (t("decision.whom"), whom),
            (t("decision.owner"), cohort.owner or ""),
            (t("decision.benefit"), _benefit(facts, t)),
            (t("decision.purpose"), (released.purpose if released else None) or t("decision.blank")),
            (t("decision.recipient"), (released.recipient if released else None) or t("decision.blank")),
            (
                t("decision.run"),
                t("decision.run.value", run=run.id or t("unknown"), date=t.date(run.created)),
            ),
            (t("decision.compared"), _compared(facts, t)),
        ]
    )


def claims(names: tuple[str, ...], t: Language) -> str:
    """What is compared with the ledger, by name."""
    return t.listing([t(f"claim.{name}") for name in names])


def _compared(facts: Facts, t: Language) -> str:
    """What agrees with the ledger, and what nobody compared."""
    binding, now = facts.binding, facts.ledger.now
    said = []
    if binding.agrees:
        entries = t.integer(None if now is None else now.entries)
        said.append(t("decision.compared.agrees", names=claims(binding.agrees, t), entries=entries))
    if binding.open:
        said.append(t("decision.compared.open", names=claims(binding.open, t)))
    return " ".join(said)


def _verdict(facts: Facts, t: Language) -> Block:
    odds, audit, verdict = facts.odds, facts.audit, facts.verdict
    plain = "warn" if verdict == "unmeasured" or odds.strength == "weak" else "plain"
    sentence = t(
        f"verdict.{verdict}",
        right=t.integer(odds.right_of_100),
        chance=t.integer(odds.chance_of_100),
        strength=t(f"strength.{odds.strength}") if odds.strength else t("unknown"),
        exposed=t.integer(facts.exposed),
        patients=t.integer(audit.patients if audit else None),
        bound=t.number(_bound(facts), 2),
        epsilon=t.epsilon(facts.privacy.epsilon, facts.privacy.infinite),
    )
    return {
        "kind": "verdict",
        "tone": TONES.get(verdict, plain),
        "label": t("decision.verdict"),
        "text": " ".join([sentence, t("verdict.person")]),
    }


def _bound(facts: Facts) -> float | None:
    """The lower bound on epsilon from planted patients."""
    canary = None if facts.audit is None else facts.audit.canary
    return None if canary is None else canary.epsilon_lower


def _promised(facts: Facts, t: Language) -> Block:
    odds = facts.odds
    promised = t("number.promised.value", right=t.integer(odds.right_of_100)) if odds.right_of_100 else "–"
    note = t("number.promised.note", guarantee=guarantee(facts, t), chance=t.integer(odds.chance_of_100))
    return big_number(promised, t("number.promised"), note)


def _measured(facts: Facts, t: Language) -> Block:
    audit, label = facts.audit, t("number.measured")
    if audit is None:
        key = "number.measured.none" if facts.is_controllers else "number.measured.unreleased"
        return big_number("–", label, t(key))
    exposed = audit.exposed
    if exposed.count is None:
        return big_number("–", label, t("number.measured.undecided"))
    count = t("number.measured.value", count=t.integer(exposed.count), patients=t.integer(audit.patients))
    note = t("number.measured.note", share=t.percent(exposed.share), interval=share_interval(exposed, t))
    return big_number(count, label, note)


def _spent(facts: Facts, t: Language) -> Block:
    spent, label = facts.budget, t("number.spent")
    if spent.epsilon is None:
        return big_number("–", label, t("number.spent.none" if facts.cohort.public else "number.spent.unknown"))
    note = t(
        "number.spent.note.locked" if spent.locked else "number.spent.note",
        after=t.epsilon(spent.after),
        total=t.number(spent.epsilon, 2),
        remaining=t.remaining(spent.remaining),
    )
    return big_number(t.percent(spent.share_used, 0), label, note)


def _benefit(facts: Facts, t: Language) -> str:
    utility, main = facts.utility, main_estimate(facts)
    if utility is None or main is None:
        return t("decision.benefit.none" if facts.is_controllers else "decision.benefit.unreleased")
    return t(
        "decision.benefit.value",
        metric=t.known("metric", utility.main),
        value=estimate(main, t),
        patients=t.integer(utility.patients),
        split=t.known("split", utility.split),
    )


def _warning(name: str, facts: Facts, t: Language) -> Block:
    audit = facts.audit
    failed = [t.known("check", row.id) for row in facts.checks if row.status == "failed" and row.by == "program"]
    text = t(
        f"warning.{name}.text",
        bound=t.number(_bound(facts), 2),
        epsilon=t.epsilon(facts.privacy.epsilon, facts.privacy.infinite),
        status=t.known("status", facts.run.status),
        files=t.listing([t.known("file", key) for key in facts.mismatches]),
        checks=" · ".join(failed),
        differs=claims(facts.binding.differs, t),
        open=claims(facts.binding.open, t),
        tested=t.integer(facts.utility.patients if facts.utility else None),
        withheld=t.integer(len(audit.missing) if audit else 0),
    )
    return {"tone": "bad" if name in BAD else "warn", "title": t(f"warning.{name}"), "text": text}


def _risk(name: str, facts: Facts, t: Language) -> str:
    run, gaps = facts.run, facts.utility.gaps if facts.utility else ()
    gap = next((gap for gap in gaps if gap.intervals_overlap is False), None)
    return t(
        f"risk.{name}",
        exposed=t.integer(facts.exposed),
        right=t.integer(facts.odds.right_of_100),
        cautions=" · ".join(t.quote(text) for text in facts.cohort.cautions),
        units=t.integer(facts.cohort.units_per_person),
        column=t.known("column", gap.column if gap else None),
        worst=gap.worst if gap else "",
        best=gap.best if gap else "",
        difference=t.number(gap.difference if gap else None, METRIC_DIGITS),
        metric=t.known("metric", gap.metric if gap else None),
        runs=t.integer(len(facts.privacy.inherited)),
        crashes=t.integer(run.resume.crashes),
        lost=t.integer(run.resume.steps_lost),
        trials=t.integer(run.sweep.trials if run.sweep else None),
        total=t.epsilon(run.sweep.epsilon_total if run.sweep else None),
        boxes=t.integer(facts.open_checks),
    )
