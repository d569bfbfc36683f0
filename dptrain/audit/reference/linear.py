"""One layer on fixed features: patient gradients in closed form, two matrix products a step for all models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dptrain.audit.reference.material import Material, Tick
from dptrain.audit.reference.stack import Draws, Stack, factors, pairs
from dptrain.models.nets import BodyAndHead
from dptrain.vocabulary import Activation, task_spec

ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Softplus, nn.Identity)


def chain(module: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """The layers in order, where the module is nothing but Linear layers, activations and a Flatten first."""
    layers: list[tuple[str, nn.Module]] = []

    def walk(part: nn.Module, name: str) -> bool:
        if isinstance(part, (nn.Linear, nn.Flatten, *ELEMENTWISE)):
            layers.append((name, part))
            return True
        if type(part) is nn.Sequential or type(part) is BodyAndHead:
            # not named_children(): it skips a module that is used twice
            return all(walk(child, prefixed(name, key)) for key, child in part._modules.items() if child is not None)
        return False

    if not walk(module, "") or any(not p.requires_grad for p in module.parameters()):
        return None
    linear = [i for i, (_, part) in enumerate(layers) if isinstance(part, nn.Linear)]
    if not linear or any(isinstance(part, nn.Flatten) for _, part in layers[linear[0] :]):
        return None
    if len({id(part) for _, part in layers if list(part.parameters())}) != len(linear):
        return None
    return layers


def single(layers: list[tuple[str, nn.Module]]) -> tuple[str, nn.Module] | None:
    """The one Linear layer, where there is no other layer with an effect."""
    rest = [item for item in layers if not isinstance(item[1], nn.Flatten | nn.Identity)]
    return rest[0] if len(rest) == 1 and isinstance(rest[0][1], nn.Linear) else None


def residual(logits: Tensor, labels: Tensor, task: str) -> Tensor:
    """Gradient of the per-record loss by the logits, [R, M, C]."""
    spec = task_spec(task)
    if spec.one_logit:
        return torch.sigmoid(logits) - labels.reshape(-1, 1, 1).float()
    if spec.activation is Activation.SOFTMAX:
        return logits.softmax(2) - nn.functional.one_hot(labels.long().reshape(-1), logits.shape[2])[:, None]
    return (torch.sigmoid(logits) - labels[:, None].float()) / logits.shape[2]


def prefixed(name: str, leaf: str) -> str:
    return f"{name}.{leaf}" if name else leaf


def train_linear(
    material: Material, stack: Stack, draws: Draws, layer: tuple[str, nn.Module], device: torch.device, tick: Tick
) -> None:
    """Closed form for one layer: ‖Σ_r a_r e_r x_rᵀ‖² = Σ_{r,s} a_r a_s (e_r·e_s)(x_r·x_s + 1).

    The inner products x_r·x_s within a patient are the same at every step and are taken once.
    """
    plan = material.plan
    x = material.inputs.to(device)[draws.rows].flatten(1).float().contiguous()
    labels = material.labels.to(device)[draws.rows]
    owner, patients = draws.owner, material.patients
    first, second = pairs(owner)
    bias = layer[1].bias is not None
    inner = torch.cat(
        [(x[i] * x[j]).sum(1) for i, j in zip(first.split(65536), second.split(65536), strict=True)]
    ) + float(bias)
    inner = torch.where(first == second, inner, 2 * inner)  # (r, s) stands for (s, r) too
    weight = stack.by_name()[prefixed(layer[0], "weight")]
    models, classes, _ = weight.shape
    shift = stack.by_name().get(prefixed(layer[0], "bias"))
    pair_owner = owner[first]
    same = bool((first == second).all())
    for _ in range(plan.steps):
        with torch.no_grad():
            logits = (x @ weight.detach().reshape(models * classes, -1).T).reshape(-1, models, classes)
            if shift is not None:
                logits = logits + shift.detach()
            scaled = residual(logits, labels, material.task) * draws.weights().T[:, :, None]
            product = (scaled * scaled).sum(2) if same else (scaled[first] * scaled[second]).sum(2)
            square = torch.zeros(patients, models, device=device)
            square.index_add_(0, pair_owner, product * inner[:, None])
            scaled = torch.nan_to_num(scaled) * factors(square, plan.max_grad_norm)[owner][:, :, None]
            sums = {"weight": (scaled.reshape(-1, models * classes).T @ x).reshape(weight.shape)}
            if shift is not None:
                sums["bias"] = scaled.sum(0)
            ordered = [sums[name.rpartition(".")[2]] for name in stack.names]
            stack.release(ordered, draws)
        tick(models)
