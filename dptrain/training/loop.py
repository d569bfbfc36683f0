"""The training loop: leases, checkpoints and the stop around one private step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from dptrain import models
from dptrain.errors import CheckRefused, LedgerRefused
from dptrain.leave import PayingLeave
from dptrain.models.check import check_rules, tried_on
from dptrain.training.step import PrivateStep, State, StepLog

if TYPE_CHECKING:
    from dptrain.data import PatientLoader


@dataclass
class FitResult:
    """The model as trained (its weights are the average's where there is one) and what happened."""

    model: nn.Module
    state: State
    steps_run: int
    interrupted: bool
    log: list[StepLog] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoints:
    """Where a training keeps its state, and after how many steps (and at the end of every lease)."""

    path: Path
    every: int = 50


def fit(
    step: PrivateStep,
    loader: PatientLoader,
    grant: PayingLeave,
    *,
    start: State | None = None,
    on_step: Callable[[StepLog], bool | None] | None = None,
    checkpoints: Checkpoints | None = None,
    checked: bool = False,
) -> FitResult:
    """Take the steps of the plan and return the model with the final (or averaged) weights.

    Args:
        step: what is done with a draw (:class:`dptrain.training.PrivateStep`).
        loader: a :class:`dptrain.data.PatientLoader` made for the same plan and grant.
        grant: the ledger's grant; every lease of steps is paid durably before its first step runs.
        start: a checkpoint to go on from; steps that were paid and lost are skipped.
        on_step: called after each step; True ends the training there, early and cleanly.
        checked: whether network and loss passed the pre-flight check already; else they do now, before a step is
            paid; a grant that has paid nothing yet is given back if they fail.

    Raises:
        LedgerRefused: the grant does not cover the next step.
        CheckRefused: the plan and the grant differ, or network and loss would break the guarantee or do not fit.
    """
    plan = step.plan
    if grant.plan is None or grant.plan.digest != plan.digest:
        raise CheckRefused("the plan that runs is not the plan that was granted.", remedy="Reserve again.")
    if not checked:
        _check_or_give_back(step, loader, grant)
    before = start or State(0, {}, {}, None, plan.digest)
    log: list[StepLog] = []

    def state() -> State:
        now = step.state()
        now.crashes, now.steps_lost = before.crashes, before.steps_lost
        return now

    step.shape, step.isolates = loader.chunk_shape, True
    with step:
        if start is not None:
            step.resume(start)
        stopped, batches = False, iter(loader)
        while step.number < plan.steps and not stopped:
            if step.number >= grant.committed:
                grant.commit(min(plan.steps, step.number + grant.lease))
            log.append(step.take(next(batches)))
            stopped = on_step is not None and bool(on_step(log[-1]))
            if checkpoints and (step.number % checkpoints.every == 0 or step.number == grant.committed):
                state().save(checkpoints.path)
        end = state()
        if checkpoints:
            end.save(checkpoints.path)
        return FitResult(step.final(), end, len(log), step.number < plan.steps, log)


def _check_or_give_back(step: PrivateStep, loader: PatientLoader, grant: PayingLeave) -> None:
    """The pre-flight check on made-up data of the loader's shape. Raises CheckRefused, the grant given back."""
    try:
        shape, classes, task = loader.shape(), len(loader.cohort.config.classes), loader.cohort.config.task
        models.refuse(models.preflight(step.model, step.loss, shape, task, classes=classes))
        image, label = tried_on(shape, task, classes)
        step.together = step.together and models.proof(step.model, step.loss, image[:2], label[:2]).together
        where = next(step.model.parameters()).device
        models.refuse(
            check_rules(
                step.model,
                step.loss,
                image.to(where),
                label.to(where),
                rules=step.rules,
                names=step.parameter_names,
                together=step.together,
            )
        )
        choose_way(step, loader)
    except BaseException:
        with suppress(LedgerRefused):  # the error on its way says more
            grant.give_back()
        raise


def choose_way(step: PrivateStep, loader: PatientLoader) -> str | None:
    """Whether patients run together or one at a time, on this machine; what that is for where they do not.

    Raises:
        CheckRefused: a training of one patient at a time that would take longer than :data:`models.LONGEST_HOURS`.
    """
    shape, config = loader.chunk_shape, loader.cohort.config
    image, label = models.made_up(loader.shape(), config.task, shape.rows, len(config.classes), 0)
    model = step.model.to(step.device)
    given = image.float().to(step.device), label.to(step.device)
    why = None
    if step.together and shape.rows > shape.of_patient:
        way = models.last_digits(model, step.loss, *given, shape, rules=step.rules, names=step.parameter_names)
        step.together, why = way.together, None if way.together else way.why
    if step.together:
        return None
    plan = step.plan
    hours = models.hours_alone(model, step.loss, *given, shape, patients=plan.expected_batch_size, steps=plan.steps)
    if hours > models.LONGEST_HOURS:
        raise CheckRefused(
            f"patients can run one at a time only, which would take about {hours:,.0f} hours for {plan.steps} steps "
            f"of {plan.expected_batch_size} expected patients; above {models.LONGEST_HOURS:.0f} it is refused.",
            remedy="Use layers that the check proves to keep records apart, a smaller network, or fewer steps.",
        )
    return why or "the network is not proved to keep records apart"
