"""The utility benchmark: which trials, what rows, that nothing runs twice, and its figures of a sweep."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import utility
from dptrain.config import load
from dptrain.data.config import features_of


def test_the_whole_grid_is_there_and_each_trial_once() -> None:
    whole = utility.trials(quick=False, wanted=[])
    keys = [trial.key for trial in whole]
    assert len(keys) == len(set(keys))
    for recipe in utility.PUBLIC_SIZE:
        have = {(t.epsilon, t.seed) for t in whole if t.recipe == recipe and t.variant == utility.MAIN}
        assert have >= {(epsilon, seed) for epsilon in utility.EPSILONS for seed in utility.SEEDS}
    stock = {t.epsilon for t in whole if t.runner == "opacus"}
    assert stock == set(utility.EPSILONS) - {math.inf}
    assert len(utility.trials(quick=True, wanted=[])) < 30


def test_settings_of_every_trial_compose() -> None:
    seen = set()
    for trial in utility.trials(quick=False, wanted=[]):
        if (trial.recipe, trial.variant) in seen:
            continue
        seen.add((trial.recipe, trial.variant))
        settings = utility.settings_of(trial)
        assert settings.privacy.target_epsilon == trial.epsilon
        assert (settings.privacy.noise_multiplier == 0.0) == math.isinf(trial.epsilon)


def _table(folder: Path) -> None:
    """120 made-up patients with the columns of the readmission table."""
    table = load(["recipe=readmission"]).data.table
    columns = [*table.numeric, *table.categorical, *table.binned]
    columns = list(dict.fromkeys([*columns, "race", "gender"]))
    random = np.random.default_rng(0)
    lines = [",".join(["encounter_id", "patient_nbr", *columns, "readmitted"])]
    for row in range(400):
        ill = random.random() < 0.4
        values = []
        for name in columns:
            if name == "number_inpatient":
                values.append(str(int(random.integers(0, 3) + 2 * ill)))
            elif name in table.categorical:
                values.append(str(random.choice(table.categorical[name] or ["x"])))
            else:
                values.append(str(int(random.integers(1, 9))) if name not in ("race", "gender") else "A")
        lines.append(",".join([str(row), f"p{row % 300}", *values, "<30" if ill else "NO"]))
    folder.mkdir(parents=True)
    (folder / "diabetes130_encounters.csv").write_text("\n".join(lines) + "\n")


def test_a_trial_takes_the_librarys_way_and_gives_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _table(tmp_path / "data" / "tabular")
    monkeypatch.setenv("DPTRAIN_DATA", str(tmp_path / "data"))
    monkeypatch.setitem(utility.PUBLIC_SIZE, "readmission", 200)
    small = ("data.manifest=diabetes130_encounters.csv", "privacy.expected_batch_size=200", "privacy.steps=3")
    trials = [utility.Trial("readmission", utility.MAIN, epsilon, 0, small) for epsilon in (8.0, math.inf)]
    monkeypatch.setattr(utility, "trials", lambda **_: trials)
    said: list[str] = []
    folder = tmp_path / "results"
    assert utility.main(["readmission", "--folder", str(folder)], say=said.append) == 0
    rows = json.loads((folder / "utility.json").read_text())["rows"]
    keys = ("recipe", "variant", "unit", "epsilon", "delta", "seed", "metric", "value", "noise_multiplier", "steps")
    main = [row for row in rows if row["metric"] == "auroc" and not row.get("group")]
    assert all(set(keys) <= set(row) for row in main)
    assert {row["epsilon"] for row in main} == {8.0, "inf"}
    assert next(row for row in main if row["epsilon"] == "inf")["noise_multiplier"] == 0
    spent = next(row["value"] for row in rows if row["metric"] == "epsilon_pld")
    assert 7.5 < spent <= 8.0
    assert any(row["metric"] == "conformal_set_size" for row in rows)
    assert any(row["metric"] == "sweep_epsilon" for row in rows)
    page = (folder / "utility.md").read_text()
    assert "Not run" in page
    assert "∞" in page
    assert (folder / "utility.png").stat().st_size > 1000

    said.clear()
    utility.main(["readmission", "--folder", str(folder)], say=said.append)
    assert said[0].startswith("0 trials to run, 2 are there")


def test_a_sweep_costs_more_than_a_trial_and_random_stopping_less_than_the_sum() -> None:
    rows = [
        {
            "recipe": "chest_xray_findings",
            "variant": utility.MAIN,
            "unit": "patient",
            "epsilon": 1.0,
            "delta": 1e-5,
            "seed": seed,
            "metric": "epsilon_pld",
            "value": 1.0,
            "noise_multiplier": 26.4,
            "steps": 50,
            "expected_batch_size": 475,
        }
        for seed in range(6)
    ]
    found = {row["metric"]: row["value"] for row in utility.sweep_rows(rows)}
    assert found["sweep_epsilon"] > 1.5
    assert found["random_stopping_epsilon"] > 1.0
    assert found["sum_of_as_many_trials_epsilon"] == pytest.approx(found["sweep_epsilon"], rel=0.02)


def test_the_vector_of_readmission_is_as_long_as_its_network_expects() -> None:
    settings = load(["recipe=readmission"])
    assert features_of(settings.data.table) == settings.model.network["in_features"]
