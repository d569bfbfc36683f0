"""Exit codes, plain words, no tracebacks, and a quick start."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from dptrain import cli
from dptrain.errors import DataUnreadable, LedgerRefused


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "examples" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert cli.main([]) == 2


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    assert "dptrain " + command in capsys.readouterr().out


def test_an_unknown_command_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert "train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(LedgerRefused("no budget"), 3), (DataUnreadable("bad", faults=["row 3"]), 5)]
)
def test_errors_become_exit_codes(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "find", lambda _: fail)
    assert cli.main(["train"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_an_internal_error_keeps_its_text_to_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: list[str]) -> int:
        raise ValueError("patient 4711 has pixels 1 2 3")

    monkeypatch.delenv("DPTRAIN_TRACEBACK", raising=False)
    monkeypatch.setattr(cli, "find", lambda _: fail)
    assert cli.main(["train"]) == 1
    shown = capsys.readouterr().err
    assert "4711" not in shown
    assert "ValueError" in shown


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, dptrain.cli; dptrain.cli.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_command_line_starts_quickly() -> None:
    best = min(_seconds() for _ in range(5))
    assert best < 0.5


def _seconds() -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dptrain", "--help"], capture_output=True, check=True)
    return time.perf_counter() - begun
