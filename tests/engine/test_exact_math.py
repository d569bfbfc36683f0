"""Norms and sums are float32's, whatever the program around the engine allows, and its settings come back."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch

from dptrain.engine import tape
from dptrain.engine.tape import exact_math

SETTINGS = [
    "pass",
    "torch.set_float32_matmul_precision('medium')",
    "torch.set_float32_matmul_precision('high')",
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.cudnn.allow_tf32 = True",
    "torch.backends.cudnn.allow_tf32 = False",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.cudnn.conv.fp32_precision = 'tf32'",
    "torch.backends.cudnn.fp32_precision = 'tf32'",
    "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "torch.backends.mkldnn.conv.fp32_precision = 'bf16'",
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.fp32_precision = 'bf16'",
]


def precisions() -> dict[str, str]:
    places = {
        "cuda matmul": torch.backends.cuda.matmul,
        "cudnn conv": torch.backends.cudnn.conv,  # type: ignore[attr-defined]
        "cudnn rnn": torch.backends.cudnn.rnn,
        "cpu matmul": torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
        "cpu conv": torch.backends.mkldnn.conv,  # type: ignore[attr-defined]
    }
    return {name: place.fp32_precision for name, place in places.items()}


def state() -> dict[str, Any]:
    seen: dict[str, Any] = precisions()
    for name, read in (
        ("precision", torch.get_float32_matmul_precision),
        ("cuda", lambda: torch.backends.cuda.matmul.allow_tf32),
        ("cudnn", lambda: torch.backends.cudnn.allow_tf32),
    ):
        try:
            seen[name] = read()
        except RuntimeError:  # torch's own, after its new switches were used
            seen[name] = "not to be read"
    return seen


def tried(setting: str, device: torch.device) -> list[dict[str, Any]]:
    exec(setting)
    before = state()
    exact = exact_math(device)
    with exact, exact_math(device):
        with exact:
            pass
        inside = precisions()
    after = state()
    try:
        with exact_math(device):
            raise ValueError
    except ValueError:
        failed = state()
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
    return [before, inside, after, failed, precisions()]


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="torch below 2.9 has the old switches alone")
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_products_are_exact_inside_and_settings_return(setting: str, device: str) -> None:
    """In a process of its own, since torch does not forget which of its two interfaces was used."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            found: object = tried(setting, torch.device(device))
        except Exception as error:
            found = repr(error)
        with os.fdopen(write, "w") as pipe:
            pipe.write(json.dumps(found))
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found = json.loads(pipe.read())
    os.waitpid(child, 0)
    assert isinstance(found, list), found
    before, inside, after, failed, inherited = found
    for name, precision in inside.items():
        if name.startswith("cpu") == (device == "cpu"):
            assert precision in ("ieee", "none"), name
    assert after == before
    assert failed == before
    if "backends.fp32_precision" in setting:  # what followed the setting for everything still follows it
        assert {inherited["cpu matmul"], inherited["cuda matmul"]} == {"ieee"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_old_switches_are_set_and_restored_where_torch_has_no_others(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tape, "_places", lambda device: None)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with exact_math(torch.device(device)):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cuda.matmul.allow_tf32
            assert torch.backends.cudnn.allow_tf32 == (device == "cpu")
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
