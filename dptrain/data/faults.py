"""Faults of a manifest and its records: grouped by cause, with how many, the first rows, and what to do.

A cause names columns, settings and what is allowed; rows are named as people find them. Ids, labels, file names and
pixels are never part of either.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dptrain.errors import DataUnreadable
from dptrain.source import Fault

SHOWN = 5  # rows that are named of one cause
REMEDY = "Correct the manifest or the files, or leave rows out with data.keep and data.drop."


@dataclass
class Cause:
    """One cause: how often, the first rows, and the words that mend it."""

    text: str
    remedy: str
    rows: list[str] = field(default_factory=list)
    count: int = 0

    def line(self) -> str:
        """`row 2, row 5 and 781 more: why`."""
        if not self.rows:
            return self.text
        more = self.count - len(self.rows)
        rows = ", ".join(self.rows) + (f" and {more:,} more ({self.count:,} in all)" if more else "")
        return f"{rows}: {self.text}"


class Faults:
    """What is wrong, cause by cause, and what was read over without being wrong.

    Attributes:
        unread: what was not read -> how many (files, pages, cells), told at registration.
        notes: sentences about how the manifest was understood (its delimiter, its encoding).
    """

    def __init__(self) -> None:
        self._causes: dict[str, Cause] = {}
        self.unread: dict[str, int] = {}
        self.notes: list[str] = []

    def add(self, cause: str, row: str = "", *, remedy: str = "") -> None:
        """One more fault of this cause, of this row (`row 5`; with what is particular to it in brackets)."""
        fault = self._causes.setdefault(cause, Cause(cause, remedy))
        fault.count += 1
        fault.remedy = fault.remedy or remedy
        if row and len(fault.rows) < SHOWN:
            fault.rows.append(row)

    def extend(self, row: str, causes: Iterable[Fault]) -> None:
        """The faults of one row."""
        for fault in causes:
            self.add(fault.cause, f"{row} ({fault.detail})" if fault.detail else row, remedy=fault.remedy)

    def pass_over(self, what: str, count: int = 1) -> None:
        """Count what was not read though it is no fault."""
        if count:
            self.unread[what] = self.unread.get(what, 0) + count

    def __bool__(self) -> bool:
        return bool(self._causes)

    def lines(self) -> list[str]:
        """One line a cause, in the order in which they turned up."""
        return [cause.line() for cause in self._causes.values()]

    def refuse(self) -> None:
        """Raise DataUnreadable with all faults, if there are any."""
        if not self._causes:
            return
        number = sum(cause.count for cause in self._causes.values())
        kinds = len(self._causes)
        many = f"{number:,} faults" if number > 1 else "1 fault"
        raise DataUnreadable(
            f"The data cannot be used: {many}{f' of {kinds} kinds' if number > kinds > 1 else ''}. "
            "Nothing was charged.",
            faults=self.lines(),
            remedies=[cause.remedy for cause in self._causes.values()],
            remedy=REMEDY,
        )
