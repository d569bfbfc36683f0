"""Names that do not exist are never accepted, and a configuration calls nothing that is not on the list."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from dptrain import targets
from dptrain.errors import ConfigError
from dptrain.settings import from_yaml, load, to_yaml
from dptrain.settings.kept import without_password
from dptrain.training.planning import make_plan


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("privacy.target_epsilo=3", "privacy.target_epsilon"),
        ("optimizer.lrr=1", "optimizer.lr"),
        ("model=small_cn", "small_cnn"),
        ("modle=small_cnn", "model"),
        ("data.colums.patient=id", "data.columns"),
    ],
)
def test_a_typo_gets_the_nearest_names(word: str, near: str) -> None:
    with pytest.raises(ConfigError) as error:
        load([word])
    assert near in str(error.value)


@pytest.mark.parametrize(
    "word",
    [
        "+surprise=1",
        "+privacy.refund=1",
        "recipe=no_such_recipe",
        "privacy.target_epsilon=abc",
        "privacy.target_epsilon=0",
        "privacy.target_epsilon=-1",
        "privacy.target_epsilon=nan",
        "privacy.steps",
        "privacy.epochs=3",
        ["privacy.steps=null", "privacy.epochs=inf"],
        "training.ema=1.0",
        "training.precision=fp8",
        "optimizer.name=sgdd",
        "training.chunk=0",
        "--jsn",
    ],
)
def test_a_wrong_word_is_a_configuration_error(word: str | list[str]) -> None:
    with pytest.raises(ConfigError):
        load([word] if isinstance(word, str) else word)


@pytest.mark.parametrize(("batch", "said"), [(0, "at least 1"), (-5, "at least 1"), (61, "between 1 and 60")])
def test_a_batch_that_makes_no_rate_is_a_configuration_error(batch: int, said: str) -> None:
    words = ["privacy.steps=null", "privacy.epochs=10", f"privacy.expected_batch_size={batch}"]
    with pytest.raises(ConfigError, match=said):
        make_plan(load(words).privacy, public_size=60)


def test_groups_and_presets_compose() -> None:
    settings = load(["privacy=none", "debug=steps", "optimizer=adam"])
    assert math.isinf(settings.privacy.target_epsilon)
    assert (settings.privacy.steps, settings.optimizer.name) == (3, "adam")


def test_settings_survive_their_file(tmp_path: Path) -> None:
    rule = "+model.rules.body.0.0=one-by-one"
    settings = load(["privacy.target_epsilon=3", "privacy.delta=1e-6", rule])
    assert settings.model.rules == {"body.0.0": "one-by-one"}
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(settings))
    assert from_yaml(file) == settings
    kept = file.read_text().replace("privacy:\n", "privacy:\n  unit: patient\n", 1)  # as earlier versions wrote it
    assert "  unit: patient\n" in kept
    file.write_text(kept)
    assert from_yaml(file) == settings


def test_a_database_s_password_reaches_no_run_folder() -> None:
    """config.yaml and the command in run.json are public; the report prints the command."""
    url = "postgresql://steward:s3cret@db.clinic/dptrain"
    settings = load([f"ledger.url='{url}'", "ledger.witness='https://w/h?a=1&password=s3cret'"])
    for text in (
        to_yaml(settings),
        without_password(f"dptrain train 'ledger.url={url}?password=s3cret'"),
    ):
        assert "s3cret" not in text
        assert "postgresql://steward@db.clinic/dptrain" in text
    assert without_password("data.root=/a:b@c run=x") == "data.root=/a:b@c run=x"


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "torch.nn.modules.module.os.system",
        "monai.transforms.io.array.os.remove",
        "monai.networks.nets.NoSuchNet",
        "dptrain.ledger.Ledger",
        "dptrain.models.build.instantiate",
    ],
)
def test_what_is_not_on_the_list_is_not_called(target: str) -> None:
    with pytest.raises(ConfigError):
        targets.instantiate({"_target_": target})


def test_nested_targets_are_checked_too() -> None:
    with pytest.raises(ConfigError):
        targets.instantiate({"_target_": "torch.nn.Sequential", "modules": [{"_target_": "os.getcwd"}]})


def test_instantiate_builds_nested_arguments() -> None:
    built = targets.instantiate({"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2})
    assert tuple(built.weight.shape) == (2, 3)
    with pytest.raises(ConfigError):
        targets.instantiate({"_target_": "torch.nn.Linear", "in_feature": 3})


def test_a_recipe_is_a_folder_and_needs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "spine" / "recipe"
    folder.mkdir(parents=True)
    (folder / "spine.yaml").write_text("# @package _global_\nname: spine\nprivacy: {steps: 7}\n")
    monkeypatch.setenv("DPTRAIN_RECIPES", str(tmp_path))
    settings = load(["recipe=spine"])
    assert (settings.name, settings.privacy.steps) == ("spine", 7)


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.functional.torch.load",
        "torch.nn.functional.torch.hub.load",
        "dptrain.models.weights.torch.load",
        "monai.networks.nets.densenet.load_state_dict_from_url",
    ],
)
def test_no_way_leads_through_a_module_s_own_imports(target: str) -> None:
    with pytest.raises(ConfigError):
        targets.locate(target)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data.keep={foo:bar}", "Write +data.keep.NAME=…"),
        ("privacy.target_epsilon=abc", "privacy.target_epsilon=abc is not a number.*for instance .*target_epsilon=8"),
        ("privacy.target_epsilon=", "privacy.target_epsilon= is empty; it takes a number"),
        ("privacy.target_epsilon", "not of the form name=value.*Write privacy.target_epsilon=…"),
        ("chest_xray_pneumonia", "Did you mean recipe=chest_xray_pneumonia?"),
        ("privacy.steps=1.5", "privacy.steps=1.5 is not a whole number"),
        ("training.cache_features=maybe", "maybe is not true or false"),
        ("training.chunk=many", "many is not a whole number.*training.chunk=64"),
    ],
)
def test_a_wrong_override_is_told_what_is_allowed(word: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([word])
    assert re.search(said.replace("?", r"\?").replace("+", r"\+"), str(caught.value), re.S), str(caught.value)


def test_an_argument_that_a_network_does_not_take_is_told_how_to_go() -> None:
    from dptrain import models

    with pytest.raises(ConfigError, match=r"'in_channels'(.|\n)*~model.network.NAME"):
        models.build({"_target_": "monai.networks.nets.resnet18", "in_channels": 1})
