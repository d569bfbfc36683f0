"""The command: results in the agreed schema, modes, resuming, refusals, exit codes."""

from __future__ import annotations

import csv
import dataclasses
import json
import stat
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dptrain import cli
from dptrain.audit import attacks, bounds, patients, reference, statistics
from dptrain.audit import run as audit_module
from dptrain.audit.games import release
from dptrain.audit.games.population import keep_back
from dptrain.audit.games.release import confirm
from dptrain.audit.results import People, summarise
from dptrain.audit.run import audit_run, audit_settings, override
from dptrain.audit.work import Work
from dptrain.errors import EXIT_GUARANTEE_BROKEN, ConfigError, LedgerRefused
from dptrain.records import RunFolder
from dptrain.records.audit import Withheld
from dptrain.settings import AuditConfig
from dptrain.settings.kept import changed
from dptrain.training.run import train
from tests.audit.made import make_material
from tests.audit.simulate import gaussian_scores
from tests.training.conftest import Site, make_site, write_images

__all__ = ["make_site"]

SMALL = ["audit.models=32", "audit.canaries=10", "audit.canary_trainings=1", "audit.processes=1"]


def quiet(_: str) -> None:
    return None


def trained(site: Site, *words: str) -> RunFolder:
    settings = site.settings(f"training.run={site.folder / 'run'}", "model=mlp", *NETWORK, *words)
    return train(settings, say=quiet).folder


NETWORK = ["model.network.in_features=64", "model.network.num_classes=1"]


def test_audit_of_a_run(make_site: Callable[..., Site], capsys: pytest.CaptureFixture[str]) -> None:
    site = make_site(8.0)
    folder = trained(site)
    code = cli.main(["audit", f"run={folder.path}", *SMALL])
    told = capsys.readouterr().out
    assert "reference models" in told
    with open(folder.audit / "patients.csv", newline="") as file:  # nothing by patient on the terminal
        assert not [row["patient"] for row in csv.DictReader(file) if row["patient"] in told]
    audit = json.loads((folder.audit / "audit.json").read_text())
    assert audit["schema"] == "dptrain.audit/1"
    assert code == (EXIT_GUARANTEE_BROKEN if audit["canary"]["broken"] else 0)
    expected = {
        *("schema", "game", "attack", "references", "models", "promised", "patients", "exposed", "verdicts"),
        *("confirmed", "roc", "auc", "survival", "tpr_at", "baseline_max", "groups", "suppressed", "new_scan"),
        *("canary", "withheld", "masks_sha256", "seconds"),
    }
    assert expected <= set(audit)
    assert audit["promised"]["epsilon"] == pytest.approx(folder.read_facts()["privacy"]["epsilon"], rel=0.02)
    assert set(audit["tpr_at"]) == {"0.01", "0.05", "0.1"}
    assert audit["tpr_at"]["0.01"]["extrapolated"]
    assert "extrapolated; counted from 880 models" in told
    assert "withheld: tpr" not in told
    assert audit["verdicts_by"] == patients.TEST
    assert len(audit["masks_sha256"]) == 64
    assert sum(audit["verdicts"].values()) == audit["patients"]
    with open(folder.audit / "patients.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == audit["patients"]
    assert {row["confirmed"] + row["fresh_auc"] for row in rows} == {""}  # the population game confirms nobody
    assert not any("P0" in row["patient"] for row in rows)
    assert stat.S_IMODE(folder.audit.stat().st_mode) == 0o700
    for path in folder.audit.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not (folder.audit / "work").exists()
    public = "".join(p.read_text() for p in folder.path.rglob("*.json") if "restricted" not in p.parts)
    assert "masks_sha256" not in public


def test_an_audit_by_unit_draws_its_coins_for_units(make_site: Callable[..., Site]) -> None:
    site = make_site(8.0)
    folder = trained(site)
    words = ["audit.models=24", "audit.canaries=0", "audit.processes=1", "audit.new_scan=0"]
    with pytest.raises(ConfigError, match="town is none of the columns") as caught:
        audit_run(folder.path, [*words, "audit.unit_column=town"], say=quiet)
    assert "sex" in str(caught.value.remedy)
    audit = audit_run(folder.path, [*words, "audit.unit_column=sex"], say=quiet).audit
    assert (audit.unit, audit.patients) == ("sex", 2)
    assert audit.auc is not None
    assert audit.auc.ceiling == 1.0  # the promise is to one patient, not to half of the cohort
    with np.load(folder.audit / "scores.npz") as kept:
        assert len(np.unique(kept["member"], axis=1).T) <= 2  # all of a unit share their coins
    with pytest.raises(ConfigError, match="population"):
        AuditConfig(unit_column="sex", game="release")


def test_an_interrupted_audit_goes_on(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(8.0)
    folder = trained(site, "audit.stack=8")
    calls: list[int] = []
    correct = reference.train_together

    def failing(material, member, **rest):
        calls.append(len(member))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return correct(material, member, **rest)

    monkeypatch.setattr(reference, "train_together", failing)
    with pytest.raises(KeyboardInterrupt):
        audit_run(folder.path, SMALL, say=quiet)
    held = sorted(path.name for path in (folder.audit / "work").iterdir())
    assert {"masks.npz", "scores-000.npz", "scores-001.npz"} <= set(held)
    digest = np.load(folder.audit / "work" / "masks.npz")["member"]
    result = audit_run(folder.path, SMALL, say=quiet)
    assert calls == [8] * 5  # two kept, the third again, and the fourth
    assert result.audit.masks_sha256 == audit_module.masks.digest(digest)  # type: ignore[attr-defined]


def test_a_locked_cohort_needs_permission_for_a_second_audit(make_site: Callable[..., Site]) -> None:
    site = make_site(3.0)
    folder = trained(site, "privacy.target_epsilon=3")
    assert site.ledger.status("tiny").locked
    few = ["audit.models=8", "audit.canaries=0"]
    audit_run(folder.path, few, say=quiet)  # declared by the run's own plan
    with pytest.raises(LedgerRefused) as error:
        audit_run(folder.path, [*few, "audit.tolerance=0.8"], say=quiet)
    assert "Radiology" in str(error.value)


def test_an_interrupted_audit_of_a_locked_cohort_goes_on(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while it writes: nothing half written is taken for finished, and no second permission is needed."""
    site = make_site(3.0)
    folder = trained(site, "privacy.target_epsilon=3")
    assert site.ledger.status("tiny").locked
    few = ["audit.models=8", "audit.canaries=0"]

    def full_disk(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", full_disk)
        with pytest.raises(KeyboardInterrupt):
            audit_run(folder.path, few, say=quiet)
    assert not (folder.audit / "audit.json").exists()
    assert stat.S_IMODE((folder.audit / "work").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder.audit / "work").iterdir()} == {0o600}
    audit_run(folder.path, few, say=quiet)
    assert {path.name for path in folder.audit.iterdir()} == {"audit.json", "patients.csv", "scores.npz"}


def test_work_keeps_what_the_audit_began_with(make_site: Callable[..., Site]) -> None:
    site = make_site(8.0)
    settings = site.settings("model=linear", *NETWORK)

    def begin(seed: int) -> tuple[Work, Any]:
        material = make_material(most=3)
        trained = keep_back(material.patient.numpy(), 40, 0.9)
        material = dataclasses.replace(material, trained=trained)
        return Work(site.folder / "work", settings, material, material.plan, "fingerprint"), material

    work, first = begin(0)
    assert not first.trained.all()
    again, second = begin(1)
    np.testing.assert_array_equal(first.trained, second.trained)  # the records kept back for the new scan
    np.testing.assert_array_equal(work.member(8, 40), again.member(8, 40))
    own = len(first.inputs)
    for count in (2, 2, 3):  # the last is another question: other canaries, and no score of the former
        planted = dataclasses.replace(
            first, inputs=torch.cat([first.inputs, torch.randn(count, 12)]), labels=torch.cat([first.labels] * 2)
        )
        member = np.random.default_rng().random((4, 40 + count)) < 0.5
        same, held = work.canaries(planted, member, own)
        if count == 2:
            work.save("canary-000", scores=np.zeros((4, own + 2)), member=held)
        else:
            torch.testing.assert_close(same.inputs, planted.inputs)
            assert work.load("canary-000") is None


def test_too_few_fresh_models_confirm_nobody_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    scores, member, owner = gaussian_scores(rng, 32, 40, 3.0)
    material = make_material(patients=40, patient=torch.arange(40))
    summary = summarise(scores, member, owner, everybody(40), AuditConfig(), generator=rng)
    monkeypatch.setattr(release, "train_references", None)
    config = AuditConfig(confirm=3, confirm_models=8)
    assert confirm(material, scores, member, summary, config, None, torch.device("cpu")) is None
    assert Withheld(what="confirmed", have=8, need=10) in summary.audit.withheld


def test_a_finished_audit_is_told_again_without_the_ledger(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = make_site(3.0)
    folder = trained(site, "privacy.target_epsilon=3")
    few = ["audit.models=8", "audit.canaries=0"]
    assert cli.main(["audit", f"run={folder.path}", *few]) == 0
    first = (folder.audit / "audit.json").read_bytes()
    entries = len(site.ledger.entries())
    monkeypatch.setattr(reference, "train_together", None)
    capsys.readouterr()
    assert cli.main(["audit", f"run={folder.path}", *few, "audit.processes=1"]) == 0
    told = capsys.readouterr().out
    assert "was finished at" in told
    assert str(folder.audit) in told
    assert "8 reference models" in told
    assert len(site.ledger.entries()) == entries
    assert (folder.audit / "audit.json").read_bytes() == first
    for other in (["audit.models=9", "audit.canaries=0"], [*few, "audit.attack=rmia"], ["audit.models=8"]):
        assert cli.main(["audit", f"run={folder.path}", *other]) == 3
    audit = json.loads(first)
    audit["canary"] = {"kind": "gradient-aligned", "count": 9, "trainings": 2, "epsilon_lower": 9.0}
    audit["canary"] |= {"confidence": 0.95, "method": "one run", "beyond_curve": None, "broken": True}
    (folder.audit / "audit.json").write_text(json.dumps(audit))
    assert cli.main(["audit", f"run={folder.path}", *few]) == EXIT_GUARANTEE_BROKEN
    assert "at least 9.00" in capsys.readouterr().err


def test_work_is_found_by_what_decides_the_models_and_by_nothing_else(make_site: Callable[..., Site]) -> None:
    site = make_site(8.0)
    material = make_material()

    base = site.settings("model=linear", *NETWORK)

    def key(*words: str) -> str:
        return Work(site.folder / "work", changed(base, words), material, material.plan, "fingerprint").key

    scale = "{_target_: monai.transforms.ScaleIntensityd, keys: [image]}"
    flip = "{_target_: monai.transforms.RandFlipd, keys: [image], prob: 0.5}"
    different = [
        [],
        ["model.network._target_=dptrain.models.mlp"],
        ["model.network.num_classes=2"],
        ["model.train=head"],
        ["model.rules.head=one-by-one"],
        [f"data.transforms=[{scale}]"],
        [f"data.augment=[{flip}]"],
        ["data.task=multiclass"],
        ["data.drop={finding: shadow}"],
        ["training.ema=0.5"],
        ["optimizer.lr=0.7"],
        ["audit.models=12"],
    ]
    assert len({key(*words) for words in different}) == len(different)
    weights = site.folder / "weights.pt"
    weights.write_bytes(b"one")
    before = key(f"model.weights={weights}")
    weights.write_bytes(b"two")
    assert key(f"model.weights={weights}") != before
    same = ["ledger.url=elsewhere", "data.root=/elsewhere", "training.device=auto", "audit.attack=rmia"]
    assert {key(word) for word in (*same, "training.run=there", "audit.processes=3")} == {key()}


def test_an_interrupted_audit_of_a_recipe_goes_on_in_the_same_folder(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(8.0)
    monkeypatch.chdir(site.folder)
    words = ["model=mlp", *NETWORK, *SMALL, "audit.stack=8", "audit.canary_trainings=3"]
    calls: list[int] = []
    correct, engine = reference.train_together, reference.train_with_engine
    planted: list[Any] = []

    def failing(material, member, **rest):
        calls.append(len(member))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return correct(material, member, **rest)

    def failing_engine(material, member, *rest, **more):
        planted.append((material, member))
        if len(planted) == 3:
            raise KeyboardInterrupt
        return engine(material, member, *rest, **more)

    monkeypatch.setattr(reference, "train_together", failing)
    monkeypatch.setattr(reference.engine, "train_with_engine", failing_engine)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            audit_settings(site.settings(*words), say=quiet)
    result = audit_settings(site.settings(*words), say=quiet)
    assert calls == [8] * 5
    assert len(planted) == 4  # two kept, the third again
    (first, _), (_, third), (again, once_more) = planted[0], planted[2], planted[3]
    np.testing.assert_array_equal(first.inputs, again.inputs)
    np.testing.assert_array_equal(third, once_more)
    assert [path.resolve() for path in (site.folder / "runs").iterdir()] == [result.folder.path.resolve()]
    said: list[str] = []
    assert audit_settings(site.settings(*words), say=said.append).audit.created == result.audit.created
    assert "was finished at" in said[-1]
    other = audit_settings(site.settings(*words, "optimizer.lr=0.3", "audit.canaries=0"), say=quiet)
    assert other.folder.path != result.folder.path


def test_a_changed_manifest_and_a_changed_configuration_are_refused(make_site: Callable[..., Site]) -> None:
    site = make_site(8.0)
    folder = trained(site)
    (site.folder / "images").rename(site.folder / "before")
    write_images(site.folder / "images", seed=1)
    with pytest.raises(LedgerRefused):
        audit_run(folder.path, SMALL, say=quiet)
    folder.config.write_text(folder.config.read_text() + "\n")
    with pytest.raises(ConfigError, match="hash") as caught:
        audit_run(folder.path, SMALL, say=quiet)
    assert "Bring back the file" in str(caught.value.remedy)
    folder.config.unlink()
    with pytest.raises(ConfigError, match="cannot be reproduced"):
        audit_run(folder.path, SMALL, say=quiet)


def test_a_broken_guarantee_ends_with_six(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = make_site(8.0)
    folder = trained(site)
    real = bounds.lower_bound
    monkeypatch.setattr(
        bounds, "lower_bound", lambda *a, **k: dataclasses.replace(real(*a, **k), epsilon=99.0, broken=True)
    )
    assert cli.main(["audit", f"run={folder.path}", *SMALL]) == EXIT_GUARANTEE_BROKEN
    assert "guarantee is broken" in capsys.readouterr().err
    assert json.loads((folder.audit / "audit.json").read_text())["canary"]["broken"] is True


def test_audit_of_a_recipe_without_a_run(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(8.0)
    settings = site.settings(f"training.run={site.folder / 'only-audit'}", "model=mlp", *NETWORK, *SMALL)
    tasks: list[str] = []
    correct = audit_module.summarise  # type: ignore[attr-defined]
    monkeypatch.setattr(
        audit_module, "summarise", lambda *a, task, **k: tasks.append(task) or correct(*a, task=task, **k)
    )
    result = audit_settings(settings, say=quiet)
    assert tasks == ["binary"]
    assert result.audit.patients == 52
    assert (site.folder / "only-audit" / "restricted" / "audit" / "audit.json").exists()


def test_a_sweep_audits_each_setting(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    site = make_site(8.0)
    monkeypatch.chdir(site.folder)
    few = ["audit.models=8", "audit.canaries=0"]
    words = [
        *site.words,
        "model=mlp",
        *NETWORK,
        *few,
        "privacy.target_epsilon=1,2",
        f"hydra.sweep.dir={site.folder}/s",
    ]
    assert cli.main(["audit", "-m", *words]) == 0
    assert len(list(site.folder.glob("s/*/restricted/audit/audit.json"))) == 2
    assert capfd.readouterr().out.count("restricted/audit") >= 2
    assert cli.main(["audit", "-m", "run=somewhere"]) == 2


def test_nothing_of_the_training_can_be_changed(make_site: Callable[..., Site]) -> None:
    site = make_site(8.0)
    settings = site.settings()
    assert override(settings, ["audit.models=16"]).audit.models == 16
    for word in ("privacy.noise_multiplier=1", "optimizer.lr=3", "models=3", "run"):
        with pytest.raises(ConfigError) as caught:
            override(settings, [word])
        assert "training.chunk=" in str(caught.value.remedy)
    assert override(settings, ["training.chunk=17"]).training.chunk == 17
    with pytest.raises(ConfigError, match="modles"):
        override(settings, ["audit.modles=16"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"attack": "studnet_t"},
        {"game": "chess"},
        {"trainer": "fast"},
        {"models": 1},
        {"tolerance": 0.4},
        {"false_discovery_rate": float("nan")},
        {"confirm_models": 2},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        AuditConfig(**wrong)


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit", "--help"]) == 0
    assert "dptrain audit run=" in capsys.readouterr().out
    assert cli.main(["audit"]) == 2
    assert cli.main(["audit", "run=a", "run=b"]) == 2
    assert cli.main(["audit", "run=/nowhere"]) == 2


def everybody(count: int) -> People:
    return People([f"{i:016x}" for i in range(count)], np.full(count, "all"), {"sex": np.resize(["F", "M"], count)})


@pytest.mark.parametrize(("models", "expected"), [(4, None), (12, None), (32, "count")])
def test_too_few_models_withhold_the_claim_with_the_count_it_needs(models: int, expected: str | None) -> None:
    rng = np.random.default_rng(0)
    scores, member, patient = gaussian_scores(rng, models, 200, 3.0)
    summary = summarise(scores, member, patient, everybody(200), AuditConfig(), generator=rng)
    if expected is None:
        assert summary.audit.exposed is None
        row = next(row for row in summary.audit.withheld if row.what == "verdicts")
        assert row.have == models < row.need
        assert not summary.traced.any()
        assert summary.audit.groups == {}
    else:
        assert summary.audit.exposed.count > 150
    json.dumps(summary.audit.to_json(), allow_nan=False)


def test_summary_of_a_known_release() -> None:
    rng = np.random.default_rng(1)
    scores, member, patient = gaussian_scores(rng, 64, 400, 1.0, records=2)
    trained = np.ones(800, dtype=bool)
    trained[1::8] = False
    scores[:, ~trained] -= 1.0 * member[:, patient[~trained]]  # nothing is learned about these
    summary = summarise(scores, member, patient, everybody(400), AuditConfig(), trained=trained, generator=rng)
    audit = summary.audit
    assert audit.auc.low < audit.auc.mean < audit.auc.high
    assert audit.new_scan.low < 0.5 < audit.new_scan.high
    assert audit.survival.share[0] > 0.95
    assert audit.survival.null[0] == pytest.approx(0.5, abs=0.03)
    bands = {row.records: row for row in audit.baseline_max.by_records}
    assert bands["2"].pooled > bands["1"].pooled
    assert set(audit.groups["sex"]) == {"F", "M"}
    assert sum(row["verdict"] == "exposed" for row in summary.rows) == audit.exposed.count


def test_a_new_scan_is_recognised_where_the_models_know_the_patient() -> None:
    """The patient, not the record, was learned: a record that was never trained on tells who was there."""
    rng = np.random.default_rng(2)
    scores, member, patient = gaussian_scores(rng, 64, 200, 1.0, records=2)
    trained = np.arange(400) % 8 != 1
    summary = summarise(scores, member, patient, everybody(200), AuditConfig(), trained=trained, generator=rng)
    scan = summary.audit.new_scan
    assert scan.patients == 50
    assert scan.low < 0.76 < scan.high  # Φ(1/√2)
    assert scan.low > 0.65
    with_scan = [i for i, row in enumerate(summary.rows) if row["new_scan_auc"] is not None]
    assert with_scan == list(patient[~trained])


def test_kept_back_records_leave_every_patient_one() -> None:
    owner = np.repeat(np.arange(100), np.arange(100) % 4 + 1)
    trained = keep_back(owner, 100, 0.99)
    assert (np.bincount(owner[trained], minlength=100) >= 1).all()
    assert np.bincount(owner[~trained], minlength=100).max() == 1
    assert keep_back(owner, 100, 0.0).all()


def test_rmia_knows_that_a_segmentation_score_is_a_log_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    member = rng.random((16, 30)) < 0.5
    owner = np.repeat(np.arange(30), 2)
    scores = -np.exp(rng.normal(size=(16, 60)) - member[:, owner])  # negative losses
    right = attacks.rmia(scores, member[:, owner], scores, log_probability=True, owner=owner)  # type: ignore[arg-type]
    wrong = attacks.rmia(scores, member[:, owner], scores, owner=owner)  # type: ignore[arg-type]
    right, wrong = (evidence.reshape(16, 30, 2).mean(axis=2) for evidence in (right, wrong))
    assert np.abs(right - wrong).max() > 0.01
    options = {"attack": "rmia", "task": "segmentation"}
    np.testing.assert_allclose(patients.pooled_evidence(scores, member, scores, owner, **options), right)  # type: ignore[arg-type]
    np.testing.assert_allclose(patients.pooled_evidence(scores, member, scores, owner, attack="rmia"), wrong)

    asked: list[bool] = []

    def spy(*args: Any, log_probability: bool = False, **rest: Any) -> Any:
        assert args[0].shape[1] == 30  # records that were trained on, or those that were not; never both
        asked.append(log_probability)
        return attacks.rmia(*args, log_probability=log_probability)

    monkeypatch.setitem(attacks.ATTACKS, "rmia", spy)
    trained = np.arange(60) % 2 == 0
    config = AuditConfig(attack="rmia", confirm=1, confirm_models=8, processes=1)
    summary = summarise(scores, member, owner, everybody(30), config, trained=trained, task="segmentation")
    kind = nn.Conv2d(1, 2, 1)
    material = make_material(
        module=kind, shape=(1, 4, 4), task="segmentation", outputs=2, patients=30, patient=torch.from_numpy(owner)
    )
    material = dataclasses.replace(material, trained=trained)
    summary.traced[3] = True
    confirm(material, scores, member, summary, config, None, torch.device("cpu"))
    assert len(asked) > 8
    assert all(asked)


def test_the_patients_tried_are_named_in_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    scores, member, owner = gaussian_scores(rng, 32, 40, 3.0)
    material = make_material(patients=40, patient=torch.arange(40))
    summary = summarise(scores, member, owner, everybody(40), AuditConfig(), generator=rng)
    assert all(row["confirmed"] is None and row["fresh_auc"] is None for row in summary.rows)
    top = np.argsort(-summary.area.auc, kind="stable")[:2]

    def fresh(what: Any, games: np.ndarray, *rest: Any) -> np.ndarray:
        assert games[:12].all()  # the whole cohort, then the whole cohort without one
        assert (games[12:].sum(axis=1) == 39).all()
        found = rng.normal(size=(len(games), 40))
        found[:, top[0]] += 8.0 * games[:, top[0]]  # the first leaks, the second was luck
        found[[0, 20]] = np.nan  # one model with both, and one without the first, have diverged
        return found

    monkeypatch.setattr(release, "train_references", fresh)
    control, asked = statistics.benjamini_hochberg, []
    monkeypatch.setattr(statistics, "benjamini_hochberg", lambda p, **how: asked.append(how) or control(p, **how))
    config = AuditConfig(confirm=2, confirm_models=24)
    found = confirm(material, scores, member, summary, config, None, torch.device("cpu"))
    assert (found.tested, found.confirmed) == (2, 1)
    assert asked == [{"arbitrary_dependence": True}]  # all candidates share the models with everybody
    one, two = (summary.rows[i] for i in top)
    assert (one["confirmed"], two["confirmed"]) == (True, False)
    assert one["fresh_auc"] == 1.0
    assert two["fresh_auc"] == found.auc[1].auc < 0.9
    assert sum(row["confirmed"] is not None for row in summary.rows) == 2
    assert statistics.VERDICTS[0] in one["verdict"]
