"""What the shells offer, asked of the shells."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from dptrain.commands.acts.completion import cases, with_values
from dptrain.commands.table import COMMANDS, run
from dptrain.terminal.words import OneOf, Word, yes_or_no

BASH = """
compopt() { :; }
COMP_LINE="$2"; COMP_POINT=${#2}
source "$1"; _dptrain; printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
compdef() { :; }
compset() { :; }
_files() { print -r -- FILES }
compadd() { [[ $1 == -S ]] && shift 2; shift; (( $# )) && print -rl -- "$@" }
source "$1"; words=("${(@s: :)2}"); CURRENT=${#words}; PREFIX=$words[-1]; _dptrain
"""


@pytest.fixture(params=["bash", "zsh"])
def shell(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """A shell that has read the script, waiting for a line."""
    name = request.param
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    assert run(["completion", name]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    return [name, "-c", BASH if name == "bash" else ZSH, name, str(tmp_path / "script")]


def offered(shell: list[str], line: str) -> set[str]:
    """What is offered for a line; bash gives only what stands behind the last `=`."""
    done = subprocess.run([*shell, line], capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    return {text for text in done.stdout.splitlines() if text}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dptrain tr", {"train"}),
        ("dptrain ledger ver", {"verify"}),
        ("dptrain ledger show --s", {"--steward"}),
        ("dptrain evaluate split=te", {"split=test"}),
        ("dptrain train privacy.target_e", {"privacy.target_epsilon="}),
        ("dptrain train data=npz recipe=ecg", {"recipe=ecg_beats"}),
        ("dptrain completion z", {"zsh"}),
        ("dptrain nothing of", set()),
    ],
)
def test_a_line_is_completed(shell: list[str], line: str, expected: set[str]) -> None:
    if shell[0] == "bash":
        expected = {text.partition("=")[2] if "=" in line.split()[-1] else text for text in expected}
    assert offered(shell, line) == expected


def test_after_a_command_stand_its_members_and_words(shell: list[str]) -> None:
    assert {"plan", "ledger", "completion", "--help"} <= offered(shell, "dptrain ")
    assert {"ledger", "verify", "run=", "lang=de"} <= offered(shell, "dptrain report ")
    assert {"show", "budget"} <= offered(shell, "dptrain ledger ")


def test_a_word_with_any_value_offers_files(shell: list[str], tmp_path: Path) -> None:
    (tmp_path / "some_run").mkdir()
    given = offered(shell, f"dptrain report run={tmp_path}/some")
    assert given == ({f"{tmp_path}/some_run"} if shell[0] == "bash" else {"FILES"})


def test_every_command_has_a_case() -> None:
    assert len(cases()) == len(COMMANDS) + 1


def test_values_are_offered_where_they_are_few() -> None:
    assert with_values("kind", Word(OneOf(("a", "b")), "")) == ["kind=a", "kind=b"]
    assert with_values("public", Word(yes_or_no, "")) == ["public=yes", "public=no"]
    assert with_values("run", Word(str, "")) == ["run="]
