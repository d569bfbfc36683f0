"""What a step releases is what the plan promises, or a named detector says that it is not, at any epsilon."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dptrain import accounting
from dptrain.audit import residual
from tests.audit.faults import FAULTS
from tests.audit.made import make_material, make_plan

BY = {
    "no noise": "noise scale",
    "noise / 4": "noise scale",
    "noise x 1e-4": "noise scale",
    "no clipping": "clipped sum",
    "clipped by record": "clipped sum",
    "reused seed": "noise repeated",
    "realised normaliser": "noise scale",
    "noise by chunk": "noise scale",
}
FLAGGED = 1e-4


def material(epsilon: float = 8.0, **changes: Any) -> Any:
    noise = accounting.calibrate_noise(epsilon, 1e-5, 1 / 3, 12)
    plan = make_plan(public_size=60, expected_batch_size=20, steps=12, noise_multiplier=noise, max_grad_norm=1.0)
    return make_material(**{"module": nn.Linear(64, 1), "shape": (64,), "patients": 52, "plan": plan, **changes})


def p_values(made: Any) -> dict[str, float]:
    found = residual.measure(made)
    assert found is not None
    return {one.name: one.p_value for one in residual.detectors(found)}


@pytest.mark.parametrize("epsilon", [1.0, 8.0, 20.0])
@pytest.mark.parametrize("fault", list(FAULTS))
def test_every_planted_fault_is_seen_by_its_detector(
    monkeypatch: pytest.MonkeyPatch, fault: str, epsilon: float
) -> None:
    made = material(epsilon)
    FAULTS[fault](monkeypatch)
    for _ in range(2):  # and by a fresh run of it
        assert p_values(made)[BY[fault]] < FLAGGED


def test_p_values_of_the_correct_engine_are_uniform_or_larger() -> None:
    made = material()
    found = [p_values(made) for _ in range(60)]
    for name in residual.NAMES:
        values = np.array([one[name] for one in found])
        assert values.min() > FLAGGED / 10
        for level in (0.1, 0.3):
            assert np.mean(values <= level) <= level + 4 * np.sqrt(level * (1 - level) / 60)


def networks() -> dict[str, Any]:
    torch.manual_seed(0)
    image = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    mask = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return {
        "a convolution": {"module": image, "shape": (1, 8, 8), "task": "multiclass", "outputs": 3},
        "dropout": {"module": nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, 1)), "shape": (12,)},
        "findings": {"module": nn.Linear(12, 4), "shape": (12,), "task": "multilabel", "outputs": 4},
        "a mask": {"module": mask, "shape": (1, 8, 8), "task": "segmentation", "outputs": 2},
    }


@pytest.mark.parametrize("kind", list(networks()))
def test_a_correct_engine_passes_on_networks_of_every_task(kind: str) -> None:
    assert min(p_values(material(**networks()[kind])).values()) > FLAGGED / 10


@pytest.mark.parametrize("fault", ["noise / 4", "no clipping", "realised normaliser"])
def test_faults_are_seen_on_a_convolution(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    made = material(**networks()["a convolution"])
    FAULTS[fault](monkeypatch)
    assert min(p_values(made).values()) < FLAGGED


def test_one_layer_without_noise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small tensor hardly moves the sum of all squares; it has a test of its own."""
    from dptrain.training import step

    class Forgetful(step.PatientOptimizer):  # type: ignore[name-defined]
        def add_noise(self) -> None:
            clean = self.params[-1].summed_grad.clone()
            super().add_noise()
            self.params[-1].grad.copy_(clean / self.expected_batch_size)

    made = material(module=nn.Sequential(nn.Linear(300, 8), nn.Linear(8, 1)), shape=(300,))
    monkeypatch.setattr(step, "PatientOptimizer", Forgetful)
    assert p_values(made)["noise scale"] < FLAGGED


def test_nothing_is_tested_where_nothing_is_promised() -> None:
    assert residual.measure(make_material(plan=make_plan(noise_multiplier=0.0))) is None
    assert residual.measure(make_material(plan=make_plan(noise_multiplier=0.0, max_grad_norm=np.inf))) is None
