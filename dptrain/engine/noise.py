"""Gaussian noise that nobody can predict or replay, drawn ahead while the network computes."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from dptrain.errors import ConfigError
from dptrain.randomness import new_bits
from dptrain.vocabulary import Generator

BLOCK = 1 << 15
"""Numbers that are worked on at a time: they stay in the cache of one core."""

_sources: weakref.WeakSet[NoiseSource] = weakref.WeakSet()


class NoiseSource:
    """Standard normal numbers for the mechanism.

    A number is the quantile Φ⁻¹(u) = √2·erf⁻¹(2u − 1) of 53 uniform random bits, in double precision, rounded once
    to the type asked for. The bits are `cryptographic`, AES-128 in counter mode keyed with 128 bits of the
    operating system's entropy, or `fast`, from SFC64, seeded likewise but not proof against an adversary who sees
    enough outputs (the report shows that choice). Nothing is rejected and drawn again, so that the time taken
    says nothing about the numbers (Jin, McMurtry, Rubinstein & Ohrimenko, "Are we there yet? Timing and
    floating-point attacks on differential privacy systems", IEEE S&P 2022).

    What floating point leaves open: the numbers are 2⁵³ equally likely ones, none beyond 8.30 (the normal
    distribution has 2⁻⁵³ there), and adding them to a sum rounds again, so that the low bits of a released value
    can in principle tell two neighbouring sums apart (Mironov, "On significance of the least significant bits for
    differential privacy", CCS 2012; Haney et al., "Precision-based attacks and interval refining", 2022). Here the
    sum passes through an optimiser in float32, hundreds of steps and further roundings before anything is
    released; the formal guarantee is nevertheless that of the real-valued mechanism, and the report says so.

    While the network works on a step, a background thread draws as many numbers as the last request took.
    Numbers are handed out once and never kept: a source cannot be pickled or copied, is no part of any
    state_dict, and starts anew with a new key in a forked child.

    Args:
        generator: `cryptographic` or `fast`.
        ahead: draw the next request's numbers in the background.
    """

    def __init__(self, generator: str = Generator.CRYPTOGRAPHIC, *, ahead: bool = True) -> None:
        if generator not in list(Generator):
            raise ConfigError(f"generator={generator} is unknown: cryptographic or fast.")
        self.generator = generator
        self._ahead = ahead
        self._start()
        _sources.add(self)

    def _start(self) -> None:
        """New key, nothing drawn, no thread: at the beginning and in a forked child."""
        self._bits = new_bits(self.generator)
        self._lock = threading.Lock()
        self._thread: ThreadPoolExecutor | None = None
        self._drawn: tuple[int, Future[Tensor]] | None = None
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
        values = self._take(count) if dtype == torch.float32 else self._begin(count, dtype).result()
        return values.reshape(shape).to(device)

    def _take(self, count: int) -> Tensor:
        with self._lock:
            drawn, self._drawn = self._drawn, None
        if drawn is not None and drawn[0] != count:
            drawn[1].cancel()
            drawn = None
        values = (self._begin(count, torch.float32) if drawn is None else drawn[1]).result()
        if self._ahead and count >= BLOCK:
            self.prepare(count)
        return values

    def prepare(self, count: int) -> None:
        """Begin to draw `count` float32 numbers in the background for the next request of that size."""
        with self._lock:
            if self._closed or (self._drawn is not None and self._drawn[0] == count):
                return
            if self._drawn is not None:
                self._drawn[1].cancel()
            self._drawn = (count, self._begin(count, torch.float32))

    def _begin(self, count: int, dtype: torch.dtype) -> Future[Tensor]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "noise", _single)
        return self._thread.submit(self._draw, count, dtype)

    def _draw(self, count: int, dtype: torch.dtype) -> Tensor:
        """In the source's own thread only, so that no bit is used twice."""
        values = torch.empty(count, dtype=dtype)
        words = np.empty(min(count, BLOCK), np.int64)
        uniform = torch.empty(len(words), dtype=torch.float64)
        for start in range(0, count, BLOCK):
            size = min(BLOCK, count - start)
            self._bits(words[:size])
            quantiles(words[:size], values[start : start + size], uniform[:size])
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


def quantiles(words: np.ndarray, out: Tensor, room: Tensor) -> None:
    """Standard normal quantiles of random 64-bit words into `out`; all three [n].

    The upper 53 bits of a word are the signed integer k; 2u − 1 = (2k + 1)·2⁻⁵³ is exact in double precision,
    symmetric about zero, and neither 0 nor ±1.

    Args:
        words: int64, overwritten.
        out: float32 or float64.
        room: float64, overwritten.
    """
    np.right_shift(words, 11, out=words)
    room.copy_(torch.from_numpy(words)).mul_(2.0**-52).add_(2.0**-53)
    torch.mul(room.erfinv_(), math.sqrt(2), out=out)


def _single() -> None:
    """Keep torch from spreading this thread's work over the cores that the network works on.

    In a forked child that would not even end: OpenMP's threads are not there any more.
    """
    torch.get_num_threads()  # torch sets up a thread's OpenMP when it is first asked; the limit has to come after
    threadpool_limits(1, "openmp")


def _rekey_in_child() -> None:
    for source in list(_sources):
        closed = source._closed
        source._start()
        source._closed = closed


os.register_at_fork(after_in_child=_rekey_in_child)
