"""From a manifest to a locked dataset: train, evaluate, lock, crash, resume, interrupt."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dptrain import accounting, cli
from dptrain.commands.acts import train as commands
from dptrain.errors import CheckRefused, ConfigError, DataUnreadable, LedgerRefused
from dptrain.ledger import Grant, Ledger
from dptrain.ledger.charging import Till
from dptrain.plan import Mechanism, Plan
from dptrain.records import Run, RunFolder
from dptrain.records.run import Sweep
from dptrain.training import run as spine
from dptrain.training.planning import sweep_cost
from dptrain.training.run import evaluate_run, train

from .conftest import PUBLIC_SIZE, Site


def quiet(_: str) -> None:
    return None


def run(site: Site, name: str, *words: str) -> RunFolder:
    return train(site.settings(f"training.run={site.folder / name}", *words), say=quiet).folder


def described(folder: RunFolder) -> str:
    return str(json.loads((folder.model / "configs" / "metadata.json").read_text())["description"])


def test_a_run_says_what_it_promised_and_keeps_metrics_apart(make_site: Callable[..., Site]) -> None:
    site = make_site()
    folder = run(site, "run", "privacy.calibration_noise_multiplier=10", "training.ema=0.9")
    facts = folder.read_facts()
    privacy = facts["privacy"]
    assert facts["status"] == "complete"
    assert (privacy["unit"], privacy["adjacency"], privacy["accountant"]) == ("patient", "add_remove", "PLD")
    assert 0 < privacy["epsilon"] <= 8
    assert privacy["delta"] == 1e-5
    assert privacy["steps_run"] == privacy["steps_charged"] == 12
    assert privacy["sample_rate"] == pytest.approx(20 / PUBLIC_SIZE)
    assert privacy["noise_multiplier"] > 0
    assert privacy["normaliser"] == 20
    assert [m["what"] for m in privacy["mechanisms"]] == ["training", "calibration"]
    assert len(facts["ledger"]["head"]["hash"]) == 64
    assert facts["gate"]["spent_before"] == 0 < facts["gate"]["spent_after"] <= 8
    metrics = json.loads(folder.metrics.read_text())
    assert 0 <= metrics["overall"]["auroc"]["value"] <= 1
    assert metrics["conformal"]["miscoverage"] == 0.1
    assert described(folder).startswith("Trained under differential privacy at the patient level")
    public = "".join(path.read_text() for path in folder.path.rglob("*.json") if "restricted" not in path.parts)
    assert "auroc" not in public
    assert "brier" not in public
    assert site.ledger.status("tiny").runs[0].steps == 12


def test_a_run_promises_its_target_and_may_spend_a_whole_budget(make_site: Callable[..., Site]) -> None:
    site = make_site(8.0)
    small = run(site, "small", "privacy.target_epsilon=2", "training.evaluate=false").read_facts()
    assert 1.99 < small["privacy"]["epsilon"] <= 2
    assert not small["gate"]["locked"]


def test_two_runs_of_half_the_target_fit_one_budget(make_site: Callable[..., Site]) -> None:
    site = make_site(8.0)
    for name in ("one", "two"):
        run(site, name, "privacy.target_epsilon=4", "training.evaluate=false")
    assert site.ledger.status("tiny").spent_epsilon <= 8


def test_a_spent_budget_locks_training_evaluation_and_loading(make_site: Callable[..., Site]) -> None:
    site = make_site(3.0)
    folder = run(site, "run", "privacy.target_epsilon=3")
    with pytest.raises(LedgerRefused) as error:
        run(site, "again", "privacy.target_epsilon=3")
    assert "Radiology" in str(error.value)
    assert not (site.folder / "again").exists()
    with pytest.raises(LedgerRefused):
        evaluate_run(folder.path)
    with pytest.raises(LedgerRefused):
        run(site, "small", "privacy.target_epsilon=0.5")


def test_a_place_that_cannot_be_written_costs_nothing(make_site: Callable[..., Site]) -> None:
    site = make_site(8.0)
    (site.folder / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        run(site, "file/run")
    assert site.ledger.status("tiny").runs == []
    with pytest.raises(LedgerRefused):
        run(site, "dear", "privacy.target_epsilon=100")
    assert not (site.folder / "dear").exists()


def test_without_a_budget_there_is_no_training(make_site: Callable[..., Site]) -> None:
    site = make_site(None)
    with pytest.raises(LedgerRefused):
        run(site, "run")
    assert not (site.folder / "run").exists()


def test_no_privacy_is_for_public_cohorts_only(make_site: Callable[..., Site]) -> None:
    site = make_site(8.0)
    with pytest.raises(LedgerRefused):
        run(site, "run", "privacy=none", "privacy.steps=3")


def test_a_public_cohort_may_be_trained_on_without_privacy(make_site: Callable[..., Site]) -> None:
    site = make_site(public=True)
    words = [
        "privacy=none",
        "privacy.steps=60",
        "privacy.expected_batch_size=30",
        "optimizer=adam",
        "optimizer.lr=0.02",
    ]
    facts = run(site, "run", *words).read_facts()
    assert facts["privacy"]["epsilon"] is None
    assert facts["privacy"]["infinite"] is True
    metrics = json.loads((site.folder / "run" / "restricted" / "metrics.json").read_text())
    assert metrics["overall"]["auroc"]["value"] > 0.9


def test_a_changed_image_is_not_the_registered_cohort(make_site: Callable[..., Site]) -> None:
    from PIL import Image

    site = make_site()
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(site.folder / "images" / "000-0.png")
    with pytest.raises(LedgerRefused):
        run(site, "run")


def test_a_bad_manifest_is_reported_before_anything_is_charged(make_site: Callable[..., Site]) -> None:
    site = make_site()
    (site.folder / "images" / "000-0.png").unlink()
    with pytest.raises(DataUnreadable) as error:
        run(site, "run")
    assert "P000" not in str(error.value)
    assert site.ledger.status("tiny").runs == []


@pytest.mark.parametrize(
    "word",
    [
        "privacy.delta=0.5",
        "privacy.target_epsilon=0",
        "privacy.expected_batch_size=61",
        "training.chunk=3",
        "model.network._target_=os.system",
    ],
)
def test_bad_settings_are_refused_and_charge_nothing(make_site: Callable[..., Site], word: str) -> None:
    site = make_site()
    with pytest.raises(ConfigError):
        run(site, "run", word)
    assert site.ledger.status("tiny").runs == []


def test_a_network_that_mixes_patients_is_refused_before_the_charge(make_site: Callable[..., Site]) -> None:
    site = make_site()
    with pytest.raises(CheckRefused) as error:
        run(
            site,
            "run",
            "model=densenet121",
            "model.batchnorm=refuse",
        )
    assert "batchnorm" in str(error.value).lower()
    assert site.ledger.status("tiny").runs == []


KILL = """
import os, signal, sys
from dptrain.settings import load
from dptrain.training import step
from dptrain.training.run import train
at = int(sys.argv[1])
before = step.PatientOptimizer.pre_step
seen = 0
def pre_step(self, *a, **k):
    global seen
    seen += 1
    if seen > at:
        os.kill(os.getpid(), signal.SIGKILL)
    return before(self, *a, **k)
step.PatientOptimizer.pre_step = pre_step
train(load(sys.argv[2:]), say=lambda _: None)
"""


@pytest.mark.parametrize("at", [0, 5, 9])
def test_killed_and_resumed_a_run_pays_once_and_ends(make_site: Callable[..., Site], at: int) -> None:
    site = make_site()
    words = [*site.words, f"training.run={site.folder / 'run'}", "training.lease=4", "training.checkpoint_steps=2"]
    killed = subprocess.run([sys.executable, "-c", KILL, str(at), *words], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    facts = RunFolder(site.folder / "run").read_facts()
    assert facts["status"] == "running"
    paid = site.ledger.run(facts["id"]).committed
    assert at < paid <= 12
    said: list[str] = []
    outcome = train(site.settings(f"training.resume={site.folder / 'run'}"), say=said.append)
    assert any("crash cost" in line for line in said)
    assert outcome.folder.read_facts()["status"] == "complete"
    assert outcome.folder.read_facts()["resume"]["crashes"] == 1
    lost = outcome.folder.read_facts()["resume"]["steps_lost"]
    assert lost == paid - (at - at % 2)
    privacy = outcome.folder.read_facts()["privacy"]
    assert privacy["steps_charged"] == 12
    assert privacy["steps_run"] == 12 - lost
    assert outcome.folder.read_facts()["gate"]["spent_after"] <= 8
    with pytest.raises(ConfigError):
        train(site.settings(f"training.resume={site.folder / 'run'}"), say=quiet)


def test_two_runs_from_one_seed_draw_other_noise(make_site: Callable[..., Site]) -> None:
    site = make_site(20.0)
    words = ["privacy.target_epsilon=2", "training.evaluate=false", "training.seed=5"]
    one, two = run(site, "one", *words), run(site, "two", *words)
    assert one.read_facts()["model"]["sha256"] != two.read_facts()["model"]["sha256"]


def test_one_checkpoint_resumed_twice_draws_other_noise(
    make_site: Callable[..., Site], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The site is put back to the moment of the crash: were the noise part of the checkpoint, it would come again."""
    site = make_site()
    words = [*site.words, f"training.run={site.folder / 'run'}", "training.lease=4", "training.checkpoint_steps=2"]
    killed = subprocess.run([sys.executable, "-c", KILL, "5", *words], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    crashed = tmp_path_factory.mktemp("crashed") / "site"
    shutil.copytree(site.folder, crashed)
    weights = []
    for _ in range(2):
        outcome = train(site.settings(f"training.resume={site.folder / 'run'}"), say=quiet)
        weights.append(outcome.folder.read_facts()["model"]["sha256"])
        shutil.rmtree(site.folder)
        shutil.copytree(crashed, site.folder)
    assert weights[0] != weights[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_after_the_step_and_closes_the_charge(
    make_site: Callable[..., Site], number: signal.Signals
) -> None:
    site = make_site()
    words = [*site.words, f"training.run={site.folder / 'run'}", "privacy.steps=4000", "training.lease=20"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dptrain", "train", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = site.folder / "run" / "restricted" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while not log.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, (out, err)
    facts = RunFolder(site.folder / "run").read_facts()
    assert facts["status"] == "interrupted"
    assert facts["privacy"]["steps_run"] <= facts["privacy"]["steps_charged"] < 4000
    assert (site.folder / "run" / "restricted" / "model" / "model.safetensors").exists()
    charge = site.ledger.status("tiny").runs[0]
    assert charge.status == "interrupted"
    assert charge.steps == facts["privacy"]["steps_charged"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_before_the_first_step_ends_at_once_and_gives_everything_back(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    from dptrain.training import run as module

    site = make_site()

    def features(*_: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)
        raise AssertionError("it went on")

    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(module.Training, "_loader", features)
        with pytest.raises(KeyboardInterrupt):
            train(site.settings(f"training.run={site.folder / 'run'}"), say=said.append)
    assert "given back" in said[-1]
    status = site.ledger.status("tiny")
    assert (status.spent_epsilon, status.runs[0].status) == (0, "interrupted")
    assert not (site.folder / "run").exists()
    run(site, "run")  # the identical command works


def test_what_fails_before_a_payment_costs_nothing_and_after_it_says_how_to_go_on(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dptrain.training import run as module

    site = make_site()

    def fails(pay: int) -> Callable[..., None]:
        def fit(_step: object, _loader: object, grant: Grant, **_: object) -> None:
            grant.commit(pay)
            raise KeyboardInterrupt if pay else RuntimeError

        return fit

    said: list[str] = []
    monkeypatch.setattr(module, "fit", fails(0))
    with pytest.raises(RuntimeError):
        train(site.settings(f"training.run={site.folder / 'run'}"), say=said.append)
    assert site.ledger.status("tiny").spent_epsilon == 0
    assert not (site.folder / "run" / "run.json").exists()
    monkeypatch.setattr(module, "fit", fails(2))
    with pytest.raises(KeyboardInterrupt):
        train(site.settings(f"training.run={site.folder / 'other'}"), say=said.append)
    held = site.ledger.status("tiny").runs[-1]
    assert (held.status, held.steps_paid) == ("open", 2)
    assert f"training.resume={site.folder / 'other'}" in said[-1]
    assert f"ledger close run={held.run} reason=" in said[-1]


def test_weights_of_a_run_bring_their_charge_along(make_site: Callable[..., Site]) -> None:
    site = make_site(20.0)
    first = run(site, "first", "privacy.target_epsilon=2", "training.evaluate=false")
    second = run(
        site, "second", "privacy.target_epsilon=2", "training.evaluate=false", f"model.weights={first.path}"
    ).read_facts()
    assert second["weights"]["source"] == "ledger"
    assert second["privacy"]["inherited"][0]["run"] == first.read_facts()["id"]
    alone = first.read_facts()["privacy"]["epsilon"]
    assert second["privacy"]["epsilon"] > 1.3 * alone


def test_weights_that_nobody_declared_are_refused(make_site: Callable[..., Site], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from dptrain.models.network import build_network

    site = make_site()
    network = build_network(site.settings()).whole
    save_file(
        {name: torch.zeros_like(value) for name, value in network.state_dict().items()}, tmp_path / "w.safetensors"
    )
    with pytest.raises(LedgerRefused) as error:
        run(site, "run", f"model.weights={tmp_path / 'w.safetensors'}")
    assert "weights" in str(error.value)


def test_the_bundle_predicts_a_new_image(make_site: Callable[..., Site]) -> None:
    site = make_site(public=True)
    words = [
        "privacy=none",
        "privacy.steps=60",
        "privacy.expected_batch_size=30",
        "optimizer=adam",
        "optimizer.lr=0.02",
    ]
    folder = run(site, "run", *words, "privacy.calibration_noise_multiplier=0")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "monai.bundle",
            "run",
            "--config_file",
            str(folder.model / "configs" / "inference.json"),
            "--bundle_root",
            str(folder.model),
            "--image",
            str(site.folder / "images" / "001-0.png"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout[done.stdout.index("{") : done.stdout.rindex("}") + 1])
    assert math.isclose(sum(result["probability"].values()), 1, abs_tol=1e-6)
    assert result["probability"]["shadow"] > 0.5
    assert "certainty" in result
    assert described(folder) == "Trained without differential privacy: epsilon is infinite."


def test_a_bundle_that_starts_from_a_model_without_privacy_has_none(make_site: Callable[..., Site]) -> None:
    site = make_site(public=True)
    first = run(site, "first", "privacy=none", "training.evaluate=false")
    second = run(site, "second", f"model.weights={first.path}", "training.evaluate=false")
    assert second.read_facts()["privacy"]["infinite"]
    assert described(second) == "Trained without differential privacy: epsilon is infinite."


@pytest.mark.parametrize("split", ["train", "calibration"])
def test_protected_patients_are_scored_on_public_cohorts_only(
    make_site: Callable[..., Site], split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Un-noised scores of the patients whom epsilon protects would be outside of it."""
    site = make_site()
    folder = run(site, "run", "training.evaluate=false", "privacy.target_epsilon=2")
    before = site.ledger.head().entries
    assert cli.main(["evaluate", f"run={folder.path}", f"split={split}"]) == 3
    assert "split=test" in capsys.readouterr().err
    assert site.ledger.head().entries == before
    assert not list(folder.restricted.glob(f"*-{split}.*"))
    assert cli.main(["evaluate", f"run={folder.path}"]) == 0


def test_a_public_cohort_s_training_patients_may_be_scored(make_site: Callable[..., Site]) -> None:
    site = make_site(public=True)
    folder = run(site, "run", "training.evaluate=false")
    assert evaluate_run(folder.path, split="train").is_file()


def test_one_patient_more_moves_no_bit_of_another_s_margin(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels may sum in another order for another number of rows, and a margin at a bin's edge would move."""
    from dptrain import data
    from dptrain.models.network import build_network
    from dptrain.training import run as module
    from dptrain.training.planning import open_status, plan_for

    site = make_site()
    mlp = ("model=mlp", "model.network.in_features=64", "model.network.num_classes=1")
    settings = site.settings("privacy.calibration_noise_multiplier=10", *mlp)
    ledger, keys, status = open_status(settings)
    plan, network, cohort = plan_for(settings, status), build_network(settings), data.scan(settings.data, keys)
    training = module.Training(settings, None, command="", say=quiet, watch=module.Watch())  # type: ignore[attr-defined]
    training.plan, training.network, training.cohort = plan, network, cohort
    training.grant = ledger.reserve(plan, status.name, run="one", fingerprint=cohort.fingerprint)
    record, patient = module.scoring.of_split(cohort, "calibration", frozenset())  # type: ignore[attr-defined]
    seen: list[np.ndarray] = []
    monkeypatch.setattr(module, "fit_calibration", lambda logits, *_, **__: seen.append(logits))
    training._draw_calibration(10.0)
    whole = seen.pop()
    for one in np.unique(patient):
        rest = patient != one
        monkeypatch.setattr(module.scoring, "of_split", lambda *_, rest=rest: (record[rest], patient[rest]))  # type: ignore[attr-defined]
        training._draw_calibration(10.0)
        assert np.array_equal(seen.pop(), whole[rest])


def test_a_sweep_charges_every_trial_and_a_refused_one_stops_no_other(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = make_site(5.0)
    monkeypatch.chdir(site.folder)
    code = cli.main(
        [
            "train",
            "-m",
            *site.words,
            "training.evaluate=false",
            "privacy.target_epsilon=2,9,1",
            "hydra.sweep.dir=sweep",
        ]
    )
    assert code == 3
    runs = site.ledger.status("tiny").runs
    assert len(runs) == 2
    facts = RunFolder(site.folder / "sweep" / "0").read_facts()
    assert facts["sweep"]["trials"] == 2
    assert facts["sweep"]["epsilon_total"] > facts["privacy"]["epsilon"]
    assert "together" in capsys.readouterr().out


@pytest.mark.parametrize("end", [KeyboardInterrupt(), LedgerRefused("connection lost")])
@pytest.mark.parametrize(("office", "answer"), [(Till, "pay"), (Ledger, "reserve")])
def test_what_the_ledger_took_is_not_called_unpaid_because_its_answer_was_lost(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, office: type, answer: str, end: BaseException
) -> None:
    site, right = make_site(), getattr(office, answer)

    def lost(*some: Any, **named: Any) -> None:
        right(*some, **named)
        raise end

    monkeypatch.setattr(office, answer, lost)
    said: list[str] = []
    with pytest.raises(type(end)):
        train(site.settings(f"training.run={site.folder / 'run'}"), say=said.append)
    monkeypatch.undo()
    (run,) = site.ledger.status("tiny").runs
    assert run.status == "open"
    assert RunFolder(site.folder / "run").config.exists()
    assert not any("nothing was paid" in line for line in said)
    assert answer == "pay" or f"ledger close run={run.run}" in said[-1]


@pytest.mark.parametrize("end", [KeyboardInterrupt(), RuntimeError("out of memory"), DataUnreadable("row 7")])
def test_a_sweep_that_breaks_still_counts_every_trial_that_was_charged(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], end: Any
) -> None:
    site = make_site()
    monkeypatch.chdir(site.folder)
    seen: list[dict[str, Any]] = []

    def breaks(training: spine.Training) -> None:
        seen.append(training.folder.read_facts())
        if len(seen) < 3 or isinstance(end, DataUnreadable):
            right(training)
        if len(seen) == 3:
            training.grant.commit(1)  # what paid nothing would be given back
            raise end

    right = spine.Training.train
    monkeypatch.setattr(spine.Training, "train", breaks)
    words = ["training.evaluate=false", "privacy.target_epsilon=1", "optimizer.lr=0.1,0.2,0.3", "hydra.sweep.dir=sw"]
    assert cli.main(["train", "-m", *site.words, *words]) != 0
    ends = [RunFolder(site.folder / "sw" / str(number)).read_facts() for number in range(3)]
    assert [facts["status"] for facts in ends] == ["complete", "complete", "running"]
    identity = seen[0]["sweep"]["id"]
    assert all(facts["sweep"] == {"id": identity, "trials": None, "epsilon_total": None} for facts in seen)
    assert all(facts["sweep"]["id"] == identity and facts["sweep"]["trials"] == 3 for facts in ends)
    of_three = sweep_cost([Run.of({**ends[0], "id": str(number)}) for number in range(3)])
    assert of_three is not None
    for facts in ends:
        assert facts["sweep"]["epsilon_total"] == pytest.approx(of_three.epsilon_total)
    assert "charged trials: 3; together they cost epsilon" in capsys.readouterr().out
    assert not list(site.folder.glob(".dptrain-sweep*"))


def test_a_sweep_in_folders_of_its_own_counts_its_trials(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = make_site()
    monkeypatch.chdir(site.folder)
    words = ["training.evaluate=false", "privacy.target_epsilon=1", "optimizer.lr=0.1,0.2", "hydra.sweep.dir=sw"]
    assert cli.main(["train", "-m", *site.words, *words, "hydra.job.chdir=true"]) == 0
    assert "charged trials: 2; together they cost epsilon" in capsys.readouterr().out
    ends = [RunFolder(path.parent).read_facts() for path in site.folder.rglob("run.json")]
    assert [facts["sweep"]["trials"] for facts in ends] == [2, 2]


def test_a_trial_that_ended_and_is_not_found_leaves_the_sum_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = str(tmp_path / "gone")
    trial = commands.Trial(words="optimizer.lr=0.1", code=0, message="", run=gone, sweep="one")
    assert commands.end_sweep([trial]) == 0
    said = capsys.readouterr()
    assert "what the sweep cost together is not known" in said.err
    assert "charged trials" not in said.out


def test_a_sweep_that_breaks_counts_what_an_open_trial_starts_from(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site()
    words = ["training.evaluate=false", "privacy.target_epsilon=2"]
    first = run(site, "first", *words)
    monkeypatch.chdir(site.folder)

    def breaks(training: spine.Training) -> None:
        training.grant.commit(1)  # what paid nothing would be given back
        raise RuntimeError("out of memory")

    monkeypatch.setattr(spine.Training, "train", breaks)
    own = ["privacy.target_epsilon=0.5", f"model.weights={first.weights}", "optimizer.lr=0.1,0.2"]
    assert cli.main(["train", "-m", *site.words, *words[:1], *own, "hydra.sweep.dir=sw"]) != 0
    assert not first.read_facts()["sweep"]
    facts = RunFolder(site.folder / "sw" / "0").read_facts()
    once = [Mechanism(**m) for m in first.read_facts()["privacy"]["mechanisms"]]
    trial = Plan.from_dict(facts["plan"]).mechanisms
    assert facts["sweep"]["trials"] == 2
    assert facts["sweep"]["epsilon_total"] == pytest.approx(accounting.pld_epsilon((*once, *trial, *trial), 1e-5))


def test_a_sweep_counts_each_inherited_run_once() -> None:
    base, own = Mechanism(0.27, 2.474, 200), Mechanism(0.27, 8.0, 20)

    def trial(name: str) -> dict[str, Any]:
        inherited = [{"run": "earlier", "mechanisms": [dataclasses.asdict(base)]}]
        return {
            "id": name,
            "privacy": {"delta": 1e-5, "mechanisms": [dataclasses.asdict(own)], "inherited": inherited},
        }

    together = sweep_cost([Run.of(trial("one")), Run.of(trial("two"))])
    assert together is not None
    assert together.epsilon_total == pytest.approx(accounting.pld_epsilon((base, own, own), 1e-5))
    assert together.epsilon_total is not None
    assert together.epsilon_total >= accounting.pld_epsilon((base, own), 1e-5)
    first = trial("one") | {"id": "earlier"}
    first["privacy"] = {"delta": 1e-5, "mechanisms": [dataclasses.asdict(base)], "inherited": []}
    same = sweep_cost(
        [Run.of(one) for one in (first, trial("two"), trial("three"))]
    )  # the first is what the others start from
    assert same == Sweep(trials=3, epsilon_total=together.epsilon_total)


def test_a_promise_names_as_many_units_as_a_person_may_have(make_site: Callable[..., Site]) -> None:
    facts = run(make_site(), "run", "training.evaluate=false", "data.units_per_person=3").read_facts()
    groups = facts["privacy"]["group_epsilon"]
    assert str(facts["cohort"]["units_per_person"]) in groups
    assert facts["privacy"]["epsilon"] < groups["2"] < groups["3"]


def test_the_command_line_gives_the_design_s_exit_codes(
    make_site: Callable[..., Site], capsys: pytest.CaptureFixture[str]
) -> None:
    site = make_site(2.0)
    words = [*site.words, "privacy.target_epsilon=2"]
    assert cli.main(["train", *words, f"training.run={site.folder / 'a'}"]) == 0
    assert cli.main(["train", *words, f"training.run={site.folder / 'b'}"]) == 3
    assert "locked" in capsys.readouterr().err
    assert cli.main(["train", *words, "privacy.target_epsilo=2"]) == 2
    assert cli.main(["evaluate", f"run={site.folder / 'a'}"]) == 3
    assert cli.main(["train", *words, "--cfg", "job"]) == 0
    assert cli.main(["train", *words, "--no-such-flag"]) == 2


def test_public_files_carry_no_time_of_a_step(make_site: Callable[..., Site]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    site = make_site()
    folder = run(site, "run", "training.evaluate=false")
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    tags = events.Tags()["scalars"]
    assert set(tags) == {"training/learning_rate", "privacy/epsilon"}
    for tag in tags:
        assert all(event.wall_time == event.step for event in events.Scalars(tag))
    assert oct(os.stat(folder.restricted_tensorboard).st_mode)[-3:] == "700"


def test_a_network_cannot_bring_weights_that_the_ledger_never_sees(make_site: Callable[..., Site]) -> None:
    from dptrain.models.network import build_network

    site = make_site(None)
    for word in ("+model.network.pretrained=true", "+model.network.weights_path=/w.pt"):
        with pytest.raises(ConfigError, match="nobody declared"):
            build_network(site.settings("model=densenet121", word))


def test_the_calibration_is_released_once(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    from dptrain.training import run as module

    site = make_site()
    real, drawn = module.Training._draw_calibration, []

    def counted(*arguments: Any) -> object:
        drawn.append(1)
        return real(*arguments)

    def torn(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(module.Training, "_draw_calibration", counted)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_bundle", torn)
        with pytest.raises(OSError):
            run(site, "run", "privacy.calibration_noise_multiplier=10")
    outcome = train(site.settings(f"training.resume={site.folder / 'run'}"), say=quiet)
    assert outcome.folder.read_facts()["status"] == "complete"
    assert outcome.folder.read_facts()["calibration"] is not None
    assert len(drawn) == 1


def test_a_copied_folder_gives_no_second_calibration(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run dies between training and calibration, and its folder is copied: one charge, one histogram."""
    from dptrain.training import run as module

    site = make_site()
    real, drawn = module.fit_calibration, []  # type: ignore[attr-defined]

    def counted(*arguments: Any, **words: Any) -> object:
        drawn.append(1)
        return real(*arguments, **words)

    def dies(*_: object, **__: object) -> None:
        raise OSError("killed")

    monkeypatch.setattr(module, "fit_calibration", counted)
    with monkeypatch.context() as patch:
        patch.setattr(module.Training, "calibrate", dies)
        with pytest.raises(OSError):
            run(site, "a", "privacy.calibration_noise_multiplier=10", "training.evaluate=false")
    shutil.copytree(site.folder / "a", site.folder / "b")
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_bundle", dies)
        with pytest.raises(OSError):
            train(site.settings(f"training.resume={site.folder / 'a'}"), say=quiet)
    said: list[str] = []
    outcome = train(site.settings(f"training.resume={site.folder / 'b'}"), say=said.append)
    assert len(drawn) == 1
    assert (outcome.folder.read_facts()["status"], outcome.folder.read_facts()["calibration"]) == ("complete", None)
    assert any("not drawn again" in line for line in said)
    assert site.ledger.verify() == []


def test_a_resumed_run_starts_from_the_weights_it_was_granted_for(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dptrain.ledger import WeightsSource
    from dptrain.training import run as module

    site = make_site()

    def interrupted(_step: object, _loader: object, grant: Grant, **_: object) -> None:
        grant.commit(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(site, "run")
    real = module.build_network  # type: ignore[attr-defined]

    def other(settings: Any) -> object:
        network = real(settings)
        network.weights = WeightsSource(sha256="0" * 64)
        return network

    monkeypatch.setattr(module, "build_network", other)
    with pytest.raises(LedgerRefused, match="starting weights"):
        train(site.settings(f"training.resume={site.folder / 'run'}"), say=quiet)


def test_rules_of_a_run_hold_in_training_resuming_evaluation_and_its_audit(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the network's own names, whatever part of it is trained; the audit's reference models take them too."""
    import dataclasses

    from dptrain import data, targets
    from dptrain.audit.games.population import gather
    from dptrain.audit.reference import train_with_engine
    from dptrain.engine import PatientGradients
    from dptrain.settings import AuditConfig
    from dptrain.training.inputs import load_run
    from tests.models.made import HERE

    monkeypatch.setattr(targets, "ALLOWED", (*targets.ALLOWED, HERE))
    slow: list[set[str]] = []
    made = PatientGradients._one_by_one

    def spy(self, *args):
        slow.append(set(self._slow))
        return made(self, *args)

    monkeypatch.setattr(PatientGradients, "_one_by_one", spy)
    site = make_site()
    bare = [f"~model.network.{name}" for name in ("in_channels", "num_classes", "channels")]
    network = [f"model.network._target_={HERE}SequenceFirst", *bare, "privacy.steps=6", "privacy.target_epsilon=2"]
    with pytest.raises(CheckRefused, match=r"\+model\.rules\.layer\.linear1=one-by-one"):
        run(site, "refused", *network)
    assert site.ledger.status("tiny").runs == []
    slow.clear()
    words = [*network, "+model.rules.layer=one-by-one", "+model.rules.out=one-by-one"]
    stop, begun = RunFolder(site.folder / "run"), []

    def fail(*_: object) -> None:
        begun.append(1)
        if len(begun) == 3:
            raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("dptrain.training.step.PatientOptimizer.scale_grad", fail)
        with pytest.raises(OSError, match="no space"):
            run(site, "run", *words)
    before = len(slow)
    outcome = train(site.settings(f"training.resume={stop.path}"), say=quiet)
    assert outcome.folder.read_facts()["status"] == "complete"
    assert 0 < before < len(slow)
    slow_ones = {name for name in slow[-1] if name.startswith("layer.")} | {"out.weight", "out.bias"}
    assert len(slow_ones) == 14
    assert all(found == slow_ones for found in slow)
    assert evaluate_run(stop.path).is_file()

    settings, plan = load_run(stop.path).settings, load_run(stop.path).plan
    assert settings.model.rules == {"layer": "one-by-one", "out": "one-by-one"}
    cohort = data.scan(settings.data, site.keys)
    identity = str(outcome.facts.id)
    with site.ledger.admit("tiny", purpose="audit", run=identity, fingerprint=cohort.fingerprint) as grant:
        material, _ = gather(settings, cohort, grant, plan, AuditConfig())
    before = len(slow)
    shown = dataclasses.replace(material, plan=dataclasses.replace(plan, steps=1))
    train_with_engine(shown, np.ones(material.patients, dtype=bool))
    assert len(slow) > before
    assert slow[-1] == slow_ones
