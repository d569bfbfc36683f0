"""Phrases that several sections and faces have in common: facts as text, in one language."""

from __future__ import annotations

from dptrain.records.parts import Estimate
from dptrain.report.language import Language
from dptrain.report.shapes import ExposedFacts, Facts, HistoryRow

METRIC_DIGITS = 3


def unit_word(facts: Facts, t: Language) -> str:
    """The unit of protection as a word of the language."""
    return t.known("unit", facts.privacy.unit or facts.cohort.unit)


def guarantee(facts: Facts, t: Language) -> str:
    """ε = 7.98, δ = 10⁻⁵."""
    privacy = facts.privacy
    if privacy.infinite:
        return "ε = ∞"
    if privacy.epsilon is None:
        return t("unknown")
    return t("guarantee.short", epsilon=t.epsilon(privacy.epsilon), delta=t.power(privacy.delta))


def estimate(cell: Estimate, t: Language) -> str:
    """0.982 (0.974 to 0.989)."""
    value = t.number(cell.value, METRIC_DIGITS)
    interval = t.interval(cell.low, cell.high, digits=METRIC_DIGITS)
    return f"{value} ({interval})" if interval else value


def share_interval(cell: ExposedFacts, t: Language) -> str:
    """1.2% to 2.3%, or 'not known'."""
    return t.interval(cell.low, cell.high, percent=True, digits=1) or t("unknown")


def main_estimate(facts: Facts) -> Estimate | None:
    """The main figure of the model's use, where it may be shown."""
    utility = facts.utility
    return None if utility is None or utility.main is None else utility.overall.get(utility.main)


def charged(row: HistoryRow, t: Language) -> str:
    """What a run was charged by itself."""
    return "–" if row.private and row.epsilon is None else t.epsilon(row.epsilon, not row.private)


def said(facts: Facts, t: Language) -> dict[str, str]:
    """The facts as sentences name them: for the answers to the law, the registry entry and the model card."""
    return {**_of_data(facts, t), **_of_privacy(facts, t), **_of_results(facts, t), **_of_program(facts, t)}


def _of_data(facts: Facts, t: Language) -> dict[str, str]:
    run, cohort = facts.run, facts.cohort
    return {
        "task": t.known("task", run.task),
        "classes": ", ".join(run.classes) or t("unknown"),
        "cohort": cohort.name or t("unknown"),
        "version": t.integer(cohort.version),
        "size": t.integer(cohort.public_size),
        "source": cohort.source or t("unknown"),
        "licence": cohort.licence or t("unknown"),
        "owner": cohort.owner or t("unknown"),
        "purpose": (facts.released.purpose if facts.released else None) or "",
    }


def _of_privacy(facts: Facts, t: Language) -> dict[str, str]:
    privacy, sweep = facts.privacy, facts.run.sweep
    return {
        "unit": unit_word(facts, t),
        "adjacency": t.known("adjacency", privacy.adjacency),
        "guarantee": guarantee(facts, t),
        "accountant": privacy.accountant or t("unknown"),
        "right": t.integer(facts.odds.right_of_100),
        "chance": t.integer(facts.odds.chance_of_100),
        "rate": t.shortest(privacy.sample_rate),
        "noise": t.number(privacy.noise_multiplier, 3),
        "clip": t.shortest(privacy.max_grad_norm),
        "steps": t.integer(privacy.steps_charged),
        "generator": t.known("generator", privacy.generator),
        "entries": t.integer(facts.ledger.head.entries),
        "kind": t.known("kind", facts.budget.kind),
        "trials": t.integer(sweep.trials if sweep else None),
        "total": t.epsilon(sweep.epsilon_total if sweep else None),
        "passed": t.integer(facts.passed_checks),
        "boxes": t.integer(facts.open_checks),
    }


def _of_results(facts: Facts, t: Language) -> dict[str, str]:
    audit, utility, main = facts.audit, facts.utility, main_estimate(facts)
    columns = utility.groups if utility else {}
    return {
        "metric": t.known("metric", utility.main if utility else None),
        "estimate": estimate(main, t) if main else t("unknown"),
        "test_patients": t.integer(utility.patients if utility else None),
        "exposed": t.integer(facts.exposed),
        "screened": t.integer(audit.patients if audit else None),
        "references": t.integer(audit.references if audit else None),
        "columns": t.listing([t.known("column", column) for column in columns]),
    }


def _of_program(facts: Facts, t: Language) -> dict[str, str]:
    model, program = facts.model, facts.run.program
    names = ("device", "platform", "dptrain", "torch", "opacus")
    return {
        "network": model.network or t("unknown"),
        "parameters": t.integer(model.parameters),
        "trainable": t.integer(model.trainable_parameters),
        "weights": t.known("weights_source", model.weights_source),
        **{name: program.get(name) or t("unknown") for name in names},
    }
