"""Files: written whole or not at all, private where others must not read them, hashed piece by piece."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from dptrain.errors import ConfigError


def utc_now() -> str:
    """UTC, ISO 8601, whole seconds. For people: nothing is decided by it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc_today() -> str:
    """The date in UTC, ISO 8601: for public facts whose time of day would tell how long something took."""
    return utc_now()[:10]


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file (FIPS 180-4), 64 hex digits, read in pieces. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: Path, *, private: bool = False, new: bool = False) -> None:
    """A folder, with those above it; a private one is closed to others. Raises ConfigError where that fails.

    new: it must not exist yet.
    """
    try:
        path.mkdir(parents=True, exist_ok=not new, mode=0o700 if private else 0o755)
        if private:
            os.chmod(path, 0o700)
    except OSError as error:
        raise ConfigError(
            f"The folder {path} cannot be made: {error.strerror}.", remedy="Name another place, or mend this one."
        ) from None


@contextmanager
def whole_or_nothing(path: Path, mode: str = "w", *, private: bool | None = None) -> Iterator[IO[Any]]:
    """Write a file so that a crash or a full disk leaves the earlier one whole (temporary file, fsync, rename).

    The temporary file is a new one beside the target (never one that lay there, nor what a link leads to), and a
    private one is never readable by others, not for a moment.

    Args:
        mode: `w` for UTF-8 text, `wb` for bytes.
        private: mode 0600; by default for everything below a folder named `restricted`.

    Raises:
        OSError: the folder or the file cannot be written; what lay there before is unchanged.
    """
    if private is None:
        private = "restricted" in path.parts
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o777)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
    try:
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, values: object, *, private: bool | None = None) -> None:
    """JSON without NaN or infinity, written as :func:`whole_or_nothing` does. Raises ValueError for such a number."""
    with whole_or_nothing(path, "wb", private=private) as file:
        file.write(json_bytes(values))


def json_bytes(values: Any) -> bytes:
    """What :func:`write_json` writes."""
    return (json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
