"""What the law and the guidelines ask for, answered from the facts; what only the controller knows is a named blank.

GDPR Art. 35(7) a–d; EDPB Opinion 28/2024, section 3.2; NIST SP 800-226 (March 2025), the pyramid; Regulation
(EU) 2024/1689, Annex IV; Ponomareva et al. 2023, section 5.3 ("what to report").
"""

from __future__ import annotations

from typing import Any

from dptrain.report.facts import Facts
from dptrain.report.language import Language

Block = dict[str, Any]
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


def frameworks(facts: Facts, t: Language) -> dict[str, Any]:
    """The section that answers the five lists point by point."""
    said, known = values(facts, t), _known(facts)
    blocks: list[Block] = [{"kind": "p", "text": t("frameworks.sentence")}]
    for name, points in FRAMEWORKS.items():
        blocks.append({"kind": "heading", "text": t(f"{name}.title"), "id": name})
        items = [
            {
                "ref": t(f"{name}.ref", ref=ref) if t.has(f"{name}.ref") else "",
                "title": t(f"{name}.{ref}.title"),
                "text": _said(sentences, known, said, t),
                "blanks": [t(f"blank.{label}") for label in blanks],
                "see": list(see),
            }
            for ref, (sentences, blanks, see) in points.items()
        ]
        blocks.append({"kind": "answers", "items": items})
    return {"id": "frameworks", "title": t("frameworks.title"), "marked": False, "blocks": blocks}


def _said(sentences: tuple[str, ...], known: dict[str, bool], values: dict[str, str], t: Language) -> list[str]:
    said = []
    for choice in sentences:
        for key in choice.split("|"):
            name = key.removesuffix("?")
            if known.get(name, True):
                said.append(t(name, **values))
                break
    return said


def _known(facts: Facts) -> dict[str, bool]:
    """Which sentences have the facts that they need."""
    audit, utility, privacy = facts["audit"], facts["utility"], facts["privacy"]
    has_utility = utility is not None and bool(utility["overall"])
    return {
        "gdpr.a.purpose": bool((facts["released"] or {}).get("purpose")),
        "gdpr.b.benefit": has_utility,
        "gdpr.c.measured": audit is not None and audit["exposed"]["count"] is not None,
        "gdpr.c.undecided": audit is not None,
        "gdpr.c.promised": privacy["epsilon"] is not None,
        "edpb.attacks": audit is not None and audit["exposed"]["count"] is not None,
        "edpb.attacks.undecided": audit is not None,
        "nist.utility": has_utility,
        "nist.bias": utility is not None and bool(utility["groups"]),
        "ai.2g": has_utility,
        "pono.tuning.swept": bool(facts["run"]["sweep"] and facts["run"]["sweep"]["trials"]),
        "pono.tuning.open": facts["run"]["sweep"] is not None,
    }


def values(facts: Facts, t: Language) -> dict[str, str]:
    from dptrain.report import content

    run, cohort, privacy = facts["run"], facts["cohort"], facts["privacy"]
    audit, utility, model = facts["audit"] or {}, facts["utility"] or {}, facts["model"]
    exposed = audit.get("exposed") or {}
    main = (utility.get("overall") or {}).get(utility.get("main") or "")
    return {
        "task": t.known("task", run["task"]),
        "classes": ", ".join(run["classes"]) or t("unknown"),
        "cohort": cohort["name"] or t("unknown"),
        "version": t.integer(cohort["version"]),
        "size": t.integer(cohort["public_size"]),
        "source": cohort["source"] or t("unknown"),
        "licence": cohort["licence"] or t("unknown"),
        "owner": cohort["owner"] or t("unknown"),
        "unit": content.unit_word(facts, t),
        "adjacency": t.known("adjacency", privacy["adjacency"]),
        "guarantee": content.guarantee(facts, t),
        "accountant": privacy["accountant"] or t("unknown"),
        "right": t.integer(facts["odds"]["right_of_100"]),
        "chance": t.integer(facts["odds"]["chance_of_100"]),
        "purpose": (facts["released"] or {}).get("purpose") or "",
        "metric": t.known("metric", utility.get("main")),
        "estimate": content._estimate(main, t) if main else t("unknown"),
        "test_patients": t.integer(utility.get("patients")),
        "exposed": t.integer(exposed.get("count")),
        "screened": t.integer(audit.get("patients")),
        "references": t.integer(audit.get("references")),
        "columns": t.listing([t.known("column", column) for column in utility.get("groups", {})]),
        "rate": t.shortest(privacy["sample_rate"]),
        "noise": t.number(privacy["noise_multiplier"], 3),
        "clip": t.shortest(privacy["max_grad_norm"], 3),
        "steps": t.integer(privacy["steps_charged"]),
        "generator": t.known("generator", privacy["generator"]),
        "network": model["network"] or t("unknown"),
        "parameters": t.integer(model["parameters"]),
        "trainable": t.integer(model["trainable_parameters"]),
        "weights": t.known("weights_source", model["weights_source"]),
        "device": run["program"].get("device") or t("unknown"),
        "platform": run["program"].get("platform") or t("unknown"),
        "dptrain": run["program"].get("dptrain") or t("unknown"),
        "torch": run["program"].get("torch") or t("unknown"),
        "opacus": run["program"].get("opacus") or t("unknown"),
        "entries": t.integer(facts["ledger"]["head"]["entries"]),
        "kind": t.known("kind", facts["budget"]["kind"]),
        "trials": t.integer((run["sweep"] or {}).get("trials")),
        "total": t.epsilon((run["sweep"] or {}).get("epsilon_total")),
        "passed": t.integer(facts["passed_checks"]),
        "boxes": t.integer(facts["open_checks"]),
    }
