"""`check` says, before any charge, what `train` would end with: facts that disagree, and what the ledger refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dptrain import cli
from dptrain.errors import CheckRefused
from dptrain.models import ModelStore
from dptrain.models.network import build_network
from dptrain.training import train
from tests.training.conftest import Site

SHAPES = [
    ("model.network.num_classes=5", "[5] a record, where task=binary with 2 classes takes [1]"),
    ("model.network.in_channels=3", "it takes 3 channels or features, and data.image_shape=[1, 8, 8] has 1"),
]


@pytest.mark.parametrize(("word", "said"), SHAPES)
def test_outputs_and_inputs_that_are_not_the_data_s_are_refused_before_the_charge(
    make_site: Callable[..., Site], word: str, said: str
) -> None:
    site = make_site()
    with pytest.raises(CheckRefused) as caught:
        train(site.settings(word), say=lambda _: None)
    assert said in str(caught.value)
    assert "data." in (caught.value.remedy or "")
    assert site.ledger.status("tiny").runs == []


@pytest.mark.parametrize(
    ("task", "network"),
    [
        (["data.task=multiclass", "data.classes=[a,b,c]"], ["model.network.num_classes=4"]),
        (["data.task=multilabel", "data.classes=[a,b]", "data.columns.label=[a,b]"], ["model.network.num_classes=3"]),
        (
            ["data.task=segmentation", "data.classes=[a]", "data.image_shape=[1,16,16,16]"],
            ["model=unet3d", "model.network.channels=[4,8]", "model.network.out_channels=3"],
        ),
    ],
)
def test_every_task_compares_its_outputs(
    task: list[str], network: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", *task, *network]) == 4
    assert "outputs of the network" in capsys.readouterr().out


def test_check_names_a_batch_above_the_declared_size(
    make_site: Callable[..., Site], capsys: pytest.CaptureFixture[str]
) -> None:
    site = make_site()
    assert cli.main(["check", *site.words, "privacy.expected_batch_size=61"]) == 2
    assert "Choose between 1 and 60" in capsys.readouterr().out


def test_check_names_weights_that_nobody_declared_and_a_plan_that_the_budget_does_not_hold(
    make_site: Callable[..., Site],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    site = make_site(epsilon=1.0)
    file = tmp_path / "found.safetensors"
    torch.manual_seed(1)
    ModelStore(file).save(build_network(site.settings()).whole)
    words = [*site.words, f"model.weights={file}", "privacy.target_epsilon=2"]
    assert cli.main(["check", *words]) == 3
    shown = capsys.readouterr().out
    assert "neither declared public nor the model of a run" in shown
    assert "of the budget of 'tiny'" in shown
    assert site.ledger.status("tiny").runs == []


def test_check_says_that_it_would_be_granted(
    make_site: Callable[..., Site], capsys: pytest.CaptureFixture[str]
) -> None:
    site = make_site()
    before = site.ledger.head().entries
    assert cli.main(["check", *site.words]) == 0
    assert "would grant this run now" in capsys.readouterr().out
    assert site.ledger.head().entries == before


def test_a_remedy_can_be_pasted_at_eighty_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["check", "model.network.num_classes=3"]) == 4
    assert "model.network.num_classes=data.outputs" in capsys.readouterr().out


def test_check_names_a_chunk_that_cannot_hold_a_patient(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "training.chunk=4", "privacy.max_records_per_patient=8"]) == 2
    assert "training.chunk=8" in capsys.readouterr().out
