"""What the documents say exists: commands, recipes, settings, pages."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from dptrain.commands.table import COMMANDS
from dptrain.settings import load
from dptrain.settings.explain import setting_names
from dptrain.settings.places import recipe_folders

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "recipes").glob("*/README.md"))]
OWN = {"thorax"}  # the reader's own recipe in docs/data.md
NAMES = setting_names()


def lines(page: Path) -> list[str]:
    """The command lines of a page's code blocks."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S))
    return [line.lstrip("$ ") for line in blocks.splitlines() if re.match(r"(\$ )?dptrain ", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_recipes_and_settings_exist(page: Path) -> None:
    for line in lines(page):
        words = shlex.split(line, comments=True)[1:]
        assert words[0] in COMMANDS, line
        if words[0] == "ledger":
            assert f"ledger {words[1]}" in COMMANDS, line
        for word in words:
            name, _, value = word.partition("=")
            if name == "recipe" and value != "…":
                assert value in {*recipe_folders(), *OWN}, line
            if "." in name and "/" not in name and not name.startswith("hydra"):
                assert name.lstrip("+") in NAMES, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def test_the_recipe_of_the_data_page_composes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    text = re.search(r"```yaml\n(# @package _global_\n.*?)```", page, re.S)
    assert text is not None
    file = tmp_path / "recipes" / "thorax" / "recipe" / "thorax.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text[1])
    monkeypatch.chdir(tmp_path)
    settings = load(["recipe=thorax"])
    assert settings.data.name == yaml.safe_load(text[1])["name"]
