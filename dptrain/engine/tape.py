"""What one forward and backward pass leaves behind: patient gradients, or the tensors they are made of.

A :class:`Use` is one call of one operation on trainable parameters. In the backward pass it hands the tensors
that its weight gradient would be made of to the :class:`Tape`, which keeps, for each parameter, either the
patients' gradients [P, *shape] or those tensors and the norms. Nothing is summed over patients before the
clip factors are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dptrain.engine import bounds
from dptrain.engine.conv import Formed, squared_norms
from dptrain.engine.layout import Layout
from dptrain.errors import CheckRefused


class Source:
    """A value that operations take as weight: a parameter, or something computed from parameters alone."""

    __slots__ = ("is_root", "name", "plain", "roots", "shape")

    def __init__(self, name: str, plain: Tensor, roots: tuple[Source, ...] = ()) -> None:
        self.name = name
        self.plain = plain
        self.shape = plain.shape
        self.is_root = not roots
        self.roots = roots or (self,)


def slow_way(names: Sequence[str]) -> str:
    """What to do where no fast rule fits: how these layers or parameters are given the slow exact way."""
    words = " ".join(f"+model.rules.{name}=one-by-one" for name in names)
    more = ", …" if len(names) > 1 else ""
    return f"Add {words} (in Python: rules={{'{names[0]}': 'one-by-one'{more}}}): exact, but slower."


class Use:
    """One call of an operation. Subclasses hold its settings and know its weight gradients.

    Attributes:
        sources: slot ("weight", "bias") -> the source there, trainable ones only.
    """

    def __init__(self, tape: Tape, **slots: Source | None) -> None:
        self.tape = tape
        self.sources = {slot: source for slot, source in slots.items() if source is not None}
        for source in self.sources.values():
            tape.count(source)

    def by_row(self, slot: str, kept: Sequence[Tensor]) -> Tensor | None:
        """Each row's gradient [rows, n] in float32 (float64 for float64 tensors), for biases and scales.

        Those of all uses are worked on together, after the backward pass: the memory must be the use's own, since
        others may write into what they hold. None where the methods below have something better.
        """
        return None

    def patient_gradients(self, slot: str, layout: Layout, kept: Sequence[Tensor]) -> Tensor:
        """[P, *shape] in float32 (float64 for float64 tensors)."""
        rows = self.by_row(slot, kept)
        assert rows is not None
        return layout.sum_rows(rows).reshape(layout.patients, *self.sources[slot].shape)

    def formed(self, slot: str, layout: Layout, kept: Sequence[Tensor]) -> Formed:
        """The same in any layout; asked for after :meth:`norms` gave None."""
        gradients = self.patient_gradients(slot, layout, kept)
        shape = gradients.shape[1:]
        return Formed(gradients.reshape(1, layout.patients, -1), lambda flat: flat.view(shape))

    def norms(self, slot: str, layout: Layout, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
        """What :meth:`gram` gives, or None to form the gradients, which is cheaper."""
        return None

    def gram(self, slot: str, layout: Layout, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(squared norms [P], (Σ_t |a_t||g_t|)² [P]) without the gradients, in float32 or float64 as what was kept.

        Their ratio says how much was lost to cancellation.
        """
        raise NotImplementedError

    def inner(self, layout: Layout, kept: Sequence[Tensor]) -> bounds.Inner:
        """What :meth:`gram` and :meth:`weighted` add up."""
        raise NotImplementedError

    def weighted(self, slot: str, kept: Sequence[Tensor], factors: Tensor | None) -> Tensor:
        """The weight gradient of the rows, each weighted with its factor [rows]; plain sum for None."""
        rows = self.by_row(slot, kept)
        assert rows is not None
        total = rows.sum(0) if factors is None else factors.to(rows.dtype) @ rows
        return total.reshape(self.sources[slot].shape)


@dataclass
class Deferred:
    """Tensors kept until the clip factors are known.

    Attributes:
        squared: squared norms [P].
        absolute: (Σ_t |a_t||g_t|)² [P], what the absolute terms of the norm and of the gradient add up to.
    """

    use: Use
    slot: str
    kept: tuple[Tensor, ...]
    squared: Tensor
    absolute: Tensor

    def __post_init__(self) -> None:
        self._versions = [tensor._version for tensor in self.kept]

    def untouched(self) -> tuple[Tensor, ...]:
        """The tensors that the norms were made of. Raises CheckRefused where they were written into since."""
        if [tensor._version for tensor in self.kept] != self._versions:
            raise CheckRefused(
                f"what the gradient of {self.use.sources[self.slot].name} is made of was changed in place during the "
                "backward pass: its norm would not be that of what is summed.",
                remedy="Let the network's own autograd functions and hooks return new tensors.",
            )
        return self.kept

    def _replace(self, kept: tuple[Tensor, ...]) -> None:
        self.kept = kept
        self.__post_init__()

    def silence(self, layout: Layout, patients: Tensor) -> None:
        """Make the rows of these patients (bool [P]) zero."""
        self._replace(
            tuple(
                t.masked_fill(layout.per_row(patients, len(t)).view(-1, *[1] * (t.dim() - 1)), 0)
                for t in self.untouched()
            )
        )

    def norm_error(self, layout: Layout) -> Tensor:
        """At most how far the squared norms [P] are off, in float64."""
        inner = self.use.inner(layout, self.kept)
        largest = [
            layout.largest(t) if t.is_floating_point() else torch.ones((), dtype=torch.float64, device=layout.device)
            for t in self.kept
        ]
        one, two = (largest * 2)[:2] if len(largest) == 1 else largest
        return bounds.norm_error(inner, self.absolute.double(), (one, two), self.squared.dtype)

    def sum_error(self, layout: Layout, factors: Tensor) -> Tensor:
        """Square of the rounding [P] that each patient's rows bring into the weighted sum."""
        inner = self.use.inner(layout, self.kept)
        return bounds.sum_error(inner, self.absolute.double(), factors, precise(self.kept[-1][:0]).dtype)

    def _rows_of(self, layout: Layout, chosen: Tensor) -> tuple[Layout, list[Tensor]]:
        """A layout of the chosen patients alone, and their rows in float64."""
        place = torch.full((layout.patients,), -1, dtype=torch.int64, device=layout.device)
        place[chosen] = torch.arange(len(chosen), device=layout.device)
        rows = torch.nonzero(place[layout.patient] >= 0).flatten()
        parts = [t.reshape(layout.records, -1, *t.shape[1:])[rows].flatten(0, 1) for t in self.untouched()]
        alone = Layout(place[layout.patient][rows], len(chosen))
        return alone, [t.double() if t.is_floating_point() else t for t in parts]

    def measure_again(self, layout: Layout, chosen: Tensor) -> None:
        """Take the norms of the chosen patients in float64."""
        squared, absolute = self.use.gram(self.slot, *self._rows_of(layout, chosen))
        self.squared, self.absolute = self.squared.double(), self.absolute.double()
        self.squared[chosen], self.absolute[chosen] = squared.clamp_min(0), absolute

    def formed_alone(self, layout: Layout, patient: int) -> Tensor:
        """The patient's gradient [*shape] from the own rows alone, in float64."""
        return self.use.patient_gradients(self.slot, *self._rows_of(layout, torch.tensor([patient])))[0]


@dataclass
class Block:
    """Patient gradients [B, P, n]: of one parameter in any layout, or of several side by side (B = 1).

    Attributes:
        parts: each parameter, and what brings its part [B, m] of a gradient into its shape.
    """

    matrix: Tensor
    parts: list[tuple[Source, Callable[[Tensor], Tensor]]]
    _squared: Tensor | None = None

    @property
    def squared(self) -> Tensor:
        """Squared norms [P] in float64, of the gradients as they were when first asked."""
        if self._squared is None:
            self._squared = squared_norms(self.matrix).sum(0)
        return self._squared


SMALL = 1 << 14
"""Gradients below this size are worked on together: their number costs more than their size."""


class Tape:
    """One chunk's record, from the forward pass to the clipped sum.

    Args:
        records: N, rows of the network's input.
    """

    def __init__(self, records: int) -> None:
        self.records = records
        self.mode = "idle"
        self.layout: Layout | None = None
        self.exact: exact_math | None = None
        self.uses: dict[Source, int] = {}
        self.met: set[tuple[str, int]] = set()  # source, and k where N·k rows met it: what verifying must have seen
        self.derived: list[Source] = []
        self.stand_ins: dict[Source, Tensor] = {}
        self.gradients: dict[Source, Tensor] = {}
        self.rows: dict[Source, Tensor] = {}
        self.formed: dict[Source, Formed] = {}
        self.deferred: dict[Source, Deferred] = {}
        self.truth: dict[Source, Tensor] = {}
        self._blocks: list[Block] | None = None

    def count(self, source: Source, uses: int = 1) -> None:
        """Note that `source` was used in the forward pass."""
        self.uses[source] = self.uses.get(source, 0) + uses
        self.met.add((source.name, 0))

    def derive(self, source: Source, stand_in: Tensor) -> None:
        """Note a value computed from parameters; its gradients go on to them at the end."""
        self.derived.append(source)
        self.stand_ins[source] = stand_in
        for root in source.roots:
            self.count(root, 2)

    def receive(self, use: Use, *kept: Tensor) -> None:
        """Called in the backward pass with what the use's weight gradients are made of."""
        if self.mode == "off":
            return
        if self.layout is None or self.exact is None:
            raise CheckRefused(
                "a backward pass ran outside clipped_sum: parameters get no gradients while PatientGradients "
                "holds the network.",
                remedy="Call clipped_sum(losses, patient, patients) instead of backward(), or detach() first.",
            )
        kept = tuple(tensor.detach() for tensor in kept)
        with self.exact:
            for slot, source in use.sources.items():
                if self.mode == "verify":
                    weighted = use.weighted(slot, kept, None)
                    self.truth[source] = self.truth[source] + weighted if source in self.truth else weighted
                elif self.uses.get(source) == 1 and source.is_root:
                    self._keep(use, slot, source, kept)
                else:
                    self.add(source, use.patient_gradients(slot, self.layout, kept))

    def _keep(self, use: Use, slot: str, source: Source, kept: tuple[Tensor, ...]) -> None:
        """Take what comes of a parameter that is used once."""
        assert self.layout is not None
        rows = use.by_row(slot, kept)
        if rows is not None and rows.shape[1] <= SMALL:
            self.rows[source] = rows
            return
        norms = use.norms(slot, self.layout, kept)
        if norms is not None:
            self.deferred[source] = Deferred(use, slot, kept, *norms)
        else:
            self.formed[source] = use.formed(slot, self.layout, kept)

    def add(self, source: Source, gradients: Tensor) -> None:
        """Add to a source's patient gradients [P, *shape]."""
        if source in self.gradients:
            self.gradients[source] = self.gradients[source] + gradients
        else:
            self.gradients[source] = gradients

    def close(self) -> None:
        """Let go of everything: tape and uses hold each other, and tensors must not wait for a collector."""
        for table in (self.uses, self.gradients, self.rows, self.formed, self.deferred, self.truth):
            table.clear()
        self.stand_ins.clear()
        self.derived.clear()
        self._blocks = None

    def blocks(self, layout: Layout) -> list[Block]:
        """The formed gradients of parameters as matrices; to be asked for when all have come."""
        if self._blocks is None:
            for source, gradients in self.gradients.items():
                if source.is_root:
                    self.formed[source] = Formed(gradients.reshape(1, layout.patients, -1), _shaper(source))
            self._blocks = []
            small: dict[torch.dtype, list[tuple[Source, Formed]]] = {}
            for source, formed in self.formed.items():
                if len(formed.matrix) == 1 and formed.matrix.shape[2] <= SMALL:
                    small.setdefault(formed.matrix.dtype, []).append((source, formed))
                else:
                    self._blocks.append(Block(formed.matrix, [(source, formed.arrange)]))
            for some in small.values():
                matrix = torch.cat([formed.matrix for _, formed in some], 2)
                self._blocks.append(Block(matrix, [(source, formed.arrange) for source, formed in some]))
            alike: dict[Any, list[Source]] = {}
            for source, rows in self.rows.items():
                alike.setdefault((rows.dtype, len(rows)), []).append(source)
            for sources in alike.values():
                matrix = layout.sum_rows(torch.cat([self.rows[source] for source in sources], 1))
                self._blocks.append(Block(matrix.unsqueeze(0), [(source, _shaper(source)) for source in sources]))
            self.gradients, self.rows, self.formed = {}, {}, {}
        return self._blocks

    def sums(self, layout: Layout, factors: Tensor) -> dict[Source, Tensor]:
        """Σ_i factors[i] · gradient_i of the parameters whose gradients were formed."""
        sums: dict[Source, Tensor] = {}
        for block in self.blocks(layout):
            flat = factors.to(block.matrix.dtype) @ block.matrix
            sizes = [source.shape.numel() // len(flat) for source, _ in block.parts]
            for (source, arrange), piece in zip(block.parts, flat.split(sizes, 1), strict=True):
                sums[source] = arrange(piece)
        return sums


def _shaper(source: Source) -> Callable[[Tensor], Tensor]:
    return lambda flat: flat.reshape(source.shape)


def precise(tensor: Tensor) -> Tensor:
    """The tensor in float32, or float64 where it is that."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def sum_dtype(parameter: Tensor) -> torch.dtype:
    """What a parameter's clipped sums and noise are held in: float32, or float64 where it is that."""
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def _places(device: torch.device) -> tuple[Any, ...] | None:
    """Where torch keeps how roughly it may multiply float32 on this device; None where torch is below 2.9."""
    cpu: Any = torch.backends.mkldnn
    cudnn: Any = torch.backends.cudnn
    if not hasattr(cpu, "matmul"):
        return None
    if device.type == "cuda":
        return torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn
    return cpu.matmul, cpu.conv, cpu.rnn


class exact_math:  # noqa: N801
    """Float32 products in true float32 while it is entered: neither TF32 on CUDA nor bf16 on CPUs that have it.

    Whatever had been set, by torch's old switches or by its new ones, is as before afterwards. The new ones are read
    when it is made: it may be entered many times, also within itself, as long as nobody else sets them meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self.places = _places(device)
        self.cuda = device.type == "cuda"
        self.depth = 0
        allowed = [(place, place.fp32_precision) for place in self.places or ()]
        self.rough = [(place, precision) for place, precision in allowed if precision not in ("ieee", "none")]

    def __enter__(self) -> None:
        self.depth += 1
        if self.depth > 1:
            return
        if self.places is None:
            self.old = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
            torch.set_float32_matmul_precision("highest")
            if self.cuda:
                torch.backends.cudnn.allow_tf32 = False
            return
        for place, _ in self.rough:
            place.fp32_precision = "ieee"

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        if self.depth > 0:
            return
        if self.places is None:
            precision, torch.backends.cudnn.allow_tf32 = self.old
            torch.set_float32_matmul_precision(precision)
            return
        for place, allowed in self.rough:
            place.fp32_precision = "none"  # as where the setting for everything was meant: it goes on to follow that
            if place.fp32_precision != allowed:
                place.fp32_precision = allowed
