"""docs/settings.md and --help say what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from dptrain import cli
from dptrain.settings import help as settings_help
from dptrain.settings.names import kinds

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == settings_help.page(), "run: make settings"


def test_every_setting_stands_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in kinds():
        assert f"`{name}`" in text or f"## {name}" in text, name


def test_lines_for_help() -> None:
    lines = settings_help.lines("privacy")
    assert lines["privacy.target_epsilon=8.0"].startswith("what this run promises")
    assert "data.split.train=0.7" in settings_help.lines("data")


@pytest.mark.parametrize(("command", "section"), [("plan", "privacy"), ("train", "optimizer"), ("audit", "audit")])
def test_help_lists_the_settings_of_a_command(command: str, section: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    for name, text in settings_help.lines(section).items():
        assert name in shown
        assert text in shown
