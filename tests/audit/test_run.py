"""The command: results in the agreed schema, modes, resuming, refusals, exit codes."""

from __future__ import annotations

import csv
import dataclasses
import json
import stat
from collections.abc import Callable

import numpy as np
import pytest

from dptrain import cli
from dptrain.audit import bounds, reference
from dptrain.audit import run as audit_module
from dptrain.audit.config import AuditConfig
from dptrain.audit.results import People, summarise
from dptrain.audit.run import audit_run, audit_settings, keep_back, override
from dptrain.errors import EXIT_GUARANTEE_BROKEN, ConfigError, LedgerRefused
from dptrain.training.run import train
from dptrain.training.runfolder import RunFolder
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
    assert code in (0, EXIT_GUARANTEE_BROKEN)
    told = capsys.readouterr().out
    assert "reference models" in told
    audit = json.loads((folder.audit / "audit.json").read_text())
    assert audit["schema"] == "dptrain.audit/1"
    expected = {
        *("schema", "game", "attack", "references", "models", "promised", "patients", "exposed", "verdicts"),
        *("confirmed", "roc", "auc", "survival", "tpr_at", "baseline_max", "groups", "suppressed", "new_scan"),
        *("canary", "withheld", "masks_sha256", "seconds"),
    }
    assert expected <= set(audit)
    assert audit["promised"]["epsilon"] == pytest.approx(folder.read_facts()["privacy"]["epsilon"], rel=0.02)
    assert set(audit["tpr_at"]) == {"0.01", "0.05", "0.1"}
    assert audit["tpr_at"]["0.01"]["extrapolated"]
    assert len(audit["masks_sha256"]) == 64
    assert sum(audit["verdicts"].values()) == audit["patients"]
    with open(folder.audit / "patients.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == audit["patients"]
    assert not any("P0" in row["patient"] for row in rows)
    assert stat.S_IMODE(folder.audit.stat().st_mode) == 0o700
    for path in folder.audit.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not (folder.audit / "work").exists()
    public = "".join(p.read_text() for p in folder.path.rglob("*.json") if "restricted" not in p.parts)
    assert "masks_sha256" not in public


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
    assert result.audit["masks_sha256"] == audit_module.masks.digest(digest)


def test_a_locked_cohort_needs_permission_for_a_second_audit(make_site: Callable[..., Site]) -> None:
    site = make_site(3.0)
    folder = trained(site, "privacy.target_epsilon=3")
    assert site.ledger.status("tiny").locked
    few = ["audit.models=8", "audit.canaries=0"]
    audit_run(folder.path, few, say=quiet)  # declared by the run's own plan
    with pytest.raises(LedgerRefused) as error:
        audit_run(folder.path, few, say=quiet)
    assert "Radiology" in str(error.value)


def test_a_changed_manifest_and_a_changed_configuration_are_refused(make_site: Callable[..., Site]) -> None:
    site = make_site(8.0)
    folder = trained(site)
    (site.folder / "images").rename(site.folder / "before")
    write_images(site.folder / "images", seed=1)
    with pytest.raises(LedgerRefused):
        audit_run(folder.path, SMALL, say=quiet)
    folder.config.write_text(folder.config.read_text() + "\n")
    with pytest.raises(ConfigError, match="hash"):
        audit_run(folder.path, SMALL, say=quiet)
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


def test_audit_of_a_recipe_without_a_run(make_site: Callable[..., Site]) -> None:
    site = make_site(8.0)
    settings = site.settings(f"training.run={site.folder / 'only-audit'}", "model=mlp", *NETWORK, *SMALL)
    result = audit_settings(settings, say=quiet)
    assert result.audit["patients"] == 52
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
        with pytest.raises(ConfigError):
            override(settings, [word])
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
        assert summary.audit["exposed"] is None
        row = next(row for row in summary.audit["withheld"] if row["what"] == "verdicts")
        assert row["have"] == models < row["need"]
        assert not summary.exposed.any()
        assert summary.audit["groups"] == {}
    else:
        assert summary.audit["exposed"]["count"] > 150
    json.dumps(summary.audit, allow_nan=False)


def test_summary_of_a_known_release() -> None:
    rng = np.random.default_rng(1)
    scores, member, patient = gaussian_scores(rng, 64, 400, 1.0, records=2)
    trained = np.ones(800, dtype=bool)
    trained[1::8] = False
    scores[:, ~trained] -= 1.0 * member[:, patient[~trained]]  # nothing is learned about these
    summary = summarise(scores, member, patient, everybody(400), AuditConfig(), trained=trained, generator=rng)
    audit = summary.audit
    assert audit["auc"]["low"] < audit["auc"]["mean"] < audit["auc"]["high"]
    assert audit["new_scan"]["low"] < 0.5 < audit["new_scan"]["high"]
    assert audit["survival"]["share"][0] > 0.95
    assert audit["survival"]["null"][0] == pytest.approx(0.5, abs=0.03)
    bands = {row["records"]: row for row in audit["baseline_max"]["by_records"]}
    assert bands["2"]["pooled"] > bands["1"]["pooled"]
    assert set(audit["groups"]["sex"]) == {"F", "M"}
    assert sum(row["verdict"] == "exposed" for row in summary.rows) == audit["exposed"]["count"]


def test_kept_back_records_leave_every_patient_one() -> None:
    owner = np.repeat(np.arange(100), np.arange(100) % 4 + 1)
    trained = keep_back(owner, 100, 0.99)
    assert (np.bincount(owner[trained], minlength=100) >= 1).all()
    assert np.bincount(owner[~trained], minlength=100).max() == 1
    assert keep_back(owner, 100, 0.0).all()
