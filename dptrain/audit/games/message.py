"""One message: what does the sum of clipped gradients that leaves a hospital show of a picture?

A network with a linear first layer, weights W and bias b, gives away what it was trained on: for a neuron i that
one record x alone switches on, ∂L/∂W_i = (∂L/∂b_i)·x, so that the quotient *is* the record (Phong et al. 2018,
"Privacy- preserving deep learning via additively homomorphic encryption", section 3). Clipping scales both alike
and protects no picture. The sum of several patients mixes them, which a malicious coordinator undoes: an *imprint*
layer (Fowl et al. 2022, "Robbing the Fed", arXiv:2110.13057) whose neurons all measure the brightness of a picture
and differ in their bias alone, so that the difference of two neighbours holds the one patient between them.

The sum and the noise come from :class:`dptrain.training.step.PrivateStep`'s own parts; the network is the
coordinator's. Where several patients share a message, each is held against the one of all pictures that is most
like him: this favours the attacker, and so does the null (`shuffled`), which does the same for a patient who is not
in the message.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from dptrain.audit.games.likeness import Likeness, correlations, likeness, ssim
from dptrain.audit.scores import Array
from dptrain.data import PatientBatch
from dptrain.models.losses import loss_for_task
from dptrain.plan import Plan
from dptrain.randomness import new_generator
from dptrain.settings import OptimizerConfig
from dptrain.training.step import PrivateStep
from dptrain.vocabulary import Task

HONEST, IMPRINT = "honest", "imprint"
NEURONS = 512
EMPTY = 1e-4  # of the largest bias gradient: below that a neuron tells of nobody


@dataclass(frozen=True)
class Message:
    """What the coordinator holds: gradients of the first layer, weights [H, D] and bias [H], and their noise.

    noise: standard deviation of each entry; 0 without noise. clip: of one patient's whole gradient.
    """

    weight: Array
    bias: Array
    noise: float
    clip: float


@dataclass
class OneDraw:
    """A step in which just these patients take part, one record each: image [n, …], label [n]."""

    image: Tensor
    label: Tensor
    step: int = 0
    patients: int = field(init=False)

    def __post_init__(self) -> None:
        self.patients = len(self.image)

    def chunks(self) -> Iterator[PatientBatch]:
        """All of them in one chunk."""
        yield PatientBatch(self.image, self.label, torch.arange(len(self.image)), len(self.image))


@dataclass(frozen=True)
class Prior:
    """A Gaussian over pictures: mean [D], orthonormal components [r, D] of variances [r], `rest` in all others."""

    mean: Array
    components: Array
    variances: Array
    rest: float

    @classmethod
    def of(cls, pictures: Array, rank: int = 100) -> Prior:
        """Fitted to pictures [N, …] that the attacker has: public ones, or those of everybody else."""
        flat = np.asarray(pictures, dtype=np.float64).reshape(len(pictures), -1)
        mean = flat.mean(axis=0)
        _, values, components = np.linalg.svd(flat - mean, full_matrices=False)
        variances = values**2 / max(1, len(flat) - 1)
        rank = min(rank, len(variances) - 1)
        spare = max(1, flat.shape[1] - rank)
        return cls(mean, components[:rank], variances[:rank], float(variances[rank:].sum() / spare))

    def posterior(self, seen: Array, variance: float) -> Array:
        """The mean of the picture given seen = picture + N(0, variance)."""
        away = seen - self.mean
        along = self.components @ away
        beside = away - along @ self.components
        shrunk = along * self.variances / (self.variances + variance)
        if math.isinf(variance):
            return self.mean
        return np.asarray(self.mean + shrunk @ self.components + beside * self.rest / (self.rest + variance))


def network_for(pictures: Array, coordinator: str) -> nn.Sequential:
    """The coordinator's network for pictures [N, …] like these: an honest one, or one with an imprint layer.

    The imprint's biases are quantiles of the brightness of `pictures`, which are not those that it is used on.
    """
    size = int(np.prod(pictures.shape[1:]))
    first, last = nn.Linear(size, NEURONS), nn.Linear(NEURONS, 1)
    if coordinator == IMPRINT:
        brightness = pictures.reshape(len(pictures), -1).mean(axis=1, dtype=np.float64)
        spread = float(max(brightness.std(), 1e-6))
        edges = np.quantile(brightness, np.arange(NEURONS) / NEURONS)
        with torch.no_grad():
            first.weight.fill_(1 / (size * spread))
            first.bias.copy_(torch.from_numpy(-edges / spread))
            last.weight.fill_(1 / NEURONS)
            last.bias.fill_(
                -0.4
            )  # what a picture of middling brightness adds up to: the probability stays near a half
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)


def send(network: nn.Sequential, plan: Plan, pictures: Array) -> Message:
    """The message of these patients [n, …], one picture each, under the plan's clip and noise."""
    label = torch.from_numpy(new_generator().integers(0, 2, len(pictures)))
    draw = OneDraw(torch.from_numpy(np.ascontiguousarray(pictures, dtype=np.float32)), label)
    step = PrivateStep(network, plan, loss=loss_for_task(Task.BINARY), optimizer=OptimizerConfig())
    with step:
        mean = step.noisy_mean(step.clipped_sum(draw))
        total = {
            name: value.detach() * plan.expected_batch_size for name, value in zip(step.names, mean, strict=True)
        }
    noise = plan.noise_multiplier * plan.max_grad_norm if plan.noise_multiplier else 0.0
    weight, bias = (total.pop(f"1.{name}").double().numpy() for name in ("weight", "bias"))
    return Message(weight, bias, noise, plan.max_grad_norm)


def single(message: Message, prior: Prior | None = None) -> Array:
    """The picture [D] of a one-patient message: least squares over the neurons; with a prior, its posterior mean."""
    noisy = float(np.sum(message.bias**2))
    energy = max(noisy - len(message.bias) * message.noise**2, 1e-3 * noisy, 1e-300)  # noise has energy of its own
    if prior is not None and message.noise:
        energy = min(energy, message.clip**2 / (1 + float(prior.mean @ prior.mean)))  # no message is longer
    seen = message.bias @ message.weight / energy
    if prior is None:
        return np.asarray(seen)
    variance = (message.noise / energy) ** 2 * noisy
    return prior.posterior(seen, variance)


def several(message: Message, coordinator: str) -> Array:
    """Every picture [m, D] that the neurons may hold: quotients, or those of neighbours' differences."""
    weight, bias = message.weight, message.bias
    if coordinator == IMPRINT:
        weight = np.concatenate([weight[:-1] - weight[1:], weight[-1:]])
        bias = np.concatenate([bias[:-1] - bias[1:], bias[-1:]])
    telling = np.abs(bias) > EMPTY * max(float(np.abs(bias).max()), 1e-300)
    return np.asarray(weight[telling] / bias[telling, None])


@dataclass(frozen=True)
class Found:
    """A patient of a message: the picture shown for him, and how like it is."""

    picture: Array
    likeness: Likeness


def play(
    plan: Plan,
    pictures: Array,
    targets: np.ndarray,
    known: Array,
    *,
    coordinator: str = HONEST,
    prior: Prior | None = None,
) -> list[Found]:
    """One message of all `targets`, positions in the line-up of `pictures` [K, …]; what is found of each.

    Args:
        known: pictures [N, …] of others, which the coordinator has; nobody of the line-up is among them.
    """
    shape, guess = pictures.shape[1:], known.mean(axis=0)
    network = network_for(known, coordinator)
    message = send(network, plan, pictures[targets])
    outsiders = np.setdiff1d(np.arange(len(pictures)), targets)
    if len(targets) == 1 and coordinator == HONEST:
        picture = single(message, prior).reshape(shape)
        target = int(targets[0])
        return [Found(picture, likeness(picture, target, pictures, guess=guess, shuffled=int(outsiders[0])))]
    pieces = several(message, coordinator)
    if not len(pieces):
        pieces = np.zeros((1, int(np.prod(shape))))
    best = np.argmax(correlations(pieces, pictures), axis=0)
    out = []
    for number, target in enumerate(targets.tolist()):
        picture = pieces[best[target]].reshape(shape)
        other = int(outsiders[number % len(outsiders)])
        like = likeness(picture, target, pictures, guess=guess, shuffled=other)
        null = ssim(np.clip(pieces[best[other]].reshape(shape), 0, 1), pictures[other])
        out.append(Found(picture, dataclasses.replace(like, shuffled=null)))
    return out


def unprotected(plan: Plan, *, clip: bool) -> Plan:
    """The plan without noise, with or without its clip."""
    norm = plan.max_grad_norm if clip else math.inf
    return dataclasses.replace(plan, noise_multiplier=0.0, max_grad_norm=norm, calibration_noise_multiplier=None)
