"""A rehearsal: the network, the plan's noise and the optimiser on made-up records. Reads nothing, charges nothing.

The records have the shape that the cohort declares and show their class plainly, so a run whose validation curve
stays at chance here would not learn from patients either. What the curve reaches says nothing about medicine.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from dptrain.data import PatientBatch, PoissonSampler
from dptrain.models.losses import loss_for_task
from dptrain.models.network import Network, device_of
from dptrain.plan import Plan
from dptrain.settings import Settings
from dptrain.settings.data import shape_of
from dptrain.terminal.progress import progress
from dptrain.training.evaluate import auroc
from dptrain.training.scoring import dice_scores
from dptrain.training.step import PrivateStep
from dptrain.vocabulary import Activation, Labels, task_spec

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

RECORDS = 384  # made-up records at most; a third of them validate
CURVE = 12  # points of the validation curve
SAFETY = 2  # steps that are taken whatever they cost


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal measured.

    Attributes:
        curve: (step, metric on made-up validation records), the first before any step.
        metric: the task's first metric.
        steps: taken, of the plan's steps.
        seconds_per_step: median over the steps taken; expected_seconds: of all steps of the plan at that pace.
        peak_bytes: of this process at its largest (of the GPU where one was used).
    """

    curve: tuple[tuple[int, float], ...]
    metric: str
    steps: int
    seconds_per_step: float
    expected_seconds: float
    peak_bytes: int
    device: str


def made_up(settings: Settings, records: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Records [R, *shape] in 0…1 and their labels: bright spots, one place for each class, on smooth noise.

    For masks the spot lies anywhere and the label is where it is. Nobody's data: drawn from a fixed seed.
    """
    config, random = settings.data, torch.Generator().manual_seed(seed)
    spec, shape, classes = task_spec(config.task), shape_of(config), len(config.classes)
    space = shape[1:] if len(shape) > 1 else shape
    image = 0.4 + 0.1 * torch.randn((records, *shape), generator=random)
    label = torch.randint(
        0, spec.label_values(classes), (records, *spec.label_shape(classes, shape)), generator=random
    )
    if spec.labels is Labels.MASK:
        label = torch.zeros_like(label)
    places = range(classes) if spec.labels is not Labels.CLASS else range(spec.label_values(classes))
    for place in places:
        angle = 2 * math.pi * place / max(1, len(places))
        centre = torch.tensor([0.6 * math.cos(angle + axis * math.pi / 2) for axis in range(len(space))])
        if spec.labels is Labels.MASK:
            spot = _spots(space, torch.rand((records, len(space)), generator=random) - 0.5 + 0.3 * centre)
            label[(spot > 0.5)[:, None]] = place + 1
        elif spec.labels is Labels.FINDINGS:
            spot = _spots(space, centre[None]) * label[:, place].reshape(-1, *[1] * len(space))
        else:
            spot = _spots(space, centre[None]) * (label == place).float().reshape(-1, *[1] * len(space))
        image = image + 0.4 * (spot if len(shape) == 1 else spot[:, None])
    return image.clamp(0, 1), label


def _spots(space: tuple[int, ...], centre: Tensor) -> Tensor:
    """A soft ball at each centre [n, dims] in −1…1: [n, *space]."""
    axes = torch.meshgrid(
        *[torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1) for size in space], indexing="ij"
    )
    distance = sum((axis - at.reshape(-1, *[1] * len(space))) ** 2 for axis, at in zip(axes, centre.T, strict=True))
    assert isinstance(distance, Tensor)
    return torch.exp(-distance / (2 * 0.25**2))


@dataclass
class _Draw:
    """One step's Poisson draw of as many patients as were declared; each has one made-up record."""

    step: int
    patients: int
    inputs: Tensor
    label: Tensor
    record: np.ndarray
    chunk: int
    views: int

    def chunks(self) -> Iterator[PatientBatch]:
        """Physical chunks of whole patients."""
        for start in range(0, self.patients, max(1, self.chunk // self.views)):
            record = torch.from_numpy(self.record[start : start + max(1, self.chunk // self.views)])
            patient = torch.arange(len(record)).repeat_interleave(self.views)
            rows = record.repeat_interleave(self.views)
            yield PatientBatch(self.inputs[rows], self.label[rows], patient, len(record))


def rehearse(settings: Settings, plan: Plan, network: Network, folder: Path, *, until: float) -> Rehearsal:
    """Train on made-up records under the plan until a time (`time.monotonic()`); TensorBoard goes to `folder`.

    Rate, batch, clip and noise are the plan's; the steps are its first ones where all of them would take longer.
    """
    from torch.utils.tensorboard import SummaryWriter

    device = device_of(settings.training.device)
    image, label = made_up(settings, RECORDS)
    inputs = _inputs(image, network, device, until=(time.monotonic() + until) / 2)
    image, label = image[: len(inputs)], label[: len(inputs)]
    held_out = len(inputs) // 3
    sampler = PoissonSampler(plan.public_size, plan.sample_rate)
    curve: list[tuple[int, float]] = []
    times: list[float] = []
    with SummaryWriter(str(folder)) as board, _step(settings, plan, network, device) as step:
        _describe(board, settings, plan, image)
        every = max(1, plan.steps // CURVE)

        def score(at: int) -> None:
            value = metric_of(settings, _outputs(step.model, inputs[:held_out], device), label[:held_out])
            curve.append((at, value))
            board.add_scalar(f"validation (made up)/{task_spec(settings.data.task).metric}", value, at)

        score(0)
        with progress(plan.steps, "rehearsing") as bar:
            while step.number < plan.steps and (step.number < SAFETY or time.monotonic() < until):
                drawn = sampler.draw() % (len(inputs) - held_out) + held_out
                begun = time.perf_counter()
                chunk, views = settings.training.chunk, settings.privacy.views
                log = step.take(_Draw(step.number, len(drawn), inputs, label, drawn, chunk, views))
                times.append(time.perf_counter() - begun)
                for name, number in {**log.public, "loss": log.restricted["loss"], "seconds": times[-1]}.items():
                    board.add_scalar(f"rehearsal/{name}", number, log.step)
                bar.advance(1)
                if step.number % every == 0:
                    score(step.number)
        if curve[-1][0] != step.number:
            score(step.number)
        taken = step.number
    pace = float(np.median(times))
    return Rehearsal(
        tuple(curve),
        task_spec(settings.data.task).metric,
        taken,
        pace,
        pace * plan.steps,
        _peak(device),
        str(device),
    )


def _step(settings: Settings, plan: Plan, network: Network, device: torch.device) -> PrivateStep:
    return PrivateStep(
        network.trainable,
        plan,
        loss=loss_for_task(settings.data.task),
        optimizer=settings.optimizer,
        ema=settings.training.ema,
        device=device,
        precision=settings.training.precision,
        rules=network.rules,
        names=network.names(network.trainable),
    )


def _inputs(image: Tensor, network: Network, device: torch.device, *, until: float) -> Tensor:
    """The images, or what the frozen part makes of them: as many as it manages in time, and 48 at least."""
    if network.frozen is None:
        return image
    frozen, parts = network.frozen.to(device).eval(), []
    with torch.inference_mode(), progress(len(image), "computing features of made-up records") as bar:
        for start in range(0, len(image), 16):
            parts.append(frozen(image[start : start + 16].to(device)).float().cpu())
            bar.advance(len(parts[-1]))
            if len(parts) >= 3 and time.monotonic() > until:
                break
    return torch.cat(parts).clone()


def _outputs(model: nn.Module, inputs: Tensor, device: torch.device) -> Tensor:
    """What the network says now, in evaluation mode, 32 records at a time: on the CPU."""
    training = model.training
    model.eval()
    with torch.no_grad():
        parts = [model(part.to(device)).float().cpu() for part in inputs.split(32)]
    model.train(training)
    return torch.cat(parts)


def metric_of(settings: Settings, logits: Tensor, label: Tensor) -> float:
    """The task's first metric: the mean AUROC over classes, or the mean Dice over structures; NaN where undefined."""
    spec = task_spec(settings.data.task)
    if spec.labels is Labels.MASK:
        return float(np.nanmean(dice_scores(logits, label)))
    if spec.one_logit:
        columns = [(logits.reshape(-1), label > 0)]
    elif spec.activation is Activation.SOFTMAX:
        scores = logits.double().softmax(1)
        columns = [(scores[:, c], label == c) for c in range(logits.shape[1])]
    else:
        columns = [(logits[:, c], label[:, c] > 0) for c in range(logits.shape[1])]
    ones = np.ones((1, len(logits)))
    values = [float(auroc(score.double().numpy(), truth.double().numpy(), ones)[0]) for score, truth in columns]
    defined = [value for value in values if math.isfinite(value)]
    return float(np.mean(defined)) if defined else math.nan


def _describe(board: SummaryWriter, settings: Settings, plan: Plan, image: Tensor) -> None:
    """Hyperparameters as a table, and made-up records as pictures (the middle slice of a volume)."""

    values = {
        "name": settings.name,
        "model": settings.model.network.get("_target_"),
        "optimizer": settings.optimizer.name,
        "learning rate": settings.optimizer.lr,
        "patients declared": plan.public_size,
        "expected batch": plan.expected_batch_size,
        "steps": plan.steps,
        "noise multiplier": plan.noise_multiplier,
        "clip": plan.max_grad_norm,
        "delta": plan.delta,
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
    board.add_text("hyperparameters", f"| setting | value |\n| --- | --- |\n{rows}", 0)
    picture = image[:16, :1]
    while picture.dim() > 4:
        picture = picture[:, :, picture.shape[2] // 2]
    if picture.dim() == 4:
        board.add_images("made-up records", picture, 0)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
