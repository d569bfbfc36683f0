"""Train reference models: many at once, each with its own patients, start, draws and noise; keep scores only.

Four ways, chosen by what is trained:

- *linear*: one layer on fixed features. Patient gradients have a closed form; every step is two matrix
  products for all models together.
- *dense*: a chain of fully connected layers and activations. As above, layer by layer.
- *stacked*: any other small network, with `torch.func`: vmap over models of vmap over records of grad. Many times
  faster than one after another on a GPU, slower on a CPU (benchmarks/results/audit.md).
- *engine*: the training loop of the run itself, one model after another, in as many processes as asked for.
  The canaries of a promise go this way, since only it runs the code that made the promise.

In all of them a patient's gradient is the mean over the records drawn, its norm is taken over all layers, and
it is clipped before it is summed; noise is added once a step; the sum is divided by the plan's expected batch.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from dptrain.audit.scores import Array, confidence, from_loss
from dptrain.data import PatientLoader, Tensors
from dptrain.errors import ConfigError, quiet
from dptrain.models.preflight import first_line
from dptrain.plan import Plan
from dptrain.settings import OptimizerConfig
from dptrain.training.loop import fit
from dptrain.training.step import PrivateStep, Update
from dptrain.vocabulary import Activation, Labels, Purpose, task_spec

Tick = Callable[[int], None]
STACK_BYTES = 256 << 20
STACKED_PARAMETERS = 300_000  # above it one model alone fills the caches: nothing is gained by stacking


@dataclass(frozen=True)
class Material:
    """What reference models are trained on and how.

    Args:
        inputs: [R, …] images or features; labels: [R], [R, C] or [R, 1, *space].
        patient: int64 [R], positions 0…patients−1.
        trained: bool [R]; records that are never trained on are scored all the same (the new-scan attack).
        task: binary, multiclass, multilabel or segmentation; loss: (output, label [N, …]) -> [N].
        plan: rate, clip, noise, steps, cap and normaliser of a reference training.
        optimizer, ema: as the run's.
        module: the trainable part (its weights are not used).
        start: -> state of freshly initialised weights; called once a model.
        augment: random transforms of the run; they need the engine.
        rules, names: how the engine forms some layers' patient gradients (:class:`dptrain.engine.PatientGradients`).
    """

    inputs: Tensor
    labels: Tensor
    patient: Tensor
    patients: int
    trained: np.ndarray
    task: str
    loss: Any
    plan: Plan
    optimizer: OptimizerConfig
    ema: float
    module: nn.Module
    start: Callable[[], dict[str, Tensor]]
    augment: tuple[Any, ...] = ()
    rules: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


def half_plan(plan: Plan) -> Plan:
    """The plan of a cohort of half the size: the same rate, steps, clip and noise; half the normaliser.

    The normaliser is a whole number, and the size follows it, so that the rate is the run's and never above it (the
    ceilings are those of the run's mechanism): half of 3 in 100 is 2 in 67, not 2 in 50.
    """
    batch = max(1, round(plan.expected_batch_size / 2))
    size = math.ceil(batch * plan.public_size / plan.expected_batch_size)
    return dataclasses.replace(
        plan,
        public_size=size,
        expected_batch_size=batch,
        delta=min(plan.delta, 0.5 / size),
        declares=(Purpose.AUDIT,),
    )


def way_of(module: nn.Module, plan: Plan, augmented: bool = False) -> str:
    """The fastest exact way for this module."""
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    if augmented or plan.views > 1:
        return "engine"
    layers = chain(module)
    if layers is not None:
        return "linear" if _single(layers) is not None else "dense"
    mixing = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    if trainable > STACKED_PARAMETERS or any(isinstance(part, mixing) for part in module.modules()):
        return "engine"
    return "stacked"


def unstackable(material: Material) -> str:
    """Why torch.func cannot run a network that is neither linear nor dense, in a line; empty where it can."""
    module = copy.deepcopy(material.module).cpu()
    weights = {name: torch.stack([p.detach()] * 2) for name, p in module.named_parameters() if p.requires_grad}
    rows = torch.zeros(2, 2, dtype=torch.long)  # two models, two records
    x, y = material.inputs.cpu()[rows].float(), material.labels.cpu()[rows]
    try:
        _gradients(material, module.train())(weights, x, y)
        with torch.no_grad():
            vmap(lambda some: functional_call(module.eval(), (some, _fixed(module)), (x[0],)))(weights)
    except (RuntimeError, TypeError, ValueError) as error:
        return first_line(error) or type(error).__name__
    return ""


def fresh_start(module: nn.Module, names: Sequence[str] | None = None) -> Callable[[], dict[str, Tensor]]:
    """Starts made by `reset_parameters` of the named layers (None: of all that have one); the rest stays."""

    def start() -> dict[str, Tensor]:
        torch.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
        twin = copy.deepcopy(module)
        for name, part in twin.named_modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset) and (names is None or name in names):
                reset()
        return {name: value.detach().clone() for name, value in twin.state_dict().items()}

    return start


# --- drawing -----------------------------------------------------------------------------------------------


class Draws:
    """Poisson draws of patients for a stack of models, from one generator keyed by the operating system.

    One stream serves all models of the stack in turn, so no two models share a number.

    Args:
        member: bool [M, P], who is in which model.
    """

    def __init__(self, material: Material, member: Tensor, device: torch.device) -> None:
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
        self.member = member.to(device)
        self.rate = material.plan.sample_rate
        usable = torch.from_numpy(material.trained.copy()).to(device)
        broken = ~torch.isfinite(material.inputs.flatten(1)).all(dim=1)
        if broken.any():  # such a patient's gradient is not finite: the engine lets it count as zero
            usable &= ~torch.isin(material.patient, material.patient[broken]).to(device)
        rows = torch.nonzero(usable).squeeze(1)
        owner = material.patient.to(device)[rows]
        order = torch.argsort(owner, stable=True)
        self.rows, self.owner = rows[order], owner[order]  # trained records, sorted by patient
        counts = torch.bincount(self.owner, minlength=material.patients)
        cap = material.plan.max_records_per_patient
        self.counts = counts.clamp(max=cap)
        starts = torch.cumsum(counts, 0) - counts
        self.capped = [
            (starts[who][:, None] + torch.arange(int(n), device=device), cap)
            for n in torch.unique(counts[counts > cap])
            for who in [torch.nonzero(counts == n).squeeze(1)]
        ]

    def weights(self) -> Tensor:
        """[M, rows]: 1/(records drawn of the patient) where the record takes part in this step, else 0."""
        chance = torch.rand(self.member.shape, generator=self.generator, device=self.member.device)
        drawn = (self.member & (chance < self.rate)).float() / self.counts.clamp(min=1)
        weights = drawn[:, self.owner]
        for positions, cap in self.capped:
            keys = torch.rand((weights.shape[0], *positions.shape), generator=self.generator, device=weights.device)
            chosen = keys.argsort(dim=2).argsort(dim=2) < cap
            weights[:, positions] *= chosen
        return weights

    def noise(self, like: Tensor, scale: float) -> Tensor:
        """Gaussian noise of standard deviation `scale`, of the shape of `like`."""
        return torch.randn(like.shape, generator=self.generator, device=like.device) * scale


# --- the stacked optimiser ----------------------------------------------------------------------------------


class _Stack(nn.Module):
    """Parameters [M, …] of all models, with the optimiser and the average of the run."""

    def __init__(self, material: Material, starts: Sequence[dict[str, Tensor]], device: torch.device) -> None:
        super().__init__()
        self.names = [name for name, p in material.module.named_parameters() if p.requires_grad]
        self.weights = nn.ParameterList(
            [nn.Parameter(torch.stack([s[name] for s in starts]).to(device, torch.float32)) for name in self.names]
        )
        steps, ema = material.plan.steps, material.ema
        self._step = Update(list(self.weights), material.optimizer, steps=steps, ema=ema)

    def by_name(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.weights, strict=True))

    def update(self, gradients: Sequence[Tensor]) -> None:
        """One step of the optimiser and of the average, as a run takes it."""
        self._step.apply(gradients)

    def final(self) -> dict[str, Tensor]:
        average = self._step.average
        values = [w.detach() for w in self.weights] if average is None else average
        return dict(zip(self.names, values, strict=True))


def _factors(square: Tensor, clip: float) -> Tensor:
    """min(1, C/‖g‖) from squared norms; 0 for a norm that is not finite."""
    norm = square.clamp(min=0).sqrt()
    factor = (clip / norm.clamp(min=1e-30)).clamp(max=1.0)
    return torch.where(torch.isfinite(norm), factor, torch.zeros_like(factor))


def _noisy_mean(sums: Sequence[Tensor], draws: Draws, plan: Plan) -> list[Tensor]:
    """Noise once, then the plan's normaliser."""
    if plan.noise_multiplier > 0:
        scale = plan.noise_multiplier * plan.max_grad_norm
        sums = [value + draws.noise(value, scale) for value in sums]
    return [value / plan.expected_batch_size for value in sums]


# --- chains of fully connected layers -----------------------------------------------------------------------

ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Softplus, nn.Identity)


def chain(module: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """The layers in order, where the module is nothing but Linear layers, activations and a Flatten first."""
    from dptrain.models.nets import BodyAndHead

    found: list[tuple[str, nn.Module]] = []

    def walk(part: nn.Module, name: str) -> bool:
        if isinstance(part, (nn.Linear, nn.Flatten, *ELEMENTWISE)):
            found.append((name, part))
            return True
        if type(part) is nn.Sequential or type(part) is BodyAndHead:
            # not named_children(): it skips a module that is used twice
            return all(walk(child, _prefix(name, key)) for key, child in part._modules.items() if child is not None)
        return False

    if not walk(module, "") or any(not p.requires_grad for p in module.parameters()):
        return None
    linear = [i for i, (_, part) in enumerate(found) if isinstance(part, nn.Linear)]
    if not linear or any(isinstance(part, nn.Flatten) for _, part in found[linear[0] :]):
        return None
    if len({id(part) for _, part in found if list(part.parameters())}) != len(linear):
        return None
    return found


def _single(layers: list[tuple[str, nn.Module]]) -> tuple[str, nn.Module] | None:
    """The one Linear layer, where there is no other layer with an effect."""
    rest = [item for item in layers if not isinstance(item[1], nn.Flatten | nn.Identity)]
    return rest[0] if len(rest) == 1 and isinstance(rest[0][1], nn.Linear) else None


def _residual(logits: Tensor, labels: Tensor, task: str) -> Tensor:
    """Gradient of the per-record loss by the logits, [R, M, C]."""
    spec = task_spec(task)
    if spec.one_logit:
        return torch.sigmoid(logits) - labels.reshape(-1, 1, 1).float()
    if spec.activation is Activation.SOFTMAX:
        return logits.softmax(2) - nn.functional.one_hot(labels.long().reshape(-1), logits.shape[2])[:, None]
    return (torch.sigmoid(logits) - labels[:, None].float()) / logits.shape[2]


def _prefix(name: str, leaf: str) -> str:
    return f"{name}.{leaf}" if name else leaf


def _train_linear(
    material: Material, stack: _Stack, draws: Draws, layer: tuple[str, nn.Module], device: torch.device, tick: Tick
) -> None:
    """Closed form for one layer: ‖Σ_r a_r e_r x_rᵀ‖² = Σ_{r,s} a_r a_s (e_r·e_s)(x_r·x_s + 1).

    The inner products x_r·x_s within a patient are the same at every step and are taken once.
    """
    plan = material.plan
    x = material.inputs.to(device)[draws.rows].flatten(1).float().contiguous()
    labels = material.labels.to(device)[draws.rows]
    owner, patients = draws.owner, material.patients
    first, second = _pairs(owner)
    bias = layer[1].bias is not None
    inner = torch.cat(
        [(x[i] * x[j]).sum(1) for i, j in zip(first.split(65536), second.split(65536), strict=True)]
    ) + float(bias)
    inner = torch.where(first == second, inner, 2 * inner)  # (r, s) stands for (s, r) too
    weight = stack.by_name()[_prefix(layer[0], "weight")]
    models, classes, _ = weight.shape
    shift = stack.by_name().get(_prefix(layer[0], "bias"))
    pair_owner = owner[first]
    same = bool((first == second).all())
    for _ in range(plan.steps):
        with torch.no_grad():
            logits = (x @ weight.detach().reshape(models * classes, -1).T).reshape(-1, models, classes)
            if shift is not None:
                logits = logits + shift.detach()
            scaled = _residual(logits, labels, material.task) * draws.weights().T[:, :, None]
            product = (scaled * scaled).sum(2) if same else (scaled[first] * scaled[second]).sum(2)
            square = torch.zeros(patients, models, device=device)
            square.index_add_(0, pair_owner, product * inner[:, None])
            scaled = torch.nan_to_num(scaled) * _factors(square, plan.max_grad_norm)[owner][:, :, None]
            sums = {"weight": (scaled.reshape(-1, models * classes).T @ x).reshape(weight.shape)}
            if shift is not None:
                sums["bias"] = scaled.sum(0)
            ordered = [sums[name.rpartition(".")[2]] for name in stack.names]
            stack.update(_noisy_mean(ordered, draws, plan))
        tick(models)


def _pairs(owner: Tensor) -> tuple[Tensor, Tensor]:
    """All unordered pairs of rows with the same owner, each row with itself included; owner is sorted."""
    rows = torch.arange(owner.numel(), device=owner.device)
    first, second = [rows], [rows]
    offset = 1
    while offset < owner.numel():
        same = torch.nonzero(owner[offset:] == owner[:-offset]).squeeze(1)
        if same.numel() == 0:
            break
        first.append(same)
        second.append(same + offset)
        offset += 1
    return torch.cat(first), torch.cat(second)


@dataclass
class _Drawn:
    """The rows that take part in one step, padded, all [M, b].

    index: of the record. position: among the trained records sorted by patient. owner: −1 for padding.
    """

    index: Tensor
    position: Tensor
    weight: Tensor
    owner: Tensor


def _drawn(draws: Draws) -> _Drawn:
    weights = draws.weights()
    which, position = torch.nonzero(weights, as_tuple=True)
    counts = torch.bincount(which, minlength=weights.shape[0])
    width = max(int(counts.max()), 1)
    column = torch.arange(which.numel(), device=which.device) - (torch.cumsum(counts, 0) - counts)[which]
    shape = (weights.shape[0], width)
    place = torch.zeros(shape, dtype=torch.long, device=which.device)
    owner = torch.full(shape, -1, dtype=torch.long, device=which.device)
    weight = torch.zeros(shape, device=which.device)
    place[which, column] = position
    owner[which, column] = draws.owner[position]
    weight[which, column] = weights[which, position]
    return _Drawn(draws.rows[place], place, weight, owner)


def _segments(owner: Tensor) -> Tensor:
    """Number of each row's patient within its model, 0, 1, …; padding joins a last segment: [M, b]."""
    new = torch.ones_like(owner, dtype=torch.bool)
    new[:, 1:] = owner[:, 1:] != owner[:, :-1]
    return torch.cumsum(new, dim=1) - 1


class _InputGram:
    """Inner products (plus one for a bias) of the inputs of one patient, taken once: they never change."""

    def __init__(self, x: Tensor, owner: Tensor, patients: int, bias: bool) -> None:
        counts = torch.bincount(owner, minlength=patients)
        starts = torch.cumsum(counts, 0) - counts
        blocks = torch.cumsum(counts**2, 0) - counts**2
        self.local = torch.arange(owner.numel(), device=owner.device) - starts[owner]
        self.base = blocks[owner] + self.local * counts[owner]
        self.table = torch.zeros(int((counts**2).sum()), device=owner.device)
        first, second = _pairs(owner)
        for i, j in zip(first.split(65536), second.split(65536), strict=True):
            self.table[self.base[i] + self.local[j]] = (x[i] * x[j]).sum(1) + float(bias)

    def of(self, first: Tensor, second: Tensor) -> Tensor:
        """For positions of pairs; the first must not come after the second."""
        return self.table[self.base[first] + self.local[second]]


def _train_dense(
    material: Material,
    stack: _Stack,
    draws: Draws,
    layers: list[tuple[str, nn.Module]],
    device: torch.device,
    tick: Tick,
) -> None:
    """Gram norms layer by layer on the rows drawn: Σ_{r,s} a_r a_s (δ_r·δ_s)(h_r·h_s + 1), for every Linear."""
    plan = material.plan
    inputs, labels = material.inputs.to(device).float(), material.labels.to(device)
    inputs = inputs.flatten(1) if isinstance(layers[0][1], nn.Flatten) else inputs
    gram = None
    entry = next(layer for _, layer in layers if not isinstance(layer, nn.Flatten))
    if isinstance(entry, nn.Linear):
        gram = _InputGram(inputs[draws.rows], draws.owner, material.patients, entry.bias is not None)
    for _ in range(plan.steps):
        rows = _drawn(draws)
        models, width = rows.index.shape
        weights = stack.by_name()
        hidden = inputs[rows.index]
        kept: list[Tensor] = []
        linear: list[tuple[str, bool, Tensor]] = []
        with torch.enable_grad():
            for name, layer in layers:
                if isinstance(layer, nn.Linear):
                    linear.append((name, layer.bias is not None, hidden.detach()))
                    hidden = torch.bmm(hidden, weights[_prefix(name, "weight")].detach().transpose(1, 2))
                    if layer.bias is not None:
                        hidden = hidden + weights[_prefix(name, "bias")].detach()[:, None]
                    if not kept:
                        hidden.requires_grad_(True)
                    kept.append(hidden)
                elif not isinstance(layer, nn.Flatten):
                    hidden = layer(hidden)
            flat = labels[rows.index.reshape(-1)]
            losses = material.loss(hidden.reshape(models * width, -1), flat).reshape(models, width)
            deltas = torch.autograd.grad((losses * (rows.owner >= 0)).sum(), kept)
        with torch.no_grad():
            deltas = tuple(delta * rows.weight[:, :, None] for delta in deltas)
            segment = _segments(rows.owner)
            square = torch.zeros(models, width, device=device)
            offset = 0
            while offset < width:
                model, column = torch.nonzero(
                    (rows.owner[:, offset:] == rows.owner[:, : width - offset]) & (rows.owner[:, offset:] >= 0),
                    as_tuple=True,
                )
                if model.numel() == 0:
                    break
                one, two = (model, column), (model, column + offset)
                value = torch.zeros(model.numel(), device=device)
                for number, ((_, bias, below), delta) in enumerate(zip(linear, deltas, strict=True)):
                    if number == 0 and gram is not None:
                        inner = gram.of(rows.position[one], rows.position[two])
                    else:
                        inner = (below[one] * below[two]).sum(1) + float(bias)
                    value += (delta[one] * delta[two]).sum(1) * inner
                square.index_put_((model, segment[model, column]), value * (1 if offset == 0 else 2), accumulate=True)
                offset += 1
            factor = torch.gather(_factors(square, plan.max_grad_norm), 1, segment)
            sums: dict[str, Tensor] = {}
            for (name, bias, below), delta in zip(linear, deltas, strict=True):
                clipped = torch.nan_to_num(delta) * factor[:, :, None]
                sums[_prefix(name, "weight")] = torch.bmm(clipped.transpose(1, 2), below)
                if bias:
                    sums[_prefix(name, "bias")] = clipped.sum(1)
            stack.update(_noisy_mean([sums[name] for name in stack.names], draws, plan))
        tick(models)


def _fixed(module: nn.Module) -> dict[str, Tensor]:
    """What all models of a stack share: frozen parameters and buffers."""
    fixed = {name: p.detach() for name, p in module.named_parameters() if not p.requires_grad}
    return {**fixed, **{name: b.detach() for name, b in module.named_buffers()}}


def _gradients(material: Material, module: nn.Module) -> Callable[..., dict[str, Tensor]]:
    """(weights [M, …], inputs [M, b, …], labels [M, b, …]) -> gradient of each record, [M, b, …]."""
    fixed = _fixed(module)

    def one(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = material.loss(functional_call(module, (weights, fixed), (x[None],)), y[None])[0]
        return loss

    return vmap(vmap(grad(one), in_dims=(None, 0, 0)), in_dims=(0, 0, 0))


def _train_stacked(material: Material, stack: _Stack, draws: Draws, device: torch.device, tick: Tick) -> None:
    """torch.func: gradients of single records, summed within patients, clipped, summed over patients."""
    plan = material.plan
    inputs, labels = material.inputs.to(device), material.labels.to(device)
    gradients = _gradients(material, copy.deepcopy(material.module).to(device).train())
    size = sum(p[0].numel() for p in stack.weights)
    for _ in range(plan.steps):
        rows = _drawn(draws)
        models, width = rows.index.shape
        weights = {name: value.detach() for name, value in stack.by_name().items()}
        segment = _segments(rows.owner)
        sums = {name: torch.zeros_like(value) for name, value in weights.items()}
        together = max(1, STACK_BYTES // (4 * size * width))
        for begin in range(0, models, together):
            some = slice(begin, begin + together)
            index, scale = rows.index[some], rows.weight[some]
            each = gradients({n: v[some] for n, v in weights.items()}, inputs[index].float(), labels[index])
            number = segment[some]
            patients = int(number.max()) + 1
            square = torch.zeros(index.shape[0], patients, device=device)
            grouped: dict[str, Tensor] = {}
            for name, value in each.items():
                flat = value.detach().flatten(2) * scale[:, :, None]
                target = torch.zeros(index.shape[0], patients, flat.shape[2], device=device)
                target.scatter_add_(1, number[:, :, None].expand_as(flat), flat)
                square += (target**2).sum(2)
                grouped[name] = target
            factor = _factors(square, plan.max_grad_norm)
            for name, target in grouped.items():
                total = torch.einsum("mp,mpd->md", factor, torch.nan_to_num(target))
                sums[name][some] = total.reshape(sums[name][some].shape)
        stack.update(_noisy_mean([sums[name] for name in stack.names], draws, plan))
        tick(models)


# --- the engine of the run -------------------------------------------------------------------------------------


class _Roster:
    """The patients of a material, as the loader asks for them."""

    fingerprint = "reference material"  # copies in memory, of no cohort that a grant of the ledger names

    def __init__(self, material: Material) -> None:
        self.patients = [_Place(str(i).encode()) for i in range(material.patients)]

    def split(self, name: str) -> list[int]:
        del name
        return list(range(len(self.patients)))


@dataclass(frozen=True)
class _Place:
    key: bytes

    def excluded(self, keys: frozenset[bytes]) -> bool:
        return self.key in keys


@dataclass(frozen=True)
class _ReferenceLeave:
    """Lets the engine train a model that charges nothing and is never kept: an audit's own purpose.

    It is only made inside an admitted audit (:mod:`dptrain.audit.run`); non-members are its excluded.
    """

    plan: Plan
    excluded: frozenset[bytes]
    run: str = "reference"
    purpose: str = Purpose.AUDIT
    cohort: str = "reference"
    fingerprint: str = _Roster.fingerprint
    lease: int = 1 << 30

    @property
    def committed(self) -> int:
        return self.plan.steps

    @property
    def process(self) -> int:
        return os.getpid()

    def require(self, step: int | None = None, *, purpose: str | None = None, cohort: str | None = None) -> None:
        """Always granted."""

    def commit(self, through: int) -> None:
        """Nothing to pay."""

    def give_back(self) -> bool:
        """Nothing was reserved."""
        return False


def train_with_engine(
    material: Material,
    member: np.ndarray,
    start: dict[str, Tensor] | None = None,
    device: str | torch.device = "cpu",
) -> Array:
    """Train one model [P bool] with the run's own loop, loader, clipping and noise; its scores [R]."""
    module = copy.deepcopy(material.module)
    module.load_state_dict(material.start() if start is None else start)
    rows = torch.from_numpy(np.flatnonzero(material.trained))
    source: Any = Tensors(
        material.inputs[rows],
        material.labels[rows],
        material.patient[rows],
        _Roster(material),  # type: ignore[arg-type]
    )
    leave = _ReferenceLeave(material.plan, frozenset(str(i).encode() for i in np.flatnonzero(~member)))
    chunk = max(256, material.plan.max_records_per_patient * material.plan.views)
    loader = PatientLoader(source, material.plan, leave, augment=material.augment, chunk=chunk)
    step = PrivateStep(
        module,
        material.plan,
        loss=material.loss,
        optimizer=material.optimizer,
        ema=material.ema,
        device=device,
        rules=material.rules,
        names=material.names,
    )
    model = fit(step, loader, leave, checked=True).model
    parts = []
    with torch.no_grad():
        for begin in range(0, len(material.inputs), 512):
            output = model(material.inputs[begin : begin + 512].to(device).float())[None]
            labels = material.labels[begin : begin + 512].to(device)
            parts.append(score_outputs(output, labels, material.task, material.loss))
    return np.asarray(np.concatenate(parts, axis=1)[0])


_shared: tuple[Material, str] | None = None


def _receive(material: Material, device: str) -> None:
    global _shared
    torch.set_num_threads(1)
    os.environ["DPTRAIN_QUIET"] = "1"
    quiet()
    _shared = material, device


def _work(job: tuple[int, np.ndarray, dict[str, Tensor]]) -> tuple[int, Array]:
    assert _shared is not None
    return job[0], train_with_engine(_shared[0], job[1], job[2], _shared[1])


def train_in_processes(
    material: Material,
    member: np.ndarray,
    *,
    processes: int = 1,
    device: str | torch.device = "cpu",
    tick: Tick = lambda _: None,
    keep: Callable[[int, Array], None] = lambda *_: None,
) -> Array:
    """As :func:`train_together`, with the engine, `processes` models at a time: scores [M, R].

    Args:
        keep: called with the number and the scores [R] of each model as it is done.
    """
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    scores = np.full((len(member), len(material.inputs)), np.nan)
    if processes <= 1:
        for number, row in enumerate(member):
            scores[number] = train_with_engine(material, row, device=device)
            keep(number, scores[number])
            tick(material.plan.steps)
        return scores
    sent = dataclasses.replace(material, start=dict)  # starts are made here; closures do not travel
    with ProcessPoolExecutor(processes, get_context("spawn"), _receive, (sent, str(device))) as pool:
        jobs = [pool.submit(_work, (i, row, material.start())) for i, row in enumerate(member)]
        for job in as_completed(jobs):
            number, row_scores = job.result()
            scores[number] = row_scores
            keep(number, row_scores)
            tick(material.plan.steps)
    return scores


# --- scoring -------------------------------------------------------------------------------------------------


def score_outputs(outputs: Tensor, labels: Tensor, task: str, loss: Any) -> Array:
    """Scores [M, R] of outputs [M, R, …]: logit-scaled confidence, or the negative loss for segmentation."""
    if task_spec(task).labels is Labels.MASK:
        return from_loss(torch.stack([loss(output, labels) for output in outputs]).double().cpu().numpy())
    return confidence(outputs.double().cpu().numpy(), labels.cpu().numpy(), task)


def _score(material: Material, final: dict[str, Tensor], device: torch.device) -> Array:
    """Scores [M, R] of every record under every model of a stack."""
    module = copy.deepcopy(material.module).to(device).eval()
    fixed = _fixed(module)
    layers = chain(material.module)
    single = None if layers is None else _single(layers)
    models = next(iter(final.values())).shape[0]
    parts: list[Array] = []
    step = max(1, min(4096, int(2e7 / (models * max(1, material.inputs[0].numel())))))
    if single is not None:
        step = 4096
    with torch.no_grad():
        for start in range(0, len(material.inputs), step):
            x = material.inputs[start : start + step].to(device).float()
            y = material.labels[start : start + step].to(device)
            if single is not None:
                weight = final[_prefix(single[0], "weight")]
                outputs = torch.einsum("rd,mcd->mrc", x.flatten(1), weight)
                if single[1].bias is not None:
                    outputs = outputs + final[_prefix(single[0], "bias")][:, None]
            else:
                outputs = vmap(lambda w, x=x: functional_call(module, (w, fixed), (x,)))(final)
            parts.append(score_outputs(outputs, y, material.task, material.loss))
    return np.concatenate(parts, axis=1)


# --- the way in -----------------------------------------------------------------------------------------------


def train_together(
    material: Material, member: np.ndarray, *, device: str | torch.device = "cpu", tick: Tick = lambda _: None
) -> Array:
    """Train a stack of models and score every record under each.

    Args:
        member: bool [M, P]. tick: called with the number of models after each step of all of them.

    Returns:
        scores [M, R].

    Raises:
        ConfigError: a module that cannot be stacked (take the engine).
    """
    device = torch.device(device)
    way = way_of(material.module, material.plan, bool(material.augment))
    why = unstackable(material) if way == "stacked" else ""
    if way == "engine" or why:
        raise ConfigError(
            f"This network cannot be trained as a stack{': ' + why if why else ''}.",
            remedy="Set audit.trainer=engine.",
        )
    stack = _Stack(material, [material.start() for _ in range(len(member))], device)
    draws = Draws(material, torch.from_numpy(np.ascontiguousarray(member)), device)
    layers = chain(material.module)
    if way == "linear" and layers is not None and material.plan.sample_rate * float(member.mean()) < 0.02:
        way = "dense"  # so few take part in a step that gathering them costs less than multiplying all
    if way == "linear" and layers is not None:
        layer = _single(layers)
        assert layer is not None
        _train_linear(material, stack, draws, layer, device, tick)
    elif way == "dense" and layers is not None:
        _train_dense(material, stack, draws, layers, device, tick)
    else:
        _train_stacked(material, stack, draws, device, tick)
    return _score(material, stack.final(), device)
