"""Gaussian noise that nobody can predict or replay, drawn ahead while the network computes."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dptrain.data.crypto_random import new_generator
from dptrain.errors import ConfigError

BLOCK = 1 << 18

_sources: weakref.WeakSet[NoiseSource] = weakref.WeakSet()


class NoiseSource:
    """Standard normal numbers for the mechanism.

    `cryptographic` draws from AES-128 in counter mode, keyed with 128 bits of the operating system's entropy;
    `fast` from SFC64, seeded likewise but not proof against an adversary who sees enough outputs (the report
    shows that choice). Both use the ziggurat in double precision; values are rounded once, to the type asked
    for, so that a float32 result has the tail and the resolution of the double it came from.

    What floating point leaves open: the numbers are a discrete set, and adding them to a sum rounds again, so
    that the low bits of a released value can in principle tell two neighbouring sums apart (Mironov, "On
    significance of the least significant bits for differential privacy", CCS 2012; Haney et al., "Precision-
    based attacks and interval refining", 2022). Here the sum passes through an optimiser in float32, hundreds
    of steps and further roundings before anything is released, and each double carries 52 random bits below
    its layer; the formal guarantee is nevertheless that of the real-valued mechanism, and the report says so.

    While the network works on a step, a background thread draws as many numbers as the last request took.
    Numbers are handed out once and never kept: a source cannot be pickled or copied, is no part of any
    state_dict, and starts anew with a new key in a forked child.

    Args:
        generator: `cryptographic` or `fast`.
        ahead: draw the next request's numbers in the background.
    """

    def __init__(
        self, generator: Literal["cryptographic", "fast"] | str = "cryptographic", *, ahead: bool = True
    ) -> None:
        if generator not in ("cryptographic", "fast"):
            raise ConfigError(f"generator={generator} is unknown: cryptographic or fast.")
        self.generator = generator
        self._ahead = ahead
        self._start()
        _sources.add(self)

    def _start(self) -> None:
        """New key, nothing drawn, no thread: at the beginning and in a forked child."""
        self._random = new_generator(self.generator)
        self._lock = threading.Lock()
        self._thread: ThreadPoolExecutor | None = None
        self._drawn: tuple[int, Future[np.ndarray]] | None = None
        self._closed = False

    def normal(
        self, shape: int | Sequence[int], dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> Tensor:
        """Fresh standard normal numbers of this shape; float32 or float64, on any device.

        Raises:
            ConfigError: another dtype (noise in half precision would not be Gaussian), or a closed source.
        """
        if self._closed:
            raise ConfigError("this noise source is closed.")
        if dtype not in (torch.float32, torch.float64):
            raise ConfigError(f"noise is drawn in float32 or float64, not {dtype}.")
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        count = math.prod(shape)
        if dtype == torch.float64:
            with self._lock:
                values = self._random.standard_normal(count)
        else:
            values = self._take(count)
        return torch.from_numpy(values).reshape(shape).to(device)

    def _take(self, count: int) -> np.ndarray:
        drawn, self._drawn = self._drawn, None
        if drawn is not None and drawn[0] == count:
            values = drawn[1].result()
        else:
            if drawn is not None:
                drawn[1].cancel()
            values = self._draw(count)
        if self._ahead and count >= BLOCK // 8:
            self.prepare(count)
        return values

    def prepare(self, count: int) -> None:
        """Begin to draw `count` float32 numbers in the background for the next request of that size."""
        if self._closed or (self._drawn is not None and self._drawn[0] == count):
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "noise")
        self._drawn = (count, self._thread.submit(self._draw, count))

    def _draw(self, count: int) -> np.ndarray:
        values = np.empty(count, np.float32)
        block = np.empty(min(count, BLOCK))
        for start in range(0, count, BLOCK):
            part = block[: min(BLOCK, count - start)]
            with self._lock:
                self._random.standard_normal(out=part)
            values[start : start + len(part)] = part
        return values

    def close(self) -> None:
        """Forget what was drawn and end the thread; asking for more is an error."""
        self._closed = True
        self._drawn = None
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None

    def __enter__(self) -> NoiseSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> str:
        raise TypeError("noise is never stored: a stored generator could be replayed")


def _rekey_in_child() -> None:
    for source in list(_sources):
        closed = source._closed
        source._start()
        source._closed = closed


os.register_at_fork(after_in_child=_rekey_in_child)
