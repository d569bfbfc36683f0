"""Every recipe and every option of every group composes, builds and passes the pre-flight check."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dptrain.errors import ConfigError
from dptrain.models import losses
from dptrain.settings import load
from dptrain.settings.data import shape_of
from dptrain.settings.places import recipe_folders
from dptrain.shipped import shipped
from dptrain.targets import instantiate
from dptrain.training.planning import make_plan

RECIPES = (
    "chest_xray_findings",
    "chest_xray_pneumonia",
    "ecg_beats",
    "hippocampus_segmentation",
    "readmission",
)
#: Training patients as the recipes' pages tell the steward to declare them.
PUBLIC_SIZE = {
    "chest_xray_findings": 475,
    "chest_xray_pneumonia": 2215,
    "ecg_beats": 33,
    "hippocampus_segmentation": 188,
    "readmission": 47500,
}
OPTIONS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in shipped("conf").glob("*/*.yaml")
    if path.parent.name not in ("recipe", "hydra")
)
REQUIRED: dict[str, list[str]] = {}
REQUIRED["model=sequential"] = ["model.network.modules=[]"]


def test_the_recipes_are_found() -> None:
    assert set(RECIPES) <= set(recipe_folders())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_composes_and_its_plan_is_made(recipe: str) -> None:
    settings = load([f"recipe={recipe}"])
    assert settings.name == recipe
    assert settings.data.source
    assert settings.data.licence
    assert settings.data.cautions
    size = PUBLIC_SIZE[recipe]
    privacy = replace(settings.privacy, noise_multiplier=10.0)  # calibration has tests of its own
    plan = make_plan(privacy, public_size=size, unit=settings.data.unit)
    assert plan.expected_batch_size <= size
    assert plan.delta < 1 / size
    assert settings.training.chunk >= plan.max_records_per_patient * plan.views


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_a_page_that_says_what_is_needed(recipe: str) -> None:
    page = (recipe_folders()[recipe] / "README.md").read_text(encoding="utf-8").lower()
    for word in ("## get the data", "sha-256", "licence", "## cautions", "## results", "chosen", "public_size="):
        assert word in page, f"{recipe}/README.md does not mention '{word}'"
    assert f"public_size={PUBLIC_SIZE[recipe]}" in page


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_builds_a_network_that_fits_its_data(recipe: str) -> None:
    if recipe.startswith("chest_xray"):
        pytest.importorskip("efficientnet_lite_pytorch")
    from dptrain import models

    settings = load([f"recipe={recipe}"])
    network, changes = models.make_private(models.build(settings.model), batchnorm=settings.model.batchnorm)  # type: ignore[arg-type]
    assert not changes
    shape = shape_of(settings.data)
    if settings.model.train == "head":  # a smaller image will do
        shape = (shape[0], 64, 64)
    with torch.inference_mode():
        output = network.eval()(torch.rand(2, *shape))
    classes = len(settings.data.classes)
    task = settings.data.task
    if task == "segmentation":
        label = torch.zeros(2, 1, *shape[1:], dtype=torch.int64)
        assert output.shape == (2, classes + 1, *shape[1:])
    elif task == "multilabel":
        label = torch.zeros(2, classes)
        assert output.shape == (2, classes)
    else:
        label = torch.zeros(2, dtype=torch.int64)
        assert output.shape == (2, 1 if task == "binary" else classes)
    assert losses.loss_for_task(task)(output, label).shape == (2,)


def test_pages_declare_the_sizes_of_the_benchmark() -> None:
    from benchmarks import utility

    assert utility.PUBLIC_SIZE == PUBLIC_SIZE


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_every_group_composes(option: str) -> None:
    settings = load([option, *REQUIRED.get(option, [])])
    if option.startswith("model=") and option not in ("model=efficientnet_lite0", "model=sequential"):
        network = instantiate(settings.model.network)
        assert isinstance(network, torch.nn.Module)


def test_a_recipe_in_a_foreign_folder_needs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "mine" / "knee"
    (home / "recipe").mkdir(parents=True)
    (home / "recipe" / "knee.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /data: table\n  - override /model: linear\n"
        "name: knee\n"
        f"data:\n  root: {tmp_path}\n  issuer: test\n"
        "  columns: {patient: who, label: [torn]}\n"
        '  classes: [whole, torn]\n  label_values: {"0": whole, "1": torn}\n'
        "  table: {numeric: {age: [0, 100]}}\n"
        "model:\n  network: {in_features: 1}\n"
        "privacy: {expected_batch_size: 5, steps: 2}\n"
    )
    with (tmp_path / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["who", "torn", "age"])
        writer.writerows([[f"p{i}", i % 2, i] for i in range(60)])
    with pytest.raises(ConfigError, match="knee"):
        load(["recipe=knee"])
    monkeypatch.setenv("DPTRAIN_RECIPES", str(tmp_path / "mine"))
    settings = load(["recipe=knee", "privacy.steps=3"])
    assert settings.name == "knee"
    assert settings.privacy.steps == 3

    from dptrain import data
    from tests.data.shared import FakeKeys

    cohort = data.scan(settings.data, FakeKeys())
    assert len(cohort.patients) == 60


@pytest.mark.shared_data
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_manifest_of_a_recipe_is_readable(recipe: str, shared_data: Path) -> None:
    if recipe == "readmission":
        pytest.skip("read in full by the benchmark; the table takes seconds")
    from dptrain import data

    manifest = data.read_manifest(load([f"recipe={recipe}", f"data.root={shared_data}"]).data)
    assert len(manifest) > 100
