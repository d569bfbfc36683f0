"""The check before the first charge: no patient's loss or gradient may depend on another in the batch.

Two parts. The static one looks for what is known to mix patients: BatchNorm in training mode, batch-wise and
contrastive losses, samplers that are not Poisson draws, transforms that mix records. The run-time one tries
it: on made-up data, in training mode, other patients are perturbed, removed, added and permuted, and one
patient's losses and gradients must stay what they were (docs/guarantee.md, contract 5). Nothing here touches
real data.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from dptrain.data import loading
from dptrain.data.transforms import mixes
from dptrain.errors import CheckRefused
from dptrain.models.draws import FixedDraws
from dptrain.models.losses import Loss
from dptrain.models.private import FrozenBatchNorm
from dptrain.models.split import Frozen
from dptrain.vocabulary import Labels, task_spec

if TYPE_CHECKING:
    from rich.console import Console

Status = Literal["ok", "changed", "refused"]


@dataclass(frozen=True)
class Finding:
    """One line of the check: what was looked at, how it ended, why, and what to do about it."""

    what: str
    status: Status
    why: str
    remedy: str = ""


#: By how much one patient's losses and gradients may differ, relative to their size. Float32 is tried first
#: (fast); what does not pass there, activation flips included, is judged in float64.
QUICK = 3e-5
TOLERANCE = 1e-5
#: For networks that know no float64.
TOLERANCE_FLOAT32 = 5e-3

_GROUPNORM = "Set model.batchnorm=replace (GroupNorm); for pretrained networks, freeze."
_PER_RECORD = "Give one loss a record, e.g. reduction='none' and a mean over each record's own voxels."


# --------------------------------------------------------------------------------------------- static


def check_modules(model: nn.Module) -> list[Finding]:
    """Layers that are known to mix patients or to keep averages of them."""
    findings: list[Finding] = []
    fine: dict[str, int] = {}

    def walk(module: nn.Module, name: str, frozen: bool) -> None:
        kind = type(module).__name__
        where = f"{kind} '{name}'" if name else kind
        frozen = frozen or isinstance(module, Frozen)
        if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
            findings.append(
                Finding(where, "refused", "not yet initialised", "Run one made-up batch through it first.")
            )
        elif isinstance(module, _BatchNorm) and not frozen:
            why = "in training mode it averages over the patients of the batch, and keeps that average un-noised"
            findings.append(Finding(where, "refused", why, _GROUPNORM))
        elif isinstance(module, _InstanceNorm) and module.track_running_stats and not frozen:
            why = "its running statistics are averages of the patients, un-noised"
            findings.append(Finding(where, "refused", why, "Use track_running_stats=False (make_private does)."))
        elif isinstance(module, _BatchNorm | FrozenBatchNorm):
            fine[f"{kind} with fixed statistics"] = fine.get(f"{kind} with fixed statistics", 0) + 1
        elif isinstance(module, _InstanceNorm | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
            fine[kind] = fine.get(kind, 0) + 1
        for key, child in module.named_children():
            walk(child, f"{name}.{key}" if name else key, frozen)

    walk(model, "", False)
    findings += [Finding(f"{kind} x {count}", "ok", "looks at one record alone", "") for kind, count in fine.items()]
    return findings


_CONTRASTIVE = re.compile(r"contrastive|ntxent|infonce|supcon|barlow|vicreg|triplet|cliploss|aucm", re.IGNORECASE)


def check_loss(loss: Loss) -> list[Finding]:
    """Losses that couple patients: batch-wise Dice, contrastive ones, and those that average the batch."""
    parts = list(loss.modules()) if isinstance(loss, nn.Module) else [loss]
    findings = []
    for part in parts:
        kind = type(part).__name__ if isinstance(part, nn.Module) else getattr(part, "__name__", type(part).__name__)
        if _CONTRASTIVE.search(kind):
            why = "it compares patients of a batch with each other"
            findings.append(Finding(f"loss {kind}", "refused", why, "Use a loss of each record alone."))
        elif getattr(part, "batch", False) is True:
            why = "batch=True computes overlap over all patients of the batch"
            findings.append(Finding(f"loss {kind}", "refused", why, "Set batch=False and reduction='none'."))
        elif str(getattr(part, "reduction", "none")).rpartition(".")[2].lower() in ("mean", "sum") and part is loss:
            why = "it gives one value for the whole batch"
            findings.append(Finding(f"loss {kind}", "refused", why, _PER_RECORD))
    return findings


def check_sampler(sampler: object) -> list[Finding]:
    """Only Poisson draws of patients are what the accountant charges for; any other sampler is refused."""
    if sampler is None:
        return []
    kind = sampler.rpartition(".")[2] if isinstance(sampler, str) else type(sampler).__name__
    what = f"sampler {kind}"
    if not isinstance(sampler, str):
        try:
            loading.check_sampler(sampler)
        except CheckRefused as error:
            return [Finding(what, "refused", error.message, error.remedy or "")]
    elif kind not in ("PoissonSampler", "PatientLoader"):
        why = "its draws are not independent with one fixed rate, which is what the accountant charges for"
        remedy = "Leave the sampler out: dptrain.data.PatientLoader draws patients by Poisson sampling."
        return [Finding(what, "refused", why, remedy)]
    return [Finding(what, "ok", "each patient independently with the plan's rate")]


def _transform_names(transforms: object) -> Iterator[tuple[str, int]]:
    """(name, views) of transforms given as objects, as `_target_` mappings, as names, or nested in either."""
    if transforms is None:
        return
    if isinstance(transforms, str):
        yield transforms.rpartition(".")[2], 1
    elif isinstance(transforms, Mapping):
        if "_target_" in transforms:
            views = transforms.get("num_samples", 1)
            name = str(transforms["_target_"]).rpartition(".")[2]
            yield name, views if isinstance(views, int) else 1
        for value in transforms.values():
            if isinstance(value, Mapping | list | tuple):
                yield from _transform_names(value)
    elif isinstance(transforms, Sequence):
        for item in transforms:
            if not isinstance(item, str | int | float) or "." in str(item):
                yield from _transform_names(item)
    elif isinstance(chain := getattr(transforms, "transforms", None), Sequence):
        yield from _transform_names(chain)
    else:
        inner = getattr(transforms, "cropper", transforms)
        views = getattr(transforms, "num_samples", getattr(inner, "num_samples", 1))
        for kind in type(transforms).__mro__:
            if mixes(kind.__name__):
                yield kind.__name__, 1
                return
        yield type(transforms).__name__, views if isinstance(views, int) else 1


def check_transforms(transforms: object) -> list[Finding]:
    """Transforms that mix records of several patients; crops and copies are views of their own patient."""
    findings, count = [], 0
    for name, views in _transform_names(transforms):
        count += 1
        if mixes(name):
            why = "it works on whole batches and mixes records of several patients"
            remedy = "Leave it out; more views of one patient (privacy.views) regularise without mixing."
            findings.append(Finding(f"transform {name}", "refused", why, remedy))
        elif views > 1:
            findings.append(Finding(f"transform {name}", "ok", f"its {views} crops are views of their patient", ""))
    if count and not findings:
        findings.append(Finding(f"{count} transforms", "ok", "each record by itself", ""))
    return findings


# ------------------------------------------------------------------------------------------- run time

_BASE = "base"
_ALONE = "the others are left out"
_BEFORE = "another batch came before"


@dataclass
class _Outcome:
    """What one patient's records got in one batch."""

    losses: Tensor
    grads: list[Tensor]
    leak: float  # largest gradient of the patient's loss by another patient's input
    buffers: dict[str, Tensor]


class _NotPerRecord(Exception):
    pass


def made_up(input_shape: Sequence[int], task: str, records: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random images [records, *input_shape] in 0…1, in float64, and labels of the task."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand((records, *input_shape), generator=generator, dtype=torch.float64)
    spec, several = task_spec(task), max(classes, 1)
    shape = (records, *spec.label_shape(several, input_shape))
    label = torch.randint(0, spec.label_values(several), shape, generator=generator)
    return image, label


def check_outputs(model: nn.Module, input_shape: Sequence[int], task: str, *, classes: int = 2) -> list[Finding]:
    """Whether the network takes a record of the data's shape and answers with the outputs that the task asks for.

    A network with more outputs than classes trains without complaint, and fails, or misleads, where it is scored.
    What does not run for another reason, or gives several tensors, is :func:`check_separable`'s to say.
    """
    spec, shape = task_spec(task), list(input_shape)
    wanted = (spec.outputs(classes), *(shape[1:] if spec.labels is Labels.MASK else ()))
    where = next(iter([*model.parameters(), *model.buffers()]), torch.zeros(0)).device
    image, _ = made_up(shape, task, 2, classes, 0)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = copy.deepcopy(model).eval()(image.float().to(where))
    except Exception:
        taken = _taken(model)
        if taken is None or taken == shape[0]:
            return []
        why = f"it takes {taken} channels or features, and data.image_shape={shape} has {shape[0]}"
        remedy = "Leave it to the data (in_channels=data.channels, in_features=data.features), or change the shape."
        return [Finding("inputs of the network", "refused", why, remedy)]
    if not isinstance(output, Tensor):
        return []
    given = tuple(output.shape[1:])
    if given == wanted or (spec.one_logit and output.numel() == len(image)):
        return []
    names = f"task={task} with {classes} classes"
    why = f"{_sizes(given)} a record, where {names} takes {_sizes(wanted)}"
    remedy = f"Leave it to the data: model.network.num_classes=data.outputs (MONAI: out_channels), here {wanted[0]}."
    if given[:1] == wanted[:1]:
        remedy = "The mask and the image have one shape: choose sides of data.image_shape that the network keeps."
    return [Finding("outputs of the network", "refused", why, remedy)]


def _taken(model: nn.Module) -> int | None:
    """Channels (or features) that the first layer with weights takes."""
    for layer in model.modules():
        for name in ("in_channels", "in_features"):
            if isinstance(size := getattr(layer, name, None), int) and getattr(layer, "weight", None) is not None:
                return size
    return None


def _sizes(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def shaken(model: nn.Module) -> nn.Module:
    """A copy in training mode whose all-zero parameters are not zero (a zero head would hide every leak)."""
    twin = copy.deepcopy(model).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.numel() and not parameter.any():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.1
                parameter.copy_(noise.to(parameter))
    return twin


def _run(
    model: nn.Module,
    loss: Loss,
    image: Tensor,
    label: Tensor,
    records: list[int],
    watched: Sequence[int],
    *,
    by_pixel: bool = False,
) -> _Outcome:
    """One batch of `records` (rows of image and label); what the watched ones got of it.

    `by_pixel` also takes the derivative by the others' inputs (it goes through frozen layers too, so once is
    enough).
    """
    rows = [records.index(record) for record in watched]
    others = [row for row, record in enumerate(records) if record not in watched]
    inputs = image[records].clone().requires_grad_(by_pixel)
    devices = [inputs.device] if inputs.is_cuda else []
    with torch.random.fork_rng(devices=devices), FixedDraws(records):
        torch.manual_seed(0)
        output = model(inputs)
        if isinstance(output, tuple | list | dict):
            raise _NotPerRecord(
                f"the network gives a {type(output).__name__} of outputs, not one tensor",
                "Wrap it: dptrain.models.first_output takes the first.",
            )
        losses = loss(output, label[records])
    if not isinstance(losses, Tensor) or losses.shape != (len(records),):
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise _NotPerRecord(f"for {len(records)} records the loss gives {shape}, not one value a record", _PER_RECORD)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not losses.requires_grad or not trained:
        raise _NotPerRecord("no parameter that is trained reaches the loss", "Check model.train and requires_grad.")
    wanted = [inputs, *trained] if by_pixel else trained
    derived = list(torch.autograd.grad(losses[rows].mean(), wanted, allow_unused=True))
    leak = 0.0
    if by_pixel and (pixels := derived.pop(0)) is not None:
        leak = float(pixels[others].abs().max())
    grads = [torch.zeros_like(p) if g is None else g for p, g in zip(trained, derived, strict=True)]
    buffers = {name: value.detach().clone() for name, value in model.named_buffers()}
    return _Outcome(losses.detach()[rows], grads, leak, buffers)


def _apart(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Relative distance of two lists of tensors in the Euclidean norm; infinite if either is not finite."""
    gap = sum(float((x.double() - y.double()).square().sum()) for x, y in zip(a, b, strict=True)) ** 0.5
    size = sum(float(x.double().square().sum()) for x in a) ** 0.5
    if not (gap < float("inf") and size < float("inf")):
        return float("inf")
    return gap / size if size > 0 else (0.0 if gap == 0 else float("inf"))


def check_separable(
    model: nn.Module,
    loss: Loss,
    input_shape: Sequence[int],
    task: str,
    *,
    classes: int = 2,
    seed: int = 0,
) -> list[Finding]:
    """Try whether a patient's losses and gradients depend on who else is in the batch.

    One patient with two records stays; the others are replaced by quite different data, removed, joined by
    one more, and put in another order. Compared in training mode under one fixed draw of dropout, in float32
    and, where rounding or activation flips show, in float64. Beside the values, the derivative of the
    patient's loss by the others' inputs must be exactly zero, no buffer may depend on the data, and a batch
    seen before must not matter.

    Args:
        model: the network as it will be trained; a copy is tried.
        loss: (output, label) -> [N].
        input_shape: of one record, channels included.
        classes: number of classes, for made-up labels.
    """
    what = "separability"
    where = next(iter([*model.parameters(), *model.buffers()]), torch.zeros(0)).device
    image, label = made_up(input_shape, task, 6, classes, seed)
    other = made_up(input_shape, task, 6, classes, seed + 1)[0] * 4 - 1.5
    other_label = label.flip(0) if label.dim() == 1 else label.flip(-1)
    mine = [0, 1]
    # Rows: 0, 1 one patient; 2, 3 two others; 4 joins; 5 belongs to a quite different batch.
    changed, changed_label = other.clone(), other_label.clone()
    changed[mine], changed_label[mine] = image[mine], label[mine]

    def ready(tensor: Tensor, double: bool) -> Tensor:
        floating = torch.float64 if double else torch.float32
        return tensor.to(where, floating if tensor.is_floating_point() else tensor.dtype)

    def attempt(double: bool) -> tuple[dict[str, _Outcome], dict[str, Tensor]]:
        net = shaken(model)
        net = net.double() if double else net
        a, b = ready(image, double), ready(changed, double)
        la, lb, strange = ready(label, double), ready(changed_label, double), ready(other, double)
        seen = {
            _BASE: _run(copy.deepcopy(net), loss, a, la, [0, 1, 2, 3], mine, by_pixel=True),
            "the others have quite different records": _run(copy.deepcopy(net), loss, b, lb, [0, 1, 2, 3], mine),
            _ALONE: _run(copy.deepcopy(net), loss, a, la, [0, 1], mine),
            "one more patient joins": _run(copy.deepcopy(net), loss, a, la, [0, 1, 2, 3, 4], mine),
            "the batch is in another order": _run(copy.deepcopy(net), loss, a, la, [3, 1, 2, 0], mine),
        }
        used = copy.deepcopy(net)
        different = _run(used, loss, strange, ready(other_label, double), [2, 5, 4, 3], [4, 5])
        seen[_BEFORE] = _run(used, loss, a, la, [0, 1], mine)
        return seen, different.buffers

    try:
        seen, different = attempt(False)
        findings = _judged(seen, different, QUICK, "float32")
        if any(finding.status == "refused" for finding in findings):
            try:
                seen, different = attempt(True)
            except (RuntimeError, TypeError):  # layers or losses that exist in float32 only
                return _judged(seen, different, TOLERANCE_FLOAT32, "float32")
            findings = _judged(seen, different, TOLERANCE, "float64")
        if not any(finding.status == "refused" for finding in findings):
            findings += _beside_extremes(shaken(model), loss, ready(image, False), ready(label, False))
    except _NotPerRecord as error:
        return [Finding(what, "refused", *error.args)]
    except Exception as error:
        why = f"the network or its loss does not run on made-up data: {type(error).__name__}: {first_line(error)}"
        remedy = f"Check data.image_shape={list(input_shape)}, channels, classes and task={task}."
        return [Finding(what, "refused", why, remedy)]
    return findings


EXTREMES = (0.0, 255.0, 65535.0, 1e6, -1e6, math.nan, math.inf)
"""What the others' pixels are set to, since some networks look at the others only where those are unlike an image."""


def _beside_extremes(model: nn.Module, loss: Loss, image: Tensor, label: Tensor) -> list[Finding]:
    """One patient among 17 or more others whose pixels are extreme, and after them: bit for bit the same results.

    Beside values that are not finite the losses alone are compared: zero times NaN is NaN in plain autograd's sums.
    The number of rows is one, so that no kernel has a reason to round otherwise. Large images have fewer others.
    """
    least = 18 if image[0].numel() <= 1 << 18 else len(image)
    copies = -(-least // len(image))
    image, label = (t.repeat(copies, *[1] * (t.dim() - 1)) for t in (image, label))
    records, mine = list(range(len(image))), [0, 1]
    expected = _run(copy.deepcopy(model), loss, image, label, records, mine)
    moved: list[str] = []
    twin = copy.deepcopy(model)  # one for all: what it keeps of a batch shows in the next
    for value in EXTREMES:
        beside = image.clone()
        beside[len(mine) :] = value
        outcome = _run(twin, loss, beside, label, records, mine)
        same = torch.equal(expected.losses, outcome.losses)
        if math.isfinite(value):
            same = same and all(torch.equal(a, b) for a, b in zip(expected.grads, outcome.grads, strict=True))
        if not same:
            moved.append(f"{value:g}")
    again = _run(twin, loss, image, label, records, mine)
    kept = any(not torch.equal(a, b) for a, b in zip(_found(expected), _found(again), strict=True))
    if not moved and not kept:
        return []
    where = f"beside patients whose pixels are {', '.join(moved)}" if moved else "after a batch of extreme pixels"
    why = f"a patient's loss or gradient is another {where}"
    remedy = "Find the layer or loss that looks across the batch axis and let it work on each record alone."
    return [Finding("separability", "refused", why, remedy)]


def _found(outcome: _Outcome) -> list[Tensor]:
    return [outcome.losses, *outcome.grads, *outcome.buffers.values()]


def _judged(
    seen: Mapping[str, _Outcome], different: Mapping[str, Tensor], limit: float, precision: str
) -> list[Finding]:
    """What follows from the batches that were tried; `different` are the buffers after quite other data."""
    what = "separability"
    base, alone = seen[_BASE], seen[_ALONE]
    if not all(bool(tensor.isfinite().all()) for tensor in [base.losses, *base.grads]):
        why = "losses or gradients on made-up data are not finite"
        return [Finding(what, "refused", why, "Check the network's scale and its starting weights.")]
    remedy = "Find the layer or loss that looks across the batch axis and let it work on each record alone."
    findings: list[Finding] = []
    if base.leak > 0:
        why = "a patient's loss changes with the pixels of another patient in the batch"
        findings.append(Finding(what, "refused", why, remedy))
    gaps: dict[str, float] = {}
    for case, result in seen.items():
        truth = alone if case == _BEFORE else base
        gap = max(_apart([truth.losses], [result.losses]), _apart(truth.grads, result.grads))
        if gap > limit:
            gaps[case] = gap
    if gaps:
        cases = ", or ".join(gaps)
        why = f"a patient's loss or gradient is another when {cases} (by up to {max(gaps.values()):.1e} of it)"
        findings.append(Finding(what, "refused", why, remedy))
    leaking = [name for name, value in base.buffers.items() if not _same(value, different[name])]
    if leaking:
        named = ", ".join(leaking[:3]) + (" …" if len(leaking) > 3 else "")
        why = f"buffers take up the patients' data without noise: {named}"
        remedy = "Keep no running statistics in training: replace the layer, or freeze it with public ones."
        findings.append(Finding("buffers", "refused", why, remedy))
    if not findings:
        why = f"perturbed, removed, added and permuted others change nothing ({precision})"
        findings.append(Finding(what, "ok", why, ""))
    return findings


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(
        torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, rtol=1e-9))
    )


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:200]


def preflight(
    model: nn.Module,
    loss: Loss,
    input_shape: Sequence[int],
    task: str,
    *,
    classes: int = 2,
    sampler: object = None,
    transforms: object = None,
) -> list[Finding]:
    """Every finding of the static checks and the run-time test; nothing is charged and no real data is read.

    Args:
        model: the network as it will be trained (after :func:`make_private` and :func:`split_frozen`).
        loss: (output, label) -> [N].
        input_shape: of one record, channels included.
        task: what the network is asked.
        classes: number of classes or labels.
        sampler: a sampler somebody wants to use, or its name.
        transforms: transforms as objects, `_target_` mappings or names, in lists or a Compose.
    """
    static = [
        *check_modules(model),
        *check_loss(loss),
        *check_sampler(sampler),
        *check_transforms(transforms),
    ]
    outputs = check_outputs(model, input_shape, task, classes=classes)
    if outputs:  # nothing else that is tried would say more
        return static + outputs
    return static + check_separable(model, loss, input_shape, task, classes=classes)


def refuse(findings: Sequence[Finding]) -> None:
    """Raise CheckRefused (exit code 4) with every refused finding and its remedy; nothing if there is none."""
    bad = [finding for finding in findings if finding.status == "refused"]
    if not bad:
        return
    lines = "\n".join(f"  {finding.what}: {finding.why}" for finding in bad)
    remedies = dict.fromkeys(finding.remedy for finding in bad if finding.remedy)
    raise CheckRefused(
        f"The pre-flight check refuses this network or pipeline; nothing was charged.\n{lines}",
        remedy="\n".join(f"  {remedy}" for remedy in remedies) or None,
    )


def print_findings(findings: Sequence[Finding], *, console: Console | None = None) -> None:
    """The findings as a table, refused ones first, and below it what to do, whole lines, for `dptrain check`.

    Args:
        console: a `rich.console.Console`; standard output if None.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "changed": "yellow", "refused": "bold red"}
    console = console or Console()
    table = Table(title="Pre-flight check", title_justify="left", show_lines=False)
    for column in ("status", "what", "why"):
        table.add_column(column, overflow="fold")
    order = {"refused": 0, "changed": 1, "ok": 2}
    ordered = sorted(findings, key=lambda finding: order[finding.status])
    for finding in ordered:
        cells = (finding.what, finding.why)
        table.add_row(Text(finding.status, style=colours[finding.status]), *(Text(cell) for cell in cells))
    console.print(table)
    remedies = dict.fromkeys(finding.remedy for finding in ordered if finding.remedy)
    if remedies:
        text = "\n".join(["What to do:", *(f"  {line}" for remedy in remedies for line in remedy.splitlines())])
        console.print(Text(text), soft_wrap=True)  # never broken within a word that is to be pasted
