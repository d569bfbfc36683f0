"""Starting weights from a file, never by unpickling code: safetensors, or torch files with weights alone."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dptrain.errors import ConfigError
from dptrain.files import file_sha256
from dptrain.models.private import NO_STATISTICS
from dptrain.models.split import head_name

_log = logging.getLogger(__name__)
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def weights_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a weight file, hex: what a steward declares public and what the report shows.

    Raises ConfigError where it cannot be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise ConfigError(f"the weights {os.fspath(path)} cannot be read: {error.strerror}.") from None


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Names and tensors of a weight file (`.safetensors`, else a torch file), on the CPU.

    A torch file is read with `weights_only=True`; of a training checkpoint the entry `state_dict`, `model`
    or `net` is taken. A leading `module.` of all names (from DataParallel) is dropped.

    Raises:
        ConfigError: unreadable, holding other objects than tensors, or empty.
    """
    file = Path(path)
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: object = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ConfigError(
            f"the weights {file} hold more than tensors; loading them would run code from the file.",
            remedy="Save the bare state_dict, best as .safetensors.",
        ) from None
    except Exception as error:
        raise ConfigError(
            f"the weights {file} cannot be read ({type(error).__name__}).",
            remedy="Give a .safetensors file or a torch file that holds a state_dict.",
        ) from None
    for key in ("state_dict", "model", "net"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise ConfigError(f"the weights {file} are not a table of tensors.", remedy="Save the bare state_dict.")
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    return found


def load_weights(model: nn.Module, path: str | os.PathLike[str], *, sha256: str | None = None) -> str:
    """Load a weight file into the network and return the file's SHA-256.

    Every name and shape must fit, with two exceptions, both logged: a head of another shape (other classes)
    keeps its fresh weights; and running statistics may be missing or left over where the file comes from a
    network whose BatchNorm was replaced (such a BatchNorm can later be replaced, not frozen).

    Args:
        sha256: if given, another hash is refused before anything is loaded.

    Raises:
        ConfigError: unreadable, another hash, or names and shapes that do not fit.
    """
    found_sha = weights_sha256(path)
    if sha256 is not None and sha256 != found_sha:
        raise ConfigError(
            f"the weights {os.fspath(path)} have SHA-256 {found_sha[:12]}…, declared is {sha256[:12]}….",
            remedy="Take the declared file, or have the steward declare this one.",
        )
    found = read_weights(path)
    wanted = model.state_dict()
    head = head_name(model)
    skipped = {
        name
        for name, value in found.items()
        if head is not None and name.startswith(f"{head}.") and name in wanted and wanted[name].shape != value.shape
    }
    usable = {
        name: value
        for name, value in found.items()
        if name not in skipped and (name in wanted or name.rpartition(".")[2] not in _STATISTICS)
    }
    bare = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _BatchNorm) and module.running_mean is not None and f"{name}.running_mean" not in usable
    }
    excused = skipped | {f"{name}.{key}" for name in bare for key in _STATISTICS}
    excused |= {name for name in wanted if name.endswith(".num_batches_tracked")}
    given = {wanted[name].data_ptr() for name in usable if name in wanted}
    excused |= {name for name in wanted if wanted[name].data_ptr() in given}  # a shared tensor, stored once
    missing = [name for name in wanted if name not in usable and name not in excused]
    unknown = [name for name in usable if name not in wanted]
    shapes = [name for name in usable if name in wanted and usable[name].shape != wanted[name].shape]
    if missing or unknown or shapes:
        parts = [
            f"{what}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''} ({len(names)})"
            for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
            if names
        ]
        raise ConfigError(
            f"the weights {os.fspath(path)} do not fit the network; {'; '.join(parts)}.",
            remedy="Use the network that the weights were made with, channels and classes included.",
        )
    model.load_state_dict(usable, strict=False)
    for module in bare.values():
        setattr(module, NO_STATISTICS, True)
    if skipped:
        _log.warning("the head '%s' has another shape in the weights: it starts fresh", head)
    if bare:
        _log.warning("%d BatchNorm layers have no running statistics in the weights", len(bare))
    return found_sha
