"""The one way to weights on disk: read, hashed, loaded, kept; never by unpickling code."""

from __future__ import annotations

import logging
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dptrain.errors import ConfigError
from dptrain.files import file_sha256, whole_or_nothing
from dptrain.models.private import NO_STATISTICS
from dptrain.models.split import head_name
from dptrain.records import RunFolder

_log = logging.getLogger(__name__)
WRAPPERS = ("module.", "_module.", "_orig_mod.")  # of DataParallel, Opacus and torch.compile
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class ModelStore:
    """Where the weights of one model lie: a `.safetensors` file, or a torch file that holds tensors alone.

    Every reader and writer of weights goes through it, so that they can one day lie elsewhere (sealed, say).

    Args:
        file: the weight file; it need not exist yet.
    """

    file: Path

    @classmethod
    def of(cls, place: str | os.PathLike[str]) -> ModelStore:
        """A weight file, or the model in the folder of a run."""
        path = Path(place)
        return cls(RunFolder(path).weights if path.is_dir() else path)

    @property
    def exists(self) -> bool:
        """Whether the weights are there."""
        return self.file.is_file()

    def sha256(self) -> str:
        """Hex: what a steward declares public, the ledger holds of a run, and the report shows.

        Raises ConfigError where the file cannot be read.
        """
        try:
            return file_sha256(self.file)
        except OSError as error:
            raise ConfigError(f"the weights {self.file} cannot be read: {error.strerror}.") from None

    def read(self) -> dict[str, Tensor]:
        """Names and tensors, on the CPU.

        A torch file is read with `weights_only=True`; of a training checkpoint the entry `state_dict`, `model`
        or `net` is taken.

        Raises:
            ConfigError: unreadable, holding other objects than tensors, or empty.
        """
        try:
            if self.file.suffix == ".safetensors":
                content: object = load_file(self.file)
            else:
                content = torch.load(self.file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise ConfigError(
                f"the weights {self.file} hold more than tensors; loading them would run code from the file.",
                remedy="Save the bare state_dict, best as .safetensors.",
            ) from None
        except Exception as error:
            raise ConfigError(
                f"the weights {self.file} cannot be read ({type(error).__name__}).",
                remedy="Give a .safetensors file or a torch file that holds a state_dict.",
            ) from None
        for key in ("state_dict", "model", "net"):
            if isinstance(content, dict) and isinstance(content.get(key), dict):
                content = content[key]
        if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
            raise ConfigError(
                f"the weights {self.file} are not a table of tensors.", remedy="Save the bare state_dict."
            )
        return content

    def restore(self, network: nn.Module, *, sha256: str | None = None) -> None:
        """Put the weights of a model into the same network, built anew: every name and shape must fit.

        Args:
            sha256: what the model must be, where somebody wrote it down (run.json, the ledger).

        Raises:
            ConfigError: missing, unreadable, another model than `sha256`, or of another network.
        """
        if not self.exists:
            raise ConfigError(f"{self.file} is missing: the run kept no model.")
        if sha256 is not None and self.sha256() != sha256:
            raise ConfigError(
                f"{self.file} is not the model that was kept: its hash is not {sha256[:12]}….",
                remedy="Bring back the file as the run wrote it.",
            )
        try:
            network.load_state_dict(self.read())
        except RuntimeError:
            raise ConfigError(
                f"the weights {self.file} are of another network.", remedy="Bring back the file as the run wrote it."
            ) from None

    def save(self, network: nn.Module) -> str:
        """Keep the network's weights as safetensors, whole or not at all, and return their SHA-256.

        Tied parameters are stored once under each name.
        """
        state = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
        with whole_or_nothing(self.file, "wb") as file:
            file.write(save(state))
        return self.sha256()

    def start(self, network: nn.Module, *, sha256: str | None = None) -> str:
        """Load the weights into a network that is to start from them, and return their SHA-256.

        Every name and shape must fit, with two exceptions, both logged: a head of another shape (other classes)
        keeps its fresh weights; and running statistics may be missing or left over where the file comes from a
        network whose BatchNorm was replaced (such a BatchNorm can later be replaced, not frozen). A leading
        `module.` (DataParallel) or `_module.` (Opacus) of all names is dropped.

        Args:
            sha256: if given, another hash is refused before anything is loaded.

        Raises:
            ConfigError: unreadable, another hash, or names and shapes that do not fit.
        """
        sha = self.sha256()
        if sha256 is not None and sha256 != sha:
            raise ConfigError(
                f"the weights {self.file} have SHA-256 {sha[:12]}…, declared is {sha256[:12]}….",
                remedy="Take the declared file, or have the steward declare this one.",
            )
        weights, wanted = self.read(), network.state_dict()
        for prefix in WRAPPERS:
            if all(name.startswith(prefix) for name in weights) and not any(n.startswith(prefix) for n in wanted):
                weights = {name.removeprefix(prefix): value for name, value in weights.items()}
        head = head_name(network)
        skipped = {
            name
            for name, value in weights.items()
            if head is not None
            and name.startswith(f"{head}.")
            and name in wanted
            and wanted[name].shape != value.shape
        }
        usable = {
            name: value
            for name, value in weights.items()
            if name not in skipped and (name in wanted or name.rpartition(".")[2] not in _STATISTICS)
        }
        bare = {
            name: module
            for name, module in network.named_modules(remove_duplicate=False)
            if isinstance(module, _BatchNorm)
            and module.running_mean is not None
            and f"{name}.running_mean" not in usable
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
                f"the weights {self.file} do not fit the network; {'; '.join(parts)}.",
                remedy="Use the network that the weights were made with, channels and classes included.",
            )
        network.load_state_dict(usable, strict=False)
        for module in bare.values():
            setattr(module, NO_STATISTICS, True)
        if skipped:
            _log.warning("the head '%s' has another shape in the weights: it starts fresh", head)
        if bare:
            _log.warning("%d BatchNorm layers have no running statistics in the weights", len(bare))
        return sha
