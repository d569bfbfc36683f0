"""Random numbers that nobody can predict or replay: AES in counter mode, keyed from the operating system.

The key is drawn explicitly from `os.urandom` (libraries may fall back to time and process id), and drawn
again in a forked child, so that no two processes share a stream.
"""

from __future__ import annotations

import os
import threading

import numpy as np


def new_generator(kind: str = "cryptographic") -> np.random.Generator:
    """A NumPy generator with a fresh key from the operating system.

    Args:
        kind: `cryptographic` for AES-128 in counter mode, keyed with 128 bits; `fast` for SFC64, seeded with 256
            bits but predictable for who sees enough of its output (by explicit choice only, for noise only).
    """
    if kind == "fast":
        return np.random.Generator(np.random.SFC64(int.from_bytes(os.urandom(32), "little")))
    from randomgen import AESCounter

    return np.random.Generator(AESCounter(key=int.from_bytes(os.urandom(16), "little")))


class CryptoRandom:
    """A generator that re-keys itself after a fork; it cannot be pickled or copied, so it is never stored."""

    def __init__(self) -> None:
        self._pid = -1
        self._lock = threading.Lock()

    def generator(self) -> np.random.Generator:
        """This process's generator."""
        with self._lock:
            if self._pid != os.getpid():
                self._generator, self._pid = new_generator(), os.getpid()
            return self._generator

    def __reduce__(self) -> str:
        raise TypeError("random generators are never stored: a stored one could be replayed")
