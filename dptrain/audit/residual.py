"""Is what a step releases what the plan promises? A test that can fail at any epsilon.

A step releases (Σ clipped gradients + σC·z) / normaliser. On made-up patients the sum is computed a second time, by
plain autograd in float64, one patient at a time; then

    (released · normaliser − sum) / (σC)

must be z: standard normal, independent over coordinates, steps and runs. Whatever the epsilon, noise that is missing,
too small, drawn for each chunk or reused, a sum that is not clipped by patient, and a normaliser that follows the
draw move it by far more than chance does; an attack on the scores sees none of this where the promise is weak. The
run's own loader, clipping, noise and normaliser are tried, on the run's own network; no patient takes part.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import beta, binom, chi2, norm
from torch import Tensor, nn

from dptrain.audit.reference.engine import ReferenceLeave, Roster, engine_step
from dptrain.audit.reference.material import Material
from dptrain.data import PatientBatch, PatientLoader, Tensors
from dptrain.engine import bounds
from dptrain.models.preflight import made_up
from dptrain.training.step import Loss, PrivateStep
from dptrain.vocabulary import Labels, task_spec

RUNS = 2
STEPS = (8, 48)  # of all runs together, as many as the smallest fault needs
DRAWN = 24  # patients that a step draws, expected, at most
KINDS = 3  # of made-up patients; they differ a little
RECORDS = 8  # a patient, where the plan lets so many contribute
SEEN = 8.0  # standard deviations by which a fault moves the sum's statistic
BEYOND = 30.0  # times the clip that their gradients are long

NAMES = ("noise scale", "noise repeated", "clipped sum", "draws")


@dataclass(frozen=True)
class Residuals:
    """What some steps released beyond what they had to.

    vectors: [T, D], standard normal and independent. sums: [T, D], directions of the sums, of length 1 (0 for an
    empty draw). sizes: of the trained tensors, adding up to D. drawn: patients of each step [T], of `people` who each
    come with `rate`.
    """

    vectors: Tensor
    sums: Tensor
    sizes: tuple[int, ...]
    drawn: tuple[int, ...]
    people: int
    rate: float


@dataclass(frozen=True)
class Detector:
    """One named statistic: `p_value` is uniform, or larger, for a correct trainer."""

    name: str
    p_value: float


def detectors(residuals: Residuals) -> list[Detector]:
    """The statistics of :data:`NAMES`; each p-value is exact on its own for Gaussian noise.

    noise scale: χ² of each tensor and of all, two-sided. noise repeated: angles between steps, of any run.
    clipped sum: the residual along the sum, which a wrong sum or a wrong normaliser lengthens. draws: patients
    drawn, binomial, two-sided.
    """
    vectors = residuals.vectors.double()
    squares = [float(part.square().sum()) for part in vectors.split(residuals.sizes, dim=1)]
    freedom = [len(vectors) * size for size in residuals.sizes]
    scale = [_two_sided(chi2.cdf(s, n), chi2.sf(s, n)) for s, n in zip(squares, freedom, strict=True)]
    scale.append(_two_sided(chi2.cdf(sum(squares), sum(freedom)), chi2.sf(sum(squares), sum(freedom))))
    along = (vectors * residuals.sums).sum(dim=1)[residuals.sums.any(dim=1)]
    moved = abs(float(along.sum())) / math.sqrt(max(len(along), 1))
    count, trials = sum(residuals.drawn), residuals.people * len(residuals.drawn)
    return [
        Detector("noise scale", min(1.0, len(scale) * min(scale))),
        Detector("noise repeated", _repeated(vectors)),
        Detector("clipped sum", float(2 * norm.sf(moved))),
        Detector(
            "draws", _two_sided(binom.cdf(count, trials, residuals.rate), binom.sf(count - 1, trials, residuals.rate))
        ),
    ]


def _two_sided(below: float, above: float) -> float:
    return float(min(1.0, 2 * min(below, above)))


def _repeated(vectors: Tensor) -> float:
    """p-value of the smallest angle between two steps: cos² is Beta(1/2, (D−1)/2) for independent noise."""
    unit = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-300)
    dimension = vectors.shape[1]
    if dimension < 2:
        return 1.0
    pairs = list(itertools.combinations(range(len(unit)), 2))
    largest = max(min(1.0, float(unit[i] @ unit[j]) ** 2) for i, j in pairs)
    return float(min(1.0, len(pairs) * beta.sf(largest, 0.5, (dimension - 1) / 2)))


def measure(material: Material, device: str | torch.device = "cpu") -> Residuals | None:
    """Take some steps of the plan on made-up patients, of this network with fresh weights.

    Returns:
        None where the plan adds no noise: then nothing is promised; and for a network that is random itself. Dropout
        is taken out.
    """
    plan = material.plan
    if plan.noise_multiplier <= 0 or not math.isfinite(plan.max_grad_norm):
        return None
    scale = plan.noise_multiplier * plan.max_grad_norm
    # half of what the normaliser expects: one that follows the draw is twice as far from it as it may be
    expected = min(DRAWN, plan.expected_batch_size / 2)
    people = math.ceil(expected / plan.sample_rate)
    records = min(RECORDS, plan.max_records_per_patient)
    shift = expected * (records - 1 if records > 1 else BEYOND) / plan.noise_multiplier  # clipped by record, in SDs
    total = int(np.clip(math.ceil((SEEN / shift) ** 2), *STEPS))
    runs = max(RUNS, math.ceil(total / plan.steps))
    steps = math.ceil(total / runs)
    vectors, sums, drawn, sizes = [], [], [], []
    for _ in range(runs):
        start = material.start()
        module = _still(material.module)
        module.load_state_dict(start)
        source, loss = _cohort(material, module, people)
        reference = _Reference(module, loss, plan.max_grad_norm)
        if reference.is_random(source.inputs[torch.arange(2)], source.labels[torch.arange(2)]):
            return None
        tried = dataclasses.replace(material, module=module, loss=loss, ema=0.0)
        chunk = max(plan.max_records_per_patient * plan.views, 8)  # several a step
        loader = PatientLoader(source, plan, ReferenceLeave(plan, frozenset()), augment=(), chunk=chunk)
        step = engine_step(tried, start, device, PrivateStep)
        with step:
            for batch in itertools.islice(iter(loader), steps):
                draw = _Draw(batch.step, batch.patients, list(batch.chunks()))
                released = step.noisy_mean(step.clipped_sum(draw))
                flat = torch.cat([value.detach().double().cpu().flatten() for value in released])
                wanted = reference.sum(draw.held)
                vectors.append((flat * plan.expected_batch_size - wanted) / scale)
                sums.append(wanted / wanted.norm().clamp(min=1e-300))
                drawn.append(batch.patients)
                sizes = [value.numel() for value in released]
    return Residuals(torch.stack(vectors), torch.stack(sums), tuple(sizes), tuple(drawn), people, plan.sample_rate)


def _still(module: nn.Module) -> nn.Module:
    """A copy without the network's own randomness: both computations must see the same function."""
    module = copy.deepcopy(module)
    for layer in module.modules():
        if isinstance(layer, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)):
            layer.p = 0.0
    return module


@dataclass
class _Draw:
    """A draw whose chunks are looked at twice."""

    step: int
    patients: int
    held: list[PatientBatch]

    def chunks(self) -> Iterator[PatientBatch]:
        return iter(self.held)


@dataclass(frozen=True)
class _Repeated:
    """Rows of a few patients, over and over, as a loader reads a tensor [R, …]."""

    base: Tensor

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def shape(self) -> torch.Size:
        return self.base.shape

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.base[index % len(self.base)]


def _cohort(material: Material, module: nn.Module, people: int) -> tuple[Tensors, Loss]:
    """Made-up patients, and a loss under which their gradients are :data:`BEYOND` clips long."""
    records = min(RECORDS, material.plan.max_records_per_patient)
    shape = tuple(material.inputs.shape[1:])
    with torch.no_grad():
        outputs = copy.deepcopy(module).eval()(torch.zeros((2, *shape)))
    findings = task_spec(material.task).labels is Labels.FINDINGS
    classes = material.labels.shape[1] if findings else max(2, outputs.shape[1] if outputs.dim() > 1 else 1)
    seed = int.from_bytes(os.urandom(4), "little") >> 1
    image, label = made_up(shape, material.task, KINDS * records, classes, seed)
    image = (0.9 * image[:1] + 0.1 * image).float()  # much alike: their gradients add up
    label = label[:1].expand(label.shape).clone().to(material.labels.dtype)
    patients = PatientBatch(image, label, torch.arange(KINDS).repeat_interleave(records), KINDS)
    lengths = [float(gradient.norm()) for gradient in _Reference(module, material.loss, math.inf).gradients(patients)]
    factor = BEYOND * material.plan.max_grad_norm / max(float(np.median(lengths)), 1e-12)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return factor * material.loss(output, target)

    source = Tensors(
        _Repeated(image),  # type: ignore[arg-type]
        _Repeated(label),  # type: ignore[arg-type]
        torch.arange(people).repeat_interleave(records),
        Roster(people),  # type: ignore[arg-type]
    )
    return source, loss


class _Reference:
    """The sum of clipped gradients by plain autograd in float64, one patient at a time; the same rows only once."""

    def __init__(self, module: nn.Module, loss: Loss, clip: float) -> None:
        self.module = copy.deepcopy(module).double().cpu().train()
        self.weights = [p for p in self.module.parameters() if p.requires_grad]
        self.loss = loss
        self.goal = clip * (1 - bounds.MARGIN)
        self.seen: dict[bytes, Tensor] = {}

    def gradients(self, batch: PatientBatch) -> list[Tensor]:
        """Of each patient with a record the clipped mean of its records' gradients, flat."""
        rows = [batch.patient == number for number in batch.patient.unique().tolist() if number >= 0]
        return [self._gradient(batch.image[own], batch.label[own]) for own in rows]

    def sum(self, chunks: Sequence[PatientBatch]) -> Tensor:
        total = torch.zeros(sum(p.numel() for p in self.weights), dtype=torch.float64)
        for gradient in itertools.chain.from_iterable(self.gradients(batch) for batch in chunks):
            total += gradient
        return total

    def is_random(self, image: Tensor, label: Tensor) -> bool:
        """Whether the network, or its loss, gives another gradient of the same rows the second time."""
        one = self._gradient(image, label)
        self.seen.clear()
        return not torch.equal(one, self._gradient(image, label))

    def _gradient(self, image: Tensor, label: Tensor) -> Tensor:
        key = image.cpu().numpy().tobytes() + label.cpu().numpy().tobytes()
        if key not in self.seen:
            output = self.module(image.cpu().double())
            target = label.cpu().double() if label.is_floating_point() else label.cpu()
            parts = torch.autograd.grad(self.loss(output, target).mean(), self.weights)
            flat = torch.cat([part.flatten() for part in parts])
            self.seen[key] = flat * min(1.0, self.goal / max(float(flat.norm()), 1e-300))
        return self.seen[key]
