"""The line-up: of K patients one was trained on; who was it?

K patients of the cohort are the candidates. One of them, drawn at random, is trained on, the K − 1 others are
absent, and everybody else is present and known to the attacker: records, draws and gradients. The candidates'
records are known too, and every noisy sum that the training releases; unknown are the noise, who it was and, unless
`draws` is `known`, in which steps. This is the strongest attacker that the guarantee speaks of, and the attack is
the best one: the exact likelihood ratio of each candidate's presence against absence,

    Λ_k = Σ_t log(1 − q + q·exp((⟨r_t, v_kt⟩ − ‖v_kt‖²/2) / (σC)²)),

r_t being what is left of step t's noisy sum without everybody else, v_kt the candidate's clipped gradient at the
weights of step t (known draws: only the steps in which the patient took part, without q). What is released comes
from the run's own loop, loader, clipping and noise; the observer sits in
:class:`dptrain.training.step.PrivateStep`'s seam.

**The bound.** Let A_k be the event that the attacker names k, Q the training without any candidate, P_k that with
k. The A_k are disjoint, so Σ Q(A_k) ≤ 1, and P_k(A_k) ≤ 1 − f(Q(A_k)) where f = T(Q, P_k) is the trade-off of
*absent* (the null) against *present*; 1 − f is concave, so the mean over k is at most γ = 1 − f(1/K). A curve that
holds for both directions (:class:`dptrain.accounting.TradeOff`) holds for this one; at small 1/K, where its slopes
are e^ε with ε > 0 and taking a patient out costs most, it is the same. The curve of present against absent alone
would not do. With known draws sampling hides nobody: what is played then is N(0, 1) against N(√n/σ, 1) for the n
steps of that training, averaged over trainings.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binom, norm
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from dptrain import accounting
from dptrain.audit import reference, statistics
from dptrain.audit.games.canaries import filling_length
from dptrain.audit.games.likeness import rank_p_value
from dptrain.audit.reference import Material
from dptrain.audit.scores import Array
from dptrain.data import LogicalBatch, PatientBatch, PatientLoader
from dptrain.errors import ConfigError
from dptrain.plan import Plan
from dptrain.randomness import new_generator
from dptrain.training.loop import fit
from dptrain.training.step import Loss, PrivateStep, StepSum

SECRET, KNOWN = "secret", "known"
WRONG = 1e-3  # of a thousand correct engines at most one is called broken, and then only twice in a row
SIZES = (100, 300, 1000, 3000, 10000)  # of line-ups, where none is asked for
FLOATS = 1 << 24  # of candidates' gradients at a time


@dataclass(frozen=True)
class Trial:
    """One training: the place of the one who was trained on, 1 the first, and in how many steps (restricted)."""

    rank: int
    taken: int


@dataclass(frozen=True)
class Lineup:
    """All trainings of a line-up together.

    success: share of trainings whose patient was named; low, high: Clopper–Pearson interval. bound: γ, or None
    where nothing was promised. p_value: of so many right by chance; rank_p_value: of so low ranks by chance.
    refutable: whether naming everybody would have passed the bound. above: whether the bound was passed.
    """

    candidates: int
    trials: int
    successes: int
    success: float
    low: float
    high: float
    chance: float
    bound: float | None
    p_value: float
    mean_rank: float
    rank_p_value: float
    refutable: bool
    above: bool


class TwoDraws:
    """One step's draw of everybody else and of the one in question: patients are drawn each for themselves."""

    def __init__(self, others: LogicalBatch, own: LogicalBatch) -> None:
        self.step, self.patients = others.step, others.patients + own.patients
        self.others, self.own = others, own

    def chunks(self) -> Iterator[PatientBatch]:
        """Everybody else's chunks, then one of the one in question."""
        yield from self.others.chunks()
        yield from self.own.chunks()


class TwoLoaders:
    """The loaders of everybody else and of the one in question, step by step; for :func:`dptrain.training.fit`."""

    def __init__(self, others: PatientLoader, own: PatientLoader) -> None:
        self.others, self.own = others, own
        self.chunk_shape = others.chunk_shape

    def __iter__(self) -> Iterator[TwoDraws]:
        for one, two in zip(self.others, self.own, strict=True):
            yield TwoDraws(one, two)


class Observer(PrivateStep):
    """The run's own step, and what an attacker makes of each released mean.

    Attributes:
        evidence: Λ [K] so far; taken: steps in which the one in question took part.
    """

    candidates: Candidates
    draws: str

    def watch(self, candidates: Candidates, draws: str) -> None:
        """Whom to compare (before the first step)."""
        self.candidates, self.draws = candidates, draws
        self.evidence, self.taken = np.zeros(candidates.patients), 0
        self._twin = copy.deepcopy(self.model)  # the engine's own copy records its gradients

    def clipped_sum(self, batch: TwoDraws) -> StepSum:  # type: ignore[override]
        """The sum as always; everybody else's share of it is what the attacker knows."""
        total = super().clipped_sum(batch.others)
        self._known_sum = [value.clone() for value in total.tensors]
        self._present = bool(batch.own.patients)
        self.taken += self._present
        return super().clipped_sum(batch) if self._present else total

    def update(self, gradient: Sequence[Tensor]) -> float:
        """Read what is released, at the weights that it is a gradient of; then go on as always."""
        batch = self.plan.expected_batch_size
        rest = torch.cat([(g * batch - s).flatten() for g, s in zip(gradient, self._known_sum, strict=True)])
        self.evidence += self._ratios(rest)
        return super().update(gradient)

    def _ratios(self, rest: Tensor) -> Array:
        weights = {name: p.detach() for name, p in zip(self.names, self._update.parameters, strict=True)}
        projected = np.concatenate(
            [
                (part @ rest - part.square().sum(1) / 2).double().cpu().numpy()
                for part in self.candidates.gradients(self._twin, weights)
            ]
        )
        return log_ratios(projected, self.plan, self.draws, self._present)


def log_ratios(projected: Array, plan: Plan, draws: str, present: bool) -> Array:
    """One step's log likelihood ratios [K] of ⟨r, v⟩ − ‖v‖²/2 [K]; without noise their limit, times (σC)²."""
    scale = (plan.noise_multiplier * plan.max_grad_norm) ** 2 if plan.noise_multiplier else 1.0
    if draws == KNOWN:
        return projected / scale if present else np.zeros_like(projected)
    if not plan.noise_multiplier:
        return projected if plan.sample_rate == 1 else np.maximum(projected, 0)
    rate = plan.sample_rate
    absent = math.log1p(-rate) if rate < 1 else -math.inf
    return np.asarray(np.logaddexp(absent, math.log(rate) + projected / scale))


@dataclass(frozen=True)
class Candidates:
    """The records of K candidates: inputs [R, …], labels [R, …], patient [R] in 0…K−1."""

    inputs: Tensor
    labels: Tensor
    patient: Tensor
    patients: int
    loss: Loss
    clip: float

    def gradients(self, module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Each candidate's clipped gradient, flat [k, D], some candidates at a time, in their order.

        Args:
            weights: of the trained parameters; all others are the module's own.
        """
        trained = dict(weights)
        fixed = {name: p.detach() for name, p in module.named_parameters() if name not in trained}
        fixed |= dict(module.named_buffers())
        size = sum(p.numel() for p in trained.values())
        counts = torch.bincount(self.patient, minlength=self.patients)
        ends = torch.cumsum(counts, 0).tolist()
        room = max(int(counts.max()), FLOATS // size)

        def one(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            return self.loss(functional_call(module, (values, fixed), (image[None],)), label[None])[0]

        first = begin = 0
        for last, end in enumerate(ends, start=1):
            if last < self.patients and ends[last] - begin <= room:
                continue
            rows = slice(begin, end)
            each = vmap(grad(one), in_dims=(None, 0, 0))(trained, self.inputs[rows], self.labels[rows])
            flat = torch.cat([each[name].flatten(1) for name in trained], dim=1)
            mean = torch.zeros(last - first, size, dtype=flat.dtype, device=flat.device)
            mean.index_add_(0, self.patient[rows] - first, flat)
            yield clipped(mean / counts[first:last, None].to(mean.device), self.clip)
            first, begin = last, end


def clipped(gradients: Tensor, clip: float) -> Tensor:
    """Rows [k, D] no longer than `clip`; a row that is not finite is zero, as in the engine."""
    lengths = gradients.norm(dim=1, keepdim=True)
    short = torch.clamp(clip / lengths.clamp(min=1e-30), max=1.0)
    return torch.where(torch.isfinite(lengths), gradients * short, torch.zeros_like(gradients))


def choose(material: Material, count: int) -> np.ndarray:
    """Positions of `count` candidates, drawn from the patients whose every record is used whenever they are.

    Raises:
        ConfigError: there are not so many.
    """
    owner = material.patient.numpy()[material.trained]
    records = np.bincount(owner, minlength=material.patients)
    eligible = np.flatnonzero((records > 0) & (records <= material.plan.max_records_per_patient))
    if not 2 <= count <= len(eligible):
        raise ConfigError(
            f"a line-up of {count} is not possible here: it takes 2 candidates or more, and as many "
            f"{material.plan.unit}s with no more records than the cap.",
            remedy="Set attack.candidates to fewer.",
        )
    return np.sort(new_generator().choice(eligible, count, replace=False))


def plant(material: Material, count: int) -> tuple[Material, np.ndarray]:
    """The material with `count` canaries of one record each, in directions at right angles, as candidates.

    Their inputs are orthogonal and so long that the gradient fills the clip: each is as far from the others as
    patients can be, so that the line-up comes as near to its bound as it can, and tests the engine at any epsilon.

    Raises:
        ConfigError: more than half as many canaries as there are input values.
    """
    size = int(material.inputs[0].numel())
    if count > size // 2:
        raise ConfigError(
            f"{count} canaries do not fit at right angles into {size} values: at most {size // 2}.",
            remedy=f"Set attack.candidates to at most {size // 2}, or attack.targets=patients.",
        )
    generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
    columns = torch.linalg.qr(torch.randn(size, count, generator=generator)).Q
    direction = columns.T.reshape(count, *material.inputs.shape[1:])
    source = torch.randint(len(material.inputs), (count,), generator=generator)
    labels = material.labels[source]
    usual = torch.nan_to_num(material.inputs[source].flatten(1).float()).norm(dim=1).median().clamp(min=1e-6)
    length = float(2 * usual)
    if math.isfinite(material.plan.max_grad_norm):
        length = filling_length(material, direction[:8], labels[:8], length)
    planted = dataclasses.replace(
        material,
        inputs=torch.cat([material.inputs, (direction * length).to(material.inputs.dtype)]),
        labels=torch.cat([material.labels, labels]),
        patient=torch.cat([material.patient, material.patients + torch.arange(count)]),
        patients=material.patients + count,
        trained=np.concatenate([material.trained, np.ones(count, dtype=bool)]),
    )
    return planted, np.arange(material.patients, material.patients + count)


def play(
    material: Material,
    candidates: np.ndarray,
    target: int,
    *,
    draws: str = SECRET,
    device: str | torch.device = "cpu",
) -> Trial:
    """One training of the run's whole plan with `target`, a position in `candidates` [K]; where he ends up.

    Candidates who look the same to the attacker share their places at random.
    """
    material = dataclasses.replace(material, augment=())
    everybody = np.ones(material.patients, dtype=bool)
    everybody[candidates] = False
    others, leave = reference.engine_loader(material, everybody)
    own, _ = reference.engine_loader(_alone(material, int(candidates[target])), np.ones(1, dtype=bool))
    step = reference.engine_step(material, None, device, Observer)
    step.watch(_candidates(material, candidates, device), draws)
    fit(step, TwoLoaders(others, own), leave, checked=True)  # type: ignore[arg-type]
    evidence = np.nan_to_num(step.evidence, nan=-np.inf)
    order = new_generator().permutation(len(candidates))
    place = order[np.argsort(-evidence[order], kind="stable")]
    return Trial(1 + int(np.flatnonzero(place == target)[0]), step.taken)


def _alone(material: Material, patient: int) -> Material:
    rows = torch.from_numpy(np.flatnonzero((material.patient.numpy() == patient) & material.trained))
    return dataclasses.replace(
        material,
        inputs=material.inputs[rows],
        labels=material.labels[rows],
        patient=torch.zeros(len(rows), dtype=torch.long),
        patients=1,
        trained=np.ones(len(rows), dtype=bool),
    )


def _candidates(material: Material, candidates: np.ndarray, device: str | torch.device) -> Candidates:
    place = np.full(material.patients, -1)
    place[candidates] = np.arange(len(candidates))
    owner = np.where(material.trained, place[material.patient.numpy()], -1)
    members = np.flatnonzero(owner >= 0)
    rows = torch.from_numpy(members[np.argsort(owner[members], kind="stable")])
    return Candidates(
        inputs=material.inputs[rows].float().to(device),
        labels=material.labels[rows].to(device),
        patient=torch.from_numpy(owner)[rows].to(device),
        patients=len(candidates),
        loss=material.loss,
        clip=material.plan.max_grad_norm,
    )


def bound_of(plan: Plan, candidates: int, trials: Sequence[Trial], draws: str) -> float | None:
    """γ: the highest success that the plan allows, from what the line-up sees (the training's noisy sums)."""
    if not plan.noise_multiplier:
        return None
    chance = 1 / candidates
    if draws == SECRET:
        return float(accounting.tradeoff(plan.mechanisms[:1]).reconstruction(chance))
    taken = np.array([trial.taken for trial in trials], dtype=float)
    return float(np.mean(norm.cdf(norm.ppf(chance) + np.sqrt(taken) / plan.noise_multiplier)))


def size_for(plan: Plan, most: int) -> int:
    """How many candidates: the fewest at which γ leaves room to be passed, as far as there are so many."""
    sizes = [size for size in SIZES if size <= most] or [most]
    if not plan.noise_multiplier:
        return sizes[0]
    curve = accounting.tradeoff(plan.mechanisms[:1])
    return next((size for size in sizes if curve.reconstruction(1 / size) <= 0.5), sizes[-1])


def summarise(trials: Sequence[Trial], candidates: int, plan: Plan, draws: str, confidence: float) -> Lineup:
    """What the trainings say together."""
    count, successes = len(trials), sum(trial.rank == 1 for trial in trials)
    low, high = statistics.clopper_pearson(successes, count, confidence)
    bound = bound_of(plan, candidates, trials, draws)
    ranks = np.array([trial.rank for trial in trials])
    return Lineup(
        candidates=candidates,
        trials=count,
        successes=successes,
        success=successes / count,
        low=float(low),
        high=float(high),
        chance=1 / candidates,
        bound=bound,
        p_value=float(binom.sf(successes - 1, count, 1 / candidates)),
        mean_rank=float(ranks.mean()),
        rank_p_value=rank_p_value(ranks, candidates),
        refutable=bound is not None and bound**count < WRONG,
        above=bound is not None and bool(binom.sf(successes - 1, count, bound) < WRONG),
    )
