"""What a run is set to: model, privacy, optimiser, training, ledger, report; with data and audit, all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dptrain.errors import ConfigError
from dptrain.plain import Json
from dptrain.settings.attack import AttackConfig
from dptrain.settings.audit import AuditConfig
from dptrain.settings.data import DataConfig
from dptrain.settings.fields import at_least, between, finite, one_of, section, setting
from dptrain.vocabulary import LANGUAGES


@dataclass(frozen=True)
class ModelConfig:
    """The network, what of it is trained, and where its weights start."""

    network: Json = setting({}, "`_target_` and its arguments")
    train: str = setting("all", "head, last_blocks or all")
    weights: str | None = setting(None, "a file declared public, or a run's folder; null: its own or random")
    batchnorm: str = setting("refuse", "replace, freeze or refuse")
    rules: dict[str, str] = setting({}, "layer or parameter -> one-by-one, the slow exact way", dotted=True)

    def __post_init__(self) -> None:
        one_of("model.train", self.train, ("head", "last_blocks", "all"))
        one_of("model.batchnorm", self.batchnorm, ("replace", "freeze", "refuse"))
        for name, rule in self.rules.items():
            one_of(f"model.rules.{name}", rule, ("one-by-one",))


@dataclass(frozen=True)
class PrivacyConfig:
    """What a patient is promised. The plan is made from these and from the size that the ledger declares."""

    target_epsilon: float = setting(8.0, "what this run promises on its own; inf on cohorts declared public only")
    noise_multiplier: float | None = setting(None, "set it instead of calibrating; null: from target_epsilon")
    delta: float | None = setting(None, "null for min(1e-5, 1/(10 N))")
    max_grad_norm: float = setting(1.0, "the norm to which a patient's gradient is clipped")
    expected_batch_size: int = setting(256, "patients that a step draws on average")
    steps: int | None = setting(None, "steps of the training; this or epochs")
    epochs: float | None = setting(None, "passes over the patients; this or steps")
    max_records_per_patient: int = setting(8, "cap on records; a fresh random subset is drawn above it")
    views: int = setting(1, "augmented copies of a record in a step")
    generator: str = setting("cryptographic", "of the noise: cryptographic, or fast, which the report shows")
    calibration_noise_multiplier: float | None = setting(None, "noise of temperature and conformal sets; null: none")

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
        at_least("privacy.noise_multiplier", self.noise_multiplier, 0)
        finite("privacy.noise_multiplier", self.noise_multiplier)
        if self.delta is not None:
            between("privacy.delta", self.delta, 0, 1)
        at_least("privacy.max_grad_norm", self.max_grad_norm, 0, above=True)
        at_least("privacy.expected_batch_size", self.expected_batch_size, 1)
        at_least("privacy.steps", self.steps, 1)
        at_least("privacy.epochs", self.epochs, 0, above=True)
        finite("privacy.epochs", self.epochs)
        at_least("privacy.max_records_per_patient", self.max_records_per_patient, 1)
        at_least("privacy.views", self.views, 1)
        at_least("privacy.calibration_noise_multiplier", self.calibration_noise_multiplier, 0)
        finite("privacy.calibration_noise_multiplier", self.calibration_noise_multiplier)
        one_of("privacy.generator", self.generator, ("cryptographic", "fast"))


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser of the noisy gradient."""

    name: str = setting("sgd", "sgd, adam or adamw")
    lr: float = setting(0.1, "learning rate")
    momentum: float = setting(0.0, "of sgd")
    weight_decay: float = setting(0.0, "decay of the weights")
    schedule: str = setting("constant", "constant, cosine or linear decay after the warm-up")
    warmup_steps: int = setting(0, "steps over which the rate rises from 0")

    def __post_init__(self) -> None:
        one_of("optimizer.name", self.name, ("sgd", "adam", "adamw"))
        one_of("optimizer.schedule", self.schedule, ("constant", "cosine", "linear"))
        at_least("optimizer.lr", self.lr, 0, above=True)
        at_least("optimizer.momentum", self.momentum, 0)
        at_least("optimizer.weight_decay", self.weight_decay, 0)
        at_least("optimizer.warmup_steps", self.warmup_steps, 0)


@dataclass(frozen=True)
class TrainingConfig:
    """How the training runs; nothing here changes the guarantee."""

    run: str | None = setting(None, "the run folder; null for runs/<name>-<time>")
    resume: str | None = setting(None, "the folder of a run to continue")
    device: str = setting("auto", "auto, cpu or cuda")
    precision: str = setting("float32", "float32 or bf16")
    chunk: int = setting(64, "records in one physical chunk; at least the record cap x views")
    ema: float = setting(0.0, "decay of the weight average; 0 for none")
    seed: int = setting(0, "of the starting weights only; noise and draws have none")
    lease: int | None = setting(None, "steps paid at once; null for the ledger's default")
    checkpoint_steps: int = setting(50, "steps between two checkpoints")
    cache_features: bool = setting(True, "keep the features of a frozen trunk while the grant is open")
    evaluate: bool = setting(True, "score the test patients at the end")

    def __post_init__(self) -> None:
        one_of("training.device", self.device, ("auto", "cpu", "cuda"))
        one_of("training.precision", self.precision, ("float32", "bf16"))
        at_least("training.chunk", self.chunk, 1)
        at_least("training.checkpoint_steps", self.checkpoint_steps, 1)
        if not 0 <= self.ema < 1:
            raise ConfigError(f"training.ema={self.ema} is a decay: allowed is 0 (no average) up to below 1.")
        at_least("training.lease", self.lease, 1)


@dataclass(frozen=True)
class LedgerConfig:
    """Where the ledger, its keys and its witness are, and which cohort is meant."""

    url: str | None = setting(None, "a path (SQLite) or a PostgreSQL URL; null for DPTRAIN_LEDGER or the default")
    keys: str | None = setting(None, "the keys' folder; null for DPTRAIN_KEYS or `keys` beside the ledger")
    witness: str | None = setting(None, "a file or URL that holds a head")
    cohort: str | None = setting(None, "the cohort's name in the ledger; null for data.name")

    def placed(self, places: Mapping[str, str | None]) -> LedgerConfig:
        """The same with url, keys or witness as `places` has them; None there keeps what is here."""
        return replace(self, **{name: place for name, place in places.items() if place is not None})


@dataclass(frozen=True)
class ReportConfig:
    """The report of a run."""

    lang: str = setting("en", "its language where the command names none: en or de")

    def __post_init__(self) -> None:
        one_of("report.lang", self.lang, LANGUAGES)


@dataclass(frozen=True)
class Settings:
    """All settings of a run, section by section."""

    name: str = setting("run", "the name of the run, and of its cohort where data.name says no other")
    data: DataConfig = section(DataConfig)
    model: ModelConfig = section(ModelConfig)
    privacy: PrivacyConfig = section(PrivacyConfig, steps=200)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    training: TrainingConfig = section(TrainingConfig)
    audit: AuditConfig = section(AuditConfig)
    attack: AttackConfig = section(AttackConfig)
    ledger: LedgerConfig = section(LedgerConfig)
    report: ReportConfig = section(ReportConfig)
