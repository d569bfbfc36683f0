"""Reconstruction: what attacks reached without protection and under the promise, as shares. No picture, ever."""

from __future__ import annotations

from dptrain.report.blocks import Section, p, section, table
from dptrain.report.language import Language
from dptrain.report.shapes import AttackRowFacts, Facts


def reconstruction(facts: Facts, t: Language) -> Section:
    """One table of all games, and what it means; nothing where no attack was made."""
    attack = facts.attack
    if attack is None or not attack.rows:
        return section("reconstruction", t, [], marked=True)
    head = [
        t("reconstruction.what"),
        t("reconstruction.under"),
        t("reconstruction.reached"),
        t("reconstruction.allowed"),
        t("reconstruction.likeness"),
        t("reconstruction.guess"),
    ]
    body = [_row(row, t) for row in attack.rows]
    blocks = [
        p(t("reconstruction.intro")),
        table(t("reconstruction.table"), head, body, t("reconstruction.note")),
        p(t("reconstruction.lesson")),
    ]
    if any(row.above for row in attack.rows):
        blocks.insert(1, p(t("reconstruction.broken")))
    return section("reconstruction", t, blocks, marked=True)


def _row(row: AttackRowFacts, t: Language) -> list[str]:
    share = t("unknown") if row.success is None else t.percent(row.success)
    return [
        _what(row, t),
        t(f"reconstruction.arm.{row.arm}")
        if row.epsilon is None and t.has(f"reconstruction.arm.{row.arm}")
        else t.epsilon(row.epsilon, row.epsilon is None),
        f"{share} ({t.interval(row.low, row.high, percent=True, digits=1)})",
        "" if row.bound is None else t.percent(row.bound),
        "" if row.ssim is None else t.number(row.ssim, 2),
        "" if row.guess is None else t.number(row.guess, 2),
    ]


def _what(row: AttackRowFacts, t: Language) -> str:
    """The game in words."""
    if row.game == "lineup":
        return t("reconstruction.lineup", candidates=t.integer(row.candidates))
    if row.game == "message":
        coordinator = t.known("reconstruction.coordinator", row.coordinator)
        prior = t("reconstruction.prior") if row.prior == "public" else ""
        count = t.integer(row.patients_in_message)
        return t("reconstruction.message", count=count, coordinator=coordinator) + prior
    return t("reconstruction.weights", returns=t.known("reconstruction.returns", row.returns))
