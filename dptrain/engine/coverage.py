"""What no way of forming patient gradients fits, refused before anything runs."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.parameter import UninitializedParameter

from dptrain.errors import CheckRefused


def refuse_unfit(model: nn.Module) -> None:
    """Refuse what no way of forming patient gradients fits, before anything runs.

    Raises:
        CheckRefused: a parameter without any rule, or a module that mixes the records of a batch or keeps
            statistics of them.
    """
    refuse_mixing(model.modules())
    for name, module in model.named_modules():
        own = {key: p for key, p in module._parameters.items() if p is not None and p.requires_grad}
        if not own:
            continue
        where = name or type(module).__name__
        for key, parameter in own.items():
            if isinstance(parameter, UninitializedParameter):
                raise CheckRefused(
                    f"{where}.{key} has no shape yet, so it has no rule.",
                    remedy="Run the network once on an example (torch.no_grad()) before you attach the engine.",
                )
            if not parameter.is_floating_point() or parameter.is_sparse:
                raise CheckRefused(
                    f"{where}.{key} is {parameter.dtype}, {parameter.layout}: there is a rule for dense real "
                    "floating-point parameters alone.",
                    remedy="Freeze it (requires_grad_(False)) or store it as float32.",
                )
            refuse_hooks(f"{where}.{key}", parameter)
        if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq):
            raise CheckRefused(
                f"{where}: max_norm and scale_grad_by_freq depend on the whole batch.",
                remedy="Build the embedding without them.",
            )


def refuse_hooks(name: str, parameter: nn.Parameter) -> None:
    """Raise CheckRefused for a hook on a parameter's gradient: the engine forms no such gradient to hand to it."""
    if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
        raise CheckRefused(
            f"{name} has a hook on its gradient, which would never run.",
            remedy="Remove the hook; put what it does into the network, the loss or the optimiser.",
        )


def refuse_mixing(modules: Iterable[nn.Module]) -> None:
    """Raise CheckRefused for a norm that computes or keeps statistics over the records of a batch."""
    for module in modules:
        if isinstance(module, nn.modules.instancenorm._InstanceNorm):
            if module.training and module.track_running_stats:
                raise CheckRefused(
                    f"{type(module).__name__} keeps running statistics of its batches, without noise.",
                    remedy="Build it with track_running_stats=False, or put it in eval mode.",
                )
        elif isinstance(module, nn.modules.batchnorm._NormBase) and (module.training or module.running_mean is None):
            raise CheckRefused(
                f"{type(module).__name__} in training mode mixes the records of a batch.",
                remedy="Replace it (dptrain.models.make_private) or freeze it in eval mode.",
            )
