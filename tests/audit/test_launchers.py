"""A sweep goes to other processes and machines by configuration alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from dptrain import cli
from dptrain.commands.acts.sweep import flags_first
from dptrain.records import RunFolder
from tests.training.conftest import Site, make_site

__all__ = ["make_site"]

NETWORK = ["model=mlp", "model.network.in_features=64", "model.network.num_classes=1"]
LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"],
}


def dptrain(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    """The program itself: a launcher's workers import it anew."""
    code = "import sys; from dptrain.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=site.folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", list(LAUNCHERS))
def test_trainings_of_a_sweep_run_in_other_processes(make_site: Callable[..., Site], launcher: str) -> None:
    """Three trials against one ledger: two are paid, the one that no longer fits is refused, none twice."""
    site = make_site(3.0)
    done = dptrain(
        site,
        "train",
        *(*site.words, *NETWORK, *LAUNCHERS[launcher], f"hydra.sweep.dir={site.folder}/s"),
        *("privacy.target_epsilon=1,1.5,3", "-m"),
    )
    assert done.returncode == 3, done.stderr
    runs = [RunFolder(path.parent).read_facts() for path in sorted(site.folder.glob("s/*/run.json"))]
    complete = [facts for facts in runs if facts["status"] == "complete"]
    assert 1 <= len(complete) < 3
    status = site.ledger.status("tiny")
    assert status.spent_epsilon <= 3.0
    assert sorted(run.run for run in status.runs if run.steps) == sorted(facts["id"] for facts in complete)
    assert f"charged trials: {len(complete)}; together they cost epsilon" in done.stdout
    assert not list(site.folder.glob(".dptrain-sweep*"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", list(LAUNCHERS))
def test_audits_of_a_sweep_run_in_other_processes(make_site: Callable[..., Site], launcher: str) -> None:
    site = make_site(8.0)
    done = dptrain(
        site,
        "audit",
        *(*site.words, *NETWORK, *LAUNCHERS[launcher], f"hydra.sweep.dir={site.folder}/s"),
        *("audit.models=32", "audit.canaries=0", "privacy.target_epsilon=1,2", "-m"),
    )
    assert done.returncode == 0, done.stderr
    found = sorted(site.folder.glob("s/*/restricted/audit/audit.json"))
    assert len(found) == 2
    assert json.loads(found[0].read_text())["promised"]["epsilon"] == pytest.approx(1.0, rel=0.05)
    assert done.stdout.count("32 reference models") == 2
    for path in site.folder.glob("s/**/*"):  # what a job printed is kept by the launcher: nothing measured in it
        if path.is_file() and "restricted" not in path.parts:
            assert b"reference models, each" not in path.read_bytes()
            assert b"AUC" not in path.read_bytes()
    assert not list(site.folder.glob(".dptrain-sweep*"))


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "submitit_slurm"])
def test_launchers_are_chosen_by_a_word(launcher: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Composed and shown, not run."""
    words = ["recipe=chest_xray_pneumonia", "--cfg", "hydra", f"hydra/launcher={launcher}"]
    assert cli.main(["train", *words]) == 0
    assert f"_target_: hydra_plugins.hydra_{launcher.partition('_')[0]}" in capsys.readouterr().out


def test_flags_may_stand_anywhere() -> None:
    """Hydra's parser takes all overrides in one run."""
    assert flags_first(["a=1", "-m", "~b", "--cfg", "job", "c=x -m"]) == ["-m", "--cfg", "job", "a=1", "~b", "c=x -m"]
    assert flags_first(["a=1", "word"]) == ["word", "a=1"]
