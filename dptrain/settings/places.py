"""Where recipes lie and which options a group of `conf/` has."""

from __future__ import annotations

import os
from pathlib import Path

from dptrain.shipped import shipped


def recipe_folders() -> dict[str, Path]:
    """Recipe name -> its folder; a recipe is any folder that holds `recipe/<name>.yaml`."""
    extra = [Path(part) for part in os.environ.get("DPTRAIN_RECIPES", "").split(os.pathsep) if part]
    found: dict[str, Path] = {}
    for root in [shipped("recipes"), Path("recipes"), *extra]:
        for file in sorted(root.glob("*/recipe/*.yaml")):
            if file.stem == file.parents[1].name:
                found[file.stem] = file.parents[1].resolve()
    return found
