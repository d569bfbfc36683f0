"""The faces for people: HTML and PDF, set from the same blocks and drawings.

Names and configuration come from outside: the HTML template escapes every text, and Typst receives them as data
that it never reads as markup. What machines read is in :mod:`dptrain.report.cards`.
"""

from __future__ import annotations

import json
from datetime import datetime
from importlib.resources import files

from dptrain.plain import Json
from dptrain.report.cards import model_card, registry
from dptrain.report.document import document
from dptrain.report.figures import draw
from dptrain.report.language import Language
from dptrain.report.shapes import CohortReport, Facts


def figures(doc: Json, facts: Facts | CohortReport, t: Language) -> dict[str, str]:
    """Every drawing of the document, by name."""
    names = [block["name"] for section in doc["sections"] for block in section["blocks"] if block["kind"] == "figure"]
    return {name: draw(name, facts, t) for name in names}


def html(doc: Json, drawings: dict[str, str]) -> str:
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


def pdf(doc: Json, drawings: dict[str, str], made: str) -> bytes:
    """PDF/A-2a and PDF/UA-1: fit for filing and for screen readers; the same bytes for the same facts."""
    import typst

    source, fonts = template("report.typ").encode(), typst.Fonts(include_system_fonts=False)  # embedded fonts only

    def inputs(page_break: bool) -> dict[str, str]:
        content = {"doc": doc, "figures": drawings, "break": page_break}
        return {"data": json.dumps(content, ensure_ascii=False)}

    # A decision of one page stands alone; where it runs over, the contents follow on its second page.
    ends = json.loads(typst.query(source, "<decision-ends>", "value", sys_inputs=inputs(False), font_paths=fonts))
    return typst.compile(
        source,
        sys_inputs=inputs(ends == [1]),
        font_paths=fonts,
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


def of_document(doc: Json, facts: Facts | CohortReport, t: Language) -> dict[str, bytes]:
    """The faces for people, and the facts that they are made from, by file name."""
    drawings = figures(doc, facts, t)
    return {
        "facts.json": (json.dumps(facts.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode(),
        "report.html": html(doc, drawings).encode(),
        "report.pdf": pdf(doc, drawings, facts.made),
    }


def render(facts: Facts, lang: str) -> dict[str, bytes]:
    """Every face of an edition by file name. The registry entry and the model card are English, as their
    readers' tools are, and belong to the public edition."""
    t = Language(lang)
    faces = of_document(document(facts, t), facts, t)
    if not facts.is_controllers:
        faces["registry.yaml"] = registry(facts).encode()
        faces["MODEL_CARD.md"] = model_card(facts).encode()
    return faces
