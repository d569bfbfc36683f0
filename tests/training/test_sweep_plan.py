"""`plan -m`: what a sweep needs, before a patient is touched."""

from __future__ import annotations

import json

import pytest

from dptrain import accounting, cli
from dptrain.commands.acts.train import Trial, _print_trials
from dptrain.errors import ConfigError
from dptrain.plan import Mechanism
from dptrain.settings.overrides import trials
from dptrain.training import planning

SMALL = ["public_size=500", "privacy.expected_batch_size=50", "privacy.steps=20"]


def test_a_sweep_is_planned_trial_by_trial_and_as_a_whole(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "-m", *SMALL, "privacy.noise_multiplier=2,4", "optimizer.lr=0.1,0.2"]
    assert cli.main([*words, "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)
    every = tuple(Mechanism(0.1, noise, 20) for noise in (2.0, 2.0, 4.0, 4.0))
    assert len(cost["trials"]) == 4
    assert cost["planned"] == pytest.approx(accounting.pld_epsilon(every, cost["delta"]))
    assert cost["planned"] < cost["opened"] < sum(trial["epsilon"] for trial in cost["trials"])
    order = accounting.best_order(cost["opened"], cost["delta"], every)
    assert accounting.rdp_budget(cost["opened"], cost["delta"], order) >= accounting.rdp(every, (order,))[0] * (
        1 - 1e-9
    )


def test_at_eighty_columns_what_differs_is_read_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["plan", "-m", *SMALL, "privacy.noise_multiplier=2,4", "optimizer.lr=0.1,0.2"]) == 0
    shown = capsys.readouterr().out
    rows = [line.split()[:2] for line in shown.splitlines() if "privacy.noise_multiplier" in line]
    assert rows == [[f"privacy.noise_multiplier={n}", f"optimizer.lr={lr}"] for n in (2, 4) for lr in (0.1, 0.2)]
    assert "steps=20" not in shown
    assert max(map(len, shown.splitlines())) <= 90


def test_trials_are_those_of_a_sweep() -> None:
    assert trials(["privacy.views=1,2", "recipe=ecg_beats"]) == [
        ("privacy.views=1", "recipe=ecg_beats"),
        ("privacy.views=2", "recipe=ecg_beats"),
    ]
    assert [one[0] for one in trials(["privacy.views=range(1,4)"])] == [f"privacy.views={n}" for n in (1, 2, 3)]
    with pytest.raises(ConfigError, match="no end"):
        trials(["optimizer.lr=interval(0,1)"])


def test_several_cohorts_have_no_one_budget(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "-m", "public_size=47500", "recipe=ecg_beats,readmission"]) == 2
    assert "each cohort by itself" in capsys.readouterr().err


def test_a_very_long_plan_says_that_it_is_at_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DPTRAIN_QUIET", raising=False)
    words = ["plan", *SMALL, "privacy.noise_multiplier=2"]
    assert cli.main(words) == 0
    assert "composing" not in capsys.readouterr().err
    monkeypatch.setattr(planning, "LONG", 20)
    assert cli.main(words) == 0
    assert "composing the losses of 20 steps" in capsys.readouterr().err


def test_the_trials_of_a_sweep_are_told_apart_at_eighty_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = [f"privacy.target_epsilon={epsilon} optimizer.lr=0.5 recipe=chest_xray_pneumonia" for epsilon in (1, 2)]
    _print_trials([Trial(words=text, code=3, message="refused: " + "a long reason " * 9) for text in words], {})
    shown = capsys.readouterr().out
    for text in ("privacy.target_epsilon=1 ", "privacy.target_epsilon=2 "):
        assert text in shown
    assert "recipe=" not in shown
    assert shown.count("reason") == 18
