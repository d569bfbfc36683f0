"""`dptrain report verify` finds each tampering, and nothing where there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dptrain.accounting import pld_epsilon
from dptrain.errors import ConfigError
from dptrain.ledger import Keys
from dptrain.ledger.chain import sign_head
from dptrain.plan import Mechanism
from dptrain.report import verify as verify_module
from dptrain.report.build import build
from dptrain.report.verify import differences, verify
from tests.report.conftest import RELEASED
from tests.report.made import make_run, run_facts


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A run whose numbers and signature are true, with both editions of its report."""
    root = tmp_path_factory.mktemp("sound")
    values = run_facts()
    mechanisms = [Mechanism(**row) for row in values["privacy"]["mechanisms"]]
    values["privacy"]["epsilon"] = pld_epsilon(mechanisms, values["privacy"]["delta"])
    keys = Keys.create(root / "keys", "correct horse battery staple")
    values["ledger"]["head"] = sign_head(keys, 9, bytes(32)).to_dict()
    values["ledger"]["site"] = values["ledger"]["head"]["site"]
    values["released"] = RELEASED
    folder = make_run(root / "run", run=values)
    build(folder, "de")
    build(folder, "en", "public")
    return folder


@pytest.fixture
def copy(sound, tmp_path, monkeypatch) -> Path:
    """A copy to tamper with. What takes long (epsilon, making every face anew) is tested in tests of its own."""
    monkeypatch.setattr(verify_module, "_epsilon", lambda run: verify_module.Tie("epsilon", True))
    monkeypatch.setattr(verify_module, "_against_facts", lambda *_: [])
    return Path(shutil.copytree(sound, tmp_path / "run"))


def broken(folder: Path) -> list[str]:
    return [tie.what for tie in verify(folder) if tie.ok is False]


def test_nothing_is_found_where_nothing_was_done(sound):
    ties = verify(sound)
    assert not [tie for tie in ties if tie.ok is False]
    assert any("ε follows" in tie.what and tie.ok for tie in ties)
    assert any("signature" in tie.what and tie.ok for tie in ties)
    assert [tie.what for tie in ties if tie.ok is None] == ["ledger: knows the run"]


def change_json(path: Path, *keys, value):
    values = json.loads(path.read_text())
    place = values
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False))


@pytest.mark.parametrize(
    ("tamper", "found"),
    [
        (lambda f: (f / "model/model.safetensors").write_bytes(b"other"), "model: hash as stated in run.json"),
        (lambda f: (f / "config.yaml").unlink(), "config: hash as stated in run.json"),
        (
            lambda f: change_json(f / "run.json", "privacy", "epsilon", value=1.0),
            "facts.json: says what the run says",
        ),
        (lambda f: change_json(f / "run.json", "privacy", "mu", value=0.1), "facts.json: says what the run says"),
        (lambda f: (f / "restricted/metrics.json").unlink(), "facts.json: says what the run says"),
        (lambda f: change_json(f / "run.json", "ledger", "head", "entries", value=7), "ledger head: signature"),
        (lambda f: change_json(f / "report/facts.json", "privacy", "epsilon", value=1.0), "report/facts.json"),
        (lambda f: change_json(f / "report/facts.json", "schema", value="x"), "report/facts.json"),
        (lambda f: (f / "report/facts.json").write_text("{"), "report/facts.json"),
        (lambda f: (f / "report/manifest.json").write_text("{"), "report/manifest.json"),
        (lambda f: (f / "report/manifest.json").unlink(), "report/manifest.json"),
        (lambda f: (f / "report/report.pdf").unlink(), "report/report.pdf: as it was written"),
        (lambda f: (f / "restricted/report/report.pdf").write_bytes(b"%PDF"), "restricted/report/report.pdf"),
    ],
)
def test_each_tampering_is_found(copy, tamper, found):
    tamper(copy)
    assert any(found in what for what in broken(copy)), broken(copy)


def test_a_face_changed_together_with_its_hash_is_found(sound, tmp_path, monkeypatch):
    import hashlib

    copy = Path(shutil.copytree(sound, tmp_path / "run", ignore=shutil.ignore_patterns("restricted")))
    shutil.copytree(sound / "restricted", copy / "restricted", ignore=shutil.ignore_patterns("report"))
    monkeypatch.setattr(verify_module, "_epsilon", lambda run: verify_module.Tie("epsilon", True))
    page = copy / "report" / "report.html"
    page.write_text(page.read_text().replace("of 100", "of 200"))
    change_json(
        copy / "report" / "manifest.json", "files", "report.html", value=hashlib.sha256(page.read_bytes()).hexdigest()
    )
    assert broken(copy) == ["report/report.html: says what the facts say"]


def test_privacy_of_the_bundle_is_compared(copy):
    change_json(copy / "model/configs/metadata.json", "privacy", value={"epsilon": 0.1})
    assert "model/configs/metadata.json: privacy says what the run says" in broken(copy)


def test_an_epsilon_that_does_not_follow_from_its_mechanisms_is_found(sound, tmp_path):
    folder = Path(shutil.copytree(sound, tmp_path / "run"))
    change_json(folder / "run.json", "privacy", "mechanisms", 0, "noise_multiplier", value=1.0)
    assert "run.json: ε follows from the charged mechanisms" in broken(folder)


def test_other_versions_are_said(copy):
    change_json(copy / "report" / "manifest.json", "made_with", "typst", value="0.0.1")
    assert any(tie.ok is None and "faces" in tie.what for tie in verify(copy))


def test_no_report_is_an_error(edited):
    with pytest.raises(ConfigError):
        verify(edited())


def test_differences():
    assert differences({"a": [1, 2], "b": 1}, {"a": [1, 3], "c": 1}) == ["a[1]", "b", "c"]
