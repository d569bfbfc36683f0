"""What is chosen on the command line wins over the recipe: every option of every group, with every recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from dptrain.errors import ConfigError
from dptrain.settings import load
from dptrain.settings.compose import compose
from dptrain.shipped import shipped

RECIPES = sorted(path.stem for path in shipped("recipes").glob("*/recipe/*.yaml"))
OPTIONS = sorted(
    (path.parent.name, path.stem)
    for path in shipped("conf").glob("*/*.yaml")
    if path.parent.name not in ("recipe", "hydra", "debug")
)


def said(group: str, option: str) -> dict[str, object]:
    """What an option's file says, by dotted name; values that name another setting are left out."""
    entries: dict[str, object] = {}

    def walk(node: object, name: str) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(value, f"{name}.{key}")
        elif not (isinstance(node, str) and "${" in node):
            entries[name] = node

    file = OmegaConf.to_container(OmegaConf.load(shipped("conf") / group / f"{option}.yaml"))
    assert isinstance(file, dict)
    file.pop("defaults", None)
    for key, value in file.items():
        walk(value, f"{group}.{key!s}")
    return entries


def value_at(config: DictConfig, name: str) -> object:
    node: object = config
    for key in name.split("."):
        assert isinstance(node, DictConfig)
        node = node._get_node(key)
    assert node is not None, name
    plain = OmegaConf.to_container(OmegaConf.create({"it": node}))
    assert isinstance(plain, dict)
    return plain["it"]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda part: part)
def test_the_option_wins_over_the_recipe(group: str, option: str, recipe: str) -> None:
    config = compose([f"recipe={recipe}", f"{group}={option}"])
    for name, value in said(group, option).items():
        assert value_at(config, name) == value, name


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_the_option_does_not_say_stays_the_recipe_s(recipe: str) -> None:
    alone, strict = load([f"recipe={recipe}"]), load([f"recipe={recipe}", "privacy=strict"])
    assert strict.privacy.target_epsilon == 1.0
    assert strict.privacy.max_grad_norm == alone.privacy.max_grad_norm
    assert strict.privacy.expected_batch_size == alone.privacy.expected_batch_size
    assert (strict.data, strict.model, strict.optimizer) == (alone.data, alone.model, alone.optimizer)


def test_another_network_brings_none_of_the_recipe_s_arguments() -> None:
    network = load(["recipe=chest_xray_pneumonia", "model=densenet121"]).model.network
    assert network["_target_"] == "monai.networks.nets.DenseNet121"
    assert not {"root_features", "projection"} & set(network)


def test_another_cohort_is_no_mixture_of_two() -> None:
    data = load(["recipe=chest_xray_pneumonia", "data=csv"]).data
    assert (data.issuer, data.classes, data.columns.patient) == ("local", ["negative", "positive"], "patient_id")


@pytest.mark.parametrize("order", [1, -1])
def test_single_settings_win_over_chosen_groups(order: int) -> None:
    words = ["recipe=ecg_beats", "privacy=strict", "privacy.target_epsilon=3", "optimizer=sgd", "optimizer.lr=7"]
    settings = load(words[::order])
    assert (settings.privacy.target_epsilon, settings.optimizer.name, settings.optimizer.lr) == (3.0, "sgd", 7.0)
    assert settings.optimizer.momentum == 0.9


def test_debug_still_comes_last() -> None:
    assert load(["recipe=ecg_beats", "privacy=default", "debug=steps"]).privacy.steps == 3


def test_one_composition_leaves_nothing_behind_for_the_next() -> None:
    before = load(["recipe=chest_xray_pneumonia"])
    load(["recipe=chest_xray_pneumonia", "model=densenet121", "data=csv", "privacy=none"])
    assert load(["recipe=chest_xray_pneumonia"]) == before


def own(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "spine" / "recipe" / "spine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
    monkeypatch.setenv("DPTRAIN_RECIPES", str(folder))


def test_a_recipe_may_bring_options_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(tmp_path, "# @package _global_\nname: spine\nmodel: {network: {more: 1}}\n", monkeypatch)
    option = tmp_path / "spine" / "model" / "mine.yaml"
    option.parent.mkdir()
    option.write_text("network: {_target_: dptrain.models.mlp}\n", encoding="utf-8")
    settings = load(["recipe=spine", "model=mine"])
    assert (settings.name, settings.model.network) == ("spine", {"_target_": "dptrain.models.mlp"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: spine\n", "lacks its first line"),
        ("# @package _global_\ndata:\n  label_values: {0: normal}\n", 'Write "0": …'),
        ("# @package _global_\ndata:\n  classes: [no, yes]\n", "YAML reads yes, no"),
        ("# @package _global_\ndata:\n\tissuer: x\n", r"spine.yaml, line 3, column 1: this is not YAML"),
        ("# @package _global_\nsurprise: 1\n", "There is no setting 'surprise'"),
        ("# @package _global_\nprivacy: {epsilon: 1}\n", "Did you mean privacy."),
        ("# @package _global_\nprivacy: {steps: many}\n", "privacy.steps=many is not a whole number"),
        ("# @package _global_\ndata: {root: '${oc.env:HOME}'}\n", "reads from outside"),
        ("# @package _global_\ndefaults:\n  - override /model: smal_cnn\n", "Did you mean small_cnn"),
    ],
)
@pytest.mark.parametrize("more", [[], ["model=small_cnn"]], ids=["alone", "with a group"])
def test_a_recipe_that_cannot_be_read_is_told_what_to_write(
    text: str, message: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(tmp_path, text, monkeypatch)
    if more and "override" in text:
        assert load(["recipe=spine", *more]).model.network  # the command line has overruled it
        return
    with pytest.raises(ConfigError, match=message) as caught:
        load(["recipe=spine", *more])
    assert "OmegaConf" not in str(caught.value)
    assert "Hydra" not in str(caught.value)
