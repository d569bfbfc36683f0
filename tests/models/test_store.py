"""The one way to weights: what is kept is restored exactly, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dptrain import models
from dptrain.errors import ConfigError
from dptrain.models import ModelStore
from dptrain.records import RunFolder


def test_what_is_kept_is_restored_exactly(tmp_path: Path) -> None:
    """A network of which all names begin with `module.` too: that prefix is dropped from foreign files alone."""
    network = nn.Sequential()
    network.add_module("module", models.small_cnn(1, 2))
    store = ModelStore(tmp_path / "model.safetensors")
    assert not store.exists
    sha = store.save(network)
    assert sha == store.sha256()
    twin = nn.Sequential()
    twin.add_module("module", models.small_cnn(1, 2))
    store.restore(twin, sha256=sha)
    for name, value in network.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name])


def test_another_model_and_another_network_are_refused(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "model.safetensors")
    network = models.mlp(4, 2)
    with pytest.raises(ConfigError, match="kept no model"):
        store.restore(network)
    sha = store.save(network)
    store.save(models.mlp(4, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ConfigError, match="is not the model that was kept"):
        store.restore(network, sha256=sha)
    with pytest.raises(ConfigError, match="of another network"):
        store.restore(models.mlp(5, 2))
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())


def test_a_run_s_folder_names_its_model(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    sha = ModelStore(folder.weights).save(models.mlp(4, 2))
    assert ModelStore.of(folder.path).sha256() == sha
    assert ModelStore.of(folder.weights).sha256() == sha
