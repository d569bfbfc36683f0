"""What a run is set to: model, privacy, optimiser, training, ledger, report; with data and audit, all of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dptrain.errors import ConfigError
from dptrain.settings.audit import AuditConfig
from dptrain.settings.data import DataConfig
from dptrain.terminal.words import suggest


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
