"""Where the ledger and its keys are, unless somebody says otherwise; and how to open both."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from dptrain.errors import LedgerRefused
from dptrain.ledger.face import Ledger
from dptrain.ledger.keys import Keys
from dptrain.ledger.store import WAIT_SECONDS, Store, must_exist

DEFAULT = "~/.local/share/dptrain/ledger.sqlite"


def ledger_place(url: str | None = None) -> str:
    """`url`, else DPTRAIN_LEDGER, else ~/.local/share/dptrain/ledger.sqlite."""
    return url or os.environ.get("DPTRAIN_LEDGER") or str(Path(DEFAULT).expanduser())


def keys_place(keys: str | None = None, url: str | None = None) -> str:
    """`keys`, else DPTRAIN_KEYS, else `keys` beside the ledger's file (a server's: beside the default file)."""
    if keys or os.environ.get("DPTRAIN_KEYS"):
        return keys or os.environ["DPTRAIN_KEYS"]
    place = ledger_place(url)
    if place.startswith("sqlite:///"):
        place = place.removeprefix("sqlite:///")
    elif "://" in place:
        place = str(Path(DEFAULT).expanduser())
    return str(Path(place).expanduser().absolute().parent / "keys")


def open_ledger(
    url: str | None = None, keys: str | None = None, witness: str | None = None, *, wait: float = WAIT_SECONDS
) -> tuple[Ledger, Keys]:
    """The ledger and its keys, opened and checked.

    Finishes a key rotation that was killed after the ledger had named the new keys. Raises LedgerRefused for
    anything that cannot be trusted, read or reached.
    """
    must_exist(Store(ledger_place(url)))
    folder = keys_place(keys, url)
    witness = witness or os.environ.get("DPTRAIN_WITNESS") or None
    place = ledger_place(url)
    staged = Keys.staged(folder)
    if staged is not None:
        with contextlib.suppress(LedgerRefused):
            ledger = Ledger.open(place, staged, witness=witness, wait=wait)
            if ledger.names(staged):
                staged.settle()
                return ledger, staged
    loaded = Keys.load(folder)
    return Ledger.open(place, loaded, witness=witness, wait=wait), loaded
