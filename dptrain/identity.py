"""Who a patient is, in text: one person has one key, from whatever file.

A patient id reaches the program as text (CSV, DICOM, JSON), as a whole number (JSON, NPZ) or as a floating-point
number (NPZ, and every table that pandas wrote with a gap in the column). :func:`patient_text` gives one text for all
of them, without loss: nothing is rounded, no letter is changed, leading zeros, case and inner blanks stay. What is
written in two ways (`5` and `0005`, `AB` and `ab`) stays two texts here; :func:`near` tells which of them look alike,
so that a registration can ask.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from decimal import Decimal

# Texts by which programs and de-identifiers say that nobody is named.
NAMELESS = frozenset(
    {
        "nan", "na", "n/a", "#n/a", "<na>", "n.a.", "nat", "none", "null", "nil", "inf", "-inf", "anon", "anonym",
        "anonymous", "anonymised", "anonymized", "deidentified", "de-identified", "removed", "unknown", "unbekannt",
        "missing", "unspecified", "not available", "-", "--", "?", ".",
    }
)  # fmt: skip
_GAP = re.compile(r"[+-]?\d+\.0+")  # a whole number that went through a floating-point column
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,4})?")
_ROUNDED = re.compile(r"[+-]?\d(\.\d+)?[eE]\+\d+")  # what a spreadsheet shows of a long number
_FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
LONGEST = 64  # digits of a whole number that is written out


def patient_text(value: object) -> str:
    """The one text of a patient id, from text or a number of any kind; empty where nobody is named.

    Whole numbers lose their point (`17.0` is `17`, also as text: pandas makes floats of whole numbers with a gap);
    other numbers keep their shortest exact form. Text keeps everything but blanks around it; letters are in NFC
    (Unicode Standard Annex 15), which joins only what is the same letter in two encodings.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        text = value if value.isascii() else unicodedata.normalize("NFC", value)
        text = text.strip()
        return text.partition(".")[0] if _GAP.fullmatch(text) else text
    if isinstance(value, float):
        if not math.isfinite(value):
            return "" if math.isnan(value) else str(value)
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, Decimal):
        if value.is_finite() and abs(value.adjusted()) < LONGEST and value == value.to_integral_value():
            return str(int(value))
        return str(value)
    return str(value)


@functools.lru_cache(maxsize=4096)
def _invisible(letter: str) -> bool:
    kind = unicodedata.category(letter)
    return (
        (kind[0] == "C" and kind != "Co")
        or kind in ("Zl", "Zp")
        or letter in _FILLERS
        or "\ufe00" <= letter <= "\ufe0f"
        or "\U000e0100" <= letter <= "\U000e01ef"
    )


def oddity(text: str) -> str | None:
    """Why a text cannot tell who is meant, as a cause to show (without the text); None for a sound id."""
    if text.isascii() and text.isalnum() and not text.isalpha():
        return "the patient id is in scientific notation: a spreadsheet has rounded it" if _rounded(text) else None
    if any(_invisible(letter) for letter in text):
        return "the patient id holds invisible characters"
    if "\ufffd" in text:
        return "the patient id has lost letters: it was read in another encoding than it was written in"
    if text.casefold() in NAMELESS:
        return "the patient id names nobody (such as NA, None, ANONYMOUS)"
    if _rounded(text):
        return "the patient id is in scientific notation: a spreadsheet has rounded it"
    if not text.isascii() and unicodedata.normalize("NFKC", text) != unicodedata.normalize("NFC", text):
        return "the patient id holds letters in another form (such as full width or raised)"
    return None


def _rounded(text: str) -> bool:
    return _ROUNDED.fullmatch(text) is not None


def near(text: str) -> str:
    """A folded form: equal for texts that are one number, or differ in case, blanks or forms of letters alone."""
    if text.isascii() and text.isdigit():
        return text.lstrip("0") or "0"
    folded = unicodedata.normalize("NFKC", text).casefold()
    folded = "".join(letter for letter in folded if not letter.isspace() and not _invisible(letter))
    if folded.isascii() and _NUMBER.fullmatch(folded):
        number = Decimal(folded)
        if abs(number.adjusted()) < LONGEST and number == number.to_integral_value():
            return str(int(number))
        return str(number.normalize())
    return folded


def alike(one: str, other: str) -> str:
    """How two different texts of one :func:`near` form are alike, as a cause to show."""
    if _NUMBER.fullmatch(one.casefold()) and _NUMBER.fullmatch(other.casefold()):
        return "patient ids that are one number, written in two ways (such as 5 and 0005)"
    return "patient ids that differ in case, blanks or forms of letters alone (such as AB and ab)"
