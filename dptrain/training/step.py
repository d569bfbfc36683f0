"""One private step, whole or in its three parts: clipped sum, noisy mean, update.

    with PrivateStep(model, plan, loss=loss, optimizer=OptimizerConfig(lr=0.1)) as step:
        for batch in loader:
            step.take(batch)

is for every batch the same as, bit for bit and at the same cost,

            total = step.clipped_sum(batch)       # restricted: l2 sensitivity max_grad_norm, nothing hides it
            gradient = step.noisy_mean(total)     # released: this is what the plan charges for
            step.update(gradient)                 # post-processing

so that a caller can put something in between: hospitals that add up their sums, ranks that each make the noise of a
slice, an observer of what was released. A subclass that overrides one part is taken by :func:`dptrain.training.fit`
like any other. All three hand over lists of tensors, one for each of :attr:`PrivateStep.names`, which are the memory
that the step works in: nothing is copied. Who sends them makes one flat vector of them there.

Everything random about the mechanism comes from the loader's and the noise source's own generators; the step holds no
random state, so nothing of it can be stored or replayed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dptrain.data import PatientBatch
from dptrain.engine import ClippedSum, Entangled, NoiseSource, PatientGradients, PatientOptimizer
from dptrain.engine.chunks import NOBODY, ChunkShape, filled
from dptrain.errors import CheckRefused, ConfigError
from dptrain.files import whole_or_nothing
from dptrain.plan import Plan
from dptrain.settings import OptimizerConfig

Loss = nn.Module | Callable[[Tensor, Tensor], Tensor]


class Draw(Protocol):
    """One step's draw of patients (:class:`dptrain.data.LogicalBatch`); `patients`, how many, is restricted."""

    step: int
    patients: int

    def chunks(self) -> Iterator[PatientBatch]:
        """Physical chunks that split no patient; none for an empty draw."""


@dataclass
class StepSum:
    """Σ over the patients of one draw of their clipped gradients, before noise. All of it is restricted.

    Attributes:
        tensors: one for each of :attr:`PrivateStep.names`; float32 (float64 for float64 parameters). They may be
            changed in place, or others of their shapes put in their place, until :meth:`PrivateStep.noisy_mean`
            takes them, once.
        loss: sum of the losses of the records; patients, records, nonfinite, failed: how many there were.
    """

    tensors: list[Tensor]
    loss: float = 0.0
    patients: int = 0
    records: int = 0
    nonfinite: int = 0
    failed: int = 0


@dataclass
class StepLog:
    """One step for the logs. `public` may be shown to anyone; `restricted` follows the private data."""

    step: int
    public: dict[str, float]
    restricted: dict[str, float]


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


def build_optimizer(parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The torch optimiser over these trainable parameters. Raises ConfigError where there is none."""
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


class Update:
    """What follows a released gradient: the rate of the schedule, one step of the optimiser, the average of weights.

    All of it is post-processing and costs nothing. Stacks of reference models take it as a run does.

    Args:
        parameters: what the gradients are of, in their order.
        optimizer: settings, or a torch optimiser over just these parameters (its rate is then left alone).
        steps: of the plan; the schedule ends there.
        ema: decay of the average of weights; 0 for none.

    Attributes:
        taken: steps that were taken, or skipped by :meth:`resume`.
        average: of each parameter, or None.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        optimizer: OptimizerConfig | torch.optim.Optimizer,
        *,
        steps: int,
        ema: float,
    ) -> None:
        self.parameters = list(parameters)
        self.schedule = optimizer if isinstance(optimizer, OptimizerConfig) else None
        self.optimizer = (
            build_optimizer(self.parameters, optimizer) if isinstance(optimizer, OptimizerConfig) else optimizer
        )
        self.steps, self.ema, self.taken = steps, ema, 0
        self.average = [p.detach().clone() for p in self.parameters] if ema else None

    def apply(self, gradient: Sequence[Tensor]) -> float:
        """Take one step along a gradient (its tensors become the parameters' `grad`); the rate that it had."""
        for parameter, value in zip(self.parameters, gradient, strict=True):
            parameter.grad = value
        rate: float = self.optimizer.param_groups[0]["lr"]
        if self.schedule is not None:
            rate = learning_rate(self.schedule, self.taken, self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        self.optimizer.step()
        self.taken += 1
        if self.average is not None:
            decay = average_decay(self.ema, self.taken)
            with torch.no_grad():
                for kept, parameter in zip(self.average, self.parameters, strict=True):
                    kept.lerp_(parameter, 1 - decay)
        return rate


class PrivateStep:
    """The private step of one network under one plan (the module's docstring shows its parts).

    Formal guarantee: whatever the draw holds, :meth:`noisy_mean` adds N(0, (σC)²) once to a sum of l2 sensitivity C
    and divides by the plan's expected batch, so that each step is one round of the plan's mechanism.

    | case | result |
    |---|---|
    | an empty draw | a sum of zero, with noise like any other |
    | a patient whose gradient is not finite | counts as zero, and in `nonfinite` |
    | a network of which a part has no fast rule, and such a patient | the chunk is taken one patient at a time |
    | a chunk that fails (`isolates`) | its patients one at a time; who fails alone counts as zero, and in `failed` |
    | a sum given to `noisy_mean` twice | CheckRefused: its patients would be released twice for one charge |

    Between entering and leaving it (`with`), the network belongs to it.

    Args:
        model: maps images [N, C, …] to outputs [N, …]; no layer may mix the records of a batch.
        plan: clip, noise, normaliser, generator and steps come from here and nowhere else.
        loss: (output, label [N, …]) -> one loss a record [N].
        optimizer: settings, or a torch optimiser over the trainable parameters (its rate is then left alone).
        ema: decay of the average of weights, warmed up as min(ema, (1+t)/(10+t)); 0 for none. Averaging
            noisy weights is post-processing and costs nothing.
        precision: `bf16` runs the forward pass under autocast on CUDA; norms and sums stay in float32.
        rules, names: how the patient gradients of some layers are formed, and what parameters are called
            (:class:`dptrain.engine.PatientGradients`).
        together: patients of a chunk in one pass; False: one patient at a time, for networks that are not proved to
            keep records apart, and machines whose kernels let a patient's last digits follow the others.

    Attributes:
        shape: that of every chunk, filled up with rows of nobody; None: chunks as they come.
        isolates: no patient's data end a step. For networks and losses that were tried on made-up data before: where
            nothing works, every patient would count as zero.
        names: of the trainable parameters, in the order of every list of tensors.
        number: the step that comes next, from 0.

    Raises:
        CheckRefused: on entering, a network that the engine cannot give exact patient gradients of; in a step, a loss
            that is not one value a record. ConfigError: on entering, nothing to train.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        *,
        loss: Loss,
        optimizer: OptimizerConfig | torch.optim.Optimizer,
        ema: float = 0.0,
        device: str | torch.device = "cpu",
        precision: str = "float32",
        rules: Mapping[str, str] | None = None,
        names: Mapping[str, str] | None = None,
        together: bool = True,
    ) -> None:
        self.model, self.plan, self.loss = model, plan, loss
        self.together = together
        self.shape: ChunkShape | None = None
        self.isolates = False
        self.rules, self.parameter_names = rules, names
        self.device = torch.device(device)
        self._optimizer, self._ema = optimizer, ema
        self._mixed = precision == "bf16" and self.device.type == "cuda"
        self.names: list[str] = []

    def __enter__(self) -> PrivateStep:
        plan = self.plan
        self.model = self.model.to(self.device).train()
        trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        parameters = list(trainable.values())
        if isinstance(self._optimizer, torch.optim.Optimizer):
            parameters = [p for group in self._optimizer.param_groups for p in group["params"] if p.requires_grad]
        called = {id(p): name for name, p in trainable.items()}
        self.names = [called.get(id(p), "") for p in parameters]  # what is not the network's has no sum: refused
        self._update = Update(parameters, self._optimizer, steps=plan.steps, ema=self._ema)
        self._noise = NoiseSource(plan.generator)
        self._gradients = PatientGradients(
            self.model,
            max_grad_norm=plan.max_grad_norm,
            rules=self.rules,
            names=self.parameter_names,
            usual=self.shape.of_record if self.shape is not None else None,
        )
        self._gradients.remembers = self.together
        self._private = PatientOptimizer(
            self._update.optimizer,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.max_grad_norm,
            expected_batch_size=plan.expected_batch_size,
            noise=self._noise,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._gradients.detach()
        self._noise.close()

    @property
    def number(self) -> int:
        """The step that comes next, from 0."""
        return self._update.taken

    # --- the three parts ------------------------------------------------------------------------------------------

    def clipped_sum(self, batch: Draw) -> StepSum:
        """Σ of the clipped gradients of the patients drawn: one forward and one backward pass a chunk."""
        total = StepSum([], patients=batch.patients)
        self._private.zero_grad()
        for chunk in batch.chunks():
            for clipped, losses in self._chunk(chunk):
                self._private.accumulate(clipped)
                total.loss += float(losses.detach().sum())
                total.records += len(losses)
                total.nonfinite += clipped.nonfinite
                total.failed += clipped.failed
        self._private.accumulate()  # an empty draw is a sum of zero
        total.tensors = [p.summed_grad for p in self._private.params]
        self._private.zero_grad()  # the sum is the caller's now
        return total

    def noisy_mean(self, total: StepSum) -> list[Tensor]:
        """(sum + noise) / expected batch: what is released. Uses the sum up.

        Raises:
            CheckRefused: a sum that was used before.
        """
        for parameter, value in zip(self._private.params, total.tensors, strict=True):
            parameter.summed_grad = value
        self._private.pre_step()
        for parameter in self._private.params:
            parameter.summed_grad = None
        return [p.grad for p in self._private.params]

    def update(self, gradient: Sequence[Tensor]) -> float:
        """One step of the optimiser and of the average of weights; the learning rate that it had.

        Args:
            gradient: as :meth:`noisy_mean` gives it, from here or from elsewhere.
        """
        return self._update.apply(gradient)

    def take(self, batch: Draw) -> StepLog:
        """The whole step. Raises CheckRefused for the draw of another step than :attr:`number`."""
        if batch.step != self.number:
            raise CheckRefused(f"the loader stands at step {batch.step}, the training at step {self.number}.")
        total = self.clipped_sum(batch)
        rate = self.update(self.noisy_mean(total))
        return StepLog(
            self.number,
            {"learning_rate": rate},
            {
                "loss": total.loss / max(1, total.records),
                "patients": total.patients,
                "records": total.records,
                "nonfinite_patients": total.nonfinite,
                "failed_patients": total.failed,
            },
        )

    def _chunk(self, batch: PatientBatch) -> list[tuple[ClippedSum, Tensor]]:
        if self.together:
            try:
                return [self._clipped(batch, self.shape)]
            except Entangled:
                self._gradients.forget()
            except Exception:  # whatever it is, it follows from somebody's rows
                if not self.isolates:
                    raise
                self._gradients.forget()
        shape = self.shape
        if shape is not None and not self.together:
            shape = shape.alone
        return [self._alone(one, shape) for one in one_by_one(batch)]

    def _alone(self, one: PatientBatch, shape: ChunkShape | None) -> tuple[ClippedSum, Tensor]:
        """One patient's clipped gradient; zero where it fails. The network's tensors stay what they were."""
        before = [] if self.together else _tensors(self.model)
        try:
            return self._clipped(one, shape)
        except Exception:
            if not self.isolates:
                raise
            self._gradients.forget()
        finally:
            _put_back(before)
        nothing = self._gradients.nothing(1)
        nothing.failed = 1
        return nothing, torch.zeros(0)

    def _clipped(self, batch: PatientBatch, shape: ChunkShape | None) -> tuple[ClippedSum, Tensor]:
        records = len(batch.image)
        rows = records if shape is None else shape.rows
        image = filled(batch.image.to(self.device, non_blocking=True), rows)
        label = filled(batch.label.to(self.device, non_blocking=True), rows)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._mixed):
            output = self.model(image)
        losses = self.loss(output, label)
        if losses.shape != (rows,):
            raise CheckRefused(
                f"the loss has {losses.dim()} dimensions; it must give one value a record, [N].",
                remedy="Use reduction='none' and average over pixels and classes only, never over records.",
            )
        patient = filled(batch.patient.to(self.device), rows, NOBODY)
        return self._gradients.clipped_sum(losses, patient, batch.patients), losses[:records]

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def state(self) -> State:
        """What is needed to go on from here, on the CPU."""
        model = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        average = self._update.average
        kept = None if average is None else {n: v.cpu().clone() for n, v in zip(self.names, average, strict=True)}
        optimizer = copy.deepcopy(self._update.optimizer.state_dict())
        return State(self.number, model, optimizer, kept, self.plan.digest)

    def resume(self, start: State) -> None:
        """Go on from a state. Raises CheckRefused for one of another plan."""
        if start.plan != self.plan.digest:
            raise CheckRefused(
                f"the checkpoint belongs to plan {start.plan[:12]}…, the training to plan {self.plan.digest[:12]}….",
                remedy="A checkpoint goes on under its own plan alone: resume its run, or leave the checkpoint out.",
            )
        self.model.load_state_dict(start.model)
        self._update.optimizer.load_state_dict(start.optimizer)
        self._update.taken = start.step
        if self._update.average is not None and start.average is not None:
            self._update.average = [start.average[name].to(self.device).clone() for name in self.names]

    def final(self) -> nn.Module:
        """The network with its final weights (the average's where there is one), in evaluation mode."""
        if self._update.average is not None:
            average = dict(zip(self.names, self._update.average, strict=True))
            self.model.load_state_dict({**self.model.state_dict(), **average})
        return self.model.eval()


Held = list[tuple[nn.Module, str, Tensor, Tensor]]


def _tensors(model: nn.Module) -> Held:
    """The modules' parameters and buffers by name, with a copy of each value."""
    return [
        (module, name, tensor, tensor.detach().clone())
        for module in model.modules()
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    ]


def _put_back(before: Held) -> None:
    """Undo what a pass wrote into parameters and buffers: no noise hides it, and the next patient would see it."""
    with torch.no_grad():
        for module, name, tensor, value in before:
            setattr(module, name, tensor)
            tensor.copy_(value)


def one_by_one(batch: PatientBatch) -> list[PatientBatch]:
    """The same rows, a chunk for each patient."""
    chunks = []
    for number in batch.patient.unique().tolist():
        rows = batch.patient == number
        chunks.append(PatientBatch(batch.image[rows], batch.label[rows], torch.zeros_like(batch.patient[rows]), 1))
    return chunks
