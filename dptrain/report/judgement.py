"""What the facts amount to: odds of 100, what is complete, what page one must warn of, the verdict, the risks.

Everything is an id that the faces turn into sentences.
"""

from __future__ import annotations

import math
from dataclasses import replace

from dptrain.records.run import Check
from dptrain.report.shapes import AuditFacts, Facts, Odds, Pair, PrivacyFacts
from dptrain.vocabulary import Generator, RunStatus

PERSON_CHECKS = ("unit", "size", "weights", "constants", "access", "basis", "keys", "copies")
CHANCE_OF_100 = 50
# The program's own words for how much a patient is promised: right guesses of 100, where 50 need no model.
STRENGTHS = ((60, "strong"), (75, "moderate"), (90, "limited"), (100, "weak"))


def of_100(probability: float | None, *, up: bool = True) -> int | None:
    """A probability as a count of 100; ceilings are rounded up, never past 100."""
    if probability is None:
        return None
    return min(100, math.ceil(round(100 * probability, 6)) if up else round(100 * probability))


def odds(privacy: PrivacyFacts, audit: AuditFacts | None) -> Odds:
    """The guarantee in counts of 100, and what the audit measured beside it.

    `right_of_100`: right guesses of 100 by the best attacker where half of the patients were in the training;
    (1 + advantage)/2 (Kairouz et al. 2015; Nanayakkara et al. 2023 for the framing). `pairs`: of 100 models
    without the patient so many are wrongly called 'with', of 100 with the patient at most so many rightly.
    """
    pairs = []
    for stated, rate in (
        (privacy.tpr_at_1pct_fpr, 0.01),
        (privacy.tpr_at_5pct_fpr, 0.05),
        (privacy.tpr_at_10pct_fpr, 0.10),
    ):
        ceiling = 1.0 if privacy.infinite else stated
        cell = None if audit is None else audit.tpr_at.get(f"{rate:g}")
        mean = None if cell is None else cell.mean
        if mean is None and audit is not None and audit.roc is not None:
            mean = audit.roc.at(rate)
        pairs.append(
            Pair(
                without=round(100 * rate),
                with_at_most=of_100(ceiling),
                ceiling=ceiling,
                measured_mean=mean,
                measured_max=None if cell is None else cell.max,
                extrapolated=None if cell is None else cell.extrapolated,
            )
        )
    advantage = 1.0 if privacy.infinite else privacy.advantage
    right = None if advantage is None else of_100((1 + advantage) / 2)
    strength = None if right is None else next(word for most, word in STRENGTHS if right <= most)
    return Odds(right_of_100=right, chance_of_100=CHANCE_OF_100, strength=strength, pairs=tuple(pairs))


def person_checks(checks: tuple[Check, ...]) -> list[Check]:
    """What no program can check: the boxes of the section on the mechanism, the run's own ones among them."""
    own = [row for row in checks if row.by == "person" and row.id not in PERSON_CHECKS]
    ours = [Check(id=name) for name in PERSON_CHECKS]
    return [*ours[:5], *own, *ours[5:]]


def judged(facts: Facts) -> Facts:
    """The facts with `complete`, `warnings`, `verdict`, `risks` and the counts of checks."""
    every_piece = all(row.piece in ("audit", "metrics") for row in facts.missing)
    facts = replace(facts, complete=facts.run.status == RunStatus.COMPLETE and every_piece)
    return replace(
        facts,
        warnings=_warnings(facts),
        verdict=_verdict(facts),
        open_checks=len(person_checks(facts.checks)),
        passed_checks=sum(row.by == "program" and row.status == "passed" for row in facts.checks),
        risks=_risks(facts),
    )


FEW_TESTED = 30  # test patients below which figures are a matter of chance, whatever their intervals say


def _broken(audit: AuditFacts | None) -> bool:
    if audit is None:
        return False
    by_canary = audit.canary is not None and audit.canary.broken is True
    return by_canary or any(row.confirmed is True for row in audit.checks)


def _warnings(facts: Facts) -> tuple[str, ...]:
    audit = facts.audit
    failed = {row.id for row in facts.checks if row.by == "program" and row.status == "failed"}
    warnings = [
        ("guarantee_broken", _broken(audit)),
        ("incomplete", not facts.complete),
        ("hash_mismatch", bool(facts.mismatches)),
        ("ledger_differs", bool(facts.binding.differs)),
        ("infinite", facts.privacy.infinite),
        ("fast_generator", facts.privacy.generator == Generator.FAST),
        ("check_failed", bool(failed - {"noise"})),
        ("audit_missing", audit is None and (facts.is_controllers or "audit" in facts.items)),
        ("audit_thin", audit is not None and bool(audit.missing)),
        ("few_tested", facts.utility is not None and (facts.utility.patients or FEW_TESTED) < FEW_TESTED),
        ("unreached", facts.binding.ledger != "reached"),
        ("unbound", facts.binding.closed is False),
        ("rollback", facts.ledger.rollback_detectable is not True),
    ]
    return tuple(name for name, is_so in warnings if is_so)


def _verdict(facts: Facts) -> str:
    unknown = facts.privacy.epsilon is None and not facts.privacy.infinite
    if _broken(facts.audit):
        return "broken"
    if facts.mismatches or facts.binding.differs:
        return "mismatch"
    if not facts.complete or unknown:
        return "incomplete"
    if facts.privacy.infinite:
        return "none"
    if facts.exposed:
        return "exposed"
    if facts.audit is None:
        return "unmeasured" if facts.is_controllers else "promised"
    return "undecided" if facts.exposed is None else "holds"


def _risks(facts: Facts) -> tuple[str, ...]:
    run, privacy, utility = facts.run, facts.privacy, facts.utility
    risks = [
        ("exposed", bool(facts.exposed)),
        ("weak_promise", facts.odds.strength in ("limited", "weak") and not privacy.infinite),
        ("group_gap", utility is not None and any(gap.intervals_overlap is False for gap in utility.gaps)),
        ("cautions", bool(facts.cohort.cautions)),
        ("several_units", (facts.cohort.units_per_person or 1) > 1),
        ("inherited", bool(privacy.inherited)),
        ("package_weights", facts.model.weights_source in ("package", "public", "file")),
        ("crashes", bool(run.resume.crashes)),
        ("sweep", bool(run.sweep is not None and run.sweep.trials)),
        ("sweep_open", bool(run.sweep is not None and not run.sweep.trials)),
        ("test_patients", True),
        ("person_checks", bool(person_checks(facts.checks))),
    ]
    return tuple(name for name, is_so in risks if is_so)
