"""What a reader sees of a page: its text, its links, its ids."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.hidden = 0

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("style", "svg", "title"):
            self.hidden += 1

    def handle_endtag(self, tag):
        if tag in ("style", "svg", "title"):
            self.hidden -= 1
        self.text.append(" ")

    def handle_data(self, data):
        if not self.hidden:
            self.text.append(data)


def read(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    return reader


def html_text(page: str) -> str:
    """Visible text, without drawings."""
    return "".join(read(page).text)


NUMBER = re.compile(r"(?<![\w.,/⁻·+\-])[−]?\d[\d.,\u202f]*(?![\w⁻])")


def numbers(text: str) -> set[str]:
    """Numbers of a text, as written, without punctuation after them."""
    return {found.rstrip(".,\u202f") for found in NUMBER.findall(text)}
