"""Keys: wrong, missing, open to others, lost, rotated, recovered: as docs/ledger.md writes it down."""

from __future__ import annotations

import json
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks._ledger_site import COHORT, PASSPHRASE, Site, make_site, people
from dptrain.errors import ConfigError, LedgerRefused
from dptrain.ledger import Controller, Keys, Ledger, open_ledger, recovery
from dptrain.ledger.keys import CONTROLLER, NEXT, SECRET, SITE, SITE_KEY
from tests.ledger.conftest import Home


@pytest.fixture
def owned(own: Home, tmp_path: Path) -> Site:
    """A ledger whose keys this test may spoil."""
    return make_site(str(tmp_path / "own" / "ledger.sqlite"), own.keys, own.controller)


def reopen(site: Site) -> tuple[Ledger, Keys]:
    """As a command would."""
    return open_ledger(site.place, str(site.keys.folder))


def test_files_and_modes(own: Home) -> None:
    folder = own.keys.folder
    assert sorted(os.listdir(folder)) == sorted([SITE, SECRET, SITE_KEY, CONTROLLER])
    home_folder = folder.parent / "fresh"
    Keys.create(home_folder, PASSPHRASE)
    for path in (home_folder, *home_folder.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    everything = b"".join(path.read_bytes() for path in home_folder.iterdir())
    assert PASSPHRASE.encode() not in everything


def test_creation_never_overwrites_and_wants_a_passphrase(own: Home, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="never overwritten"):
        Keys.create(own.keys.folder, PASSPHRASE)
    with pytest.raises(ConfigError, match="too short"):
        Keys.create(tmp_path / "new", "short")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", [SITE, SECRET, SITE_KEY])
def test_a_missing_damaged_or_open_file_is_one_sentence(owned: Site, name: str) -> None:
    path = owned.keys.folder / name
    content = path.read_bytes()
    path.chmod(0o644)
    with pytest.raises(LedgerRefused, match="other accounts"):
        reopen(owned)
    path.chmod(0o600)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(LedgerRefused, match="damaged"):
        reopen(owned)
    path.unlink()
    with pytest.raises(LedgerRefused, match="missing") as caught:
        reopen(owned)
    assert "\n" not in caught.value.message


def test_the_controller_s_key(owned: Site) -> None:
    with pytest.raises(LedgerRefused, match="does not open"):
        owned.keys.controller("another passphrase")
    box = json.loads((owned.keys.folder / CONTROLLER).read_text())
    box["box"] = box["box"][:-2] + ("00" if box["box"][-2:] != "00" else "01")
    (owned.keys.folder / CONTROLLER).write_text(json.dumps(box))
    with pytest.raises(LedgerRefused, match="does not open"):
        owned.keys.controller(PASSPHRASE)
    box["kdf"]["n"] = 2
    (owned.keys.folder / CONTROLLER).write_text(json.dumps(box))
    with pytest.raises(LedgerRefused, match="damaged"):
        owned.keys.controller(PASSPHRASE)
    (owned.keys.folder / CONTROLLER).unlink()
    with pytest.raises(LedgerRefused, match="cannot sign"):
        owned.keys.controller(PASSPHRASE)
    ledger, _ = reopen(owned)  # training needs no controller
    ledger.reserve(owned.plan, COHORT, run="x", fingerprint=owned.fingerprint)


def test_another_site_s_keys_or_ledger(owned: Site, tmp_path: Path) -> None:
    stranger = Keys.create(tmp_path / "stranger", "another passphrase")
    with pytest.raises(LedgerRefused, match="another site"):
        Ledger.open(owned.place, stranger)
    foreign = stranger.controller("another passphrase")
    with pytest.raises(LedgerRefused, match="not the controller's key"):
        owned.ledger.unlock(COHORT, reason="y", controller=foreign)
    shutil.copyfile(tmp_path / "stranger" / SECRET, owned.keys.folder / SECRET)
    with pytest.raises(LedgerRefused, match="HMAC secret is not this ledger's"):
        reopen(owned)


def test_what_was_signed_holds_until_another_decision_ends_it(owned: Site) -> None:
    """Neither a lock nor a new key takes back a permission, a budget or a declaration; a smaller budget does."""
    ledger, old = owned.ledger, owned.controller
    ledger.permit("audit", COHORT, old, reason="yearly", run="one")
    ledger.declare_weights("ab" * 32, source="zoo", licence="MIT", controller=old)
    keys = ledger.rotate_controller_key(old, "another passphrase")
    ledger.lock(COHORT, reason="theft")
    with pytest.raises(LedgerRefused, match="not the controller's key"):
        ledger.unlock(COHORT, reason="x", controller=old)
    ledger.admit(COHORT, purpose="audit", run="one", fingerprint=owned.fingerprint).close()
    assert ledger.weights("ab" * 32) is not None
    new = keys.controller("another passphrase")
    ledger.unlock(COHORT, reason="found", controller=new)
    ledger.reserve(owned.plan, COHORT, run="one", fingerprint=owned.fingerprint)
    epsilon = ledger.status(COHORT).spent_epsilon * 0.9
    ledger.budget(COHORT, epsilon=epsilon, forecast=(), reason="theft", controller=new)
    with pytest.raises(LedgerRefused, match="locked"):
        ledger.reserve(owned.plan, COHORT, run="two", fingerprint=owned.fingerprint)
    assert ledger.verify() == []


def test_site_key_rotated_and_lost(owned: Site, tmp_path: Path) -> None:
    backup = shutil.copytree(owned.keys.folder, tmp_path / "backup")
    head = owned.ledger.head()
    witness = tmp_path / "heads"
    witness.write_text(json.dumps(head.to_dict()))
    owned.ledger.rotate_site_key(owned.controller)
    ledger, keys = open_ledger(owned.place, str(owned.keys.folder), str(witness))  # old heads still count
    assert keys.site_public != head.public_key
    ledger.reserve(owned.plan, COHORT, run="x", fingerprint=owned.fingerprint)
    assert ledger.verify() == []
    with pytest.raises(LedgerRefused, match="replaced"):
        open_ledger(owned.place, str(backup))
    # lost: the file is gone, nobody can sign; the controller puts a new one in force
    (owned.keys.folder / SITE_KEY).unlink()
    with pytest.raises(LedgerRefused, match="missing"):
        reopen(owned)
    half = Keys.load(owned.keys.folder, site_key_lost=True)
    lost = Ledger(owned.place, half, witness=None, wait=1.0)
    with pytest.raises(LedgerRefused, match="site's key"):
        lost.lock(COHORT, reason="x")
    lost.rotate_site_key(owned.controller)
    assert reopen(owned)[0].verify() == []


def test_controller_key_rotated_and_lost(owned: Site) -> None:
    owned.ledger.rotate_controller_key(owned.controller, "a fresh passphrase")
    ledger, keys = reopen(owned)
    with pytest.raises(LedgerRefused, match="not the controller's key"):
        ledger.permit("audit", COHORT, owned.controller, reason="x")
    ledger.permit("audit", COHORT, keys.controller("a fresh passphrase"), reason="x")
    (keys.folder / CONTROLLER).unlink()  # or the passphrase was forgotten
    code = owned.keys.recovery_code
    assert code is not None
    with pytest.raises(ConfigError, match="no recovery code"):
        recovery("AAAA-BBBB")
    ledger.rotate_controller_key(recovery(code.lower()), "the third passphrase")
    ledger, keys = reopen(owned)
    controller = keys.controller("the third passphrase")
    ledger.permit("audit", COHORT, controller, reason="x")
    fresh = ledger.rotate_recovery_code(controller)
    assert fresh.recovery_code != code
    ledger, _ = reopen(owned)
    with pytest.raises(LedgerRefused, match="neither the controller's nor the recovery"):
        ledger.rotate_site_key(recovery(code))
    with pytest.raises(LedgerRefused, match="not the controller's key"):
        ledger.permit("audit", COHORT, recovery(str(fresh.recovery_code)), reason="x")  # it replaces keys, no more
    assert ledger.verify() == []


def test_secret_rotated(owned: Site) -> None:
    old = people(owned.keys, 0, 20)
    owned.ledger.withdraw(owned.keys.patient_key("clinic", "3"))
    grant = owned.ledger.reserve(owned.plan, COHORT, run="one", fingerprint=owned.fingerprint)
    with pytest.raises(LedgerRefused, match="open"):
        owned.ledger.rotate_secret(owned.controller)
    grant.commit(10)
    grant.close()
    owned.ledger.rotate_secret(owned.controller)
    ledger, keys = reopen(owned)
    assert ledger.verify() == []
    new = people(keys, 0, 20)
    assert not set(new) & set(old)
    with pytest.raises(LedgerRefused, match="differ"):
        ledger.reserve(owned.plan, COHORT, run="two", fingerprint=owned.fingerprint)
    made = ledger.register(COHORT, unit="patient", issuer="clinic", public_size=20, patients=new, owner="Radiology")
    assert made.version == 2
    again = ledger.reserve(owned.plan, COHORT, run="two", fingerprint=made.fingerprint)
    assert again.excluded == {keys.patient_key("clinic", "3")}  # known under the new key, withdrawn and charged
    assert ledger.steward(COHORT)["patients"] == 20
    assert ledger.verify() == []


@pytest.mark.parametrize("what", ["site", "controller", "secret"])
def test_killed_between_the_ledger_and_the_files(owned: Site, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new keys lie staged: the next command finds that the ledger names them, and puts them in place."""
    monkeypatch.setattr(Keys, "settle", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    rotate = {
        "site": lambda: owned.ledger.rotate_site_key(owned.controller),
        "controller": lambda: owned.ledger.rotate_controller_key(owned.controller, "a fresh passphrase"),
        "secret": lambda: owned.ledger.rotate_secret(owned.controller),
    }[what]
    with pytest.raises(KeyboardInterrupt):
        rotate()
    monkeypatch.undo()
    assert (owned.keys.folder / NEXT).exists()
    ledger, keys = reopen(owned)
    assert ledger.verify() == []
    if what == "controller":
        ledger.permit("audit", COHORT, keys.controller("a fresh passphrase"), reason="x")
    assert not (owned.keys.folder / NEXT).exists()


def test_killed_before_the_ledger_named_the_new_keys(owned: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(Keys, "unstage", lambda self: None)
    with pytest.raises(KeyboardInterrupt):
        owned.ledger.rotate_site_key(owned.controller)
    monkeypatch.undo()
    ledger, keys = reopen(owned)
    assert keys.site_public == owned.keys.site_public
    ledger.rotate_site_key(owned.controller)  # a second attempt starts afresh
    assert reopen(owned)[0].verify() == []


def test_a_backup_opens(owned: Site, tmp_path: Path) -> None:
    path = owned.ledger.backup(tmp_path / "backup.sqlite")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    copy = Ledger.open(path, owned.keys)
    assert copy.verify() == []
    assert copy.head().hash == owned.ledger.head().hash
    with pytest.raises(ConfigError, match="exists"):
        owned.ledger.backup(path)
    with pytest.raises(LedgerRefused, match="could not be written"):
        owned.ledger.backup(tmp_path / "nowhere" / "x")


@pytest.mark.parametrize("what", ["site", "controller", "secret"])
def test_a_replaced_key_is_erased_where_it_lay(owned: Site, what: str, tmp_path: Path) -> None:
    """A rename would leave the old key readable on the disk; whoever holds the old file open sees it go."""
    name = {"site": SITE_KEY, "controller": CONTROLLER, "secret": SECRET}[what]
    kept = tmp_path / "the same blocks"
    os.link(owned.keys.folder / name, kept)
    before = kept.read_bytes()
    rotate(owned, what)
    assert kept.read_bytes() == bytes(len(before))
    assert (owned.keys.folder / name).read_bytes() not in (before, bytes(len(before)))
    assert reopen(owned)[0].verify() == []


def rotate(site: Site, what: str) -> None:
    """Replace one key."""
    if what == "site":
        site.ledger.rotate_site_key(site.controller)
    elif what == "controller":
        site.ledger.rotate_controller_key(site.controller, "a fresh passphrase")
    else:
        site.ledger.rotate_secret(site.controller)


@pytest.mark.parametrize("what", ["site", "controller", "secret"])
def test_killed_at_any_step_of_putting_keys_in_place(
    owned: Site, what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every change of a file in turn is the last one; the next command finishes the rotation."""
    shutil.copytree(owned.keys.folder, tmp_path / "start")
    shutil.copyfile(owned.place, tmp_path / "start.sqlite")
    step, killed = 0, True
    while killed:
        shutil.rmtree(owned.keys.folder)
        shutil.copytree(tmp_path / "start", owned.keys.folder)
        shutil.copyfile(tmp_path / "start.sqlite", owned.place)
        keys = Keys.load(owned.keys.folder)
        site = replace(owned, keys=keys, ledger=Ledger.open(owned.place, keys))
        left = [step]

        def last(act: Any, left: list[int] = left) -> Any:
            def change(*args: Any, **more: Any) -> Any:
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= 1
                return act(*args, **more)

            return change

        with monkeypatch.context() as dying:
            for module, function in ((os, "replace"), (os, "fsync"), (Path, "unlink"), (Path, "rmdir")):
                dying.setattr(module, function, last(getattr(module, function)))
            try:
                rotate(site, what)
                killed = False
            except KeyboardInterrupt:
                step += 1
        ledger, keys = reopen(owned)
        assert ledger.verify() == []
        ledger.lock(COHORT, reason="it goes on")
        ledger.unlock(COHORT, reason="x", controller=_either(keys))
    assert step > 15


def _either(keys: Keys) -> Controller:
    try:
        return keys.controller("a fresh passphrase")
    except LedgerRefused:
        return keys.controller(PASSPHRASE)


@pytest.mark.parametrize("passphrase", ["", "elevenchars", "123456789012345", "aaaaaaaaaaaaaaaa", "abcabcabcabcabc"])
def test_a_passphrase_has_a_floor(tmp_path: Path, passphrase: str) -> None:
    with pytest.raises(ConfigError, match="passphrase"):
        Keys.create(tmp_path / "keys", passphrase)
    assert not (tmp_path / "keys").exists()
