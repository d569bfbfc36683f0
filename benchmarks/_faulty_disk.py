"""A disk that fails on demand: a SQLite VFS that lets the n-th write, sync, truncation or deletion go wrong.

It wraps the system's own VFS by ctypes, in the library that Python's `sqlite3` uses, and makes itself the default
while it is armed; the code under test does not know of it. Works where `sqlite3` is linked dynamically
(:data:`AVAILABLE`).
"""

from __future__ import annotations

import ctypes
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, Structure, byref, c_char_p, c_int, c_int64, c_void_p, cast
from typing import Any

OK, IOERR_WRITE, IOERR_FSYNC, IOERR_DELETE, IOERR_TRUNCATE, FULL = 0, 778, 1034, 2570, 1546, 13
MODES = ("full", "error", "power")

_OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)  # the name stays a pointer: SQLite keeps it
_DELETE = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_WRITE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_SYNC = CFUNCTYPE(c_int, c_void_p, c_int)
_TRUNCATE = CFUNCTYPE(c_int, c_void_p, c_int64)


class _Vfs(Structure):
    _fields_ = [
        ("version", c_int),
        ("file_size", c_int),
        ("max_path", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", _OPEN),
        ("delete", _DELETE),
        ("others", c_void_p * 14),
    ]


class _Methods(Structure):
    _fields_ = [
        ("version", c_int),
        ("close", c_void_p),
        ("read", c_void_p),
        ("write", _WRITE),
        ("truncate", _TRUNCATE),
        ("sync", _SYNC),
        ("others", c_void_p * 13),
    ]


def _library() -> Any:
    """The SQLite that Python's sqlite3 has loaded, or None."""
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split()[-1] for line in maps if "libsqlite3" in line}
        library = ctypes.CDLL(paths.pop())
        library.sqlite3_vfs_find.restype = POINTER(_Vfs)
        library.sqlite3_libversion.restype = c_char_p
        if library.sqlite3_libversion().decode() != sqlite3.sqlite_version:
            return None
    except (OSError, KeyError, AttributeError):
        return None
    return library


_LIBRARY = _library()
AVAILABLE = _LIBRARY is not None


class Disk:
    """Counts operations; the one numbered `fail_at` (from 1) fails in the way of `mode`.

    full: the write fails with "disk is full" and changes nothing; later ones succeed.
    error: the operation fails with an I/O error and changes nothing; later ones succeed.
    power: half of the write reaches the disk, and nothing after it: the power is gone.
    """

    def __init__(self, fail_at: int | None, mode: str) -> None:
        self.fail_at, self.mode = fail_at, mode
        self.operations = 0
        self.failed = False

    def bad(self) -> bool:
        """Whether the operation that begins now fails."""
        self.operations += 1
        if self.mode == "power" and self.failed:
            return True
        if self.operations == self.fail_at:
            self.failed = True
            return True
        return False


@contextmanager
def faulty_disk(fail_at: int | None = None, mode: str = "error") -> Iterator[Disk]:
    """Every SQLite file that is opened in this block lies on such a disk. None: only count operations."""
    disk = Disk(fail_at, mode)
    system = _LIBRARY.sqlite3_vfs_find(None).contents
    patched: dict[int, _Methods] = {}
    originals: dict[int, _Methods] = {}

    def methods_of(file: int) -> _Methods:
        return originals[cast(file, POINTER(c_void_p))[0]]

    @_WRITE
    def write(file: int, data: int, amount: int, offset: int) -> int:
        if disk.bad():
            if disk.mode == "power" and disk.operations == disk.fail_at:
                methods_of(file).write(file, data, amount // 2, offset)
            return FULL if disk.mode == "full" else IOERR_WRITE
        return int(methods_of(file).write(file, data, amount, offset))

    @_SYNC
    def sync(file: int, flags: int) -> int:
        return IOERR_FSYNC if disk.bad() else int(methods_of(file).sync(file, flags))

    @_TRUNCATE
    def truncate(file: int, size: int) -> int:
        return IOERR_TRUNCATE if disk.bad() else int(methods_of(file).truncate(file, size))

    @_DELETE
    def delete(vfs: int, name: bytes, sync_folder: int) -> int:
        return IOERR_DELETE if disk.bad() else int(system.delete(ctypes.addressof(system), name, sync_folder))

    @_OPEN
    def opened(vfs: int, name: int, file: int, flags: int, out: int) -> int:
        code = int(system.open(ctypes.addressof(system), name, file, flags, out))
        slot = cast(file, POINTER(c_void_p))
        address = slot[0]
        if code == OK and address:
            if address not in patched:
                original = cast(address, POINTER(_Methods)).contents
                copy = _Methods.from_buffer_copy(original)
                copy.write, copy.sync, copy.truncate = write, sync, truncate
                patched[address] = copy
                originals[ctypes.addressof(copy)] = original
            slot[0] = ctypes.addressof(patched[address])
        return code

    wrapper = _Vfs.from_buffer_copy(system)
    wrapper.name, wrapper.next = b"dptrain-faulty", None
    wrapper.open, wrapper.delete = opened, delete
    _LIBRARY.sqlite3_vfs_register(byref(wrapper), 1)
    try:
        yield disk
    finally:
        _LIBRARY.sqlite3_vfs_register(byref(system), 1)
        _LIBRARY.sqlite3_vfs_unregister(byref(wrapper))
        _KEEP.append((wrapper, patched, originals, write, sync, truncate, delete, opened))


_KEEP: list[Any] = []  # connections that outlive a block still call these
