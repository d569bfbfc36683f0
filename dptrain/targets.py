"""What a configuration may call: names on one list, and nothing that can be reached through them.

Configuration is code. Networks come from here (:func:`dptrain.models.build`); transforms have the stricter
list of :mod:`dptrain.data.transforms`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from dptrain.errors import ConfigError

FACTORIES = ("monai.networks.nets.", "dptrain.models.nets.", "dptrain.models.pretrained.")
ALLOWED = ("monai.networks.nets.", "torch.nn.", "dptrain.models.", "efficientnet_lite_pytorch.")


def locate(target: str) -> Callable[..., Any]:
    """The class or function that an allow-listed dotted name means.

    Raises:
        ConfigError: a name outside the allow-list, one that leads outside it through a module's own imports
            (`torch.nn.functional.torch.load`), or one that does not exist.
    """
    if not target.startswith(ALLOWED):
        raise ConfigError(
            f"_target_ '{target}' is not on the list of what a configuration may call.",
            remedy=f"Allowed are names that begin with one of: {', '.join(ALLOWED)}",
        )
    parts = target.split(".")
    named: Any = None
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
    if not _builds(named, home):
        raise ConfigError(
            f"_target_ '{target}' is no network: neither a torch module nor a function that builds one.",
            remedy=f"Name a class of these, or a function of: {', '.join(FACTORIES)}",
        )
    called: Callable[..., Any] = named
    return called


def _builds(named: object, home: str) -> bool:
    """A class of torch modules, or a plain function of a place that has no other: no method that takes files."""
    if isinstance(named, type):
        return any(
            (kind.__module__, kind.__name__) == ("torch.nn.modules.module", "Module") for kind in named.__mro__
        )
    return "." not in getattr(named, "__qualname__", ".") and home.startswith(FACTORIES)


def instantiate(node: Any, remedy: str | None = None) -> Any:
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
    called = locate(str(node["_target_"]))
    if node.get("_partial_"):
        return partial(called, **values)
    try:
        return called(**values)
    except TypeError as error:
        raise ConfigError(f"{node['_target_']} does not take these arguments: {error}.", remedy=remedy) from None
