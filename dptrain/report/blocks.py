"""The blocks that a document is made of. All texts in them are plain text, escaped by whoever sets them.

A block is a dictionary with a `kind`, since both faces for people (a Jinja and a Typst template) read it as data.
"""

from __future__ import annotations

from dptrain.plain import Json
from dptrain.report.language import Language

Block = Json
Section = Json


def section(identity: str, t: Language, blocks: list[Block], *, marked: bool = False) -> Section:
    """A section by its id; `marked`: what it says is not covered by epsilon."""
    return {"id": identity, "title": t(f"{identity}.title"), "marked": marked, "blocks": blocks}


def p(text: str) -> Block:
    """A paragraph."""
    return {"kind": "p", "text": text}


def heading(text: str) -> Block:
    """A heading inside a section."""
    return {"kind": "heading", "text": text}


def rows(pairs: list[tuple[str, str]]) -> Block:
    """Names and values; a name without a value is left out."""
    return {"kind": "rows", "rows": [list(pair) for pair in pairs if pair[1]]}


def table(
    caption: str, head: list[str], body: list[list[str]], note: str = "", *, text_columns: bool = False
) -> Block:
    """A table; the first column names the row, the others are set to the right, or (`text_columns`) to the left."""
    block = {"kind": "table", "caption": caption, "head": head, "rows": body, "note": note}
    return {**block, "text_columns": True} if text_columns else block


def figure(name: str, t: Language, **values: object) -> Block:
    """A drawing by name, with caption and text alternative."""
    return drawing(name, t(f"figure.{name}.caption", **values), t(f"figure.{name}.alt", **values))


def drawing(name: str, caption: str, alt: str) -> Block:
    """A drawing whose words are at hand."""
    return {"kind": "figure", "name": name, "caption": caption, "alt": alt}


def bullets(texts: list[str]) -> Block:
    """A list."""
    return {"kind": "list", "items": texts}


def ticks(items: list[Block]) -> Block:
    """Boxes with their state."""
    return {"kind": "ticks", "items": items}


def tick(state: str, text: str, note: str = "") -> Block:
    """A box: passed, failed, not_checked, or open for a person."""
    return {"state": state, "text": text, "note": note}


def big_number(value: str, label: str, note: str) -> Block:
    """One of the numbers of a first page."""
    return {"value": value, "label": label, "note": note}


def numbers(items: list[Block]) -> Block:
    """The numbers of a first page, side by side."""
    return {"kind": "numbers", "items": items}


def blank(label: str, lines: int = 1) -> Block:
    """A named space for a person to fill in."""
    return {"kind": "blank", "label": label, "lines": lines}
