"""The released weights: what of a picture can be computed from them by somebody who knows everybody else?

*Closed form.* A logistic regression that was trained to convergence satisfies Σ (p_i − y_i)·(x_i, 1) + λ·(w, 0) = 0.
Who knows everybody but one solves it for that one: p_t − y_t = −Σ (p_i − y_i), and x_t is what is missing over it
(Balle, Cherubin & Hayes 2022, "Reconstructing training data with informed adversaries", arXiv:2201.04845, section 4).
What returns is the input of the layer: a picture, where the head stands on pixels, and a vector of features, where it
stands on a frozen trunk.

*Shadow reconstructor*, for any other network (section 5 there): the attacker trains models with everybody else and
one more of his own acquaintance, with the same starting weights, and learns to tell that one from the weights, by
kernel ridge regression whose penalty is chosen leave-one-out. His acquaintances have the target's label, which he
knows: the other label turns the sign of what a record adds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor, nn

from dptrain.audit import reference
from dptrain.audit.reference import Material
from dptrain.audit.scores import Array
from dptrain.models.losses import loss_for_task
from dptrain.plan import Plan
from dptrain.settings import OptimizerConfig
from dptrain.training.loop import fit
from dptrain.training.step import PrivateStep
from dptrain.vocabulary import Task

ROUNDS, CLOSE = 200, 1e-12  # of Newton's method
RIDGES = np.logspace(-8, 2, 21)  # penalties that are tried, in units of the mean eigenvalue
Head = tuple[np.ndarray, float]  # weights [D] and bias of one logit


def converge(inputs: Array, labels: Array, penalty: float) -> Head:
    """The logistic regression of inputs [N, D] and labels 0/1 [N] that minimises Σ loss + penalty·‖w‖²/2, in float32.

    Newton's method in the span of the inputs (iteratively reweighted least squares), N×N systems in float64, halved
    steps where a whole one would climb.
    """
    x, y = np.asarray(inputs, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    gram = x @ x.T
    dual, bias = np.zeros(len(x)), 0.0

    def objective(dual: Array, bias: float) -> float:
        inner = gram @ dual
        return float(np.sum(np.logaddexp(0, inner + bias) - y * (inner + bias)) + penalty * dual @ inner / 2)

    for _ in range(ROUNDS):
        chance = expit(gram @ dual + bias)
        curvature = np.maximum(chance * (1 - chance), 1e-12)
        wanted = gram @ dual + bias - (chance - y) / curvature
        system = gram + np.diag(penalty / curvature)
        solved = np.linalg.solve(system, np.stack([wanted, np.ones(len(x))], axis=1))
        new_bias = float(solved[:, 0].sum() / solved[:, 1].sum())
        step, turn = solved[:, 0] - new_bias * solved[:, 1] - dual, new_bias - bias
        now, share = objective(dual, bias), 1.0
        while share > 1e-6 and objective(dual + share * step, bias + share * turn) > now + 1e-12 * abs(now):
            share /= 2
        dual, bias = dual + share * step, bias + share * turn
        if np.abs(share * step).max() <= CLOSE * max(1.0, float(np.abs(dual).max())):
            break
    weight = (x.T @ dual).astype(np.float32)
    return weight, float(np.float32(bias))


def invert(head: Head, inputs: Array, labels: Array, penalty: float) -> Array:
    """The input [D] of the one whom somebody who knows all others' inputs [N, D] and labels [N] does not know."""
    weight, bias = np.asarray(head[0], dtype=np.float64), head[1]
    x = np.asarray(inputs, dtype=np.float64)
    missing = expit(x @ weight + bias) - labels
    own = -float(missing.sum())
    return np.asarray(-(x.T @ missing + penalty * weight) / (own if own else 1e-300))


def head_material(inputs: Array, labels: Array, plan: Plan, optimizer: OptimizerConfig, ema: float) -> Material:
    """A head on inputs [N, D] with labels 0/1 [N], one record a patient, trained as the run trains."""
    module = nn.Linear(inputs.shape[1], 1)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    return Material(
        inputs=torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32)),
        labels=torch.from_numpy(np.asarray(labels, dtype=np.int64)),
        patient=torch.arange(len(inputs)),
        patients=len(inputs),
        trained=np.ones(len(inputs), dtype=bool),
        task=Task.BINARY,
        loss=loss_for_task(Task.BINARY),
        plan=plan,
        optimizer=optimizer,
        ema=ema,
        module=module,
        start=lambda: start,
    )


def train(
    material: Material, member: np.ndarray, start: dict[str, Tensor], device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """The trained weights of one training of these members [P bool] by the run's own loop."""
    material = dataclasses.replace(material, augment=())
    loader, leave = reference.engine_loader(material, member)
    step = reference.engine_step(material, start, device, PrivateStep)
    model = fit(step, loader, leave, checked=True).model
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}


def private_head(material: Material, device: str | torch.device = "cpu") -> Head:
    """The head that the run's own loop trains under the material's plan."""
    weight, bias = train(material, np.ones(material.patients, dtype=bool), material.start(), device).values()
    return weight.reshape(-1).numpy(), float(bias)


def everybody(plan: Plan) -> Plan:
    """The plan without protection: everybody at each step, no clip, no noise. Nothing of it is left to chance."""
    return dataclasses.replace(
        plan,
        expected_batch_size=plan.public_size,
        noise_multiplier=0.0,
        max_grad_norm=float("inf"),
        calibration_noise_multiplier=None,
    )


def shadows(
    material: Material,
    strangers: Sequence[int],
    *,
    device: str | torch.device = "cpu",
    keep: Callable[[int, Callable[[], Array]], Array] = lambda _, make: make(),
) -> Array:
    """Weights [S, D] of trainings with everybody else and one of the `strangers`, positions of patients, each.

    Args:
        keep: called with the number of a training and what makes its weights; gives them back (from an earlier try).
    """
    start = material.start()
    others = np.ones(material.patients, dtype=bool)
    others[list(strangers)] = False

    def weights(stranger: int) -> Array:
        member = others.copy()
        member[stranger] = True
        trained = train(material, member, start, device)
        return torch.cat([value.flatten() for value in trained.values()]).double().numpy()

    return np.stack([keep(number, partial(weights, stranger)) for number, stranger in enumerate(strangers)])


def learn(weights: Array, pictures: Array) -> Callable[[Array], Array]:
    """A reconstructor, weights [D] -> picture, from shadow models' weights [S, D] and their pictures [S, …]."""
    middle, mean = weights.mean(axis=0), pictures.mean(axis=0)
    away = weights - middle
    values, vectors = np.linalg.eigh(away @ away.T)
    values = np.maximum(values, 0)
    targets = (pictures - mean).reshape(len(pictures), -1)
    turned = vectors.T @ targets
    best, least = 0.0, np.inf
    for ridge in RIDGES * max(float(values.mean()), 1e-300):
        kept = values / (values + ridge)
        left = targets - vectors @ (kept[:, None] * turned)
        hat = np.sum(vectors**2 * kept, axis=1) + 1 / len(pictures)  # the mean is fitted, too
        error = float(np.mean((left / np.maximum(1 - hat, 1e-6)[:, None]) ** 2))
        if error < least:
            best, least = float(ridge), error
    dual = vectors @ (turned / (values + best)[:, None])

    def reconstruct(seen: Array) -> Array:
        return np.asarray(mean + (dual.T @ (away @ (seen - middle))).reshape(mean.shape))

    return reconstruct
