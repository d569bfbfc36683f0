"""The faces for machines and model hubs: registry entry, model card, and the privacy part of a MONAI bundle.

They are English, as their readers' tools are. YAML goes through a dumper and Markdown is escaped character by
character, so hostile text in a name stays text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import yaml

from dptrain.plain import Json
from dptrain.records.run import Released, Use
from dptrain.report import phrases
from dptrain.report.language import Language
from dptrain.report.shapes import Facts
from dptrain.vocabulary import TASKS


def markdown(text: str) -> str:
    """Text that Markdown, HTML and LaTeX inside Markdown leave as it is (an underscore inside a word is no mark)."""
    escaped = re.sub(r"[\\`*\[\]|$~#!>]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", text)
    escaped = escaped.replace("&", "&amp;").replace("<", "&lt;")
    lead = escaped[:1]
    if lead in ("-", "+", "=", ":"):
        return f"\\{escaped}"
    digits = len(escaped) - len(escaped.lstrip("0123456789"))
    if digits and escaped[digits : digits + 1] in (".", ")") and not escaped[digits + 1 : digits + 2].strip():
        return f"{escaped[:digits]}\\{escaped[digits:]}"
    return escaped


UNNAMED = "to be named by the controller"


@dataclass(frozen=True)
class Card:
    """What the faces have in common: the facts, their phrases as Markdown, and the model's name.

    infinite: whether no finite epsilon is known. uncovered: uses of the data that epsilon does not cover.
    """

    facts: Facts
    said: Mapping[str, str]
    name: str
    infinite: bool
    uncovered: tuple[Use, ...]
    released: Released

    @classmethod
    def of(cls, facts: Facts) -> Self:
        """The card of a report's facts."""
        privacy = facts.privacy
        return cls(
            facts=facts,
            said={key: markdown(value) for key, value in phrases.said(facts, Language("en")).items()},
            name=facts.run.recipe or facts.cohort.name or "model",
            infinite=privacy.infinite or privacy.epsilon is None,
            uncovered=tuple(row for row in facts.not_covered if row.status == "not_covered"),
            released=facts.released or Released(),
        )

    @property
    def owner(self) -> str:
        """Who answers for the data."""
        return self.facts.cohort.owner or self.released.controller or UNNAMED


def registry(facts: Facts) -> str:
    """An entry for the OpenDP deployment registry, status Draft, all three tiers as far as known.

    Schema: opendp/deployments-registry-data, `deployments-schema.yaml`.
    """
    card = Card.of(facts)
    entry = {
        "url_slug": _slug(f"{card.name}-{facts.run.id or 'run'}"),
        "status": "Draft",
        "tier": 3 if not card.infinite and facts.complete else 1,
        "deployment": {
            "basic": _basic(card),
            "dp_variant": _variant(card),
            "privacy_loss": _privacy_loss(card),
            "deployment_model": _deployment_model(card),
            "accounting": {
                "post_processing": "Averages of weights over steps; calibration from one charged noisy histogram; "
                "everything that is computed from the trained model.",
                "composition": "Joint privacy loss distribution over the steps of the run; across runs: "
                f"{card.said['kind']}.",
            },
            "implementation": _implementation(card),
            "administrative": {
                "sources": markdown(facts.cohort.source or UNNAMED),
                "notes": markdown(" ".join(facts.cohort.cautions)) or "none",
                "registry_authors": [markdown(card.released.controller or card.owner)],
            },
        },
    }
    return yaml.safe_dump(entry, sort_keys=False, allow_unicode=True, width=110)


def _basic(card: Card) -> Json:
    said, facts = card.said, card.facts
    return {
        "name": markdown(f"{card.name} ({facts.run.id or 'run'})"),
        "data_curators": [markdown(card.owner)],
        "description": f"Model for {said['task']}; classes: {said['classes']}. Network: {said['network']}.",
        "intended_use": markdown(card.released.purpose or UNNAMED),
        "data_product_type": "Machine learning model",
        "data_product_region": UNNAMED,
        "publication_date": (card.released.date or facts.made)[:10],
        "data_product_sector": "Healthcare",
    }


def _variant(card: Card) -> Json:
    uncovered = [markdown(row.what) for row in card.uncovered]
    return {
        "variant_name": "Custom" if card.infinite else "Approximate DP",
        "data_domain": f"Sets of units of protection ({card.said['unit']}), each with at least one labelled image; "
        f"cohort {card.said['cohort']}.",
        "unprotected_quantities": "; ".join(
            ["declared size of the cohort, configuration, charges of the ledger", *uncovered]
        ),
    }


def _privacy_loss(card: Card) -> Json:
    privacy = card.facts.privacy
    parameters: Json = {} if card.infinite else {"epsilon": privacy.epsilon}
    if privacy.delta is not None:
        parameters["delta"] = privacy.delta
    return {
        "privacy_unit": card.said["unit"],
        "privacy_unit_details": f"Neighbouring data sets: {card.said['adjacency']}.",
        "privacy_parameters": parameters,
        "privacy_parameters_details": "No guarantee: epsilon is infinite or not known."
        if card.infinite
        else f"Accountant: {card.said['accountant']}; stated for the whole training, its starting weights included.",
    }


def _deployment_model(card: Card) -> Json:
    return {
        "model_name": "Central",
        "model_name_details": "The controller of the clinic holds the data and trains the model.",
        "actors": "Controller (trusted with the data), administrator of the machine (trusted), recipients of the "
        "model (not trusted; assumed to know everything but one patient).",
        "release_type": "One release",
        "release_type_details": "Every further training on the cohort is charged to the same budget, which locks "
        "when it is spent.",
        "data_source_type": "Static",
        "data_source_type_details": f"Version {card.said['version']} of the cohort.",
        "access_type": "Non-interactive",
        "access_type_details": "Recipients query the model without limit; that costs no further privacy.",
    }


def _implementation(card: Card) -> Json:
    said, t = card.said, Language("en")
    passed = [row.id for row in card.facts.checks if row.status == "passed" and row.by == "program"]
    checks = " ".join(markdown(t.known("check", identity)) for identity in passed)
    return {
        "preprocessing_and_hyperparameter_tuning": "Preprocessing is fixed in the configuration; no statistic "
        "of the cohort enters it. "
        + (
            f"Trials: {said['trials']}, all charged; together ε = {said['total']}."
            if card.facts.run.sweep
            else "Every trial is charged to the ledger."
        ),
        "mechanisms": f"DP-SGD with Poisson draws of patients: rate {said['rate']}, noise multiplier "
        f"{said['noise']}, clipping norm {said['clip']}, {said['steps']} steps. Randomness: {said['generator']}. "
        f"dptrain {said['dptrain']}, Opacus {said['opacus']}, PyTorch {said['torch']}.",
        "justification": f"Checked by the program: {checks}" if checks else UNNAMED,
    }


def _slug(text: str) -> str:
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower())
    return "-".join(part for part in kept.split("-") if part)[:80] or "run"


def _tag(task: str | None) -> str:
    """The hub's name for a task that may be a later one."""
    return next((spec.tag for name, spec in TASKS.items() if name == task), "image-classification")


def model_card(facts: Facts) -> str:
    """A model card with the front matter of the Hugging Face hub; results only where they are released."""
    card = Card.of(facts)
    said = card.said
    lines = [
        "---",
        yaml.safe_dump(_front_matter(card), sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {markdown(card.name)}",
        "",
        f"Model for {said['task']}; classes: {said['classes']}. Network: {said['network']}, {said['parameters']} "
        f"parameters, {said['trainable']} of them trained.",
        "",
        "## Privacy",
        "",
        *_promise(card),
        "",
        "## Intended use",
        "",
        markdown(card.released.purpose or UNNAMED),
        "",
        "Not a medical device. Whether it is fit for a purpose has to be shown for that purpose.",
        "",
        "## Training data",
        "",
        f"Cohort {said['cohort']}, version {said['version']}, declared size {said['size']}. "
        f"Source: {said['source']}. Licence: {said['licence']}.",
        "",
        *(f"- Caution: {markdown(text)}" for text in facts.cohort.cautions),
        "",
        "## Results",
        "",
        *_results(card),
    ]
    return "\n".join(lines) + "\n"


def _front_matter(card: Card) -> Json:
    """What the hub reads of a model."""
    utility, cohort = card.facts.utility, card.facts.cohort
    front: Json = {
        "language": "en",
        "license": "other",
        "license_name": "to-be-named-by-the-controller",
        "library_name": "monai",
        "pipeline_tag": _tag(card.facts.run.task),
        "tags": ["medical", "monai", "differential-privacy", "dp-sgd", "dptrain"],
    }
    if utility is not None and utility.overall:
        front["metrics"] = list(utility.overall)
        dataset = {"name": cohort.name or UNNAMED, "type": "other", "split": utility.split}
        metrics = [{"type": key, "value": cell.value} for key, cell in utility.overall.items()]
        result = {"task": {"type": front["pipeline_tag"]}, "dataset": dataset, "metrics": metrics}
        front["model-index"] = [{"name": card.name, "results": [result]}]
    return front


def _promise(card: Card) -> list[str]:
    """The guarantee, where the ledger stood, and what epsilon does not cover."""
    said, facts = card.said, card.facts
    return [
        Language("en")("promise.infinite")
        if facts.privacy.infinite
        else f"Unit: {said['unit']}. Neighbouring data sets: {said['adjacency']}. {said['guarantee']} (accountant: "
        f"{said['accountant']}). The best attacker guesses right in at most {said['right']} of 100 cases whether a "
        f"person was in the training; {said['chance']} by chance.",
        "",
        f"Ledger head: {markdown(facts.ledger.head.hash or 'not known')}",
        "",
        "### Not covered by ε",
        "",
        *(f"- {markdown(row.what)}: {markdown(row.note)}" for row in card.uncovered),
    ]


def _results(card: Card) -> list[str]:
    """What was measured, as far as it is released."""
    utility, audit, t = card.facts.utility, card.facts.audit, Language("en")
    lines = ["No result is released."]
    if utility is not None and utility.overall:
        split = markdown(t.known("split", utility.split))
        lines = [
            f"Measured on {card.said['test_patients']} patients ({split}); not covered by ε.",
            "",
            "| Measure | Value | Interval |",
            "|---|---|---|",
            *(
                f"| {markdown(t.known('metric', key))} | {t.number(cell.value, 3)} "
                f"| {t.interval(cell.low, cell.high) or 'not known'} |"
                for key, cell in utility.overall.items()
            ),
        ]
    if audit is not None and audit.exposed.count is not None:
        lines += [
            "",
            f"Audit (not covered by ε): {card.said['exposed']} of {card.said['screened']} patients exposed, by "
            f"{card.said['references']} reference models.",
        ]
    released = card.facts.released
    without = None if released is None else released.without_audit
    if without:
        lines += ["", f"Released without an audit: {markdown(without)}"]
    return lines


def bundle_privacy(facts: Facts) -> Json:
    """The `privacy` object of a MONAI bundle's metadata: the guarantee in numbers, and where it comes from."""
    privacy, head = facts.privacy, facts.ledger.head
    return {
        "schema": facts.schema,
        "run": facts.run.id,
        **{
            name: getattr(privacy, name)
            for name in (
                "unit", "adjacency", "epsilon", "infinite", "delta", "accountant", "noise_multiplier", "sample_rate",
                "steps_charged", "max_grad_norm", "generator", "mu", "tpr_at_1pct_fpr",
            )
        },
        "right_of_100": facts.odds.right_of_100,
        "ledger_head": head.hash,
        "not_covered": [row.what for row in facts.not_covered if row.status == "not_covered"],
        "cautions": list(facts.cohort.cautions),
    }  # fmt: skip
