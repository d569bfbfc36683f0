"""What a configuration may call: classes of networks and layers, and the factories on one list. Nothing else.

Configuration is code. Networks come from here (:func:`dptrain.models.build`); transforms have the stricter
list of :mod:`dptrain.data.transforms`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

from dptrain.errors import ConfigError

ALLOWED = ("monai.networks.nets.", "torch.nn.", "dptrain.models.")
# Functions that build a network; every other target is a subclass of torch.nn.Module.
_MONAI = (
    "resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet200", "MedNeXtS", "MedNeXtB",
    "MedNeXtM", "MedNeXtL", "MedNeXtSmall", "MedNeXtMedium", "MedNeXtLarge", "MedNextS", "MedNextB", "MedNextM",
    "MedNextL", "MedNextSmall", "MedNextBase", "MedNextMedium", "MedNextLarge",
)  # fmt: skip
_OWN = ("cnn1d", "linear_head", "mlp", "pretrained_efficientnet_lite", "sequential", "small_cnn", "unet3d")
FACTORIES = frozenset(
    {*(f"monai.networks.nets.{name}" for name in _MONAI), *(f"dptrain.models.{name}" for name in _OWN)}
)


def locate(target: str) -> Callable[..., Any]:
    """The class or factory that an allow-listed dotted name means.

    Raises:
        ConfigError: a name outside the allow-list, one that leads outside it through a module's own imports
            (`torch.nn.functional.torch.load`), one that is neither a network's class nor a listed factory, or one
            that does not exist.
    """
    if not target.startswith(ALLOWED):
        raise ConfigError(
            f"_target_ '{target}' is not on the list of what a configuration may call.",
            remedy=f"Allowed are names that begin with one of: {', '.join(ALLOWED)}",
        )
    parts = target.split(".")
    named: object = None
    for end in range(len(parts) - 1, 0, -1):
        try:
            named = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            if isinstance(named, ModuleType) and not f"{named.__name__}.".startswith(ALLOWED):
                raise ConfigError(f"_target_ '{target}' leads outside the list of what a configuration may call.")
            named = getattr(named, part, None)
        break
    if named is None:
        raise ConfigError(f"_target_ '{target}' does not exist.", remedy="Check the spelling of module and class.")
    home = f"{getattr(named, '__module__', '') or ''}."
    if not callable(named) or not home.startswith(ALLOWED):
        raise ConfigError(f"_target_ '{target}' leads outside the list of what a configuration may call.")
    if target not in FACTORIES and not _is_network(named):
        raise ConfigError(
            f"_target_ '{target}' is neither a class of networks or layers nor a listed factory of them.",
            remedy="Name a subclass of torch.nn.Module, or one of: " + ", ".join(sorted(FACTORIES)),
        )
    called: Callable[..., Any] = named
    return called


def _is_network(named: object) -> bool:
    module = importlib.import_module("torch.nn").Module
    return isinstance(named, type) and issubclass(named, module)


def arguments_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """What a `_target_` node is called with, defaults of its signature included (without those that it must have).

    Raises ConfigError as :func:`locate` does.
    """
    given = {name: value for name, value in node.items() if name not in ("_target_", "_partial_")}
    parameters = inspect.signature(locate(str(node["_target_"]))).parameters
    defaults = {name: one.default for name, one in parameters.items() if one.default is not inspect.Parameter.empty}
    return {**defaults, **given}


INIT = "__init__"


def _not_taken(target: Callable[..., Any], values: Mapping[str, Any]) -> list[str]:
    """Names of arguments that a target, or the classes that it hands the rest to, have no place for."""
    mro = target.__mro__ if isinstance(target, type) else ()
    takers = [vars(kind)[INIT] for kind in mro if INIT in vars(kind)] or [target]
    taken: set[str] = set()
    for taker in takers:
        parameters = inspect.signature(taker).parameters
        taken |= set(parameters)
        if all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
            return [name for name in values if name not in taken]
    return []


def instantiate(node: object, remedy: str | None = None) -> Any:
    """Build what `_target_` names, arguments first; lists and plain values come back as they are.

    `_partial_: true` gives a partial instead of a call. Raises ConfigError as :func:`locate` does, and for
    arguments that the target does not take (there with `remedy`).
    """
    if isinstance(node, list | tuple):
        return [instantiate(item, remedy) for item in node]
    if not isinstance(node, dict):
        return node
    values = {key: instantiate(value, remedy) for key, value in node.items() if key not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return values
    target = str(node["_target_"])
    called = locate(target)
    unknown = _not_taken(called, values)
    if unknown:
        raise ConfigError(
            f"{target} does not take {', '.join(unknown)} (set here, or by the network that was chosen before).",
            remedy=f"Leave out: {' '.join(f'~model.network.{name}' for name in unknown)}",
        )
    if node.get("_partial_"):
        return partial(called, **values)
    try:
        return called(**values)
    except TypeError as error:
        raise ConfigError(f"{target} does not take these arguments: {error}.", remedy=remedy) from None
