"""Numbers as the commands print them."""

from __future__ import annotations


def number(value: float | None) -> str:
    """Three digits; `infinite` for None."""
    return "infinite" if value is None else f"{value:.3f}"
