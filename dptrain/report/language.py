"""One language of the report: sentences from the translation table, numbers as its readers write them.

`translations.yaml` holds every sentence, English and German side by side. Values are put into sentences as
text that is already formatted; no sentence is put together from parts.
"""

from __future__ import annotations

import math
from functools import cache
from importlib.resources import files

import yaml

from dptrain.errors import ConfigError
from dptrain.terminal.words import suggest
from dptrain.vocabulary import LANGUAGES

NARROW = "\u202f"  # no-break, between a number and its sign and in German between thousands
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MONTHS = {
    "en": (
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ),
    "de": (
        "Januar",
        "Februar",
        "März",
        "April",
        "Mai",
        "Juni",
        "Juli",
        "August",
        "September",
        "Oktober",
        "November",
        "Dezember",
    ),
}


@cache
def table() -> dict[str, dict[str, str]]:
    """key -> {language: sentence}."""
    text = files("dptrain.report").joinpath("translations.yaml").read_text(encoding="utf-8")
    sentences: dict[str, dict[str, str]] = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return sentences


class Language:
    """Sentences and numbers of one language. Raises ConfigError for a language that is not there."""

    def __init__(self, lang: str) -> None:
        if lang not in LANGUAGES:
            raise ConfigError(f"lang={lang} is unknown.", remedy=suggest(lang, LANGUAGES))
        self.lang = lang

    def __call__(self, key: str, **values: object) -> str:
        """The sentence `key` with its values. A missing key or value is a fault of the program (KeyError)."""
        return table()[key][self.lang].format(**values).replace(" = ", "\u00a0=\u00a0")

    def has(self, key: str) -> bool:
        """Whether the table holds this key."""
        return key in table()

    def known(self, prefix: str, word: str | None) -> str:
        """The translation of one of the program's own words; a word that the table does not hold is shown as it is,
        in quotation marks; an absent one as 'not known'."""
        if not word:
            return self("unknown")
        key = f"{prefix}.{word}"
        return self(key) if self.has(key) else self.quote(word)

    def quote(self, text: str) -> str:
        """Somebody's own words."""
        return f"„{text}“" if self.lang == "de" else f"“{text}”"

    def _local(self, text: str) -> str:
        """Python's notation (commas between thousands, decimal point) in this language's."""
        text = text.replace("-", "−")
        if self.lang == "en":
            return text
        integral, _, part = text.partition(".")
        if integral.count(",") == 1 and len(integral.strip("−")) == 5:
            integral = integral.replace(",", "")  # four digits stand together
        return integral.replace(",", NARROW) + ("," + part if part else "")

    def integer(self, value: float | None) -> str:
        """A count: 2,215 or 2215; 12,345 or 12 345."""
        return self("unknown") if value is None else self._local(f"{round(value):,}")

    def number(self, value: float | None, digits: int = 2) -> str:
        """A rounded number with a fixed count of decimals."""
        return self("unknown") if value is None else self._local(f"{value:,.{digits}f}")

    def shortest(self, value: float | None, digits: int = 4) -> str:
        """Up to `digits` decimals, without zeros at the end; tiny values as a power of ten."""
        if value is None:
            return self("unknown")
        if value != 0 and abs(value) < 10**-digits:
            return self.power(value)
        text = f"{value:,.{digits}f}".rstrip("0").rstrip(".")
        return self._local(text)

    def epsilon(self, value: float | None, infinite: bool = False) -> str:
        """An upper bound: two decimals, rounded up, so that the page never promises more than was proven."""
        if infinite:
            return "∞"
        if value is None:
            return self("unknown")
        return self.number(math.ceil(round(value * 100, 6)) / 100, 2)

    def remaining(self, value: float | None) -> str:
        """What is left of a budget: two decimals, rounded down."""
        return self("unknown") if value is None else self.number(math.floor(round(value * 100, 6)) / 100, 2)

    def power(self, value: float | None) -> str:
        """10⁻⁵, or 4.5·10⁻⁶."""
        if value is None:
            return self("unknown")
        if value == 0:
            return "0"
        mantissa, exponent = f"{value:.1e}".split("e")
        raised = "10" + str(int(exponent)).translate(SUPERSCRIPT)
        lead = mantissa.removesuffix(".0")
        return raised if lead == "1" else f"{self._local(lead)}·{raised}"

    def percent(self, share: float | None, digits: int = 1) -> str:
        """A share as per cent: 4.5% or 4,5 %."""
        if share is None:
            return self("unknown")
        return self.number(100 * share, digits) + ("%" if self.lang == "en" else f"{NARROW}%")

    def interval(self, low: float | None, high: float | None, *, percent: bool = False, digits: int = 3) -> str:
        """0.970 to 0.985, or an empty text where the interval is not known."""
        if low is None or high is None:
            return ""
        show = self.percent if percent else self.number
        return self("interval", low=show(low, digits), high=show(high, digits))

    def date(self, iso: str | None) -> str:
        """22 November 2026, 16:51 UTC; text that is no ISO date is shown as it is."""
        if not iso:
            return self("unknown")
        try:
            year, month, day = int(iso[0:4]), int(iso[5:7]), int(iso[8:10])
            name = MONTHS[self.lang][month - 1] if month > 0 else ""
        except (ValueError, IndexError):
            return iso
        clock = f", {iso[11:16]} UTC" if len(iso) >= 16 and iso[10] == "T" else ""
        if self.lang == "de":
            clock = f", {iso[11:16]} Uhr (UTC)" if clock else ""
            return f"{day}. {name} {year}{clock}"
        return f"{day} {name} {year}{clock}"

    def listing(self, words: list[str]) -> str:
        """a, b and c."""
        if len(words) < 2:
            return "".join(words)
        return self("list.last", first=", ".join(words[:-1]), last=words[-1])
