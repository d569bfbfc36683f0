"""Random numbers that nobody can predict or replay: AES in counter mode, keyed from the operating system.

The key is drawn explicitly from `os.urandom` (libraries may fall back to time and process id), and drawn
again in a forked child, so that no two processes share a stream.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import numpy as np

from dptrain.vocabulary import Generator


def new_generator() -> np.random.Generator:
    """A NumPy generator over AES-128 in counter mode with a fresh key of 128 bits from the operating system."""
    from randomgen import AESCounter

    return np.random.Generator(AESCounter(key=int.from_bytes(os.urandom(16), "little")))


def new_bits(kind: str = Generator.CRYPTOGRAPHIC) -> Callable[[np.ndarray], None]:
    """A stream of random bits with a fresh key; called with a contiguous int64 array, it fills the array.

    Args:
        kind: `cryptographic` for AES-128 in counter mode (NIST SP 800-38A), keyed with 128 bits; `fast` for SFC64,
            seeded with 256 bits but predictable for who sees enough of its output (by explicit choice only; it is
            the faster one only where a processor has no instructions for AES).
    """
    if kind == Generator.FAST:
        generator = np.random.SFC64(int.from_bytes(os.urandom(32), "little"))

        def fill(words: np.ndarray) -> None:
            words.view(np.uint64)[:] = generator.random_raw(len(words))

        return fill
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    stream = Cipher(algorithms.AES(os.urandom(16)), modes.CTR(bytes(16))).encryptor()
    zeros = memoryview(bytes(0))

    def encrypt(words: np.ndarray) -> None:
        nonlocal zeros
        if len(zeros) < words.nbytes:
            zeros = memoryview(bytes(words.nbytes))
        stream.update_into(zeros[: words.nbytes], words.view(np.uint8).data)

    return encrypt


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
