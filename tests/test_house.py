"""The house: imports go down only. A floor knows nothing of those above it, in functions and type hints too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dptrain"
# From the ground up; what stands in one row knows nothing of its neighbours.
HOUSE = [
    ["__init__"],
    ["errors", "lazy"],
    ["words", "cells"],
    ["plan", "targets", "progress", "shipped"],
    ["accounting"],
    ["ledger"],
    ["data"],
    ["audit.config"],  # settings alone
    ["config"],
    ["models"],
    ["engine"],
    ["training"],
    ["audit"],
    ["report"],
    ["commands"],
    ["cli"],
    ["__main__"],
]
HEIGHT = {name: height for height, row in enumerate(HOUSE) for name in row}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts)


def floor(module: str) -> str:
    """The floor of `ledger.keys` or `audit.config`."""
    return module if module in HEIGHT else module.partition(".")[0] or "__init__"


def imported(path: Path) -> set[str]:
    """Modules of this package that a file imports anywhere, without the package's own name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
            if node.module == "dptrain":  # from dptrain import data, __version__
                names = [f"dptrain.{alias.name}" for alias in node.names if alias.name in HEIGHT]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.removeprefix("dptrain.") for name in names if name.startswith("dptrain.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    here = floor(".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"))
    assert here in HEIGHT, f"{here} has no floor"
    for module in sorted(imported(path)):
        there = floor(module)
        assert there == here or HEIGHT[there] < HEIGHT[here], f"{here} imports {module} from above"


def test_a_planted_import_from_above_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from dptrain import report\n    import dptrain.cli\n")
    assert imported(file) == {"report", "cli"}
