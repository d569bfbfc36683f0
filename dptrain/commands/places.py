"""Where the ledger, its keys and its witness are: three words that many commands take."""

from __future__ import annotations

from dptrain.terminal.words import Word


def given(text: str) -> str:
    """A text that says something. Raises ValueError for an empty one."""
    if not text.strip():
        raise ValueError("it is empty")
    return text.strip()


PLACES = {
    "ledger.url": Word(given, "path of the ledger (SQLite), or postgresql://… (default: DPTRAIN_LEDGER)", None),
    "ledger.keys": Word(given, "folder of the keys (default: DPTRAIN_KEYS, or `keys` beside the ledger)", None),
    "ledger.witness": Word(given, "file or URL with signed heads that somebody else keeps (DPTRAIN_WITNESS)", None),
}
