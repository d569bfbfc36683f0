"""What the law and the guidelines ask for, answered from the facts; what only the controller knows is a named blank.

GDPR Art. 35(7) a–d; EDPB Opinion 28/2024, section 3.2; NIST SP 800-226 (March 2025), the pyramid; Regulation
(EU) 2024/1689, Annex IV; Ponomareva et al. 2023, section 5.3 ("what to report").
"""

from __future__ import annotations

from dptrain.report.blocks import Block, Section, heading, p, section
from dptrain.report.language import Language
from dptrain.report.phrases import said
from dptrain.report.shapes import Facts

Points = dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]]

# reference -> (sentences from facts, named blanks, sections to look at). A sentence `name?` is shown where
# the fact that it needs is known; `a|b` shows the first whose fact is known.
GDPR: Points = {
    "a": (("gdpr.a.what", "gdpr.a.purpose?"), ("purpose_text", "legal_basis", "interest"), ("decision", "mechanism")),
    "b": (("gdpr.b.size", "gdpr.b.benefit?"), ("necessity", "alternatives", "retention"), ("utility", "promise")),
    "c": (
        ("gdpr.c.promised", "gdpr.c.measured|gdpr.c.undecided|gdpr.c.unmeasured"),
        ("harm", "other_risks"),
        ("risk", "not_covered"),
    ),
    "d": (
        ("gdpr.d.measures", "gdpr.d.proof"),
        ("access", "incident", "rights"),
        ("mechanism", "budget", "integrity"),
    ),
}
EDPB: Points = {
    "anonymity": (("edpb.anonymity",), ("anonymity_assessment",), ("promise", "risk")),
    "sources": (("edpb.sources",), ("source_selection", "minimisation"), ("decision",)),
    "training": (("edpb.training",), (), ("mechanism",)),
    "attacks": (("edpb.attacks|edpb.attacks.undecided|edpb.attacks.none",), ("extraction_tests",), ("risk",)),
    "outputs": (("edpb.outputs",), ("output_measures",), ()),
    "documents": (("edpb.documents",), ("dpo_advice", "deployer_information"), ("integrity", "signature")),
}
NIST: Points = {
    "epsilon": (("nist.epsilon",), (), ("promise",)),
    "unit": (("nist.unit",), (), ("promise", "mechanism")),
    "utility": (("nist.utility|nist.utility.none",), (), ("utility",)),
    "bias": (("nist.bias|nist.bias.none",), (), ("utility", "risk")),
    "algorithms": (("nist.algorithms",), (), ("mechanism",)),
    "implementation": (("nist.implementation",), (), ("mechanism",)),
    "trust": (("nist.trust",), ("trust",), ("integrity",)),
    "security": (("nist.security",), ("security",), ("mechanism",)),
    "collection": (("nist.collection",), ("collection",), ()),
}
AI_ACT: Points = {
    "1": (("ai.1",), ("provider", "intended_purpose", "hardware", "user_interface", "instructions"), ("decision",)),
    "2a": (("ai.2a",), (), ("mechanism",)),
    "2b": (("ai.2b",), ("design_choices",), ("mechanism", "promise")),
    "2c": (("ai.2c",), ("compute",), ("mechanism",)),
    "2d": (("ai.2d",), ("labelling", "cleaning"), ("decision",)),
    "2e": ((), ("oversight",), ()),
    "2f": ((), ("changes_planned",), ()),
    "2g": (("ai.2g|ai.2g.none",), ("external_validation",), ("utility", "risk")),
    "2h": (("ai.2h",), ("cybersecurity",), ("integrity",)),
    "3": (("ai.3",), ("limits", "unintended"), ("utility",)),
    "4": (("ai.4",), ("metrics_fit",), ("utility",)),
    "5": ((), ("risk_management",), ("risk",)),
    "6": (("ai.6",), ("changes_made",), ()),
    "7": ((), ("standards",), ()),
    "8": ((), ("conformity",), ()),
    "9": ((), ("monitoring",), ()),
}
PONOMAREVA: Points = {
    "setting": (("pono.setting",), (), ()),
    "data": (("pono.data",), (), ("not_covered",)),
    "output": (("pono.output",), (), ()),
    "unit": (("pono.unit",), (), ("promise",)),
    "adjacency": (("pono.adjacency",), (), ("promise",)),
    "accounting": (("pono.accounting",), (), ("budget",)),
    "assumptions": (("pono.assumptions",), (), ("mechanism",)),
    "statement": (("pono.statement",), (), ("promise",)),
    "tuning": (("pono.tuning.swept|pono.tuning.open|pono.tuning",), (), ("budget",)),
    "verification": (("pono.verification",), (), ("integrity",)),
}
FRAMEWORKS: dict[str, Points] = {"gdpr": GDPR, "edpb": EDPB, "nist": NIST, "ai_act": AI_ACT, "ponomareva": PONOMAREVA}


def frameworks(facts: Facts, t: Language) -> Section:
    """The section that answers the five lists point by point."""
    phrases, has = said(facts, t), _facts_at_hand(facts)
    blocks: list[Block] = [p(t("frameworks.sentence"))]
    for name, points in FRAMEWORKS.items():
        blocks.append({**heading(t(f"{name}.title")), "id": name})
        items = [
            {
                "ref": t(f"{name}.ref", ref=ref) if t.has(f"{name}.ref") else "",
                "title": t(f"{name}.{ref}.title"),
                "text": _answer(sentences, has, phrases, t),
                "blanks": [t(f"blank.{label}") for label in blanks],
                "see": list(see),
            }
            for ref, (sentences, blanks, see) in points.items()
        ]
        blocks.append({"kind": "answers", "items": items})
    return section("frameworks", t, blocks)


def _answer(sentences: tuple[str, ...], has: dict[str, bool], phrases: dict[str, str], t: Language) -> list[str]:
    answer = []
    for choice in sentences:
        for key in choice.split("|"):
            name = key.removesuffix("?")
            if has.get(name, True):
                answer.append(t(name, **phrases))
                break
    return answer


def _facts_at_hand(facts: Facts) -> dict[str, bool]:
    """Which sentences have the facts that they need."""
    audit, utility, privacy = facts.audit, facts.utility, facts.privacy
    has_utility = utility is not None and bool(utility.overall)
    return {
        "gdpr.a.purpose": bool(facts.released and facts.released.purpose),
        "gdpr.b.benefit": has_utility,
        "gdpr.c.measured": audit is not None and audit.exposed.count is not None,
        "gdpr.c.undecided": audit is not None,
        "gdpr.c.promised": privacy.epsilon is not None,
        "edpb.attacks": audit is not None and audit.exposed.count is not None,
        "edpb.attacks.undecided": audit is not None,
        "nist.utility": has_utility,
        "nist.bias": utility is not None and bool(utility.groups),
        "ai.2g": has_utility,
        "pono.tuning.swept": bool(facts.run.sweep and facts.run.sweep.trials),
        "pono.tuning.open": facts.run.sweep is not None,
    }
