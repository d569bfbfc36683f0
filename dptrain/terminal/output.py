"""Results: sentences and tables for people, one JSON object for programs, and numbers as both print them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass

from dptrain.errors import shown


def number(value: float | None) -> str:
    """Four figures, as the ledger shows what it holds; nothing for None."""
    return "" if value is None else f"{value:.4g}"


def decimals(value: float | None) -> str:
    """Three decimals, as a plan shows an epsilon; None is infinite."""
    return "infinite" if value is None else f"{value:.3f}"


class Output:
    """Where results go: one JSON object, or sentences and tables."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def say(self, text: str) -> None:
        """A line for people only."""
        if not self.as_json:
            print(shown(text))

    def give(self, values: object) -> None:
        """A result for programs only."""
        if self.as_json:
            print(json.dumps(values, indent=1, default=_plain, allow_nan=False))

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int]
    ) -> None:
        """A table for people only; columns whose number is in `right` are set to the right."""
        if self.as_json:
            return
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for place, column in enumerate(columns):
            table.add_column(column, justify="right" if place in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(shown(cell)) for cell in row))
        wide = None if sys.stdout.isatty() else 140
        Console(width=wide, highlight=False).print(table)


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(type(value).__name__)
