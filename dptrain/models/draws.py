"""One fixed draw of dropout and stochastic depth, the same for a record whatever batch it is in.

Needed wherever two batches are to be compared: with ordinary random numbers a record's dropout mask depends
on its place in the batch and on who came before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten


class FixedDraws(TorchDispatchMode):
    """While active, random numbers depend on the seed, the record and the count of draws so far, on nothing else.

    Args:
        records: a number for each row of the batch, in order; equal numbers draw alike.
        seed: another seed is another draw.

    A drawn tensor whose first axis is a multiple of the batch (windows of a Swin transformer, for instance)
    gives each record its share of rows, as does one of shape [1, N, …]; any other is drawn once for all.
    Numbers are drawn in float64 and rounded, so that float32 and float64 see one mask. For checks and
    benchmarks alone: it is slow and must never make noise. Permutations and integers keep torch's own
    generator.
    """

    def __init__(self, records: Sequence[int], seed: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.records = list(records)
        self.seed = seed
        self.calls = 0

    def _values(self, shape: Sequence[int], draw: Callable[..., Tensor]) -> Tensor:
        self.calls += 1
        size = list(shape)
        rows = len(self.records)
        axis = 1 if len(size) > 1 and size[0] == 1 and size[1] == rows else 0
        if not size or rows == 0 or size[axis] % rows:
            return draw(size, dtype=torch.float64, generator=self._generator(-1))
        size[axis] //= rows
        shares = [draw(size, dtype=torch.float64, generator=self._generator(record)) for record in self.records]
        return torch.cat(shares, axis)

    def _generator(self, record: int) -> torch.Generator:
        digest = hashlib.blake2b(f"{self.seed}/{self.calls}/{record}".encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet is _aten.bernoulli_:
            target = args[0]
            chance = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
            return target.copy_(self._values(target.shape, torch.rand).to(target.device) < chance)
        if packet is _aten.bernoulli:
            probability = args[0]
            chance = args[1] if len(args) > 1 and not isinstance(args[1], torch.Generator) else kwargs.get("p")
            below = self._values(probability.shape, torch.rand).to(probability.device)
            return (below < (probability if chance is None else chance)).to(probability.dtype)
        if packet is _aten.rrelu_with_noise:
            given, noise, low, high, training = [*args, *(1 / 8, 1 / 3, False)[len(args) - 2 :]][:5]
            if not training:
                return given * torch.where(given < 0, (low + high) / 2, 1.0)
            slope = self._values(given.shape, torch.rand).to(given) * (high - low) + low
            noise.copy_(torch.where(given <= 0, slope, torch.ones_like(slope)))
            return given * noise
        if packet is _aten.native_dropout:
            given, p, train = args
            if not train or p == 0:
                return given.clone(), torch.ones_like(given, dtype=torch.bool)
            keep = (self._values(given.shape, torch.rand) >= p).to(given.device)
            return given * keep / (1 - p) if p < 1 else torch.zeros_like(given), keep
        if packet in (_aten.uniform_, _aten.normal_):
            target = args[0]
            rest = list(args[1:3])
            low = rest[0] if rest else kwargs.get("from", kwargs.get("mean", 0.0))
            high = rest[1] if len(rest) > 1 else kwargs.get("to", kwargs.get("std", 1.0))
            if packet is _aten.uniform_:
                return target.copy_(self._values(target.shape, torch.rand) * (high - low) + low)
            return target.copy_(self._values(target.shape, torch.randn) * high + low)
        if packet in (_aten.rand, _aten.randn, _aten.rand_like, _aten.randn_like):
            made = func(*args, **kwargs)  # its type, place and layout; the values are overwritten
            normal = packet in (_aten.randn, _aten.randn_like)
            return made.copy_(self._values(made.shape, torch.randn if normal else torch.rand))
        return func(*args, **kwargs)
