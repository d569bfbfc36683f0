"""Search for a patient who moves the clipped sum by more than C, a kind of layer at a time.

    python -m benchmarks.hostile [--count 20000] [--kinds linear,conv2d] [--processes 2]

Each trial draws a few honest patients, all of whose gradients point one way, and one hostile patient: one to four
records whose pixels and output gradients are huge, tiny, cancelling, nearly cancelling, mirrored, subnormal, not
finite, spread over all exponents of float32 (2⁻¹⁴⁹ to 2¹²⁷), or such that activations fall on a kink. The sum with
the patient and the sum without, in chunks of one shape, must not lie further apart than C. Writes
results/hostile.json and hostile.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import _results
from dptrain.engine import Entangled, PatientGradients
from dptrain.engine.chunks import NOBODY, filled

ROWS, HONEST = 16, 9
"""Rows of each chunk, and honest patients in it, of one record each."""


class Scaled(nn.Module):
    """A parameter of every place, used directly."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Tied(nn.Module):
    """One weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(torch.tanh(self.line(x)))


class Words(nn.Module):
    """A table, by numbers that are cut out of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(torch.nan_to_num(x).clamp(0, 6).long())


class First(nn.Module):
    """The first output of a layer, which has no rule of its own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def relus(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(layers[0], nn.ReLU(), *layers[1:])


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(24, 16), (24,)),
    "linear of sequences": (lambda: nn.Linear(24, 32), (3, 24)),
    "linear of long sequences": (lambda: nn.Linear(3, 4), (40, 3)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, padding=1), (3, 9)),
    "conv2d": (lambda: nn.Conv2d(8, 16, 3, padding=1), (8, 2, 2)),
    "conv2d of large maps": (lambda: nn.Conv2d(2, 3, 3, stride=2), (2, 9, 9)),
    "conv2d 1x1": (lambda: nn.Conv2d(16, 12, 1), (16, 2, 2)),
    "conv2d by channel": (lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), (6, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(4, 8, 2), (4, 3, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 8, 2, stride=2), (6, 2, 2)),
    "group norm": (lambda: nn.GroupNorm(2, 6), (6, 3, 3)),
    "layer norm": (lambda: nn.LayerNorm(12), (4, 12)),
    "prelu": (lambda: nn.PReLU(4), (4, 5)),
    "embedding": (Words, (6,)),
    "used directly": (Scaled, (3, 4)),
    "tied": (Tied, (6,)),
    "relu": (lambda: relus(nn.Linear(12, 16), nn.Linear(16, 5)), (12,)),
    "convolution, norm, relu": (
        lambda: relus(nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)), nn.Flatten(), nn.Linear(64, 3)),
        (2, 6, 6),
    ),
    "recurrent": (lambda: First(nn.LSTM(3, 4, batch_first=True)), (3, 3)),
}


# --- hostile values -----------------------------------------------------------------------------------------------


def exponents(shape: tuple[int, ...], low: float, high: float, g: torch.Generator) -> Tensor:
    """±2^k with k drawn evenly between two bounds, a value at a time; below 2⁻¹²⁶ they are subnormal."""
    k = torch.empty(shape, dtype=torch.float64).uniform_(low, high, generator=g)
    return (torch.randn(shape, generator=g).sign() * 2**k).float()


def one_size(shape: tuple[int, ...], low: float, high: float, g: torch.Generator) -> Tensor:
    """Normal values times one power of two."""
    return torch.randn(shape, generator=g) * 2.0 ** int(torch.randint(int(low), int(high), (), generator=g))


def values(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    """Values of one record of a hostile patient."""
    way = int(torch.randint(0, 9, (), generator=g))
    if way == 0:
        return exponents(shape, -149, 127, g)
    if way == 1:
        return one_size(shape, 0, 126, g)
    if way == 2:
        return one_size(shape, -148, 0, g)
    if way == 3:
        return exponents(shape, -149, -126, g)
    if way == 4:  # kinks: zeros, and the smallest there is
        return exponents(shape, -149, -148, g) * torch.randint(-1, 2, shape, generator=g)
    if way == 5:
        return torch.full(shape, 2.0 ** float(torch.randint(-149, 127, (), generator=g)))
    if way == 6:
        made = torch.randn(shape, generator=g)
        poison = (float("nan"), float("inf"), -float("inf"), 3.4e38)[int(torch.randint(0, 4, (), generator=g))]
        return made.masked_fill(torch.rand(shape, generator=g) < 0.1, poison)
    if way == 7:
        return 100 + 1e-2 * torch.randn(shape, generator=g)
    return torch.randn(shape, generator=g)


def patient(shape: tuple[int, ...], out: tuple[int, ...], g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pixels [R, …] and output gradients [R, …] of a hostile patient."""
    records = int(torch.randint(1, 5, (), generator=g))
    x = torch.stack([values(shape, g) for _ in range(records)])
    s = torch.stack([values(out, g) for _ in range(records)])
    way = int(torch.randint(0, 6, (), generator=g))
    for first in range(0, records - 1, 2):
        if way == 0:  # cancelling
            x[first + 1], s[first + 1] = x[first], -s[first]
        elif way == 1:  # mirrored
            x[first + 1], s[first + 1] = -x[first], s[first]
        elif way == 2:  # nearly cancelling
            near = 1 + 2.0 ** -float(torch.randint(1, 24, (), generator=g))
            x[first + 1], s[first + 1] = x[first], -s[first] * near
        elif way == 3:  # cancelling, beside something small
            x[first + 1], s[first + 1] = x[first] + 1e-3 * torch.randn(shape, generator=g), -s[first]
    return x, s


# --- trials -------------------------------------------------------------------------------------------------------


@dataclass
class Search:
    """What a search saw: the largest distance of two sums, over C, and the seeds of trials above 1."""

    kind: str
    patients: int
    largest: float
    violations: list[int]


class Trial:
    """One kind of layer: its engine, and sums of chunks of one shape."""

    def __init__(self, kind: str, clip: float) -> None:
        torch.manual_seed(len(kind))
        make, self.shape = KINDS[kind]
        self.model, self.clip = make(), clip
        with torch.no_grad():
            self.out = tuple(self.model(torch.zeros(2, *self.shape)).shape[1:])
        self.engine = PatientGradients(self.model, max_grad_norm=clip, usual=1, measure=False)
        g = torch.Generator().manual_seed(1)
        one, away = torch.randn(1, *self.shape, generator=g), torch.randn(1, *self.out, generator=g)
        near = 1 + 0.01 * torch.randn(HONEST, *[1] * len(self.shape), generator=g)
        self.x, self.s = one * near, (away * clip).expand(HONEST, *self.out).contiguous() * 10
        self.without = self.sum(self.x, self.s, torch.arange(HONEST), HONEST)

    def sum(self, x: Tensor, s: Tensor, owner: Tensor, patients: int) -> Tensor:
        """The clipped sum of these rows, filled up, all parameters side by side in float64."""
        try:
            return self._together(x, s, owner, patients)
        except Entangled:  # as a step does: one patient at a time
            self.engine.forget()
        chosen = [owner == i for i in range(patients)]
        return torch.stack([self._together(x[own], s[own], owner[own] * 0, 1) for own in chosen]).sum(0)

    def _together(self, x: Tensor, s: Tensor, owner: Tensor, patients: int) -> Tensor:
        x, s, owner = filled(x, ROWS), filled(s, ROWS), filled(owner, ROWS, NOBODY)
        losses = (self.model(x) * s).flatten(1).sum(1)
        sums = self.engine.clipped_sum(losses, owner, patients).sums
        return torch.cat([value.flatten().double() for value in sums.values()])

    def distance(self, seed: int) -> float:
        """How far one hostile patient moves the sum, over C; NaN where it is not finite."""
        g = torch.Generator().manual_seed(seed)
        x, s = patient(self.shape, self.out, g)
        place = int(torch.randint(0, HONEST + 1, (), generator=g))
        owner = torch.cat([torch.arange(place), torch.full((len(x),), place), torch.arange(place, HONEST) + 1])
        rows = [torch.cat([a[:place], b, a[place:]]) for a, b in ((self.x, x), (self.s, s))]
        moved = self.sum(rows[0], rows[1], owner, HONEST + 1) - self.without
        return float(moved.norm()) / self.clip


def search(kind: str, count: int, seed: int = 0) -> Search:
    """Try `count` hostile patients on one kind of layer, a third of them at each of three clips."""
    seen = Search(kind, count, 0.0, [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, clip in enumerate((1.0, 1e-3, 64.0)):
            trial = Trial(kind, clip)
            for one in range(seed + number, seed + count, 3):
                distance = trial.distance(one)
                seen.largest = max(seen.largest, distance)
                if not distance <= 1:
                    seen.violations.append(one)
            trial.engine.detach()
    return seen


def _job(job: tuple[str, int]) -> tuple[Search, float]:
    torch.set_num_threads(1)
    start = time.perf_counter()
    return search(*job), time.perf_counter() - start


def main(words: Sequence[str]) -> int:
    """Search, write the results, and end with 1 where anybody moved a sum by more than C."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.hostile")
    arguments.add_argument("--count", type=int, default=20_000, help="hostile patients a kind of layer")
    arguments.add_argument("--kinds", default=",".join(KINDS), help="names with commas between")
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--folder", type=Path, default=_results.RESULTS, help="where the results go")
    given = arguments.parse_args(list(words))
    rows: list[dict[str, object]] = []
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        for seen, seconds in pool.imap(_job, [(kind, given.count) for kind in given.kinds.split(",")]):
            rows.append(
                {
                    "layer": seen.kind,
                    "patients": seen.patients,
                    "largest": seen.largest,
                    "violations": len(seen.violations),
                    "seconds": round(seconds, 1),
                }
            )
            print(f"{seen.kind}: largest {seen.largest:.6f} C, {len(seen.violations)} above C {seen.violations[:5]}")
    _results.write(
        "hostile",
        rows,
        command=_results.command_of("hostile", words),
        table_columns=["layer", "patients", "largest", "violations", "seconds"],
        title="A search for a patient who moves the clipped sum by more than C",
        notes="One hostile patient is added to honest ones, in chunks of one shape. `largest` is the largest "
        "distance of the sum with and without the patient, over C, of all trials; above 1 the sensitivity would be "
        "broken. A search finds faults; that it found none proves nothing.",
        folder=given.folder,
    )
    return int(any(row["violations"] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
