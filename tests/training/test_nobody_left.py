"""A second study on patients who have spent everything: silence towards the public, a word to those who sign."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dptrain.training.run import train

from .conftest import Site
from .test_binding import register_again
from .test_spine import run


def test_the_controller_and_the_restricted_log_are_told_that_nobody_is_left(
    make_site: Callable[..., Site], capsys: pytest.CaptureFixture[str]
) -> None:
    site = make_site(3.0)
    run(site, "first", "privacy.target_epsilon=3", "training.evaluate=false")
    words = register_again(site, "other")
    left_out, patients = site.ledger.forecast_of("other")
    assert left_out == patients == 80
    assert site.ledger.steward("other")["left_out_of_forecast"] == 80
    assert site.ledger.forecast_of("tiny")[0] == 80  # its own budget is spent, too
    said: list[str] = []
    settings = site.settings("privacy.target_epsilon=2", "training.evaluate=false", *words)
    outcome = train(settings, say=said.append)
    assert outcome.facts.status == "complete"
    notes = (outcome.folder.restricted / "notes.txt").read_text()
    assert "12 of 12 steps drew nobody" in notes
    assert oct((outcome.folder.restricted / "notes.txt").stat().st_mode & 0o777) == "0o600"
    everything = "\n".join(said) + capsys.readouterr().out + outcome.folder.facts.read_text()
    assert "nobody" not in everything


def test_a_run_that_draws_patients_leaves_no_note(make_site: Callable[..., Site]) -> None:
    site = make_site(8.0)
    folder = run(site, "run", "privacy.target_epsilon=2", "training.evaluate=false")
    assert site.ledger.forecast_of("tiny") == (0, 80)
    assert not (folder.restricted / "notes.txt").exists()
