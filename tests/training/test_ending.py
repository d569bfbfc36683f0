"""How a run ends: saved and closed before it is evaluated, and whole again wherever its process died."""

from __future__ import annotations

import ast
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from dptrain import cli
from dptrain.errors import ConfigError, LedgerRefused
from dptrain.ledger import Grant
from dptrain.records import RunFolder
from dptrain.training import run as spine
from dptrain.training.run import evaluate_run, train

from .conftest import Site
from .test_spine import quiet, run


def fails(*_: object, **__: object) -> None:
    raise IndexError("list index out of range")


def test_a_run_whose_evaluation_fails_keeps_its_model_and_evaluate_completes_it(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The budget is spent, and the cohort locked: the evaluation that the plan declared still belongs to the run."""
    site = make_site(3.0)
    place = site.folder / "run"
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(spine.scoring, "score", fails)  # type: ignore[attr-defined]
        with pytest.raises(IndexError):
            train(site.settings(f"training.run={place}", "privacy.target_epsilon=3"), say=said.append)
    folder = RunFolder(place)
    facts = folder.read()
    assert facts.status == "complete"
    assert facts.privacy is not None
    assert facts.privacy.steps_charged == 12
    assert folder.weights.is_file()
    assert not folder.checkpoint.exists()
    assert site.ledger.status("tiny").locked
    assert site.ledger.status("tiny").runs[0].status == "complete"
    assert f"dptrain evaluate run={place}" in said[-1]
    assert not folder.metrics.exists()
    with pytest.raises(ConfigError, match="nothing to resume"):
        train(site.settings(f"training.resume={place}"), say=quiet)
    assert cli.main(["evaluate", f"run={place}"]) == 0
    assert folder.metrics.is_file()
    assert cli.main(["evaluate", f"run={place}"]) == 3  # it is done: another is a new request
    assert "locked" in capsys.readouterr().err
    assert site.ledger.verify() == []


def test_the_model_is_kept_and_the_charge_closed_before_a_test_patient_is_read(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site()
    seen: list[tuple[str | None, str]] = []
    right = spine.scoring.score  # type: ignore[attr-defined]

    def watched(*some: Any, **named: Any) -> Any:
        folder = RunFolder(site.folder / "run")
        assert folder.weights.is_file()
        seen.append((folder.read().status, site.ledger.status("tiny").runs[0].status))
        return right(*some, **named)

    monkeypatch.setattr(spine.scoring, "score", watched)  # type: ignore[attr-defined]
    folder = run(site, "run")
    assert seen == [("complete", "complete")]
    assert folder.metrics.is_file()
    assert site.ledger.run(str(folder.read().id)).did == ["evaluate"]


KILL = """
import os, signal, sys
from dptrain.ledger import Grant
from dptrain.settings import load
from dptrain.training.run import train
close = Grant.close
def closed(self, *a, **k):
    close(self, *a, **k)
    os.kill(os.getpid(), signal.SIGKILL)
Grant.close = closed
train(load(sys.argv[1:]), say=lambda _: None)
"""


@pytest.mark.parametrize("after", ["resume", "evaluate"])
def test_killed_after_the_ledger_closed_it_a_run_is_finished_from_the_ledger(
    make_site: Callable[..., Site], after: str
) -> None:
    site = make_site(3.0)
    place = site.folder / "run"
    words = [
        *site.words,
        f"training.run={place}",
        "privacy.target_epsilon=3",
        "privacy.calibration_noise_multiplier=10",
    ]
    killed = subprocess.run([sys.executable, "-c", KILL, *words], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = RunFolder(place)
    assert folder.read().status == "running"
    assert site.ledger.status("tiny").runs[0].status == "complete"
    word = "training.resume" if after == "resume" else "run"
    command = "train" if after == "resume" else "evaluate"
    assert cli.main([command, f"{word}={place}"]) == 0
    facts = folder.read()
    assert facts.status == "complete"
    assert facts.calibration is not None
    assert folder.metrics.is_file()
    assert not folder.checkpoint.exists()


class Killed(BaseException):
    """The end of a process, which no handler sees."""


STATEMENTS = {
    statement.lineno
    for function in ast.walk(ast.parse(Path(spine.__file__).read_text(encoding="utf-8")))
    if isinstance(function, ast.FunctionDef) and function.name in ("save_and_close", "_end")
    for statement in function.body
}


def kill_after_the_close(kill_at: int, closed: list[str]) -> Callable[[FrameType, str, Any], Any]:
    """A tracer that ends the process at the n-th statement after the ledger closed the run."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != spine.__file__:
            return None
        if event == "line" and closed and frame.f_lineno in STATEMENTS:
            count += 1
            if count == kill_at:
                raise Killed
        return trace

    return trace


def test_a_kill_at_each_line_after_the_close_leaves_a_run_that_can_be_finished(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(20.0)
    words = ["privacy.target_epsilon=0.5", "training.evaluate=false", "privacy.steps=2"]
    closed: list[str] = []
    close = Grant.close

    def closing(grant: Grant, *some: Any, **named: Any) -> Any:
        receipt = close(grant, *some, **named)
        closed.append(grant.run)
        return receipt

    monkeypatch.setattr(Grant, "close", closing)
    expected = run(site, "whole", *words).read()
    shutil.rmtree(site.folder / "whole")
    monkeypatch.setattr("dptrain.training.interrupts._let_go", lambda *_: None)
    ended = False
    for at in range(1, 20):
        closed.clear()
        place = site.folder / f"run-{at}"
        sys.settrace(kill_after_the_close(at, closed))
        try:
            train(site.settings(f"training.run={place}", *words), say=quiet)
            ended = True
        except Killed:
            pass
        finally:
            sys.settrace(None)
        if ended:
            break
        assert site.ledger.run(closed[0]).status == "complete"
        folder = RunFolder(place)
        if folder.read().status == "running":
            assert train(site.settings(f"training.resume={place}"), say=quiet).facts.status == "complete"
        facts = folder.read()
        assert facts.model is not None
        assert facts.model.sha256 == site.ledger.run(closed[0]).model
        for name in ("not_covered", "checks", "weights", "calibration", "resume", "cohort"):
            assert getattr(facts, name) == getattr(expected, name), name
        assert facts.gate is not None
        assert facts.privacy is not None
        assert expected.privacy is not None
        assert facts.privacy.steps_charged == facts.privacy.steps_run == 2
        assert not folder.checkpoint.exists()
    assert ended
    assert at > 5
    assert site.ledger.verify() == []


def test_a_run_that_the_steward_closed_can_neither_go_on_nor_be_evaluated(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both commands say so, and neither points to the other."""
    site = make_site()

    def dies(_step: object, _loader: object, grant: Grant, **_: object) -> None:
        grant.commit(1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(spine, "fit", dies)
        with pytest.raises(KeyboardInterrupt):
            run(site, "run")
    place = site.folder / "run"
    with pytest.raises(ConfigError, match="has not finished"):
        evaluate_run(place)
    site.ledger.resume(str(RunFolder(place).read().id)).close("interrupted", 0)
    for command in (lambda: train(site.settings(f"training.resume={place}"), say=quiet), lambda: evaluate_run(place)):
        with pytest.raises(LedgerRefused, match="neither go on nor be evaluated"):
            command()


def test_another_model_in_the_folder_is_not_evaluated(make_site: Callable[..., Site]) -> None:
    """Its metrics would stand beside the promise of the model that was trained."""
    from dptrain.models import ModelStore
    from dptrain.models.network import build_network

    site = make_site()
    folder = run(site, "run", "training.evaluate=false", "privacy.target_epsilon=2")
    ModelStore(folder.weights).save(build_network(site.settings("training.seed=9")).whole)
    with pytest.raises(ConfigError, match="is not the model that was kept"):
        evaluate_run(folder.path)
