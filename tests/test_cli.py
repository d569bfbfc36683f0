"""Exit codes, plain words, no tracebacks, and a quick start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dptrain import cli
from dptrain.commands.table import COMMANDS
from dptrain.errors import DataUnreadable, LedgerRefused

ROOT = Path(__file__).parents[1]


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "examples" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert cli.main([]) == 2


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command.split(), "--help"]) == 0
    assert "dptrain " + command in capsys.readouterr().out


def test_an_unknown_command_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert "train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(LedgerRefused("no budget"), 3), (DataUnreadable("bad", faults=["row 3"]), 5)]
)
def test_errors_become_exit_codes(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "run", fail)
    assert cli.main(["train"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_pages_named_in_an_error_exist(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: list[str]) -> int:
        raise LedgerRefused("lost", remedy="Restore the backup (docs/ledger.md, Keys).")

    monkeypatch.setattr(cli, "run", fail)
    assert cli.main(["train"]) == 3
    page = re.search(r"\((\S+ledger\.md), Keys\)", capsys.readouterr().err)
    assert page is not None
    assert Path(page[1]).is_absolute()
    assert Path(page[1]).is_file()


def test_every_page_and_heading_that_the_program_names_exists() -> None:
    named = set()
    for path in (ROOT / "dptrain").rglob("*.py"):
        named |= set(re.findall(r"(docs/[\w-]+\.md)(?:, ([A-Z][a-z]+)[.)])?", path.read_text(encoding="utf-8")))
    assert named
    for page, heading in named:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert not heading or re.search(rf"^#+ {heading}$", text, re.M), (page, heading)


def test_an_internal_error_keeps_its_text_to_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: list[str]) -> int:
        raise ValueError("patient 4711 has pixels 1 2 3")

    monkeypatch.delenv("DPTRAIN_TRACEBACK", raising=False)
    monkeypatch.setattr(cli, "run", fail)
    assert cli.main(["train"]) == 1
    shown = capsys.readouterr().err
    assert "4711" not in shown
    assert "ValueError" in shown


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, dptrain.cli; dptrain.cli.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_command_line_starts_quickly() -> None:
    assert min(_seconds("--help") for _ in range(3)) < 0.5
    assert min(_seconds("plan", "--help") for _ in range(3)) < 0.5


def _seconds(*words: str) -> float:
    """Processor time of a start: the clock would measure the neighbours too."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "dptrain", *words], capture_output=True, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize("command", ["plan", "check", "train", "audit"])
def test_an_unknown_option_is_named(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    extra = {"plan": ["public_size=100"], "audit": ["recipe=ecg_beats"]}.get(command, [])
    assert cli.main([command, *extra, "--jsn"]) == 2
    shown = capfd.readouterr().err
    assert "'--jsn'" in shown
    assert "Lexer" not in shown
    assert "usage:" not in shown


# --- what the check refuses, and how --------------------------------------------------------------------------------

SMALL = "data.image_shape=[1,16,16]"
NORMED = ["model=sequential", "model.network.modules=[{_target_: torch.nn.Flatten}, {_target_: torch.nn.Linear, "
          "in_features: 256, out_features: 8}, {_target_: torch.nn.BatchNorm1d, num_features: 8}, "
          "{_target_: torch.nn.BatchNorm1d, num_features: 8}, {_target_: torch.nn.Linear, in_features: 8, "
          "out_features: 1}]"]  # fmt: skip


def test_batchnorm_without_leave_is_refused_beside_every_other_fault(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    mixing = "data.augment=[{_target_: monai.transforms.MixUpd, keys: [image], batch_size: 2}]"
    assert cli.main(["check", SMALL, *NORMED, "model.batchnorm=refuse", mixing]) == 4
    shown = capsys.readouterr().out
    assert "model.batchnorm=replace" in shown
    assert "MixUpd" in shown
    assert "several patients" in shown


def test_layers_that_are_changed_alike_make_one_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["check", SMALL, *NORMED, "model.batchnorm=replace"]) == 0
    assert "BatchNorm1d -> GroupNorm: 2 layers" in capsys.readouterr().out


@pytest.mark.parametrize(
    "transform",
    [
        "{_target_: monai.transforms.NoSuchThing, keys: [image]}",
        "{_target_: os.system}",
        "{_target_: monai.transforms.CutOutd, keys: [image], batch_size: 2}",
        "{_target_: monai.transforms.CutMixd, keys: [image], batch_size: 2}",
        "{_target_: monai.transforms.Flipd, keys: [image], no_such_argument: 1}",
    ],
)
def test_transforms_that_the_data_would_refuse_are_refused_by_the_check(
    transform: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", SMALL, f"data.augment=[{transform}]"]) == 4
    assert "data.augment" in capsys.readouterr().out


def test_a_network_given_as_a_whole_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "model.network={_target_: monai.networks.nets.UNet, spatial_dims: 2}"]) == 2
    assert "+model.network.NAME" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["training.loss=dice", "data.sampler=weighted"])
def test_loss_and_sampler_are_not_to_be_set(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", word]) == 2
    assert "no setting" in capsys.readouterr().err


# --- layers that no fast rule fits ----------------------------------------------------------------------------------

BARE = [f"~model.network.{name}" for name in ("in_channels", "num_classes", "channels")]


@pytest.fixture
def turned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Words for a network that takes the sequence before the batch."""
    from dptrain import targets

    monkeypatch.setattr(targets, "ALLOWED", (*targets.ALLOWED, "tests.models.made."))
    monkeypatch.setenv("COLUMNS", "400")
    return ["model.network._target_=tests.models.made.SequenceFirst", *BARE, "data.image_shape=[1,4,8]"]


def test_the_remedy_of_a_refused_layer_is_a_setting_that_works(
    turned: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", *turned]) == 4
    shown = capsys.readouterr().out
    assert "layer.norm1, layer.norm2 does not come from the patient's own rows" in shown
    words = re.findall(r"\+model\.rules\.\S+", shown)
    assert words == [f"+model.rules.layer.{name}=one-by-one" for name in ("linear1", "linear2", "norm1", "norm2")]
    for given in (words, ["+model.rules.layer=one-by-one"]):
        assert cli.main(["check", *turned, *given]) == 0
        shown = capsys.readouterr().out
        assert all(word[1:].partition("=")[0] in shown for word in given)
        assert "one more backward pass for each patient" in shown


@pytest.mark.parametrize(
    ("word", "code", "said"),
    [
        ("+model.rules.layr=one-by-one", 2, "Did you mean layer"),
        ("+model.rules.encoder=one-by-one", 2, "Some of its layers: body, layer"),
        ("+model.rules.layer=fast", 2, "model.rules.layer=fast is unknown.\nValid names: one-by-one."),
        ("model.rules.layer=one-by-one", 2, "+model.rules.layer"),
        ("model.rules=one-by-one", 2, "+model.rules.NAME=one-by-one"),
        ("model.rules={layer: one-by-one}", 2, "+model.rules.NAME=one-by-one"),
        ("+model.rules.layer.linear1.weight=one-by-one", 4, "layer.linear2"),  # the others are refused as before
    ],
)
def test_rules_that_name_nothing_are_refused_with_what_there_is(
    turned: list[str], word: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", *turned, word]) == code
    shown = capsys.readouterr()
    assert said in (shown.err if code == 2 else shown.out)


def test_a_rule_for_what_is_not_trained_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data.image_shape=[1,16,16]", "model.train=head", "+model.rules.body.0=one-by-one"]
    assert cli.main(["check", *words]) == 2
    assert "nothing of it is trained" in capsys.readouterr().err
    assert cli.main(["check", *words[:2], "+model.rules.head=one-by-one"]) == 0


def test_a_library_that_logs_without_a_handler_says_nothing_on_the_terminal() -> None:
    code = "from dptrain.errors import quiet; quiet(); import logging; logging.getLogger('x').error('pixels 1 2 3')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
