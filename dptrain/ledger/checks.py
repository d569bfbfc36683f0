"""Checks of what people and programs hand to the ledger: names, sentences, numbers, hashes."""

from __future__ import annotations

import operator
import unicodedata
from collections.abc import Mapping
from datetime import date

from dptrain.errors import ConfigError

NAME_LENGTH = 200
TEXT_LENGTH = 2000


def whole(name: str, value: int, *, least: int = 0, most: int = 10**12) -> int:
    """The number. Raises ConfigError for what is no whole number from `least` to `most`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{name}={value!r} is no whole number.") from None
    if isinstance(value, bool) or not least <= number <= most:
        raise ConfigError(f"{name} must be a whole number of at least {least} and at most {most}.")
    return number


def check_name(what: str, name: str) -> None:
    """Raises ConfigError for what is no printable name."""
    if not isinstance(name, str) or not name.strip() or len(name) > NAME_LENGTH or not name.isprintable():
        raise ConfigError(f"the {what} '{name}' is not a printable text of 1 to {NAME_LENGTH} letters.")


def check_texts(where: str, **texts: str | None) -> None:
    """Raises ConfigError for text that is empty, endless, or would break the tables that people read."""
    for name, text in texts.items():
        if text is None:
            continue
        if not text.strip():
            raise ConfigError(f"{where} needs a {name}: say it in a sentence.")
        odd = any(
            unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\u00ad\u200c\u200d" for c in text
        )
        if odd or len(text) > TEXT_LENGTH:
            raise ConfigError(
                f"the {name} of {where} is not one printable line of at most {TEXT_LENGTH} letters.",
                remedy="Leave out line breaks and control characters, and be brief.",
            )


def check_sha(sha256: str) -> None:
    """Raises ConfigError for what is not 64 hex digits."""
    if len(sha256) != 64 or any(letter not in "0123456789abcdef" for letter in sha256):
        raise ConfigError(f"'{sha256[:80]}' is no SHA-256: 64 hex digits are needed.")


def check_hashes(what: str, hashes: Mapping[str, str]) -> None:
    """Raises ConfigError for a name that is none, or a value that is no SHA-256."""
    for name, sha256 in hashes.items():
        check_name(what, name)
        check_sha(sha256)


def check_day(day: str | None) -> None:
    """Raises ConfigError for what is no date."""
    try:
        good = day is None or str(date.fromisoformat(day)) == day
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ConfigError(f"'{day}' is no day: write it as 2027-12-31.")


def check_patient_key(key: bytes) -> None:
    """Raises ConfigError for what is no patient key."""
    if not (isinstance(key, bytes) and len(key) == 32):
        raise ConfigError("a patient key has 32 bytes: use Keys.patient_key.")
