"""The README's own twenty lines, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dptrain.errors import CheckRefused, LedgerRefused
from dptrain.ledger import Keys, Ledger

README = Path(__file__).parents[1] / "README.md"


def test_the_readme_s_library_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DPTRAIN_LEDGER", "DPTRAIN_KEYS", "DPTRAIN_WITNESS"):
        monkeypatch.delenv(name, raising=False)
    passphrase = "correct horse battery"
    Ledger.create(tmp_path / "ledger.sqlite", Keys.create(tmp_path / "keys", passphrase))
    rng = np.random.default_rng(0)
    dataset = [
        {"image": rng.normal(size=(1, 6, 6)).astype("float32"), "label": i % 2, "patient_id": f"p{i // 2}"}
        for i in range(400)
    ]
    code = re.search(r"## In your own code.*?```python\n(.*?)```", README.read_text(), re.S)
    assert code is not None
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 1))
    names: dict[str, Any] = {"dataset": dataset, "passphrase": passphrase, "model": model}
    torch.manual_seed(0)
    exec(code.group(1), names)
    assert "epsilon" in capsys.readouterr().out
    assert names["receipt"].epsilon_pld <= 4
    with pytest.raises(LedgerRefused):
        names["ledger"].reserve(names["plan"], "lungs", run="second", fingerprint=names["cohort"].fingerprint)


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), r"outputs of the network: \[2\] a record"),
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 1)), "BatchNorm"),
        (nn.Sequential(nn.Flatten(), nn.Linear(35, 1)), "inputs of the network: it takes 35 channels or features"),
    ],
)
def test_a_model_that_does_not_fit_costs_nothing(tmp_path: Path, model: nn.Module, what: str) -> None:
    """It is refused in a sentence before the first step is paid, and the reservation goes back."""
    from dptrain.data import PatientLoader, cohort_from_dataset
    from dptrain.models import loss_for_task
    from dptrain.plan import Mechanism, Plan
    from dptrain.settings import OptimizerConfig
    from dptrain.training import PrivateStep, fit

    keys = Keys.create(tmp_path / "keys", "correct horse battery")
    ledger = Ledger.create(tmp_path / "ledger.sqlite", keys)
    image = np.zeros((1, 6, 6), dtype="float32")
    dataset = [
        {"image": image + i, "label": i % 2, "patient_id": f"p{i}", "split": "train" if i < 18 else "test"}
        for i in range(20)
    ]
    cohort = cohort_from_dataset(dataset, keys=keys, issuer="A", task="binary", split="split")
    size: dict[str, Any] = {"unit": "patient", "public_size": 20}
    ledger.register("lungs", issuer="A", patients=cohort.hashes(), owner="R", **size)
    step = Mechanism(0.5, 3.0, 10)
    controller = keys.controller("correct horse battery")
    ledger.budget("lungs", epsilon=8, delta=1e-3, forecast=[step], reason="a study", controller=controller)
    plan = Plan(public_size=20, expected_batch_size=10, steps=10, noise_multiplier=3.0, max_grad_norm=1.0, delta=1e-3)
    grant = ledger.reserve(plan, "lungs", run="first", fingerprint=cohort.fingerprint)
    loader = PatientLoader(cohort, plan, grant, chunk=64)
    with pytest.raises(CheckRefused, match=what):
        fit(PrivateStep(model, plan, loss=loss_for_task("binary"), optimizer=OptimizerConfig(lr=0.1)), loader, grant)
    status = ledger.status("lungs")
    assert (status.spent_epsilon, status.runs[0].status) == (0, "interrupted")
