"""Hydra's command line for `train` and `audit`: one job, or with `-m` many, on one machine or several.

Which launcher runs the jobs of a sweep is configuration alone (`hydra/launcher=joblib`, `submitit_slurm`, …): a job
is a function of a module, finds its way by `hydra.job.env_set`, and writes how it ended into a file of its own. The
folder of these files lies in the working directory, which several machines must therefore share.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dptrain.errors import ConfigError
from dptrain.files import write_json
from dptrain.plain import Json
from dptrain.records.shape import Record
from dptrain.settings import Settings, load, settings_of
from dptrain.settings.compose import for_hydra
from dptrain.settings.explain import explain
from dptrain.settings.overrides import refuse_flags
from dptrain.shipped import shipped
from dptrain.training.sweeps import OUTCOMES, PREFIX

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Hydra's options that make sense here; others would print its own usage.
FLAGS = ("-m", "--multirun", "-c", "--cfg", "-r", "--resolve", "-p", "--package", "-i", "--info", "--hydra-help")

TAKES_A_WORD = ("-c", "--cfg", "-p", "--package", "-i", "--info")


def is_sweep(words: Sequence[str]) -> bool:
    """Whether a command asks for several jobs."""
    return any(word in ("-m", "--multirun") for word in words)


def flags_first(words: Sequence[str]) -> list[str]:
    """The same words with flags (and what belongs to them) before all overrides: Hydra's parser takes overrides in
    one run only, a person writes them in any order."""
    overrides = [word for word in words if word[:1] != "-" and ("=" in word or word[:1] == "~")]
    return [word for word in words if word not in overrides] + overrides


def override_words(words: Sequence[str]) -> list[str]:
    """The words of a command that are neither flags nor what belongs to one (`--cfg job`)."""
    before = ["", *words]
    return [
        word
        for word, last in zip(words, before)
        if word[:1] != "-" and not (last in TAKES_A_WORD and "=" not in word)
    ]


def compose_and_run(
    command: str, words: Sequence[str], job: Callable[[DictConfig], object], ended: list[Json] | None = None
) -> list[Json]:
    """Let Hydra read the words of `dptrain <command>` and call `job` with each composed configuration.

    Args:
        job: a function of a module (launchers send it to other processes by name) in a sweep, else any.
        ended: where to put what is returned; it is filled even where an error or Ctrl-C ends the sweep.

    Returns:
        What the jobs of a sweep handed to :func:`write_outcome`, in their order; nothing without `-m`.

    Raises:
        ConfigError: words that cannot be read.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    refuse_flags(words, FLAGS)
    overrides = override_words(words)
    asked = for_hydra(overrides, sweep=is_sweep(words))
    if any(word in ("-c", "--cfg") for word in words) and not is_sweep(words):
        load(overrides)  # what is printed has been checked too
    extra = asked.extra
    ended = [] if ended is None else ended
    folder = Path(f"{PREFIX}{uuid.uuid4().hex[:16]}").resolve()
    if is_sweep(words):
        folder.mkdir(mode=0o700)
        extra.append(f"+hydra.job.env_set.{OUTCOMES}='{folder}'")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    before, sys.argv = sys.argv, ["dptrain", *flags_first([*words, *extra])]
    decorate = hydra.main(
        version_base="1.3", config_path=str(shipped("conf").resolve()), config_name=asked.config_name
    )
    remedy = f"See `dptrain {command} --help`."
    try:
        decorate(job)()
        return ended
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, overrides) from None
    except ValueError as error:  # Hydra's own, for flags that do not go together; a job keeps its errors to itself
        raise ConfigError(f"{error}".rstrip(".") + ".", remedy=remedy) from None
    except SystemExit as error:  # Hydra's argument parser ends the program for a word that it does not know
        if error.code in (0, None):
            return ended
        raise ConfigError("the words of this command cannot be read.", remedy=remedy) from None
    finally:
        sys.argv = before
        ended += [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
        shutil.rmtree(folder, ignore_errors=True)


def job_words() -> str:
    """What sets this job of a sweep apart from the others."""
    from hydra.core.hydra_config import HydraConfig

    return " ".join(HydraConfig.get().overrides.task)


def job_settings(config: DictConfig) -> Settings:
    """Settings of this job of a sweep; without `training.run` its folder is its number below `hydra.sweep.dir`."""
    from hydra.core.hydra_config import HydraConfig

    settings = settings_of(config)
    if settings.training.run is not None:
        return settings
    folder = Path(HydraConfig.get().sweep.dir) / str(HydraConfig.get().job.num)
    return replace(settings, training=replace(settings.training, run=str(folder)))


def write_outcome(trial: Record) -> None:
    """Hand how this job of a sweep ended to the command that started it (readable by this account only)."""
    from hydra.core.hydra_config import HydraConfig

    path = Path(os.environ[OUTCOMES]) / f"{int(HydraConfig.get().job.num):06d}.json"
    write_json(path, trial.to_json(), private=True)  # Ctrl-C may come at any time
