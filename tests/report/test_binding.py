"""What a page says that the ledger holds is what the ledger holds: each forgery is named, exit code 3."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks._finished_run import DECISION, PASSPHRASE, Site
from dptrain.commands.table import run as dptrain
from dptrain.errors import ConfigError, LedgerRefused
from dptrain.files import file_sha256
from dptrain.ledger import Ledger, open_ledger
from dptrain.ledger.chain import sign_head
from dptrain.report import facts as facts_module
from dptrain.report import release as release_module
from dptrain.report import verify as verify_module
from dptrain.report.judgement import PERSON_CHECKS
from dptrain.report.release import Decision, release, standing
from dptrain.report.verify import verify
from tests.report.text import html_text


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long (epsilon, making every face anew) is tested in tests of its own."""
    monkeypatch.setattr(verify_module, "_epsilon", lambda run: verify_module.Tie("epsilon", True))
    monkeypatch.setattr(verify_module, "_against_facts", lambda *_: [])
    monkeypatch.setenv("DPTRAIN_PASSPHRASE", PASSPHRASE)


def differs(site: Site) -> set[str]:
    """The claims that `report verify` calls other than the ledger's entries."""
    return {tie.what.removeprefix("ledger: ") for tie in verify(site.run.path, ledger=site.ledger) if tie.ok is False}


def change(path: Path, *names: str | int, value: Any) -> None:
    values = json.loads(path.read_text())
    place = values
    for name in names[:-1]:
        place = place[name]
    place[names[-1]] = value
    path.write_text(json.dumps(values, indent=1))


def sign(site: Site, decision: Decision = DECISION) -> Path:
    return release(site.run.path, decision, "en", ledger=site.ledger, controller=site.keys.controller(PASSPHRASE))


def alter_tensor(site: Site) -> None:
    """One byte of the weights, and the new hash in run.json."""
    weights = site.run.weights
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    change(site.run.facts, "model", "sha256", value=hashlib.sha256(content).hexdigest())


def swap_model(site: Site) -> None:
    """The model of another training, with its hash in run.json."""
    from safetensors.torch import load_file, save_file

    weights = site.run.weights
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights)
    change(site.run.facts, "model", "sha256", value=file_sha256(weights))


def soften_audit(site: Site) -> None:
    """A count of exposed patients edited."""
    change(site.run.audit_json, "exposed", value={"count": 0, "share": 0.0, "low": 0.0, "high": 0.001})


def raise_budget(site: Site) -> None:
    change(site.run.facts, "gate", "budget_epsilon", value=80.0)


def remove_audit(site: Site) -> None:
    shutil.rmtree(site.run.audit)


def invent_release(site: Site) -> None:
    change(
        site.run.facts,
        "released",
        value={"items": ["model"], "recipient": "x", "entry": "12 (ab)", "controller": "Radiology"},
    )


FORGERIES: list[tuple[Callable[[Site], None], str]] = [
    (alter_tensor, "the model’s weights"),
    (swap_model, "the model’s weights"),
    (soften_audit, "the audit"),
    (remove_audit, "the audit"),
    (raise_budget, "the budget"),
    (lambda s: change(s.run.facts, "gate", "spent_after", value=0.8), "what is spent"),
    (lambda s: change(s.run.facts, "gate", "locked", value=None), "the lock"),
    (lambda s: change(s.run.facts, "cohort", "public_size", value=5000), "the declared size"),
    (lambda s: change(s.run.facts, "cohort", "unit", value="record"), "the unit"),
    (lambda s: change(s.run.facts, "cohort", "cautions", value=[]), "the cautions"),
    (lambda s: change(s.run.facts, "cohort", "owner", value="Nobody"), "cohort and owner"),
    (lambda s: change(s.run.facts, "privacy", "mu", value=0.01), "what the run states"),
    (lambda s: change(s.run.facts, "ledger", "grant", value="99"), "plan and charge"),
    (lambda s: change(s.run.metrics, "overall", "auroc", "value", value=0.99), "the measured utility"),
    (lambda s: change(s.run.metadata, "description", value="Safe."), "the model’s other files"),
    (invent_release, "the release decision"),
]


@pytest.mark.parametrize(("forge", "named"), FORGERIES)
def test_each_forgery_is_named_and_nothing_is_released(
    site: Callable[[str], Site], forge: Callable[[Site], None], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = site("before")
    assert not differs(forged)
    before = forged.ledger.head().entries
    forge(forged)
    assert named in differs(forged)
    assert dptrain(["report", "verify", f"run={forged.run.path}", *forged.places]) == 3
    with pytest.raises(LedgerRefused, match="says otherwise"):
        sign(forged)
    assert forged.ledger.head().entries == before
    assert not forged.run.report.exists()
    facts = facts_module.read(forged.run.path, ledger=standing(forged.ledger, forged.run.path))
    assert facts.verdict == "mismatch"
    assert "ledger_differs" in facts.warnings


def test_an_invented_decision_is_never_said_to_be_held(site: Callable[[str], Site]) -> None:
    forged = site("before")
    invent_release(forged)
    for ledger in (None, standing(forged.ledger, forged.run.path)):
        page = html_text(_page(forged, ledger))
        assert "The ledger holds this decision" not in page
        assert "not compared with the ledger" in page


def _page(site: Site, ledger: Any) -> str:
    from dptrain.report.faces import render

    return render(facts_module.read(site.run.path, ledger=ledger), "en")["report.html"].decode()


@pytest.mark.parametrize("name", ["recipient", "purpose", "advice", "date", "entry", "accept_exposed"])
def test_a_changed_decision_is_named(site: Callable[[str], Site], name: str) -> None:
    forged = site("after")
    change(forged.run.facts, "released", name, value=0.9 if name == "accept_exposed" else "changed")
    assert "the release decision" in differs(forged)


def test_a_decision_taken_out_of_the_folder_is_named(site: Callable[[str], Site]) -> None:
    forged = site("after")
    change(forged.run.facts, "released", value=None)
    assert "the release decision" in differs(forged)


def test_a_copied_run_folder_is_not_another_run(site: Callable[[str], Site]) -> None:
    """The folder of a run under another id, or beside another site's ledger."""
    copied = site("after")
    change(copied.run.facts, "id", value="another")
    assert "knows the run" in differs(copied)
    with pytest.raises(LedgerRefused, match="another"):
        sign(copied)


def test_an_older_ledger_is_named(site: Callable[[str], Site]) -> None:
    """A copy of before the release: it is sound, and does not hold what the page shows."""
    newest, older = site("after"), site("before")
    ties = verify(newest.run.path, ledger=older.ledger)
    wrong = {tie.what for tie in ties if tie.ok is False}
    assert "ledger: the release decision" in wrong
    assert "report/facts.json: the ledger's head when it was made" in wrong
    with pytest.raises(LedgerRefused, match="says otherwise"):
        release(newest.run.path, DECISION, "en", ledger=older.ledger, controller=older.keys.controller(PASSPHRASE))


def test_a_head_of_a_retired_key_counts_up_to_its_rotation_and_no_further(site: Callable[[str], Site]) -> None:
    rotated = site("after")
    old = rotated.keys
    evidence = rotated.ledger.evidence(str(rotated.run.read().id))
    assert evidence.holds(evidence.head)
    rotated.ledger.rotate_site_key(old.controller(PASSPHRASE))
    ledger, keys = open_ledger(str(rotated.folder / "ledger.sqlite"), str(rotated.folder / "keys"), None)
    now = ledger.evidence(str(rotated.run.read().id))
    assert now.holds(evidence.head)  # of then
    last = len(now.hashes)
    forged = replace(sign_head(old, last, bytes.fromhex(now.hashes[-1])), public_key=evidence.head.public_key)
    assert not now.holds(forged)
    change(rotated.run.facts, "ledger", "head", value=forged.to_dict())
    assert "the head at the end of the training" in differs(replace(rotated, keys=keys, ledger=ledger))


def test_an_altered_entry_of_the_ledger_is_no_evidence(site: Callable[[str], Site]) -> None:
    forged = site("before")
    raise_budget(forged)
    with sqlite3.connect(forged.folder / "ledger.sqlite") as connection:
        connection.execute("UPDATE entries SET body = replace(body, '\"epsilon\":8.0', '\"epsilon\":80.0')")
    again = replace(forged, ledger=Ledger(forged.folder / "ledger.sqlite", forged.keys, witness=None, wait=5.0))
    assert "knows the run" in differs(again)


# -- the gate --------------------------------------------------------------------------------------------------------


def test_what_a_decision_must_say(site: Callable[[str], Site]) -> None:
    finished = site("before")
    before = finished.ledger.head().entries
    for without, match in (
        (replace(DECISION, purpose=None), "purpose"),
        (replace(DECISION, advice=None), "without_advice"),
        (replace(DECISION, without_advice="both"), "without_advice"),
        (replace(DECISION, accepted=PERSON_CHECKS[1:]), "accepted=unit,"),
        (replace(DECISION, accepted=(*PERSON_CHECKS, "weather")), "weather"),
        (replace(DECISION, without_audit="there is one"), "has an audit"),
        (replace(DECISION, items=("groups",)), "groups"),
        (replace(DECISION, items=("model", "groups")), "groups"),
    ):
        with pytest.raises(ConfigError) as refusal:
            sign(finished, without)
        assert match in str(refusal.value)
    assert finished.ledger.head().entries == before  # nothing was signed


def test_nothing_is_released_without_an_audit_unless_every_edition_says_why(site: Callable[[str], Site]) -> None:
    finished = site("before")
    change(finished.run.audit_json, "x", value=1)
    with pytest.raises(LedgerRefused):
        sign(finished)
    shutil.rmtree(finished.run.audit)
    with pytest.raises(LedgerRefused):  # the ledger holds one: a folder that was removed is not "no audit"
        sign(finished, replace(DECISION, items=("model",), without_audit="lost"))


def test_more_exposed_than_is_signed_for_is_refused(site: Callable[[str], Site]) -> None:
    finished = site("before")
    facts = facts_module.read(finished.run.path, ledger=standing(finished.ledger, finished.run.path))
    audit = facts.audit
    assert audit is not None
    exposed = replace(audit.exposed, count=6, share=0.12)
    facts = replace(facts, audit=replace(audit, exposed=exposed))
    with pytest.raises(ConfigError, match=r"accept_exposed=0\.12"):
        release_module.refuse(facts, replace(DECISION, accept_exposed=0.1))
    release_module.refuse(facts, replace(DECISION, accept_exposed=0.12))
    withheld = replace(facts, audit=replace(audit, exposed=replace(exposed, count=None)))
    with pytest.raises(ConfigError, match="too few reference models"):
        release_module.refuse(withheld, DECISION)
    release_module.refuse(withheld, replace(DECISION, without_audit="no time"))


def test_a_release_says_whats_true_and_opens_the_model(site: Callable[[str], Site]) -> None:
    released = site("after")
    assert not released.run.restricted_model.exists()
    assert (released.run.released_model / "model.safetensors").stat().st_mode & 0o777 == 0o644
    facts = json.loads((released.run.report / "facts.json").read_text())
    newest = released.ledger.bound(str(released.run.read().id)).releases[-1]
    assert facts["ledger"]["now"]["entries"] == newest.entry  # the head after the decision that the page shows
    assert facts["ledger"]["now"]["hash"] == newest.hash
    assert facts["ledger"]["head"]["entries"] < newest.entry
    assert {"decision", "model", "metrics", "audit"} <= set(facts["binding"]["agrees"])
    assert {"model/model.safetensors", "model/configs/metadata.json", "restricted/metrics.json"} <= set(
        newest.terms.hashes
    )
    assert not differs(released)


def test_what_changed_after_a_release_is_said_and_a_new_one_can_be_signed(site: Callable[[str], Site]) -> None:
    released = site("before")
    released.run.assessment.write_text("necessity: shown\n")
    sign(released)
    assert not differs(released)
    released.run.assessment.write_text("necessity: doubted\n")
    assert "the released files" in differs(released)
    assert "the release decision" not in differs(released)
    sign(released, replace(DECISION, recipient="Clinic B"))
    assert not differs(released)
    assert len(released.ledger.bound(str(released.run.read().id)).releases) == 2


def test_a_process_that_dies_between_signing_and_moving_leaves_what_the_same_command_completes(
    site: Callable[[str], Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = site("before")

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place in ("write_faces", "_move", "_open_up"):
        with monkeypatch.context() as patch:
            patch.setattr(release_module, place, die)
            with pytest.raises(KeyboardInterrupt):
                sign(finished)
        assert finished.run.read().released is None
        with pytest.raises(LedgerRefused, match="does not show yet"):
            sign(finished, replace(DECISION, recipient="somebody else"))
    signed = finished.ledger.head().entries
    assert "the release decision" in differs(finished)  # a signed decision that nobody sees is said
    sign(finished)
    assert finished.ledger.head().entries == signed  # one decision, one entry
    assert finished.run.weights.parent == finished.run.released_model
    assert not differs(finished)


def test_what_cannot_be_rendered_is_not_signed(site: Callable[[str], Site], monkeypatch: pytest.MonkeyPatch) -> None:
    finished = site("before")
    before = finished.ledger.head().entries
    monkeypatch.setattr(release_module, "render", lambda *_: (_ for _ in ()).throw(ValueError("no face")))
    with pytest.raises(ValueError, match="no face"):
        sign(finished)
    assert finished.ledger.head().entries == before
    assert not finished.run.released_model.exists()
