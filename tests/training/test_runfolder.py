"""Files are whole or as they were; what is restricted is closed to others."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dptrain.errors import ConfigError
from dptrain.training.runfolder import RunFolder, whole_or_nothing, write_json


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_failed_write_leaves_the_earlier_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "restricted" / "checkpoint.pt"
    with whole_or_nothing(path, "wb") as file:
        file.write(b"first")

    def tear() -> None:
        with whole_or_nothing(path, "wb") as file:
            file.write(b"second, torn")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk"):
        tear()
    assert path.read_bytes() == b"first"
    assert [item.name for item in path.parent.iterdir()] == ["checkpoint.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"step": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_json(path, {"step": 2})
    assert '"step": 1' in path.read_text()


def test_restricted_files_are_closed_to_others(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    write_json(folder.metrics, {"auroc": 0.9})
    folder.note_access("test")
    assert mode(folder.restricted) == 0o700
    assert mode(folder.metrics) == 0o600
    assert mode(folder.access_log) == 0o600


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    folder.write_facts({"schema": "dptrain.run/1"})
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


def test_infinity_never_reaches_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "run.json", {"epsilon": float("inf")})
    assert not (tmp_path / "run.json").exists()
