"""The faces for machines and model hubs: registry entry, model card, and the privacy part of a MONAI bundle.

They are English, as their readers' tools are. YAML goes through a dumper and Markdown is escaped character by
character, so hostile text in a name stays text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from dptrain.records.parts import Estimate
from dptrain.records.run import Released
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


def registry(facts: Facts) -> str:
    """An entry for the OpenDP deployment registry, status Draft, all three tiers as far as known.

    Schema: opendp/deployments-registry-data, `deployments-schema.yaml`.
    """
    run, cohort, privacy, released = facts.run, facts.cohort, facts.privacy, facts.released or Released()
    said = {key: markdown(value) for key, value in phrases.said(facts, Language("en")).items()}
    t = Language("en")
    name = run.recipe or cohort.name or "model"
    infinite = privacy.infinite or privacy.epsilon is None
    owner = cohort.owner or released.controller or UNNAMED
    uncovered = [markdown(row.what) for row in facts.not_covered if row.status == "not_covered"]
    parameters: dict[str, Any] = {} if infinite else {"epsilon": privacy.epsilon}
    if privacy.delta is not None:
        parameters["delta"] = privacy.delta
    checks = [t.known("check", row.id) for row in facts.checks if row.status == "passed" and row.by == "program"]
    deployment = {
        "basic": {
            "name": markdown(f"{name} ({run.id or 'run'})"),
            "data_curators": [markdown(owner)],
            "description": f"Model for {said['task']}; classes: {said['classes']}. Network: {said['network']}.",
            "intended_use": markdown(released.purpose or UNNAMED),
            "data_product_type": "Machine learning model",
            "data_product_region": UNNAMED,
            "publication_date": (released.date or facts.made)[:10],
            "data_product_sector": "Healthcare",
        },
        "dp_variant": {
            "variant_name": "Custom" if infinite else "Approximate DP",
            "data_domain": f"Sets of units of protection ({said['unit']}), each with at least one labelled image; "
            f"cohort {said['cohort']}.",
            "unprotected_quantities": "; ".join(
                ["declared size of the cohort, configuration, charges of the ledger", *uncovered]
            ),
        },
        "privacy_loss": {
            "privacy_unit": said["unit"],
            "privacy_unit_details": f"Neighbouring data sets: {said['adjacency']}.",
            "privacy_parameters": parameters,
            "privacy_parameters_details": "No guarantee: epsilon is infinite or not known."
            if infinite
            else f"Accountant: {said['accountant']}; stated for the whole training, its starting weights included.",
        },
        "deployment_model": {
            "model_name": "Central",
            "model_name_details": "The controller of the clinic holds the data and trains the model.",
            "actors": "Controller (trusted with the data), administrator of the machine (trusted), recipients of the "
            "model (not trusted; assumed to know everything but one patient).",
            "release_type": "One release",
            "release_type_details": "Every further training on the cohort is charged to the same budget, which locks "
            "when it is spent.",
            "data_source_type": "Static",
            "data_source_type_details": f"Version {said['version']} of the cohort.",
            "access_type": "Non-interactive",
            "access_type_details": "Recipients query the model without limit; that costs no further privacy.",
        },
        "accounting": {
            "post_processing": "Averages of weights over steps; calibration from one charged noisy histogram; "
            "everything that is computed from the trained model.",
            "composition": f"Joint privacy loss distribution over the steps of the run; across runs: {said['kind']}.",
        },
        "implementation": {
            "preprocessing_and_hyperparameter_tuning": "Preprocessing is fixed in the configuration; no statistic "
            "of the cohort enters it. "
            + (
                f"Trials: {said['trials']}, all charged; together ε = {said['total']}."
                if run.sweep
                else "Every trial is charged to the ledger."
            ),
            "mechanisms": f"DP-SGD with Poisson draws of patients: rate {said['rate']}, noise multiplier "
            f"{said['noise']}, clipping norm {said['clip']}, {said['steps']} steps. Randomness: {said['generator']}. "
            f"dptrain {said['dptrain']}, Opacus {said['opacus']}, PyTorch {said['torch']}.",
            "justification": f"Checked by the program: {' '.join(map(markdown, checks))}" if checks else UNNAMED,
        },
        "administrative": {
            "sources": markdown(cohort.source or UNNAMED),
            "notes": markdown(" ".join(cohort.cautions)) or "none",
            "registry_authors": [markdown(released.controller or owner)],
        },
    }
    entry = {
        "url_slug": _slug(f"{name}-{run.id or 'run'}"),
        "status": "Draft",
        "tier": 3 if not infinite and facts.complete else 1,
        "deployment": deployment,
    }
    return yaml.safe_dump(entry, sort_keys=False, allow_unicode=True, width=110)


def _slug(text: str) -> str:
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower())
    return "-".join(part for part in kept.split("-") if part)[:80] or "run"


def _tag(task: str | None) -> str:
    """The hub's name for a task that may be a later one."""
    return next((spec.tag for name, spec in TASKS.items() if name == task), "image-classification")


def model_card(facts: Facts) -> str:
    """A model card with the front matter of the Hugging Face hub; results only where they are released."""
    run, cohort, privacy, released = facts.run, facts.cohort, facts.privacy, facts.released or Released()
    utility, t = facts.utility, Language("en")
    said = {key: markdown(value) for key, value in phrases.said(facts, Language("en")).items()}
    name = run.recipe or cohort.name or "model"
    split = markdown(t.known("split", utility.split if utility else None))
    uncovered = [row for row in facts.not_covered if row.status == "not_covered"]
    front: dict[str, Any] = {
        "language": "en",
        "license": "other",
        "license_name": "to-be-named-by-the-controller",
        "library_name": "monai",
        "pipeline_tag": _tag(run.task),
        "tags": ["medical", "monai", "differential-privacy", "dp-sgd", "dptrain"],
    }
    overall: dict[str, Estimate] = utility.overall if utility else {}
    if overall:
        front["metrics"] = list(overall)
        front["model-index"] = [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": front["pipeline_tag"]},
                        "dataset": {
                            "name": cohort.name or UNNAMED,
                            "type": "other",
                            "split": utility.split if utility else None,
                        },
                        "metrics": [{"type": key, "value": cell.value} for key, cell in overall.items()],
                    }
                ],
            }
        ]
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {markdown(name)}",
        "",
        f"Model for {said['task']}; classes: {said['classes']}. Network: {said['network']}, {said['parameters']} "
        f"parameters, {said['trainable']} of them trained.",
        "",
        "## Privacy",
        "",
        t("promise.infinite")
        if privacy.infinite
        else f"Unit: {said['unit']}. Neighbouring data sets: {said['adjacency']}. {said['guarantee']} (accountant: "
        f"{said['accountant']}). The best attacker guesses right in at most {said['right']} of 100 cases whether a "
        f"person was in the training; {said['chance']} by chance.",
        "",
        f"Ledger head: {markdown(facts.ledger.head.hash or 'not known')}",
        "",
        "### Not covered by ε",
        "",
        *(f"- {markdown(row.what)}: {markdown(row.note)}" for row in uncovered),
        "",
        "## Intended use",
        "",
        markdown(released.purpose or UNNAMED),
        "",
        "Not a medical device. Whether it is fit for a purpose has to be shown for that purpose.",
        "",
        "## Training data",
        "",
        f"Cohort {said['cohort']}, version {said['version']}, declared size {said['size']}. "
        f"Source: {said['source']}. Licence: {said['licence']}.",
        "",
        *(f"- Caution: {markdown(text)}" for text in cohort.cautions),
        "",
        "## Results",
        "",
    ]
    if overall:
        lines += [
            f"Measured on {said['test_patients']} patients ({split}); not covered by ε.",
            "",
            "| Measure | Value | Interval |",
            "|---|---|---|",
            *(
                f"| {markdown(t.known('metric', key))} | {t.number(cell.value, 3)} "
                f"| {t.interval(cell.low, cell.high) or 'not known'} |"
                for key, cell in overall.items()
            ),
        ]
    else:
        lines.append("No result is released.")
    if facts.audit is not None and facts.audit.exposed.count is not None:
        lines += [
            "",
            f"Audit (not covered by ε): {said['exposed']} of {said['screened']} patients exposed, by "
            f"{said['references']} reference models.",
        ]
    if released.without_audit:
        lines += ["", f"Released without an audit: {markdown(released.without_audit)}"]
    return "\n".join(lines) + "\n"


def bundle_privacy(facts: Facts) -> dict[str, Any]:
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
