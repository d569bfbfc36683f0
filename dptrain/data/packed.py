"""Packed files: how large they become is checked before they are unpacked."""

from __future__ import annotations

import zlib
from pathlib import Path

from dptrain.source import Unreadable

RATIO = 200  # times its own size that a packed file may grow to, once it is large
LARGE = 64 << 20
LARGEST = 32 << 30
REMEDY = "Store it unpacked (np.savez, .nii, .csv), or drop it."


def check_size(packed: int, unpacked: int) -> None:
    """Refuse what would fill the memory. Raises Unreadable; sizes in bytes."""
    if unpacked > LARGEST or (unpacked > LARGE and unpacked > RATIO * max(packed, 1)):
        raise Unreadable(
            "would unpack to far more than it holds", detail=f"{unpacked / 2**20:,.0f} MiB", remedy=REMEDY
        )


def gunzip(path: Path) -> bytes:
    """The content of a gzip file, its members joined. Raises OSError, EOFError, zlib.error; Unreadable for a bomb."""
    raw = path.read_bytes()
    pieces: list[bytes] = []
    size = 0
    while raw:
        member = zlib.decompressobj(wbits=31)
        piece = member.decompress(raw, LARGE)
        while True:
            pieces.append(piece)
            size += len(piece)
            check_size(path.stat().st_size, size)
            if member.eof:
                break
            if not member.unconsumed_tail and not piece:
                raise EOFError("truncated")
            piece = member.decompress(member.unconsumed_tail, LARGE)
        raw = member.unused_data.lstrip(b"\0")
    return b"".join(pieces)
