"""The loop where one patient's numbers are broken: nobody else's contribution may change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dptrain.data import PatientBatch
from dptrain.engine import Entangled, PatientGradients
from dptrain.errors import ConfigError
from dptrain.training.step import State, one_by_one


class Recurrent(nn.Module):
    """A network whose weights have no fast rule, so that all patients share one backward graph."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def test_a_patient_with_nan_changes_nobody_else_s_sum() -> None:
    torch.manual_seed(0)
    model = Recurrent()
    gradients = PatientGradients(model, max_grad_norm=1.0)

    def total(batch: PatientBatch) -> dict[str, Tensor]:
        losses = model(batch.image).squeeze(1).square()
        return gradients.clipped_sum(losses, batch.patient, batch.patients).sums

    x = torch.randn(7, 5, 3)
    sound = PatientBatch(x[:6], torch.zeros(6), torch.arange(6), 6)
    with pytest.warns(UserWarning, match="no fast rule"):
        expected = total(sound)
    x[6, 2, 1] = torch.nan
    mixed = PatientBatch(x, torch.zeros(7), torch.arange(7), 7)
    with pytest.raises(Entangled):
        total(mixed)
    parts = [total(alone) for alone in one_by_one(mixed)]
    for name, value in expected.items():
        whole = sum(part[name] for part in parts)
        assert torch.allclose(whole, value, atol=1e-5), name  # type: ignore[arg-type]
    gradients.detach()


def test_a_checkpoint_that_is_missing_or_torn_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "restricted" / "checkpoint.pt"
    with pytest.raises(ConfigError, match="has no checkpoint") as missing:
        State.load(path)
    assert "training.resume" in str(missing.value.remedy)
    path.parent.mkdir()
    path.write_bytes(b"torn")
    with pytest.raises(ConfigError, match="cannot be read") as torn:
        State.load(path)
    assert torn.value.remedy
