"""The utility benchmark: which trials, what rows, that nothing runs twice, and its figures of a sweep."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import utility
from dptrain.settings import load
from dptrain.settings.data import features_of


def test_the_whole_grid_is_there_and_each_trial_once() -> None:
    whole = utility.trials(quick=False, wanted=[])
    keys = [trial.key for trial in whole]
    assert len(keys) == len(set(keys))
    for recipe in utility.PUBLIC_SIZE:
        have = {(t.epsilon, t.seed) for t in whole if t.recipe == recipe and t.variant == utility.MAIN}
        assert have >= {(epsilon, seed) for epsilon in utility.EPSILONS for seed in utility.SEEDS}
    stock = [(t.variant, t.epsilon, t.seed) for t in whole if t.runner == "opacus"]
    private = set(utility.EPSILONS) - {math.inf}
    assert set(stock) == {
        (v, e, s) for v in (utility.TUTORIAL, utility.AS_RECIPE) for e in private for s in (0, 1, 2)
    }
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


def test_a_quick_look_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that came with the repository are no reason to run nothing."""
    known = {"meta": {"command": "earlier"}, "rows": [_row("readmission")]}
    (tmp_path / "utility.json").write_text(json.dumps(known))
    monkeypatch.setattr(utility, "trials", lambda **_: [])
    monkeypatch.setattr(utility, "keep", lambda *_: None)
    said: list[str] = []
    utility.main(["--folder", str(tmp_path)], say=said.append)
    utility.main(["--quick", "--folder", str(tmp_path)], say=said.append)
    assert [line for line in said if "trials to run" in line] == [
        "0 trials to run, 1 are there",
        "0 trials to run, 0 are there",
    ]


def _row(
    recipe: str, seed: int = 0, metric: str = "epsilon_pld", value: float = 1.0, **values: Any
) -> dict[str, Any]:
    base = {"recipe": recipe, "variant": utility.MAIN, "unit": "patient", "epsilon": 1.0, "delta": 1e-5, "seed": seed}
    mechanism = {"noise_multiplier": 26.4, "steps": 50, "expected_batch_size": 475}
    return {**base, "metric": metric, "value": value, **mechanism, **values}


def test_a_sweep_costs_more_than_a_trial_and_random_stopping_less_than_the_sum() -> None:
    rows = [_row("chest_xray_findings", seed) for seed in range(6)]
    found = {row["metric"]: row["value"] for row in utility.sweep_rows(rows)}
    assert found["sweep_epsilon"] > 1.5
    assert found["random_stopping_epsilon"] > 1.0
    assert found["sum_of_as_many_trials_epsilon"] == pytest.approx(found["sweep_epsilon"], rel=0.02)


def test_the_vector_of_readmission_is_as_long_as_its_network_expects() -> None:
    settings = load(["recipe=readmission"])
    assert features_of(settings.data.table) == settings.model.network["in_features"]


def test_a_sweep_says_which_trials_it_leaves_out() -> None:
    patient = _row("chest_xray_pneumonia", unit="patient group", expected_batch_size=600, noise_multiplier=14.7)
    image = {**patient, "variant": "image unit", "unit": "image", "expected_batch_size": 1130}
    auroc = [{**row, "metric": "auroc", "value": 0.98} for row in (patient, image)]
    rows = [patient, image, *auroc]
    whole = [*rows, *utility.group_rows(rows), *utility.sweep_rows(rows)]
    alone = {row["metric"]: row["value"] for row in utility.sweep_rows([patient])}
    assert {row["metric"]: row["value"] for row in utility.sweep_rows(rows)} == alone
    page = utility.page_of("chest_xray_pneumonia", utility.summary(whole), "today")
    worst = next(row["value"] for row in whole if row["metric"] == "epsilon_of_a_patient")
    assert f"trials with the image as the unit are not in that sum: one alone has up to ε = {worst:.3g}" in page


def test_volumes_are_grouped_by_number_and_nobody_is_called_a_person() -> None:
    row = _row("hippocampus_segmentation", unit="volume", epsilon=8.0, noise_multiplier=1.099, steps=60)
    row["expected_batch_size"] = 32
    rows = [row, {**row, "metric": "dice", "value": 0.4}, {**row, "metric": "epsilon_of_a_person", "value": 18.8}]
    found = {r["metric"]: r["value"] for r in utility.group_rows(rows)}
    assert found == pytest.approx(
        {"epsilon_of_2_volumes": 18.8, "epsilon_of_3_volumes": 31.9, "epsilon_of_4_volumes": 47.2}, abs=0.06
    )
    page = utility.page_of("hippocampus_segmentation", utility.summary([*rows, *utility.group_rows(rows)]), "today")
    assert "promised to 4 volumes of one person" in page
    assert "(a person)" not in page


def test_the_goals_name_both_settings_of_stock_opacus() -> None:
    values = {utility.MAIN: 0.98, utility.TUTORIAL: 0.97, utility.AS_RECIPE: 0.99}
    rows = [
        _row("chest_xray_pneumonia", metric="auroc", variant=variant, value=value)
        for variant, value in values.items()
    ]
    said = utility.goals(rows)
    assert f"Against '{utility.TUTORIAL}': ahead at all 1 levels of ε" in said
    assert f"Against '{utility.AS_RECIPE}': not ahead at ε = 1" in said
