"""The README's own twenty lines, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dptrain.errors import LedgerRefused
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
    names = {"dataset": dataset, "passphrase": passphrase, "model": nn.Sequential(nn.Flatten(), nn.Linear(36, 1))}
    torch.manual_seed(0)
    exec(code.group(1), names)
    assert "epsilon" in capsys.readouterr().out
    assert names["receipt"].epsilon_pld <= 4
    with pytest.raises(LedgerRefused):
        names["ledger"].reserve(names["plan"], "lungs", run="second", fingerprint=names["cohort"].fingerprint)
