"""Source and licence are signed into the ledger, so they are asked for, never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dptrain import cli
from dptrain.commands.acts.ledger.controller import weights_of
from dptrain.models import ModelStore, small_cnn


@pytest.fixture
def own(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    file = tmp_path / "own.safetensors"
    ModelStore(file).save(small_cnn())
    return file


def test_weights_of_ones_own_have_no_licence_that_a_program_knows(own: Path) -> None:
    """Apache-2.0, the licence of the shipped weights, was written for any file."""
    sha, source, licence = weights_of(["model=small_cnn", f"model.weights={own}"])
    assert sha == ModelStore(own).sha256()
    assert (source, licence) == (None, None)


def test_the_command_asks_for_what_is_missing(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ledger", "weights", "recipe=chest_xray_pneumonia", "model=small_cnn", f"model.weights={own}"]
    assert cli.main(words) == 2
    assert "source=…" in capsys.readouterr().err
    assert cli.main([*words, "source=our own"]) == 2
    assert "licence=…" in capsys.readouterr().err
