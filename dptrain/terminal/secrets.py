"""Secrets that a person gives: from the environment, or typed unseen; never on the command line."""

from __future__ import annotations

import os
import sys
from getpass import getpass

from dptrain.errors import ConfigError, LedgerRefused


def passphrase(*, new: bool = False) -> str:
    """The controller's passphrase; a `new` one is typed twice."""
    return _given("DPTRAIN_PASSPHRASE", "Controller's passphrase", twice=new)


def new_passphrase() -> str:
    """The passphrase that takes the place of the controller's present one, typed twice."""
    return _given("DPTRAIN_NEW_PASSPHRASE", "New passphrase", twice=True)


def recovery_code() -> str:
    """The recovery code that was shown when the ledger was founded."""
    return _given("DPTRAIN_RECOVERY", "Recovery code")


def hidden(what: str) -> str:
    """A text that is typed without being shown. Raises EOFError at the end of the input."""
    return getpass(f"{what}: ")


def _given(variable: str, what: str, *, twice: bool = False) -> str:
    """A secret from an environment variable, or asked for.

    Raises:
        LedgerRefused: the variable is not set, and there is nobody to ask.
        ConfigError: what was typed twice differs.
    """
    given = os.environ.get(variable)
    if given is not None:
        return given
    if not sys.stdin.isatty():
        needed = f"{what[0].lower()}{what[1:]}"
        raise LedgerRefused(f"The {needed} is needed.", remedy=f"Set {variable}, or run this at a terminal.")
    first = hidden(what)
    if twice and hidden("Once more") != first:
        raise ConfigError("the two passphrases differ.")
    return first
