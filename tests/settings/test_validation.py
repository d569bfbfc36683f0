"""Settings are frozen, and what makes no sense is refused when they are composed, before anything is read."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dptrain import cli
from dptrain.errors import ConfigError
from dptrain.settings import DataConfig, ModelConfig, PrivacyConfig, Settings, from_yaml, load, to_yaml
from dptrain.settings.typed import build, plain

ROOT = Path(__file__).parents[2]
XRAY = "recipe=chest_xray_pneumonia"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["check", XRAY, "data.format=foo"], "data.format=foo is unknown"),
        (["check", XRAY, "data.issuer=", "data.unit="], "is empty"),
        (["check", XRAY, "data.issuer="], "data.issuer is empty"),
        (["check", XRAY, "data.split.train=0.9"], "shares that sum to 1"),
        (["check", XRAY, "data.columns.label=[a,b]"], "takes one label column, not 2"),
        (["plan", "public_size=2215", XRAY, "data.task=binry"], "Did you mean binary"),
        (["train", XRAY, "data.format=foo", "--cfg", "job"], "data.format=foo is unknown"),
        (["check", XRAY, "privacy.views=0"], "privacy.views=0 must be at least 1"),
    ],
)
def test_what_makes_no_sense_ends_with_2(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "word",
    [
        "privacy.delta=2",
        "privacy.delta=0",
        "privacy.noise_multiplier=-1",
        "privacy.noise_multiplier=inf",
        "privacy.max_grad_norm=0",
        "privacy.max_grad_norm=nan",
        "privacy.steps=0",
        "privacy.max_records_per_patient=0",
        "privacy.calibration_noise_multiplier=inf",
        "data.image_shape=[1,0,4]",
        "data.columns.bins={age: [65,18]}",
        "+data.columns.bins.age=[65,18]",
        "data.classes=[a,a]",
        "data.classes=null",
        "data.units_per_person=0",
        "optimizer.lr=null",
        "training.seed=1.5",
        "audit.new_scan=nan",
        "audit.models=1",
    ],
)
def test_each_value_has_a_range(word: str) -> None:
    with pytest.raises(ConfigError):
        load([word])


def test_settings_are_frozen() -> None:
    settings = Settings()
    for part in (settings, settings.data, settings.data.split, settings.privacy, settings.audit, settings.ledger):
        with pytest.raises(dataclasses.FrozenInstanceError):
            part.name = "other"  # type: ignore[misc]


def test_every_setting_has_a_line_of_help() -> None:
    def walk(part: object) -> None:
        for field in dataclasses.fields(part):  # type: ignore[arg-type]
            value = getattr(part, field.name)
            if dataclasses.is_dataclass(value):
                walk(value)
            else:
                assert field.metadata["help"], field.name

    walk(Settings())


def test_nothing_sets_an_attribute_of_settings() -> None:
    """`setattr` stays where the name of an attribute of a torch module is data."""
    modules = {"dptrain/models/private.py", "dptrain/models/weights.py", "dptrain/training/step.py"}
    allowed = {"dptrain/lazy.py", *modules}
    seen = set()
    for path in (ROOT / "dptrain").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
                seen.add(str(path.relative_to(ROOT)))
    assert seen <= allowed


def test_settings_import_no_torch() -> None:
    code = "import sys, dptrain.settings as s; s.load([]); sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def lines_of(values: object, path: str = "") -> dict[str, object]:
    """Every leaf of nested settings by its dotted path."""
    if isinstance(values, dict) and values:
        leaves: dict[str, object] = {}
        for name, value in values.items():
            leaves |= lines_of(value, f"{path}.{name}" if path else str(name))
        return leaves
    return {path: values}


@pytest.mark.parametrize("name", ["run/config.yaml", "run/model/configs/network.yaml"])
def test_a_run_folder_made_before_is_read_and_keeps_every_value(name: str) -> None:
    """What is new since then stands at its default, and nothing that the file says is lost, moved or changed."""
    file = ROOT / "tests/fixtures/run_42972b7" / name
    before = lines_of(yaml.safe_load(file.read_text(encoding="utf-8")))
    written = lines_of(yaml.safe_load(to_yaml(from_yaml(file))))
    assert {path: written.get(path, "lost") for path in before} == before
    defaults = lines_of(plain(Settings()))
    added = {path: value for path, value in written.items() if path not in before}
    assert added == {path: defaults.get(path, "no default") for path in added}
    assert [path for path in written if path in before] == list(before)  # in the same order


@pytest.mark.parametrize("text", [".inf", "inf", "+.inf", ".Inf"])
def test_infinity_is_written_as_yaml_or_python_writes_it(text: str) -> None:
    assert load([f"privacy.target_epsilon={text}"]).privacy.target_epsilon == float("inf")


def test_plain_values_become_settings_and_back() -> None:
    settings = Settings(
        data=DataConfig(label_values={"0": "negative"}, image_shape=[1, 2, 3]),
        model=ModelConfig(network={"_target_": "x", "sizes": [1, 2]}, rules={"a.b": "one-by-one"}),
        privacy=PrivacyConfig(epochs=2.0),
    )
    assert build(Settings, plain(settings)) == settings


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"surprise": 1}, "There is no setting 'surprise'"),
        ({"data": {"colums": {}}}, "Did you mean data.columns"),
        ({"data": 3}, "data is no group of settings"),
        ({"data": {"label_values": {0: "normal"}}}, 'Write "0": …'),
        ({"data": {"label_values": {False: "normal"}}}, "the name false is true or false"),
        ({"data": {"classes": [False, True]}}, r"data.classes\[0\] is false, and must be a text"),
        ({"data": {"issuer": True}}, "YAML reads yes, no, on, off"),
        ({"data": {"table": {"categorical": {"smoker": [True]}}}}, r"data.table.categorical.smoker\[0\]"),
        ({"data": {"table": {"numeric": {"age": ["x", 3]}}}}, "is not a number"),
        ({"data": {"classes": "a"}}, "data.classes=a is not a list"),
        ({"data": {"keep": "a"}}, r"Write \+data.keep.NAME"),
        ({"model": {"network": {"modules": "???"}}}, "model.network.modules is not set"),
        ({"training": {"evaluate": "perhaps"}}, "is not true or false"),
        ({"training": {"seed": True}}, "is not a whole number"),
    ],
)
def test_values_of_the_wrong_kind_are_named(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(Settings, values)


@pytest.mark.parametrize(
    ("kind", "word", "value"),
    [("true", "training.evaluate=yes", True), ("false", "training.evaluate=off", False)],
)
def test_yes_and_no_are_true_and_false_where_a_setting_is(kind: str, word: str, value: bool) -> None:
    assert load([word]).training.evaluate is value


SECRET = "DPTRAIN_TEST_SECRET"


@pytest.mark.parametrize(
    "word",
    [
        "name='${oc.env:DPTRAIN_TEST_SECRET}'",
        "data.root='${oc.env:DPTRAIN_TEST_SECRET,data}'",
        "data.cautions=['${oc.decode:${oc.env:DPTRAIN_TEST_SECRET}}']",
        "+data.keep.site='${hydra:runtime.cwd}'",
        "training.run='runs/${now:%Y}'",
        "name='${data.${name}}'",
        r"name='\${oc.env:DPTRAIN_TEST_SECRET}'",
    ],
)
def test_nothing_is_read_from_outside_of_the_settings(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, "s3cret")
    with pytest.raises(ConfigError, match="reads from outside") as caught:
        load([word])
    assert "s3cret" not in str(caught.value)


def test_a_foreign_run_folder_reads_nothing_of_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, "s3cret")
    file = tmp_path / "config.yaml"
    kept = to_yaml(Settings(name="kept"))
    for line in ("name: ${oc.env:DPTRAIN_TEST_SECRET}", 'name: "a\\\\${oc.env:DPTRAIN_TEST_SECRET}"'):
        file.write_text(kept.replace("name: kept", line, 1))
        with pytest.raises(ConfigError, match="reads from outside"):
            from_yaml(file)


def test_a_setting_may_name_another() -> None:
    assert load(["name=spine", "data.source='${data.name}'"]).data.source == "spine"
    with pytest.raises(ConfigError, match="refers to a setting that is not there"):
        load(["data.source='${data.nme}'"])


def test_the_root_of_all_cohorts_is_the_one_variable_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPTRAIN_DATA", "/somewhere")
    assert load([]).data.root == "/somewhere"
    assert load(["data.root=here"]).data.root == "here"
    monkeypatch.delenv("DPTRAIN_DATA")
    assert load([]).data.root == "data"
