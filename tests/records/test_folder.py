"""A run folder is one run's alone; what is restricted is closed to others."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from dptrain.errors import ConfigError
from dptrain.files import write_json
from dptrain.records import Run, RunFolder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_restricted_files_are_closed_to_others(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    write_json(folder.metrics, {"auroc": 0.9})
    folder.note_access("test")
    assert mode(folder.restricted) == 0o700
    assert mode(folder.metrics) == 0o600
    assert mode(folder.access_log) == 0o600


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    folder.write(Run(program={}, plan={}))
    with pytest.raises(ConfigError):
        RunFolder(tmp_path / "run").create()


def test_two_runs_do_not_take_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()  # a sweep makes it before the run
    RunFolder(tmp_path / "run").create()
    with pytest.raises(ConfigError, match="restricted cannot be made: File exists"):
        RunFolder(tmp_path / "run").create()
    RunFolder(tmp_path / "run").discard()
    RunFolder(tmp_path / "run").create()


@pytest.mark.parametrize("text", ["", "{", '{"schema": "dptrain.run/99"}', "[]", None])
def test_a_missing_torn_or_newer_run_is_said_plainly(tmp_path: Path, text: str | None) -> None:
    folder = RunFolder(tmp_path)
    if text is not None:
        folder.facts.write_text(text)
    with pytest.raises(ConfigError):
        folder.read_facts()
