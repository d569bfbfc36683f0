"""The settings that docs/data.md shows are accepted, and the example manifest scans."""

from __future__ import annotations

import re
from pathlib import Path

from omegaconf import OmegaConf
from PIL import Image

from dptrain.data import DataConfig, scan
from dptrain.settings.data import check_complete
from dptrain.settings.typed import build
from tests.data import made
from tests.data.shared import FakeKeys

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def settings(text: str, **changes) -> DataConfig:
    return build(DataConfig, OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(text), changes)))


def test_the_examples_are_accepted(tmp_path):
    recipe, table = blocks("yaml")
    images = OmegaConf.to_yaml(OmegaConf.create(recipe)["data"])
    (manifest,) = blocks("csv")
    (tmp_path / "manifest.csv").write_text(manifest, encoding="utf-8")
    (tmp_path / "images").mkdir()
    for seed, name in enumerate(re.findall(r"images/\w+\.png", manifest)):
        Image.fromarray(made.picture(seed, (30, 40))).save(tmp_path / name)
    whole = {"train": 1.0, "validation": 0.0, "test": 0.0}
    cohort = scan(settings(images, root=str(tmp_path), split=whole), FakeKeys())
    assert (len(cohort.patients), len(cohort.records)) == (2, 3)
    check_complete(settings(table, issuer="x"))
