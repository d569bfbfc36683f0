"""How patients may run: together in one pass, or one at a time.

Together they may run where three things hold. No operation lets one record see another: proved, on the graph of the
network's operations (:mod:`dptrain.models.tracing`). No code of the network's own works on gradients, which no graph
shows. And on the machine, device and precision at hand a patient's last digits do not follow the place in the chunk
or the others in it: tried, on made-up patients. Else they run one at a time: exact, and slower.
"""

from __future__ import annotations

import copy
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from dptrain.engine import PatientGradients
from dptrain.engine.chunks import NOBODY, ChunkShape
from dptrain.models.draws import FixedDraws
from dptrain.models.losses import Loss
from dptrain.models.tracing import trace


@dataclass(frozen=True)
class Way:
    """Whether patients run together, and why (or why not)."""

    together: bool
    why: str


TOGETHER = Way(True, "every operation works on each record alone")
NOT_TRIED = Way(True, "nothing was tried")
LONGEST_HOURS = 72.0
"""Hours above which a training of one patient at a time is refused."""


def proof(model: nn.Module, loss: Loss, image: Tensor, label: Tensor) -> Way:
    """Whether network and loss are proved to keep records apart.

    Args:
        model: the network as it will be trained; a copy is tried, on the CPU.
        loss: (output, label) -> [N].
        image, label: made-up, of two records or more.
    """
    twin = copy.deepcopy(model).cpu().train()
    image, label = image.cpu().float() if image.is_floating_point() else image.cpu(), label.cpu()
    before = _drawn_elsewhere()
    own = gradient_code(twin, loss, image, label)
    if own is not None:
        return Way(False, own)
    if _drawn_elsewhere() != before:  # no graph shows them, and all records of a pass would share them
        return Way(False, "it draws random numbers from Python or NumPy")
    traced = trace(twin, loss, image, label)
    return Way(traced.proved, traced.why)


def _drawn_elsewhere() -> tuple[object, ...]:
    """Where the global generators of Python and NumPy stand."""
    _, key, place, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - what a network would draw from
    return random.getstate(), np.asarray(key).tobytes(), place, *rest


def gradient_code(model: nn.Module, loss: Loss, image: Tensor, label: Tensor) -> str | None:
    """Code of the network's own in the backward pass, which a graph of operations does not show; None without."""
    for name, module in model.named_modules():
        if any(getattr(module, kind, None) for kind in ("_backward_hooks", "_backward_pre_hooks")):
            return f"{name or type(module).__name__} has a hook on its gradients"
    with torch.random.fork_rng(devices=[]), _registered() as hooked:
        losses = loss(model(image), label)
    if hooked:
        return "it hooks into the gradients of its activations"
    waiting, met = [losses.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in met:
            continue
        met.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return f"it has an autograd function of its own, {type(node).__name__.removesuffix('Backward')}"
        waiting += [following for following, _ in node.next_functions]
    return None


@contextmanager
def _registered() -> Iterator[list[bool]]:
    """Notes whether a hook is put on a tensor's gradient meanwhile."""
    seen: list[bool] = []
    before = cast(Callable[[Tensor, object], object], torch.Tensor.register_hook)

    def register(tensor: Tensor, hook: object) -> object:
        seen.append(True)
        return before(tensor, hook)

    torch.Tensor.register_hook = register  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        torch.Tensor.register_hook = before  # type: ignore[method-assign]


def last_digits(
    model: nn.Module,
    loss: Loss,
    image: Tensor,
    label: Tensor,
    shape: ChunkShape,
    *,
    rules: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
) -> Way:
    """Whether a patient's losses and norms stay what they are, bit for bit, at other places and among others.

    Tried with the engine itself on chunks of the training's shape: at other places, among other others, with nobody
    in the others' place, and beside patients with several records.

    Args:
        model: the part that is trained, on its device; a copy is tried.
        image, label: made-up inputs of that part, `shape.rows` of them, on that device.

    Raises:
        CheckRefused: in a chunk of this shape gradients do not come from the patients' own rows.
    """
    rows = shape.rows
    twin = copy.deepcopy(model).train()
    engine = PatientGradients(twin, max_grad_norm=1.0, rules=rules, names=names, usual=shape.of_record, verify=True)
    generator = torch.Generator().manual_seed(0)
    watched = list(range(max(1, rows // 2)))

    def run(records: Sequence[int], patient: Sequence[int], image: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and norms of the watched records, each of which is a patient."""
        patients = max(patient) + 1
        with torch.random.fork_rng(devices=[image.device] if image.is_cuda else []), FixedDraws(records):
            losses = loss(twin(image[list(records)]), label[list(records)])
            owner = torch.tensor(patient, device=image.device)
            chunk = engine.clipped_sum(losses, owner, patients)
        rows_of = [records.index(record) for record in watched]
        return losses.detach()[rows_of], chunk.norms[[patient[row] for row in rows_of]]

    every = list(range(rows))
    moved = torch.randperm(rows, generator=generator).tolist()
    other = image.clone()
    if image.is_floating_point():
        other[len(watched) :] = other[len(watched) :] * 3 - 1
    nobody = [record if record in watched else NOBODY for record in every]
    pairs = [record if record in watched else len(watched) + (record - len(watched)) // 2 for record in every]
    cases = {
        "at another place": (moved, every, image),
        "among others": (every, every, other),
        "where nobody else was drawn": (every, nobody, image),
    }
    if shape.of_patient > 1:
        cases |= {"beside patients with more records": (every, pairs, image)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = run(every, every, image)
            for case, given in cases.items():
                again = run(*given)
                if not all(torch.equal(a, b) for a, b in zip(expected, again, strict=True)):
                    return Way(False, f"on this machine a patient's last digits change {case}")
    finally:
        engine.detach()
    return TOGETHER


def hours_alone(
    model: nn.Module, loss: Loss, image: Tensor, label: Tensor, shape: ChunkShape, *, patients: int, steps: int
) -> float:
    """Hours that `steps` steps of `patients` patients would take one at a time, from one made-up patient."""
    twin = copy.deepcopy(model).train()
    image, label = image[: shape.of_patient], label[: shape.of_patient]
    best = float("inf")
    for _ in range(2):
        begun = time.perf_counter()
        loss(twin(image), label).mean().backward()
        if image.is_cuda:
            torch.cuda.synchronize(image.device)
        best = min(best, time.perf_counter() - begun)
    return 1.5 * best * patients * steps / 3600
