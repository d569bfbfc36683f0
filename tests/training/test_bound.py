"""What a run leaves in the ledger: hashes of its model, facts and results; and what is closed until a release."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from dptrain.errors import LedgerRefused
from dptrain.files import file_sha256
from dptrain.records import RunFolder
from dptrain.records.bound import BOUND, facts_sha256
from dptrain.records.run import Sweep
from dptrain.training.run import evaluate_run, train

from .conftest import Site


def quiet(_: str) -> None:
    return None


def run(site: Site, *words: str) -> RunFolder:
    return train(site.settings(f"training.run={site.folder / 'run'}", *words), say=quiet).folder


def change(path: Path, *names: str, value: object) -> None:
    values = json.loads(path.read_text())
    place = values
    for name in names[:-1]:
        place = place[name]
    place[names[-1]] = value
    path.write_text(json.dumps(values))


def test_close_and_finish_name_what_the_run_left(make_site: Callable[..., Site]) -> None:
    site = make_site()
    folder = run(site, "privacy.target_epsilon=2")
    bound = site.ledger.bound(str(folder.read().id))
    assert bound.model == file_sha256(folder.weights)
    assert bound.facts == facts_sha256(folder.read_facts())
    result = bound.result("evaluate")
    assert result is not None
    assert result.sha256 == folder.hashes(folder.metrics, folder.predictions)
    evaluate_run(folder.path, say=quiet)
    assert [set(one.sha256) for one in site.ledger.bound(bound.run).results] == 2 * [
        {"restricted/metrics.json", "restricted/predictions.npz"}
    ]


def test_what_is_written_later_does_not_break_the_hash_and_all_else_does(make_site: Callable[..., Site]) -> None:
    site = make_site()
    folder = run(site, "training.evaluate=false")
    facts = folder.read_facts()
    stated = facts_sha256(facts)
    later = {name: "changed" for name in facts if name not in BOUND and name != "sweep"}
    assert set(later) == {"status", "finished", "gate", "ledger", "released"}
    assert facts_sha256({**facts, **later, "sweep": None}) == stated
    trial = {**facts, "sweep": Sweep(id="s", trials=3, epsilon_total=1.0).to_json()}
    assert facts_sha256(trial) == facts_sha256({**facts, "sweep": {"id": "s"}}) != stated
    for name in BOUND:
        if facts.get(name) is not None:
            assert facts_sha256({**facts, name: "changed"}) != stated, name


def test_the_model_is_the_controllers_alone_until_it_is_released(make_site: Callable[..., Site]) -> None:
    """B22: it lay in model/, readable by everybody, before anybody had decided."""
    folder = run(make_site(), "training.evaluate=false")
    assert not folder.released_model.exists()
    for path in (folder.model, *folder.model.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_public_facts_do_not_follow_how_long_a_run_took(make_site: Callable[..., Site]) -> None:
    """B19: `created` and `finished` gave the duration, which follows the number of records."""
    facts = run(make_site(), "training.evaluate=false").read_facts()
    for name in ("created", "finished"):
        assert len(str(facts[name])) == len("2026-11-28")


def test_facts_that_the_close_does_not_name_are_not_completed(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process died between the close and its last facts; run.json was changed before somebody resumed."""
    from dptrain.training.run import Training

    site = make_site()
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_end", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(site, "training.evaluate=false", "privacy.target_epsilon=2")
    folder = RunFolder(site.folder / "run")
    assert folder.read().status == "running"
    sound = folder.facts.read_bytes()
    change(folder.facts, "privacy", "epsilon", value=0.1)
    with pytest.raises(LedgerRefused, match="changed since"):
        evaluate_run(folder.path, say=quiet)
    folder.facts.write_bytes(sound)
    evaluate_run(folder.path, say=quiet)
    assert folder.read().status == "complete"
    assert site.ledger.bound(str(folder.read().id)).facts == facts_sha256(folder.read_facts())
