"""The faces of the facts: HTML, PDF, registry entry, model card, and the privacy part of a MONAI bundle.

Each is a function facts -> text or bytes. Names and configuration come from outside: the HTML template escapes
them, Typst receives them as data, YAML goes through a dumper, Markdown is escaped character by character.
"""

from __future__ import annotations

import json
from datetime import datetime
from importlib.resources import files
from typing import Any

import yaml

from dptrain.report.content import document
from dptrain.report.facts import Facts
from dptrain.report.language import Language

FONTS = "embedded"  # Typst's own: Libertinus Serif, DejaVu Sans Mono; never the machine's


def figures(doc: dict[str, Any], facts: Facts, t: Language) -> dict[str, str]:
    """Every drawing of the document, by name."""
    from dptrain.report.figures import draw

    names = [block["name"] for section in doc["sections"] for block in section["blocks"] if block["kind"] == "figure"]
    return {name: draw(name, facts, t) for name in names}


def html(doc: dict[str, Any], drawings: dict[str, str]) -> str:
    """One file without scripts, fonts or addresses."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    alts = {b["name"]: b["alt"] for section in doc["sections"] for b in section["blocks"] if b["kind"] == "figure"}
    inline = {
        name: Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alts[name])}" ', 1))
        for name, svg in drawings.items()
    }
    return environment.from_string(template("report.html.j2")).render(
        doc=doc,
        css=Markup(template("report.css")),
        figures=inline,
        titles={section["id"]: section["title"] for section in doc["sections"]},
    )


def pdf(doc: dict[str, Any], drawings: dict[str, str], made: str) -> bytes:
    """PDF/A-2a and PDF/UA-1: fit for filing and for screen readers; the same bytes for the same facts."""
    import typst

    payload = json.dumps({"doc": doc, "figures": drawings, "break": True}, ensure_ascii=False)
    return typst.compile(
        template("report.typ").encode(),
        sys_inputs={"data": payload},
        ignore_system_fonts=True,
        pdf_standards=["a-2a", "ua-1"],
        timestamp=_moment(made),
    )


def template(name: str) -> str:
    """A template that ships with the package."""
    return files("dptrain.report").joinpath("templates", name).read_text(encoding="utf-8")


def _moment(made: str) -> int:
    try:
        return int(datetime.fromisoformat(made).timestamp())
    except ValueError:
        return 0


def render(facts: Facts, lang: str) -> dict[str, bytes]:
    """Every face of an edition by file name. The registry entry and the model card are English, as their
    readers' tools are, and belong to the public edition."""
    t = Language(lang)
    doc = document(facts, t)
    drawings = figures(doc, facts, t)
    faces = {
        "facts.json": (json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode(),
        "report.html": html(doc, drawings).encode(),
        "report.pdf": pdf(doc, drawings, facts["made"]),
    }
    if facts["edition"] == "public":
        faces["registry.yaml"] = registry(facts).encode()
        faces["MODEL_CARD.md"] = model_card(facts).encode()
    return faces


def markdown(text: str) -> str:
    """Text that Markdown, HTML and LaTeX inside Markdown leave as it is."""
    escaped = "".join(f"\\{c}" if c in "\\`*_{}[]()#+-.!|~$>:=@^" else c for c in text)
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def _plain(facts: Facts) -> dict[str, str]:
    """English texts that registry and card share."""
    from dptrain.report.frameworks import _values

    return _values(facts, Language("en"))


UNNAMED = "to be named by the controller"


def registry(facts: Facts) -> str:
    """An entry for the OpenDP deployment registry, status Draft, all three tiers as far as known.

    Schema: opendp/deployments-registry-data, `deployments-schema.yaml`.
    """
    run, cohort, privacy, released = facts["run"], facts["cohort"], facts["privacy"], facts["released"] or {}
    said = {key: markdown(value) for key, value in _plain(facts).items()}
    t = Language("en")
    name = run["recipe"] or cohort["name"] or "model"
    infinite = privacy["infinite"] or privacy["epsilon"] is None
    owner = cohort["owner"] or released.get("controller") or UNNAMED
    uncovered = [markdown(row["what"]) for row in facts["not_covered"] if row["status"] == "not_covered"]
    parameters: dict[str, Any] = {} if infinite else {"epsilon": privacy["epsilon"]}
    if privacy["delta"] is not None:
        parameters["delta"] = privacy["delta"]
    checks = [t.known("check", row["id"]) for row in facts["checks"] if row["status"] == "passed" and row["by"] == "program"]
    deployment = {
        "basic": {
            "name": markdown(f"{name} ({run['id'] or 'run'})"),
            "data_curators": [markdown(owner)],
            "description": f"Model for {said['task']}; classes: {said['classes']}. Network: {said['network']}.",
            "intended_use": markdown(released.get("purpose") or UNNAMED),
            "data_product_type": "Machine learning model",
            "data_product_region": UNNAMED,
            "publication_date": (released.get("date") or facts["made"])[:10],
            "data_product_sector": "Healthcare",
        },
        "dp_variant": {
            "variant_name": "Custom" if infinite else "Approximate DP",
            "data_domain": f"Sets of units of protection ({said['unit']}), each with at least one labelled image; cohort {said['cohort']}.",
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
            else f"Accountant: {said['accountant']}; stated for the whole training, beginning with its starting weights.",
        },
        "deployment_model": {
            "model_name": "Central",
            "model_name_details": "The controller of the clinic holds the data and trains the model.",
            "actors": "Controller (trusted with the data), administrator of the machine (trusted), recipients of the "
            "model (not trusted; assumed to know everything but one patient).",
            "release_type": "One release",
            "release_type_details": "Every further training on the cohort is charged to the same budget, which locks when it is spent.",
            "data_source_type": "Static",
            "data_source_type_details": f"Version {said['version']} of the cohort.",
            "access_type": "Non-interactive",
            "access_type_details": "Recipients query the model without limit; that costs no further privacy.",
        },
        "accounting": {
            "post_processing": "Averages of weights over steps, calibration from one noisy histogram where it is charged; "
            "all else follows the private training.",
            "composition": f"Joint privacy loss distribution over the steps of the run; across runs: {said['kind']}.",
        },
        "implementation": {
            "preprocessing_and_hyperparameter_tuning": "Preprocessing is fixed in the configuration and uses no statistic of "
            "the cohort. " + (
                f"Trials: {said['trials']}, all charged." if run["sweep"] else "Every trial on the cohort is charged to the ledger."
            ),
            "mechanisms": f"DP-SGD with Poisson draws of patients: rate {said['rate']}, noise multiplier {said['noise']}, "
            f"clipping norm {said['clip']}, {said['steps']} steps. Randomness: {said['generator']}. "
            f"dptrain {said['dptrain']}, Opacus {said['opacus']}, PyTorch {said['torch']}.",
            "justification": "Checked by the program: " + " ".join(markdown(check) for check in checks) if checks else UNNAMED,
        },
        "administrative": {
            "sources": markdown(cohort["source"] or UNNAMED),
            "notes": markdown(" ".join(cohort["cautions"])) or "none",
            "registry_authors": [markdown(released.get("controller") or owner)],
        },
    }  # fmt: skip
    entry = {
        "url_slug": _slug(f"{name}-{run['id'] or 'run'}"),
        "status": "Draft",
        "tier": 3 if not infinite and facts["complete"] else 1,
        "deployment": deployment,
    }
    return yaml.safe_dump(entry, sort_keys=False, allow_unicode=True, width=110)


def _slug(text: str) -> str:
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower())
    return "-".join(part for part in kept.split("-") if part)[:80] or "run"


def model_card(facts: Facts) -> str:
    """A model card with the front matter of the Hugging Face hub; results only where they are released."""
    run, cohort, privacy, released = facts["run"], facts["cohort"], facts["privacy"], facts["released"] or {}
    utility, t = facts["utility"], Language("en")
    said = {key: markdown(value) for key, value in _plain(facts).items()}
    name = run["recipe"] or cohort["name"] or "model"
    front: dict[str, Any] = {
        "language": "en",
        "license": "other",
        "license_name": "to-be-named-by-the-controller",
        "library_name": "monai",
        "pipeline_tag": "image-segmentation" if run["task"] == "segmentation" else "image-classification",
        "tags": ["medical", "monai", "differential-privacy", "dp-sgd", "dptrain"],
    }
    overall = (utility or {}).get("overall") or {}
    if overall:
        front["metrics"] = list(overall)
        front["model-index"] = [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": front["pipeline_tag"]},
                        "dataset": {"name": cohort["name"] or UNNAMED, "type": "other", "split": utility["split"]},
                        "metrics": [{"type": key, "value": cell["value"]} for key, cell in overall.items()],
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
        f"Model for {said['task']}; classes: {said['classes']}. Network: {said['network']}, {said['parameters']} parameters, "
        f"{said['trainable']} of them trained.",
        "",
        "## Privacy",
        "",
        t("promise.infinite")
        if privacy["infinite"]
        else f"Unit: {said['unit']}. Neighbouring data sets: {said['adjacency']}. {said['guarantee']} (accountant: "
        f"{said['accountant']}). The best attacker guesses right in at most {said['right']} of 100 cases whether a "
        f"person was in the training; {said['chance']} by chance.",
        "",
        f"Ledger head: {markdown(facts['ledger']['head']['hash'] or 'not known')}",
        "",
        "### Not covered by ε",
        "",
        *(f"- {markdown(row['what'])}: {markdown(row['note'])}" for row in facts["not_covered"] if row["status"] == "not_covered"),
        "",
        "## Intended use",
        "",
        markdown(released.get("purpose") or UNNAMED),
        "",
        "Not a medical device. Whether it is fit for a purpose has to be shown for that purpose.",
        "",
        "## Training data",
        "",
        f"Cohort {said['cohort']}, version {said['version']}, declared size {said['size']}. Source: {said['source']}. "
        f"Licence: {said['licence']}.",
        "",
        *(f"- Caution: {markdown(text)}" for text in cohort["cautions"]),
        "",
        "## Results",
        "",
    ]  # fmt: skip
    if overall:
        lines += [
            f"Measured on {said['test_patients']} patients ({markdown(t.known('split', utility['split']))}); not covered by ε.",
            "",
            "| Measure | Value | Interval |",
            "|---|---|---|",
            *(
                f"| {markdown(t.known('metric', key))} | {t.number(cell['value'], 3)} "
                f"| {t.interval(cell['low'], cell['high']) or 'not known'} |"
                for key, cell in overall.items()
            ),
        ]
    else:
        lines.append("No result is released.")
    if facts["audit"] is not None:
        lines += [
            "",
            f"Audit (not covered by ε): {said['exposed']} of {said['screened']} patients exposed, by {said['references']} "
            "reference models.",
        ]
    return "\n".join(lines) + "\n"


def bundle_privacy(facts: Facts) -> dict[str, Any]:
    """The `privacy` object of a MONAI bundle's metadata: the guarantee in numbers, and where it comes from."""
    privacy, head = facts["privacy"], facts["ledger"]["head"]
    return {
        "schema": facts["schema"],
        "run": facts["run"]["id"],
        **{
            name: privacy[name]
            for name in (
                "unit", "adjacency", "epsilon", "infinite", "delta", "accountant", "noise_multiplier", "sample_rate",
                "steps_charged", "max_grad_norm", "generator", "mu", "tpr_at_1pct_fpr",
            )
        },
        "right_of_100": facts["odds"]["right_of_100"],
        "ledger_head": head["hash"],
        "not_covered": [row["what"] for row in facts["not_covered"] if row["status"] == "not_covered"],
        "cautions": facts["cohort"]["cautions"],
    }  # fmt: skip
