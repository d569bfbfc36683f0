"""The coverage benchmark itself: right gradients pass, wrong ones and silent steps do not."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import coverage
from benchmarks._networks import entries
from dptrain import engine


@pytest.fixture(scope="module")
def small():
    return next(entry for entry in entries() if entry.network == "FullyConnectedNet")


def test_the_table_holds_every_network_of_the_goal():
    listed = [(entry.network, entry.dims) for entry in entries() if entry.listed]
    both = (
        *("ResNet-18", "ResNet-50", "DenseNet121", "SEResNet50", "SENet154", "EfficientNet-B0", "ViT", "UNet"),
        *("BasicUNet", "BasicUNetPlusPlus", "DynUNet", "SegResNet", "AttentionUnet", "SwinUNETR", "UNETR"),
        *("FlexibleUNet", "VNet", "HighResNet", "AutoEncoder", "AHNet", "MedNeXt", "Classifier"),
    )
    wanted = {(name, dims) for name in both for dims in (2, 3)} | {("ResNet-18", 1), ("DenseNet121", 1)}
    assert len(listed) == len(set(listed))
    assert set(listed) == wanted


def test_right_gradients_pass(small):
    row = coverage.examine(small, "engine")
    assert row["ok"], row["reason"]
    assert row["max_rel_error"] < 1e-9
    assert row["float32_error"] <= row["float32_limit"]


@pytest.mark.parametrize("network", ["UNet", "ViT", "UNETR"])
def test_networks_of_monai_are_exact(network):
    entry = next(entry for entry in entries() if entry.network == network and entry.dims == 2)
    row = coverage.examine(entry, "engine")
    assert row["ok"], row["reason"]
    assert row["max_rel_error"] < 1e-9


@pytest.mark.parametrize("fault", ["a bias left out", "one patient scaled", "records, not patients"])
def test_wrong_gradients_are_seen(small, fault, monkeypatch):
    right = engine.PatientGradients.clipped_sum

    def wrong(self, losses, patient, patients):
        if fault == "records, not patients":
            weight = torch.bincount(patient)[patient].to(losses)
            return right(self, losses * weight, patient, patients)  # a sum over the records, not their mean
        if fault == "one patient scaled":
            return right(self, losses * (1 + 1e-7 * (patient == 1)), patient, patients)
        chunk = right(self, losses, patient, patients)
        chunk.sums[next(name for name in chunk.sums if name.endswith("bias"))].zero_()
        return chunk

    monkeypatch.setattr(engine.PatientGradients, "clipped_sum", wrong)
    row = coverage.examine(small, "engine")
    assert not row["ok"]
    assert row["reason"] == "wrong gradient (float64)"


def test_a_step_without_noise_on_a_parameter_is_seen(small, monkeypatch):
    monkeypatch.setattr(engine.PatientOptimizer, "step", lambda self: None)
    assert "did not move" in coverage.examine(small, "engine")["reason"]


def test_results_are_written_row_by_row(tmp_path, capsys):
    words = ["--only", "FullyConnectedNet", "--modes", "engine,opacus hooks", "--folder", str(tmp_path), "--here"]
    assert coverage.main(words) == 0
    rows = json.loads((tmp_path / "coverage.json").read_text())["rows"]
    assert {row["mode"] for row in rows} == {"engine", "opacus hooks"}
    assert {"network", "dims", "mode", "ok", "max_rel_error", "reason"} <= set(rows[0])
    assert "further" in capsys.readouterr().out
