"""Progress: a bar on a terminal, sparse lines elsewhere, nothing where quiet is asked for."""

from __future__ import annotations

import itertools
import sys
import time

from dptrain.terminal import progress as bars
from dptrain.terminal.progress import clock, progress


def test_quick_work_prints_nothing_and_long_work_says_how_long(capsys, monkeypatch):
    monkeypatch.delenv("DPTRAIN_QUIET", raising=False)
    with progress(3, "quick") as shown:
        shown.advance(3)
    assert capsys.readouterr() == ("", "")
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress(10, "long") as shown:
        for _ in range(10):
            now[0] += 4.0
            shown.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["long: 20%, 0:32 left", "long: 100%, 0:00 left", "long: done after 0:40"]
    assert clock(3723) == "1:02:03"


def test_the_first_part_tells_no_time_left(capsys, monkeypatch):
    """It is slow for reasons of its own: 2 % after a minute and a half was done after two."""
    monkeypatch.delenv("DPTRAIN_QUIET", raising=False)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal, raising=False)
        with progress(100, "long") as shown:
            for _ in range(4):
                now[0] += 40.0
                shown.advance()
            assert "left" not in capsys.readouterr().err
            shown.advance(1)
            now[0] += 40.0
            shown.advance()
            if not terminal:
                assert "6%, 52:13 left" in capsys.readouterr().err


def test_quiet(capsys, monkeypatch):
    monkeypatch.setenv("DPTRAIN_QUIET", "1")
    monkeypatch.setattr(bars, "QUIET_SECONDS", 0.0)
    with progress(1, "quiet") as shown:
        shown.advance()
    assert shown.done == 1
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_one_bar_even_for_work_inside_work(capsys, monkeypatch):
    monkeypatch.delenv("DPTRAIN_QUIET", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress(2, "outer") as outer, progress(None, "inner") as inner:
        inner.advance(5)
        outer.advance(2)
    assert (outer.done, inner.done) == (2, 5)
    with progress(1, "after", unit="bytes") as after:
        after.advance()
    assert "inner" not in capsys.readouterr().err


def test_a_terminal_and_a_log_never_see_how_many_records_there_are(capsys, monkeypatch):
    monkeypatch.delenv("DPTRAIN_QUIET", raising=False)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal, raising=False)
        for total in (4171, None):
            with progress(total, "reading") as shown:
                for _ in range(60):
                    now[0] += 1.0
                    shown.advance(69)
    seen = "".join(capsys.readouterr())
    assert "4171" not in seen.replace(",", "")
    assert "4140" not in seen.replace(",", "")
    assert "%" in seen


def test_the_bar_does_not_time_single_steps(monkeypatch):
    from rich.progress import Progress as Rich

    monkeypatch.delenv("DPTRAIN_QUIET", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    now, moved = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Rich, "update", lambda self, task, completed: moved.append((now[0], completed)))
    with progress(100, "training") as shown:
        for _ in range(100):
            now[0] += 0.1
            shown.advance()
    assert 4 <= len(moved) <= 6
    assert all(after - before >= 2.0 - 1e-9 for (before, _), (after, _) in itertools.pairwise(moved))
