"""The last pages: how to see that nothing was changed since, who decides, and the words used."""

from __future__ import annotations

from dptrain.report.blocks import Block, Section, blank, heading, p, rows, section, tick, ticks
from dptrain.report.language import Language
from dptrain.report.shapes import Facts, HeadFacts

MATCHES = {None: "integrity.unknown", True: "integrity.match", False: "integrity.differs"}
TERMS = (
    "patient",
    "guarantee",
    "epsilon",
    "delta",
    "attacker",
    "exposed",
    "auroc",
    "interval",
    "ledger",
    "gate",
    "noise",
    "mu",
    "reference",
)


def integrity(facts: Facts, t: Language) -> Section:
    """How to see that nothing was changed since."""
    ledger, run = facts.ledger, facts.run
    head = ledger.head
    hashes = [
        (t("integrity.hash", file=t.known("file", name)), f"{row.stated or '–'} ({t(MATCHES[row.match])})")
        for name, row in facts.integrity.items()
    ]
    chain = [
        (t("integrity.head"), head.hash or t("unknown")),
        (t("integrity.entries"), t.integer(head.entries)),
        (t("integrity.time"), t.date(head.time)),
        (t("integrity.signature"), head.signature or t("unknown")),
        (t("integrity.key"), head.public_key or ""),
        *(() if ledger.now is None else _now(ledger.now, t)),
        (t("integrity.site"), ledger.site or ""),
        (t("integrity.grant"), ledger.grant or ""),
    ]
    versions = " · ".join(f"{name} {version}" for name, version in run.program.items())
    blocks = [
        p(t("integrity.sentence")),
        rows([*hashes, *chain]),
        p(t("integrity.witness.yes" if ledger.rollback_detectable else "integrity.witness.no")),
        heading(t("integrity.program")),
        rows([(t("integrity.versions"), versions), (t("integrity.command"), run.command or "")]),
    ]
    return section("integrity", t, blocks)


def _now(head: HeadFacts, t: Language) -> list[tuple[str, str]]:
    """The head when the report was made."""
    return [
        (t("integrity.now"), head.hash or t("unknown")),
        (t("integrity.now.entries"), t.integer(head.entries)),
        (t("integrity.now.time"), t.date(head.time)),
        (t("integrity.now.signature"), head.signature or t("unknown")),
        (t("integrity.now.key"), head.public_key or ""),
    ]


def signature(facts: Facts, t: Language) -> Section:
    """Advice, decision, names: filled in by people; the recorded decision where there is one."""
    blocks = _recorded(facts, t)
    if not facts.is_controllers:
        return section("signature", t, blocks or [p(t("signature.unrecorded"))])
    blocks += [
        blank(t("signature.advice.blank"), 4),
        ticks([tick("open", t(f"signature.choice.{n}")) for n in (1, 2, 3)]),
        blank(t("signature.decision.blank"), 4),
        {
            "kind": "signatures",
            "people": [t("signature.dpo"), t("signature.controller")],
            "fields": [t("signature.name"), t("signature.place"), t("signature.sign")],
        },
    ]
    return section("signature", t, blocks)


def _recorded(facts: Facts, t: Language) -> list[Block]:
    """The decision that is recorded."""
    released = facts.released
    if released is None:
        return []
    pairs = [
        (t("signature.items"), t.listing([t(f"item.{item}") for item in released.items])),
        (t("decision.recipient"), released.recipient or ""),
        (t("decision.purpose"), released.purpose or ""),
        (t("signature.advice"), released.advice or ""),
        (t("signature.without_advice"), released.without_advice or ""),
        (t("signature.without_audit"), released.without_audit or ""),
        (t("signature.exposed"), t.percent(released.accept_exposed) if released.accept_exposed else ""),
        (t("signature.accepted"), t.listing([t.known("check", name) for name in released.accepted])),
        (t("signature.controller"), released.controller or ""),
        (t("signature.date"), t.date(released.date)),
        (t("signature.entry"), released.entry or ""),
    ]
    compared = "decision" in facts.binding.agrees
    return [p(t("signature.recorded" if compared else "signature.uncompared")), rows(pairs)]


def glossary(facts: Facts, t: Language) -> Section:
    """Words of the report, for readers who are not from the field."""
    by_effect = facts.audit is not None and facts.audit.exposed.above is not None
    terms = ["exposed_effect" if by_effect and term == "exposed" else term for term in TERMS]
    return section("glossary", t, [rows([(t(f"term.{term}"), t(f"term.{term}.text")) for term in terms])])
