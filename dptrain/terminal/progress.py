"""Progress of long work, with the time left: a bar on a terminal, sparse lines elsewhere.

Shown are shares, never counts: how many records a cohort has is nobody's business but the steward's, and bars end up
in screenshots and job logs. The bar moves at most every two seconds, so that it does not time single steps
(how long a step takes follows the number of patients drawn for it).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

QUIET_SECONDS = 5.0
LINE_SECONDS = 30.0
BAR_SECONDS = 2.0
FORESEEABLE = 0.05  # of the work must be done before the time left is told: the first part is seldom typical


class Progress:
    """A counter that shows itself; safe to advance from several threads."""

    def __init__(self, total: int | None, label: str) -> None:
        self.total = total
        self.label = label
        self.done = 0
        self._lock = threading.Lock()

    def advance(self, n: int = 1) -> None:
        """Count `n` more units of work as done."""
        with self._lock:
            self.done += n
            self._show()

    def _show(self) -> None:
        """Show the new count."""


class _Lines(Progress):
    """One line after five seconds and every half minute then; nothing at all for quick work."""

    def __init__(self, total: int | None, label: str) -> None:
        super().__init__(total, label)
        self.start = self.last = time.monotonic()
        self.shown = False

    def _show(self) -> None:
        now = time.monotonic()
        if now - self.last < (LINE_SECONDS if self.shown else QUIET_SECONDS):
            return
        self.last, self.shown = now, True
        print(self._line(now - self.start), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        if not self.total:
            return f"{self.label}: {clock(seconds)} so far"
        share = min(1.0, self.done / self.total)
        left = "" if share < FORESEEABLE else f", {clock(seconds / self.done * max(0, self.total - self.done))} left"
        return f"{self.label}: {share:.0%}{left}"

    def finish(self) -> None:
        if self.shown:
            print(f"{self.label}: done after {clock(time.monotonic() - self.start)}", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


_bar_shown = threading.Lock()


@contextmanager
def progress(total: int | None, label: str, *, unit: str = "") -> Iterator[Progress]:
    """Show the progress of `total` units of work (None: unknown) while the block runs.

    Yields an object with `advance(n=1)`. A bar with time left on a terminal, sparse lines on standard error
    elsewhere, nothing where `DPTRAIN_QUIET` is set. Work inside work shows the outer bar alone.

    Args:
        label: what is being done, for people, without names of files or patients.
        unit: `bytes` shows sizes and speed.
    """
    if os.environ.get("DPTRAIN_QUIET"):
        yield Progress(total, label)
        return
    if not sys.stderr.isatty():
        lines = _Lines(total, label)
        yield lines
        lines.finish()
        return
    if not _bar_shown.acquire(blocking=False):
        yield Progress(total, label)
        return
    try:
        with _bar(total, label, unit) as bar:
            yield bar
    finally:
        _bar_shown.release()


@contextmanager
def _bar(total: int | None, label: str, unit: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Task,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class TimeLeft(TimeRemainingColumn):
        def render(self, task: Task) -> Text:
            return super().render(task) if task.percentage >= 100 * FORESEEABLE else Text("-:--:--")

    amount = [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [TaskProgressColumn()]
    columns = [TextColumn("{task.description}"), BarColumn(), *amount, TimeLeft()]
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as rich:
        task = rich.add_task(label, total=total)

        class Bar(Progress):
            last = -BAR_SECONDS

            def _show(self) -> None:
                now = time.monotonic()
                if now - self.last >= BAR_SECONDS:
                    self.last = now
                    rich.update(task, completed=self.done)

        yield Bar(total, label)
