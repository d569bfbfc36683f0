"""`rehearse` learns on made-up records at the plan's noise, reads nothing private and charges nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.measured import tables
from dptrain import cli
from dptrain.settings import load
from dptrain.settings.places import recipe_folders
from dptrain.training.rehearsal import made_up, metric_of
from dptrain.vocabulary import task_spec
from tests.training.conftest import Site

TASKS = {
    "binary": ["data.image_shape=[1,16,16]"],
    "multiclass": ["data.task=multiclass", "data.classes=[a,b,c]", "data.image_shape=[2,16,16]"],
    "multilabel": ["data.task=multilabel", "data.classes=[a,b]", "data.columns.label=[a,b]"],
    "signal": ["data.task=multiclass", "data.classes=[a,b,c]", "data.image_shape=[1,40]", "model=cnn1d"],
    "segmentation": ["data.task=segmentation", "data.classes=[a,b]", "data.image_shape=[1,16,16,16]", "model=unet3d"],
    "table": ["data=table", "model=mlp", *(f"+data.table.numeric.c{i}=[0,1]" for i in range(8))],
}


@pytest.mark.parametrize("task", TASKS)
def test_made_up_records_have_the_data_s_shape_and_show_their_class(task: str) -> None:
    settings = load(TASKS[task])
    image, label = made_up(settings, 60)
    spec, classes = task_spec(settings.data.task), len(settings.data.classes)
    shape = tuple(settings.data.image_shape) if task != "table" else (8,)
    assert image.shape == (60, *shape)
    assert float(image.min()) >= 0
    assert float(image.max()) <= 1
    assert label.shape == (60, *spec.label_shape(classes, shape))
    flat = torch.cat([image.flatten(1).double(), torch.ones(60, 1, dtype=torch.float64)], 1)
    if task == "segmentation":
        assert set(label.unique().tolist()) == {0, 1, 2}
        logits = torch.stack([image[:, 0] < 0.6, label[:, 0] == 1, label[:, 0] == 2], 1).float()
        assert metric_of(settings, logits, label) > 0.8  # structures are what is bright
        return
    target = torch.nn.functional.one_hot(label.long()) if label.dim() == 1 else label
    weight = torch.linalg.lstsq(
        flat[:30].T @ flat[:30] + torch.eye(flat.shape[1]), flat[:30].T @ target[:30].double()
    )
    logits = flat[30:] @ weight.solution  # ridge regression tells classes of new records apart
    logits = logits[:, 1:] if spec.one_logit else logits
    assert metric_of(settings, logits, label[30:]) > 0.8


def test_a_rehearsal_learns_charges_nothing_and_reads_nothing(
    make_site: Callable[..., Site],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = make_site()
    before = site.ledger.head().entries
    for file in (site.folder / "images").iterdir():
        file.unlink()  # whoever opens one fails
    monkeypatch.chdir(tmp_path)
    words = [*site.words, "data.image_shape=[1,16,16]", "optimizer.lr=2", "privacy.steps=25"]
    assert cli.main(["rehearse", *words, "privacy.noise_multiplier=0.3", "seconds=90", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["plan"]["public_size"] == 60  # the ledger's declared size
    assert result["plan"]["noise_multiplier"] == 0.3
    assert result["steps"] == 25
    assert result["curve"][-1][1] > 0.8
    assert result["seconds_per_step"] > 0
    assert result["peak_bytes"] > 2**20
    assert any(tmp_path.joinpath("runs/rehearsal-tiny").glob("events*"))
    assert site.ledger.head().entries == before


def test_under_noise_that_hides_everything_nothing_is_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["public_size=60", "privacy.expected_batch_size=20", "privacy.steps=20", "data.image_shape=[1,16,16]"]
    words += ["optimizer.lr=2", "privacy.noise_multiplier=300", "--json"]
    reached = []
    for trial in range(8):  # weights of noise alone rank by a random direction: one time in five above 0.75
        assert cli.main(["rehearse", *words, f"out={tmp_path / str(trial)}"]) == 0
        reached.append(json.loads(capsys.readouterr().out)["curve"][-1][1])
    assert min(reached) < 0.75  # where something is learned, every one is far above


def test_without_ledger_and_size_it_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rehearse", f"ledger.url={tmp_path / 'none.sqlite'}"]) == 2
    assert "public_size=" in capsys.readouterr().err


def test_what_it_tells_of_recipes_is_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for recipe, rows in tables().items():
        told = json.loads((recipe_folders()[recipe] / "measured.json").read_text())["rows"]
        assert told == rows
    words = ["recipe=readmission", "public_size=47500", "privacy.noise_multiplier=40", "privacy.steps=2"]
    assert cli.main(["rehearse", *words, f"out={tmp_path}", "seconds=1"]) == 0
    assert "epsilon  1.0: auroc 0.670" in capsys.readouterr().out
