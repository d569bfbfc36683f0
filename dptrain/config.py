"""Configuration: typed settings from Hydra groups, recipes and overrides; unknown names never pass.

`conf/` holds a group for each noun (data, model, privacy, optimizer, training, audit, ledger, report) and
`recipes/<task>/recipe/<task>.yaml` overrides what differs. Both are found in a checkout and in an installed
wheel alike; further recipes are found below `./recipes` and the folders named in `DPTRAIN_RECIPES`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dptrain.audit.config import AuditConfig
from dptrain.data.config import DataConfig
from dptrain.errors import ConfigError
from dptrain.shipped import shipped
from dptrain.words import suggest

CONFIG_NAME = "train"


def _choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}={value} is unknown.", remedy=suggest(str(value), list(allowed)))


def _at_least(name: str, value: float, low: float, *, strict: bool = False) -> None:
    if math.isnan(value) or (value <= low if strict else value < low):
        raise ConfigError(f"{name}={value} must be {'above' if strict else 'at least'} {low:g}.")


def _dotted(entries: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} and {"a.b": 1} alike as {"a.b": 1}: an override's dots nest, a file's need not."""
    flat: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, Mapping):
            flat.update(_dotted(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@dataclass
class ModelConfig:
    """The network, what of it is trained, and where its weights start.

    network: `_target_` and its arguments. train: head, last_blocks or all. weights: a file that the steward
    has declared public, or the folder of a run in the ledger; null for random weights or those that the
    network brings itself. batchnorm: replace, freeze or refuse. rules: name of a layer or parameter -> one-by-one,
    the slow exact way to its patient gradients, where no fast rule fits; names may be nested at their dots.
    """

    network: dict[str, Any] = field(default_factory=dict)
    train: str = "all"
    weights: str | None = None
    batchnorm: str = "refuse"
    rules: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _choice("model.train", self.train, ("head", "last_blocks", "all"))
        _choice("model.batchnorm", self.batchnorm, ("replace", "freeze", "refuse"))
        self.rules = _dotted(self.rules)
        for name, rule in self.rules.items():
            _choice(f"model.rules.{name}", rule, ("one-by-one",))


@dataclass
class PrivacyConfig:
    """What a patient is promised. The plan is made from these and from the size that the ledger declares.

    target_epsilon: what this run promises on its own; `inf` trains without privacy and is allowed
    on cohorts declared public only. noise_multiplier: set it instead of calibrating. delta: null for
    min(1e-5, 1/(10 N)). steps or epochs: one of them.
    """

    target_epsilon: float = 8.0
    noise_multiplier: float | None = None
    delta: float | None = None
    max_grad_norm: float = 1.0
    expected_batch_size: int = 256
    steps: int | None = None
    epochs: float | None = None
    max_records_per_patient: int = 8
    views: int = 1
    generator: str = "cryptographic"
    calibration_noise_multiplier: float | None = None

    def __post_init__(self) -> None:
        if not self.target_epsilon > 0:
            raise ConfigError(
                f"privacy.target_epsilon={self.target_epsilon:g} is not accepted: epsilon must be above 0.",
                remedy="Usual values lie between 0.5 (strict) and 8 (loose); inf on public cohorts only.",
            )
        if self.steps is not None and self.epochs is not None:
            raise ConfigError(
                "privacy.steps and privacy.epochs are both set.", remedy="Add privacy.steps=null (or epochs=null)."
            )
        if self.steps is None and self.epochs is None:
            raise ConfigError("Neither privacy.steps nor privacy.epochs is set.", remedy="Set one of them.")
        if self.epochs is not None:
            _at_least("privacy.epochs", self.epochs, 0, strict=True)
            if math.isinf(self.epochs):
                raise ConfigError("privacy.epochs=inf must be finite.")
        _choice("privacy.generator", self.generator, ("cryptographic", "fast"))


@dataclass
class OptimizerConfig:
    """The optimiser of the noisy gradient. schedule: constant, cosine or linear decay after a warm-up."""

    name: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _choice("optimizer.name", self.name, ("sgd", "adam", "adamw"))
        _choice("optimizer.schedule", self.schedule, ("constant", "cosine", "linear"))
        _at_least("optimizer.lr", self.lr, 0, strict=True)
        _at_least("optimizer.momentum", self.momentum, 0)
        _at_least("optimizer.weight_decay", self.weight_decay, 0)
        _at_least("optimizer.warmup_steps", self.warmup_steps, 0)


@dataclass
class TrainingConfig:
    """How the training runs; nothing here changes the guarantee.

    run: the run folder; null for runs/<name>-<time>. chunk: records in one physical chunk. ema: decay of the
    weight average (0: none). seed: of the starting weights only; noise and draws have none. lease: steps
    paid at once; null for the ledger's default. resume: the folder of a run to continue.
    """

    run: str | None = None
    resume: str | None = None
    device: str = "auto"
    precision: str = "float32"
    chunk: int = 64
    ema: float = 0.0
    seed: int = 0
    lease: int | None = None
    checkpoint_steps: int = 50
    cache_features: bool = True
    evaluate: bool = True

    def __post_init__(self) -> None:
        _choice("training.device", self.device, ("auto", "cpu", "cuda"))
        _choice("training.precision", self.precision, ("float32", "bf16"))
        _at_least("training.chunk", self.chunk, 1)
        _at_least("training.checkpoint_steps", self.checkpoint_steps, 1)
        if not 0 <= self.ema < 1:
            raise ConfigError(f"training.ema={self.ema} is a decay: allowed is 0 (no average) up to below 1.")
        if self.lease is not None:
            _at_least("training.lease", self.lease, 1)


@dataclass
class LedgerConfig:
    """Where the ledger, its keys and its witness are, and which cohort is meant.

    url: a path (SQLite) or a PostgreSQL URL; null for DPTRAIN_LEDGER or the default place. keys: the keys'
    folder; null for DPTRAIN_KEYS or `keys` beside the ledger. witness: a file or URL that holds a head.
    """

    url: str | None = None
    keys: str | None = None
    witness: str | None = None
    cohort: str | None = None


@dataclass
class ReportConfig:
    """lang: the language of a run's report where the command names none, en or de."""

    lang: str = "en"

    def __post_init__(self) -> None:
        _choice("report.lang", self.lang, ("en", "de"))


@dataclass
class Settings:
    """All settings of a run, typed; see the class of each part."""

    name: str = "run"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    privacy: PrivacyConfig = field(default_factory=lambda: PrivacyConfig(steps=100))
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    ledger: LedgerConfig = field(default_factory=LedgerConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


def recipe_folders() -> dict[str, Path]:
    """Recipe name -> its folder; a recipe is any folder that holds `recipe/<name>.yaml`."""
    extra = [Path(part) for part in os.environ.get("DPTRAIN_RECIPES", "").split(os.pathsep) if part]
    found: dict[str, Path] = {}
    for root in [shipped("recipes"), Path("recipes"), *extra]:
        for file in sorted(root.glob("*/recipe/*.yaml")):
            if file.stem == file.parents[1].name:
                found[file.stem] = file.parents[1].resolve()
    return found


def search_path_override() -> str:
    """The Hydra override that makes every recipe known."""
    folders = ",".join(f"'file://{folder}'" for folder in recipe_folders().values())
    return f"hydra.searchpath=[{folders}]"


def _register_schema() -> None:
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Settings)


def compose(overrides: Sequence[str]) -> Any:
    """The composed DictConfig of `conf/train.yaml`, its groups, the recipe and the overrides.

    Raises:
        ConfigError: a name or value that does not exist, with the nearest ones that do.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    _register_schema()
    words = list(overrides)
    refuse_flags(words)
    if not any(word.startswith("hydra.searchpath") for word in words):
        words.append(search_path_override())
    with friendly_errors(), initialize_config_dir(str(shipped("conf").resolve()), version_base="1.3"):
        return hydra_compose(CONFIG_NAME, overrides=words)


def refuse_flags(words: Sequence[str], known: Sequence[str] = ()) -> None:
    """ConfigError for a word that looks like an option and is none of `known`."""
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("-") and name not in known:
            near = suggest(name, known) if known else "Settings are words of the form name=value; see --help."
            raise ConfigError(f"There is no option '{name}' here.", remedy=near)


def load(overrides: Sequence[str]) -> Settings:
    """Typed settings for `name=value` overrides, recipes included."""
    return settings_of(compose(overrides))


def settings_of(config: Any) -> Settings:
    """The typed settings of a composed DictConfig. Raises ConfigError for a value of the wrong kind or range."""
    from omegaconf import OmegaConf

    with friendly_errors():
        # merged once more into the schema, so that a name added with '+' does not slip in
        values = OmegaConf.to_container(config, resolve=True)
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), values))
    if not isinstance(settings, Settings):
        raise ConfigError(
            "the configuration does not begin with the schema.", remedy="Keep conf/train.yaml's defaults."
        )
    return settings


def from_yaml(path: Path) -> Settings:
    """The settings that a run folder's `config.yaml` holds."""
    from omegaconf import DictConfig, OmegaConf

    with friendly_errors():
        kept = OmegaConf.load(path)
        if isinstance(kept, DictConfig) and isinstance(kept.get("privacy"), DictConfig):
            kept.privacy.pop("unit", None)  # runs of earlier versions named the unit here as well as in data.unit
        return settings_of(OmegaConf.merge(OmegaConf.structured(Settings), kept))


def to_yaml(settings: Settings) -> str:
    """YAML that :func:`from_yaml` reads back to equal settings, but for a database's password, which stays out."""
    from omegaconf import OmegaConf

    return without_password(OmegaConf.to_yaml(OmegaConf.structured(settings)))


def without_password(text: str) -> str:
    """Text that may be shown: database URLs in it lose their password (PGPASSWORD or ~/.pgpass can hold it)."""
    text = re.sub(r"(\w://[^\s:/@]*):[^\s/@]*@", r"\1@", text)
    return re.sub(r"([?&]password=)[^\s&'\"]*", r"\1", text)


class friendly_errors:  # noqa: N801 - a context manager, used like a function
    """Turn Hydra's and OmegaConf's errors into a ConfigError that names the nearest valid names."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None or isinstance(error, ConfigError):
            return
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        if isinstance(error, HydraException | OmegaConfBaseException):
            raise explain(error) from None


def explain(error: BaseException) -> ConfigError:
    """A Hydra or OmegaConf error in plain words, with the nearest valid names."""
    cause = error.__cause__
    texts = [str(error), str(cause) if cause is not None else ""]
    full = "\n".join(texts)
    unknown = re.search(r"Could not (?:override|append to config\. ?.*?) ?'([^']+)'", full)
    if unknown is None:
        unknown = re.search(r"Key '([^']+)' (?:is )?not in", full)
    if unknown is not None:
        key = unknown.group(1)
        names = setting_names()
        if key == "model.network":
            return ConfigError("model.network is set one argument at a time.", remedy=NETWORK_REMEDY)
        if key == "model.rules":
            return ConfigError(
                "model.rules is set one layer at a time.",
                remedy="Write +model.rules.NAME=one-by-one for each layer or parameter.",
            )
        free = next((name for name in FREE if key.startswith(f"{name}.")), None)
        if free is not None:
            return ConfigError(f"'{key}' is not among the entries of {free}.", remedy=f"Write +{key}=… to add it.")
        if key in FREE:
            return ConfigError(f"{key} is set one entry at a time.", remedy=f"Write +{key}.NAME=… for each.")
        near = suggest(key, names)
        if near.startswith("Valid names"):
            parent = key.rpartition(".")[0]
            siblings = [name for name in names if name.startswith(f"{parent}.")] if parent else names
            near = suggest(key, siblings or names)
        if near.startswith("Valid names"):
            near = "See `dptrain train --cfg job` for all names."
        return ConfigError(f"There is no setting '{key}'.", remedy=near)
    option = re.search(r"Could not find '([^']+)/([^'/]+)'", full)
    if option is not None:
        group, name = option.group(1), option.group(2)
        choices = sorted(recipe_folders()) if group == "recipe" else _options(group)
        return ConfigError(f"There is no {group}={name}.", remedy=suggest(name, choices) if choices else None)
    group_missing = re.search(r"Could not override '([^']+)'\. No match in the defaults list", full)
    if group_missing is not None:
        name = group_missing.group(1)
        return ConfigError(f"There is no group '{name}'.", remedy=suggest(name, GROUPS))
    bare = re.search(r"Error parsing override '([^=\n]*?)'", full)
    if bare is not None:
        word = bare.group(1)
        if word in recipe_folders():
            near = f"Did you mean recipe={word}?"
        else:
            near = f"Write {word}=…." if word in setting_names() else suggest(word, setting_names())
        return ConfigError(f"'{word}' is not of the form name=value.", remedy=near)
    wrong = re.search(r"Value '(.*?)'.* (?:converted to|is not a valid) '?(\w+)", full)
    place = re.search(r"Error merging override '?([\w.]+)|full_key: ([\w.]+)", full)
    if wrong is not None and place is not None and wrong.group(2).lower() in KINDS:
        name, value = place.group(1) or place.group(2), wrong.group(1)
        what = KINDS[wrong.group(2).lower()]
        default = _default(name)
        said = f"{name}={value} is not {what}." if value else f"{name}= is empty; it takes {what}."
        usual = "" if default is None else f", for instance {name}={default}"
        return ConfigError(said, remedy=f"Give {what}{usual}.")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key_line = next((line for line in lines if line.startswith("full_key:")), "")
    message = lines[0] if lines else type(error).__name__
    if cause is not None and str(cause).strip():
        message = f"{message.rstrip('.')}: {str(cause).strip().splitlines()[0]}"
    if key_line:
        message = f"{key_line.removeprefix('full_key:').strip()}: {message}"
    return ConfigError(message.rstrip(".") + ".", remedy="See `dptrain train --cfg job` for names and values.")


NETWORK_REMEDY = (
    "Write model.network._target_=…, then +model.network.NAME=… for each argument that is new and "
    "~model.network.NAME for each that the network does not take (dptrain check --help has an example)."
)
KINDS = {"float": "a number", "integer": "a whole number", "bool": "true or false"}
FREE = (
    "model.network",
    "model.rules",
    "data.label_values",
    "data.keep",
    "data.drop",
    "data.columns.bins",
    "data.split.values",
    "data.table.numeric",
    "data.table.categorical",
    "data.table.binned",
    "data.npz.lookup",
)
GROUPS = ("data", "model", "privacy", "optimizer", "training", "audit", "ledger", "report", "recipe", "debug")


def _options(group: str) -> list[str]:
    return sorted(file.stem for file in (shipped("conf") / group).glob("*.yaml"))


def _default(name: str) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.select(OmegaConf.structured(Settings), name)


def setting_names() -> list[str]:
    """Every dotted name that an override may set."""
    from omegaconf import DictConfig, OmegaConf

    def walk(node: Any, prefix: str) -> list[str]:
        names: list[str] = []
        for key in node:
            name = f"{prefix}{key}"
            names.append(name)
            child = node._get_node(key)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
                names += walk(child, f"{name}.")
        return names

    return sorted({*walk(OmegaConf.structured(Settings), ""), *GROUPS})
