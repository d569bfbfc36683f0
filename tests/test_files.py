"""Files are whole or as they were; private ones were never open; a hash is of every byte."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from dptrain.files import file_sha256, whole_or_nothing, write_json


def test_a_failed_write_leaves_the_earlier_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "restricted" / "checkpoint.pt"
    with whole_or_nothing(path, "wb") as file:
        file.write(b"first")

    def tear() -> None:
        with whole_or_nothing(path, "wb") as file:
            file.write(b"second, torn")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk"):
        tear()
    assert path.read_bytes() == b"first"
    assert [item.name for item in path.parent.iterdir()] == ["checkpoint.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"step": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_json(path, {"step": 2})
    assert '"step": 1' in path.read_text()


def test_infinity_never_reaches_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "run.json", {"epsilon": float("inf")})
    assert not (tmp_path / "run.json").exists()


def test_a_private_file_is_closed_from_its_first_byte(tmp_path: Path) -> None:
    path = tmp_path / "site.pem"
    with whole_or_nothing(path, "wb", private=True) as file:
        (temporary,) = tmp_path.iterdir()
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        file.write(b"key")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_json(tmp_path / "open.json", {})
    assert stat.S_IMODE((tmp_path / "open.json").stat().st_mode) == 0o644 & ~_umask()


def test_what_lies_at_the_temporary_name_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dptrain.files.secrets.token_hex", lambda _: "guessed")
    victim = tmp_path / "victim"
    victim.write_text("whole")
    (tmp_path / ".key.guessed.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError), whole_or_nothing(tmp_path / "key", private=True) as file:
        file.write("secret")
    assert victim.read_text() == "whole"


def test_a_hash_is_of_every_byte(tmp_path: Path) -> None:
    content = os.urandom(300_001)
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    with pytest.raises(OSError):
        file_sha256(tmp_path / "nothing")


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
