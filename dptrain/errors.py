"""Errors that are meant for people: what happened, what is allowed, what to do.

Every error that a user can cause is a :class:`DptrainError`. The command line prints its message and its
remedy without a traceback and ends with its exit code. Messages never hold pixels, labels or patient ids.
"""

from __future__ import annotations

import logging
import os
import sys
import unicodedata
import warnings

EXIT_DONE = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_REFUSED_BY_LEDGER = 3
EXIT_REFUSED_BY_CHECK = 4
EXIT_DATA_UNREADABLE = 5
EXIT_GUARANTEE_BROKEN = 6
EXIT_INTERRUPTED = 130


def shown(text: str) -> str:
    """The one filter for text on terminals and in logs: what moves a cursor, hides or turns letters is a box.

    Control characters but the line break and the tab, escape sequences, marks that change the direction of reading,
    lone surrogates and private characters become U+FFFD. It cannot know an id from another word: messages are made
    without ids, labels and pixels in the first place.
    """
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    kept = "\n\t\u00ad\u200c\u200d"
    hidden = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
    return "".join(
        "\ufffd" if letter not in kept and unicodedata.category(letter) in hidden else letter for letter in text
    )


class DptrainError(Exception):
    """Base of all errors shown to people.

    Args:
        message: what happened, with the offending value and what is allowed.
        remedy: what the person can do about it, as an instruction.
    """

    exit_code = EXIT_INTERNAL

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(shown(message))
        self.message = shown(message)
        self.remedy = None if remedy is None else shown(remedy)

    def __str__(self) -> str:
        return self.message if self.remedy is None else f"{self.message}\n{self.remedy}"


class ConfigError(DptrainError):
    """The command or the configuration is wrong (exit code 2)."""

    exit_code = EXIT_USAGE


class LedgerRefused(DptrainError):
    """The ledger does not grant this, or cannot be trusted (exit code 3)."""

    exit_code = EXIT_REFUSED_BY_LEDGER


class CheckRefused(DptrainError):
    """The pre-flight check found something that would break the guarantee (exit code 4)."""

    exit_code = EXIT_REFUSED_BY_CHECK


class DataUnreadable(DptrainError):
    """A manifest or its records cannot be used (exit code 5).

    Args:
        faults: every cause, one line each (its first rows and what is wrong; no pixels, no patient ids).
        remedies: what to do about each of them, or "".
    """

    exit_code = EXIT_DATA_UNREADABLE

    def __init__(
        self,
        message: str,
        *,
        faults: list[str] | None = None,
        remedies: list[str] | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.faults = [shown(fault) for fault in faults or []]
        self.remedies = [shown(text) for text in remedies or [""] * len(self.faults)]

    def __str__(self) -> str:
        lines = [self.message]
        for fault, remedy in zip(self.faults, self.remedies, strict=True):
            lines += [f"  {fault}", f"      {remedy}"] if remedy else [f"  {fault}"]
        if self.remedy is not None:
            lines.append(self.remedy)
        return "\n".join(lines)


class GuaranteeBroken(DptrainError):
    """An audit's lower bound on epsilon passes the promised epsilon (exit code 6)."""

    exit_code = EXIT_GUARANTEE_BROKEN


def _ours(record: logging.LogRecord) -> bool:
    """Whether a log record is of this program, its text made fit to be shown."""
    if not record.name.startswith("dptrain"):
        return False
    record.msg, record.args = shown(record.getMessage()), ()
    return True


def quiet() -> None:
    """Keep the warnings and logs of other libraries off the terminal: they may print pixels, labels or ids.

    Our own warnings are shown, as one line each.
    """
    if os.environ.get("DPTRAIN_TRACEBACK") == "1":
        return
    ours = os.path.dirname(os.path.abspath(__file__)) + os.sep

    def show(message: Warning | str, _category: object, filename: str, *_: object, **__: object) -> None:
        if os.path.abspath(filename).startswith(ours):
            print(shown(f"note: {message}"), file=sys.stderr)

    warnings.showwarning = show  # type: ignore[assignment]
    logging.getLogger().addFilter(_ours)
    logging.lastResort = logging.NullHandler()  # with none at all, logging says so on the terminal
