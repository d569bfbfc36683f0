"""Hostile text in names and configuration appears as text and runs nothing."""

from __future__ import annotations

import json

import pytest
import yaml

from dptrain.records.shape import clean
from dptrain.report import facts as facts_module
from dptrain.report.cards import markdown, model_card, registry
from dptrain.report.faces import render
from tests.report.made import audit, make_run, metrics, run_facts
from tests.report.test_faces import pdf_text
from tests.report.text import html_text, read

HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)> {{ 7*7 }}{% for x in y %}{0.__class__}{unknown}%s",
    '#panic("no") #read("/etc/passwd") $x^2$ *b* _i_ @ref <label> \\ `raw` $\\frac{1}{0}$ ${jndi:x}',
    '=HYPERLINK("http://evil.invalid","x") a: b\n- c: !!python/object/apply:os.system ["true"]\n---\n',
    "[x](javascript:alert(1)) ![i](http://evil.invalid/i.png) | a |\n# \u202egnp \x1b[31m \ud800 \x00 " + "W" * 5000,
]


def poisoned(value, text):
    """Every free text of a structure replaced, keys of groups and classes too."""
    if isinstance(value, dict):
        return {key: poisoned(inner, text) for key, inner in value.items()}
    if isinstance(value, list):
        return [poisoned(inner, text) for inner in value]
    return text if isinstance(value, str) else value


@pytest.fixture(scope="module", params=range(len(HOSTILE)))
def hostile(request, tmp_path_factory):
    text = HOSTILE[request.param]
    run, found, risk = poisoned(run_facts(), text), poisoned(metrics(), text), poisoned(audit(), text)
    run.update(schema="dptrain.run/1", status="complete")
    for row, real in zip(run["checks"], run_facts()["checks"]):
        row["by"] = real["by"]
    for row, real in zip(run["not_covered"], run_facts()["not_covered"]):
        row["status"] = real["status"]
    run["released"] = {"items": ["model", "metrics", "groups", "audit"], "recipient": text, "purpose": text}
    found["schema"], risk["schema"] = "dptrain.metrics/1", "dptrain.audit/1"
    found["groups"] = {text: {text: found["groups"]["sex"]["F"], text + "2": found["groups"]["sex"]["M"]}}
    found["by_class"] = {text: found["by_class"]["pneumonia"]}
    risk["groups"] = {text: {text: risk["groups"]["sex"]["F"]}}
    folder = make_run(tmp_path_factory.mktemp("hostile") / "run", run=run, with_metrics=found, with_audit=risk)
    facts = facts_module.public(facts_module.read(folder))
    return text, facts, render(facts, "de")


def test_text_stays_text(hostile):
    text, _, made = hostile
    page = made["report.html"].decode()
    shown = clean(text)
    assert " ".join(shown[:40].split()) in " ".join(html_text(page).split())
    tags = {tag for tag, _ in read(page).tags}
    assert not tags & {"script", "img", "iframe", "form"}
    assert not [a for _, attributes in read(page).tags for a in attributes if a.startswith("on")]
    flat = "".join(pdf_text(made["report.pdf"]).split())
    assert "".join(shown[:12].split()) in flat


def test_machine_faces_keep_their_structure(hostile):
    text, facts, made = hostile
    entry = yaml.safe_load(made["registry.yaml"].decode())
    assert set(entry) == {"url_slug", "status", "tier", "deployment"}
    assert entry["url_slug"].replace("-", "").isalnum()
    card = made["MODEL_CARD.md"].decode()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "monai"
    assert "<script" not in body
    assert "<img" not in body
    assert "](javascript" not in body.replace("\\]", "")
    assert json.loads(made["facts.json"])["released"]["recipient"] == clean(text)
    assert registry(facts) == made["registry.yaml"].decode()
    assert model_card(facts) == card


def test_markdown_escapes():
    assert markdown("*a* <b> [c](d) `e` $f$ | #") == "\\*a\\* &lt;b\\> \\[c\\](d) \\`e\\` \\$f\\$ \\| \\#"
    assert markdown("- item") == "\\- item"
    assert markdown("1. item") == "1\\. item"
    assert markdown("2.0 of 8") == "2.0 of 8"  # no list item: no space behind the point
    assert markdown("chest_xray _i_") == "chest_xray \\_i\\_"
