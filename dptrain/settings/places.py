"""Where recipes lie, and what the first lines of a recipe must say."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dptrain.errors import ConfigError
from dptrain.shipped import shipped

HEADER = "# @package _global_"


def recipe_folders() -> dict[str, Path]:
    """Recipe name -> its folder; a recipe is any folder that holds `recipe/<name>.yaml`."""
    extra = [Path(part) for part in os.environ.get("DPTRAIN_RECIPES", "").split(os.pathsep) if part]
    folders: dict[str, Path] = {}
    for root in [shipped("recipes"), Path("recipes"), *extra]:
        for file in sorted(root.glob("*/recipe/*.yaml")):
            if file.stem == file.parents[1].name:
                folders[file.stem] = file.parents[1].resolve()
    return folders


def recipe_file(name: str, folder: Path) -> Path:
    """The file of a recipe. Raises ConfigError where its first line does not say that it sets all groups."""
    file = folder / "recipe" / f"{name}.yaml"
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            break
        if re.fullmatch(r"\s*#\s*@package\s+_global_\s*", line):
            return file
    raise ConfigError(f"{file} lacks its first line.", remedy=f"Begin it with the line {HEADER}")
