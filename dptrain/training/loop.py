"""The training loop: pay for a lease of steps, draw patients, clip, add noise once, step.

Everything random about the mechanism comes from the loader's and the noise source's own generators; the
loop holds no random state, so nothing of it can be stored or replayed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dptrain.engine import ClippedSum, Entangled, NoiseSource, PatientGradients, PatientOptimizer
from dptrain.errors import CheckRefused, ConfigError
from dptrain.files import whole_or_nothing
from dptrain.plan import Plan
from dptrain.settings import OptimizerConfig

if TYPE_CHECKING:
    from dptrain.data import PatientBatch, PatientLoader
    from dptrain.ledger import Grant


@dataclass
class State:
    """What a run needs to go on: the step it stands at, weights, optimiser. Never noise, never draws."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    average: dict[str, Tensor] | None
    plan: str
    crashes: int = 0
    steps_lost: int = 0

    def save(self, path: Path) -> None:
        """Write the checkpoint whole or not at all (a full disk leaves the earlier one as it was)."""
        with whole_or_nothing(path, "wb", private=True) as file:
            torch.save(vars(self), file)

    @classmethod
    def load(cls, path: Path) -> State:
        """Read a checkpoint. Raises ConfigError where it is missing or torn."""
        try:
            return cls(**torch.load(path, map_location="cpu", weights_only=True))
        except FileNotFoundError:
            raise ConfigError(
                f"{path.parent.parent} has no checkpoint to resume from.",
                remedy=f"Name in training.resume the folder of a run that has {path.parent.name}/{path.name}.",
            ) from None
        except Exception as error:
            raise ConfigError(
                f"the checkpoint {path} cannot be read ({type(error).__name__}).",
                remedy="Bring it back from a backup, or train anew in another training.run.",
            ) from None


@dataclass
class StepLog:
    """One step for the logs. `public` may be shown to anyone; `restricted` follows the private data."""

    step: int
    public: dict[str, float]
    restricted: dict[str, float]


@dataclass
class FitResult:
    """The model as trained (its weights are the average's where there is one) and what happened."""

    model: nn.Module
    state: State
    steps_run: int
    interrupted: bool
    log: list[StepLog] = field(default_factory=list)


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The torch optimiser over the trainable parameters. Raises ConfigError where none is trainable."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError("nothing of this network is trainable.", remedy="Choose model.train=head or all.")
    if config.name == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of a step in 0…steps−1: warm-up, then constant, cosine or linear decay to 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    left = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * left))
    if config.schedule == "linear":
        return config.lr * (1 - left)
    return config.lr


def average_decay(ema: float, step: int) -> float:
    """How much of the average of weights stays after step 1, 2, …: `ema`, warmed up."""
    return min(ema, step / (step + 9))


def one_by_one(batch: PatientBatch) -> list[PatientBatch]:
    """The same rows, a chunk for each patient."""
    from dptrain.data import PatientBatch

    chunks = []
    for number in batch.patient.unique().tolist():
        rows = batch.patient == number
        chunks.append(PatientBatch(batch.image[rows], batch.label[rows], torch.zeros_like(batch.patient[rows]), 1))
    return chunks


def _check(
    model: nn.Module,
    loss: Any,
    loader: PatientLoader,
    rules: Mapping[str, str] | None,
    names: Mapping[str, str] | None,
) -> None:
    """Raise CheckRefused for a network or loss that fails on made-up data of the loader's shape."""
    from dptrain import models
    from dptrain.training.session import check_rules

    shape, config = loader.shape(), loader.cohort.config
    findings = models.preflight(model, loss, shape, config.task, classes=len(config.classes))
    models.refuse(findings)
    image, label = models.made_up(shape, config.task, 4, len(config.classes), 0)
    where = next(model.parameters()).device
    models.refuse(check_rules(model, loss, image.float().to(where), label.to(where), rules=rules, names=names))


def fit(
    model: nn.Module,
    loader: PatientLoader,
    plan: Plan,
    grant: Grant,
    *,
    loss: nn.Module | Callable[[Tensor, Tensor], Tensor],
    optimizer: OptimizerConfig | torch.optim.Optimizer,
    ema: float = 0.0,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    rules: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
    start: State | None = None,
    on_step: Callable[[StepLog], None] | None = None,
    checkpoint: Path | None = None,
    checkpoint_steps: int = 50,
    stop: Callable[[], bool] | None = None,
    checked: bool = False,
) -> FitResult:
    """Train `model` under `plan` and return it with the final (or averaged) weights.

    Args:
        model: maps images [N, C, …] to outputs [N, …]; no layer may mix the records of a batch.
        loader: a :class:`dptrain.data.PatientLoader` made for the same plan and grant.
        grant: the ledger's grant; every lease of steps is paid durably before its first step runs.
        loss: (output, label [N, …]) -> one loss a record [N].
        optimizer: settings, or a torch optimiser over the trainable parameters (its rate is then left alone).
        ema: decay of the average of weights, warmed up as min(ema, (1+t)/(10+t)); 0 for none. Averaging
            noisy weights is post-processing and costs nothing.
        precision: `bf16` runs the forward pass under autocast on CUDA; norms and sums stay in float32.
        rules, names: how the patient gradients of some layers are formed, and what parameters are called
            (:class:`dptrain.engine.PatientGradients`).
        start: a checkpoint to go on from; steps that were paid and lost are skipped.
        stop: asked after each step; True ends the training early and cleanly.
        checked: whether network and loss passed the pre-flight check already; else they do now, before a step is
            paid; a grant that has paid nothing yet is given back if they fail.

    Raises:
        LedgerRefused: the grant does not cover the next step.
        CheckRefused: the plan and the grant differ, or network and loss would break the guarantee or do not fit.
    """
    if grant.plan is None or grant.plan.digest != plan.digest:
        raise CheckRefused("the plan that runs is not the plan that was granted.", remedy="Reserve again.")
    if not checked:
        with grant:
            _check(model, loss, loader, rules, names)
    device = torch.device(device)
    model = model.to(device).train()
    average = None
    if ema:
        average = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    base = optimizer if isinstance(optimizer, torch.optim.Optimizer) else build_optimizer(model, optimizer)
    first = 0
    state = State(0, {}, {}, None, plan.digest)
    if start is not None:
        if start.plan != plan.digest:
            raise CheckRefused(
                f"the checkpoint belongs to plan {start.plan[:12]}…, the training to plan {plan.digest[:12]}….",
                remedy="A checkpoint goes on under its own plan alone: resume its run, or leave the checkpoint out.",
            )
        model.load_state_dict(start.model)
        base.load_state_dict(start.optimizer)
        if average is not None and start.average is not None:
            average = {name: value.to(device) for name, value in start.average.items()}
        state, first = start, start.step
    step, interrupted, ran = first, False, 0
    mixed = precision == "bf16" and device.type == "cuda"

    noise = NoiseSource(plan.generator)
    gradients = PatientGradients(model, max_grad_norm=plan.max_grad_norm, rules=rules, names=names)
    private = PatientOptimizer(
        base,
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=plan.max_grad_norm,
        expected_batch_size=plan.expected_batch_size,
        noise=noise,
    )
    log: list[StepLog] = []

    def one_sum(batch: PatientBatch) -> tuple[ClippedSum, Tensor]:
        image = batch.image.to(device, non_blocking=True)
        label = batch.label.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            output = model(image)
        values = loss(output, label)
        if values.shape != (len(image),):
            raise CheckRefused(
                f"the loss has {values.dim()} dimensions; it must give one value a record, [N].",
                remedy="Use reduction='none' and average over pixels and classes only, never over records.",
            )
        return gradients.clipped_sum(values, batch.patient.to(device), batch.patients), values

    def sums(batch: PatientBatch) -> list[tuple[ClippedSum, Tensor]]:
        try:
            return [one_sum(batch)]
        except Entangled:
            return [one_sum(alone) for alone in one_by_one(batch)]

    def snapshot(at: int) -> State:
        weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        kept = None if average is None else {name: value.cpu().clone() for name, value in average.items()}
        return State(
            at, weights, copy.deepcopy(base.state_dict()), kept, plan.digest, state.crashes, state.steps_lost
        )

    try:
        if first < plan.steps:
            grant.commit(min(plan.steps, max(grant.committed, first + grant.lease)))
        batches = iter(loader)
        while step < plan.steps:
            if step >= grant.committed:
                grant.commit(min(plan.steps, step + grant.lease))
            logical = next(batches)
            if logical.step != step:
                raise CheckRefused(f"the loader stands at step {logical.step}, the training at step {step}.")
            rate = base.param_groups[0]["lr"]
            if isinstance(optimizer, OptimizerConfig):
                rate = learning_rate(optimizer, step, plan.steps)
                for group in base.param_groups:
                    group["lr"] = rate
            private.zero_grad()
            total, records, nonfinite = 0.0, 0, 0
            for batch in logical.chunks():
                for chunk, values in sums(batch):
                    private.accumulate(chunk)
                    total += float(values.detach().sum())
                    records += len(values)
                    nonfinite += chunk.nonfinite
            private.step()
            step += 1
            ran += 1
            if average is not None:
                decay = average_decay(ema, step)
                with torch.no_grad():
                    for name, parameter in model.named_parameters():
                        if name in average:
                            average[name].lerp_(parameter, 1 - decay)
            entry = StepLog(
                step,
                {"learning_rate": rate},
                {
                    "loss": total / max(1, records),
                    "patients": logical.patients,
                    "records": records,
                    "nonfinite_patients": nonfinite,
                },
            )
            log.append(entry)
            if on_step is not None:
                on_step(entry)
            if checkpoint is not None and (step % checkpoint_steps == 0 or step == grant.committed):
                snapshot(step).save(checkpoint)
            if stop is not None and stop() and step < plan.steps:
                interrupted = True
                break
        state = snapshot(step)
        if checkpoint is not None:
            state.save(checkpoint)
    finally:
        gradients.detach()
        noise.close()
    if average is not None:
        model.load_state_dict({**model.state_dict(), **average})
    model.eval()
    return FitResult(model, state, ran, interrupted, log)
