"""What the documents say exists: commands, recipes, settings, pages."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml

from dptrain.commands.table import COMMANDS
from dptrain.settings import load
from dptrain.settings.names import setting_names
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


def test_the_contract_is_numbered_and_code_points_to_its_lines() -> None:
    page = (ROOT / "docs" / "guarantee.md").read_text(encoding="utf-8")
    numbers = re.findall(r"^\| (\d+) \| \*\*", page, re.M)
    assert numbers == [str(number) for number in range(18)]
    named = set()
    for path in (ROOT / "dptrain").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"design[ ,]+(section|contract)|design\.md", text), f"{path}: no such page is here"
        named |= set(re.findall(r"contracts? (\d+)", text)) | set(re.findall(r"contracts \d+ (?:to|and) (\d+)", text))
    assert named
    assert named <= set(numbers)


def _names_below(tree: ast.AST) -> dict[str, ast.AST]:
    """What a module or class defines, by name."""
    names: dict[str, ast.AST] = {}
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id: node for target in targets if isinstance(target, ast.Name)}
    return names


def test_what_the_architecture_names_exists() -> None:
    """Dotted names (`training.step.PrivateStep.update`) and paths (`audit/attacks.py`) of the page."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "dptrain"
    rooms = {path.stem for path in package.iterdir()}
    dotted = {name for name in re.findall(r"`([a-z_]+(?:\.\w+)+)`", page) if name.split(".")[0] in rooms}
    dotted = {name for name in dotted if not name.endswith((".py", ".json"))}
    assert len(dotted) > 40
    for name in dotted:
        parts = name.split(".")
        files = {n: package.joinpath(*parts[:n]).with_suffix(".py") for n in range(1, len(parts) + 1)}
        depth = max((n for n, file in files.items() if file.exists()), default=0)
        assert depth, f"{name}: no such module"
        tree: ast.AST = ast.parse(files[depth].read_text(encoding="utf-8"))
        for part in parts[depth:]:
            names = _names_below(tree)
            assert part in names, f"{name}: there is no {part}"
            tree = names[part]
    for path in re.findall(r"`([a-z_]+/[a-z_/]+\.(?:py|yaml))`", page):
        assert (package / path).exists() or (ROOT / path).exists(), path
