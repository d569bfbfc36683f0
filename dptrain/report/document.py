"""What the report says, in order: facts -> sections of plain blocks, in one language.

Both faces for people (HTML and PDF) set these same blocks, so they cannot differ.
"""

from __future__ import annotations

from dptrain.plain import Json
from dptrain.report.blocks import Section
from dptrain.report.language import Language
from dptrain.report.sections.budget import budget
from dptrain.report.sections.closing import glossary, integrity, signature
from dptrain.report.sections.decision import decision
from dptrain.report.sections.frameworks import frameworks
from dptrain.report.sections.mechanism import mechanism, not_covered
from dptrain.report.sections.promise import promise
from dptrain.report.sections.reconstruction import reconstruction
from dptrain.report.sections.risk import risk
from dptrain.report.sections.utility import utility
from dptrain.report.shapes import Facts

SECTIONS = (
    decision,
    promise,
    budget,
    risk,
    reconstruction,
    utility,
    not_covered,
    mechanism,
    frameworks,
    integrity,
    signature,
    glossary,
)
TICKS = ("passed", "failed", "not_checked", "open")


def document(facts: Facts, t: Language) -> Json:
    """The whole report: title, running lines, labels and sections."""
    name = facts.run.recipe or facts.cohort.name or facts.run.id or t("unknown")
    return frame(
        t,
        [section(facts, t) for section in SECTIONS],
        title=t("title"),
        subject=name,
        edition=t(f"edition.{facts.edition}"),
        edition_note=t(f"edition.{facts.edition}.note"),
        running=t("running", run=facts.run.id or t("unknown")),
        made=t("made", date=t.date(facts.made), version=facts.program),
        tick={state: t(f"tick.{state}") for state in TICKS},
    )


def frame(t: Language, sections: list[Section], **said: object) -> Json:
    """A document: sections that say something, what stands around them (`said`), the language's labels."""
    return {
        "lang": t.lang,
        **said,
        **{label: t(label) for label in ("contents", "page", "mark", "blank", "see")},
        "sections": [section for section in sections if section["blocks"]],
    }
