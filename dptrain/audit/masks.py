"""Who is in which reference model: fair coins, drawn once, hashed."""

from __future__ import annotations

import hashlib
import os

import numpy as np


def draw(models: int, patients: int) -> np.ndarray:
    """Membership bool [M, P]: each patient in each model independently with probability one half.

    Fair independent coins are what the one-run bound and the exact p-values need. They come from the
    operating system's generator; there is no seed that two audits could share.
    """
    bits = np.frombuffer(os.urandom((models * patients + 7) // 8), dtype=np.uint8)
    return np.unpackbits(bits)[: models * patients].reshape(models, patients).astype(bool)


def digest(member: np.ndarray) -> str:
    """SHA-256 (hex) of the shape and the packed bits of a membership matrix."""
    head = ",".join(str(size) for size in member.shape).encode()
    return hashlib.sha256(head + b"\n" + np.packbits(member.astype(bool)).tobytes()).hexdigest()
