"""Files of a cohort lie in its folder: names that lead elsewhere are refused unless that is declared."""

from __future__ import annotations

import functools
import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath


def inside(folder: Path, name: str, *, outside: bool = False) -> Path | None:
    """The file that a manifest names, or None where the name or a link leads out of the folder.

    Args:
        outside: whether that is allowed (`data.outside=allowed`).
    """
    path = folder / name
    if outside:
        return path
    plain = PurePosixPath(name)
    if plain.is_absolute() or ".." in plain.parts or PureWindowsPath(name).drive or "\0" in name:
        return None
    try:
        if not _below(str(folder), str(path.parent)):
            return None
        if stat.S_ISLNK(os.lstat(path).st_mode):
            return path if _below(str(folder), os.path.realpath(path)) else None
    except (OSError, ValueError):
        return path  # it does not exist: the reader says so
    return path


@functools.lru_cache(maxsize=4096)
def _below(folder: str, place: str) -> bool:
    root, target = os.path.realpath(folder), os.path.realpath(place)
    return target == root or target.startswith(root.rstrip(os.sep) + os.sep)
