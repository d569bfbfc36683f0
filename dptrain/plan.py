"""The training plan: the one source of sampler, clipping, noise, normaliser and charge.

What runs and what is charged are both read off one frozen :class:`Plan`, so they cannot drift apart. Every
field is public configuration; none may be derived from the private data (the size is the one that the
steward declared, not the one that was counted).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass

from dptrain.errors import ConfigError
from dptrain.plain import Json
from dptrain.vocabulary import Generator, Purpose

PLAN_VERSION = 1


def default_delta(public_size: int) -> float:
    """min(1e-5, 1/(10 N)) for N patients declared public (docs/guarantee.md). Raises ConfigError for N < 1."""
    if public_size < 1:
        raise ConfigError(f"public_size={public_size} is no number of patients.", remedy="Give at least 1.")
    return min(1e-5, 1.0 / (10 * public_size))


@dataclass(frozen=True)
class Mechanism:
    """`steps` rounds of the Poisson-subsampled Gaussian mechanism under add/remove adjacency.

    In each round every patient takes part independently with probability `sample_rate`; a sum with l2
    sensitivity 1 (in units of the clipping norm) is released with Gaussian noise of standard deviation
    `noise_multiplier`. A noise multiplier of 0 means no privacy (epsilon is infinite).
    """

    sample_rate: float
    noise_multiplier: float
    steps: int
    what: str = "training"

    def __post_init__(self) -> None:
        if not 0 < self.sample_rate <= 1:
            raise ConfigError(
                f"sample rate {self.sample_rate:g} is not a probability: allowed is 0 < rate <= 1.",
                remedy="The rate is expected_batch_size / public_size: choose a batch of at most all patients.",
            )
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise ConfigError(f"noise multiplier {self.noise_multiplier} must be finite and at least 0.")
        if self.steps < 1 or self.steps != int(self.steps):
            raise ConfigError(f"steps={self.steps} must be a whole number of at least 1.")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one training run does to the patients, and thus what it costs them.

    Args:
        public_size: N, patients in the training split as the steward declared them at registration.
        expected_batch_size: expected patients in a logical step; also the normaliser of the noisy sum.
        steps: logical steps.
        noise_multiplier: noise standard deviation over `max_grad_norm`; 0 only on cohorts declared public.
        max_grad_norm: l2 clip of a patient's gradient; `inf` only with a noise multiplier of 0.
        delta: the delta at which epsilon is stated; below 1/N.
        max_records_per_patient: public cap; a patient above it contributes a fresh random subset a step.
        views: augmented copies of each drawn record (augmentation multiplicity K); views are averaged
            within their patient before clipping.
        generator: `cryptographic`, or `fast` by explicit choice (the report shows it).
        calibration_noise_multiplier: noise of the one full-batch Gaussian release (a noisy histogram with
            l2 sensitivity 1 a patient) from which temperature and conformal sets are fitted; None: no such
            release.
        declares: purposes that belong to this run's grant beside training (`evaluate`, `audit`).
        unit: what one unit of privacy is; `patient`, or another word that the report will print.

    Raises:
        ConfigError: a value out of range, with what is allowed.
    """

    public_size: int
    expected_batch_size: int
    steps: int
    noise_multiplier: float
    max_grad_norm: float
    delta: float
    max_records_per_patient: int = 8
    views: int = 1
    generator: Generator = Generator.CRYPTOGRAPHIC
    calibration_noise_multiplier: float | None = None
    declares: tuple[str, ...] = (Purpose.EVALUATE,)
    unit: str = "patient"
    version: int = PLAN_VERSION

    def __post_init__(self) -> None:
        object.__setattr__(self, "declares", tuple(self.declares))
        if self.version != PLAN_VERSION:
            raise ConfigError(f"plan version {self.version} is unknown: this program knows {PLAN_VERSION}.")
        for name in ("public_size", "expected_batch_size", "steps", "max_records_per_patient", "views"):
            value = getattr(self, name)
            if isinstance(value, bool) or value != int(value) or value < 1:
                raise ConfigError(f"{name}={value} must be a whole number of at least 1.")
        if self.expected_batch_size > self.public_size:
            raise ConfigError(
                f"expected_batch_size={self.expected_batch_size} is more than the {self.public_size} patients "
                f"declared: the sample rate would be {self.expected_batch_size / self.public_size:.3g}, above 1.",
                remedy=f"Choose an expected batch size between 1 and {self.public_size}.",
            )
        if not (math.isfinite(self.delta) and 0 < self.delta < 1):
            raise ConfigError(f"delta={self.delta} must lie between 0 and 1.")
        if self.delta >= 1 / self.public_size:
            raise ConfigError(
                f"delta={self.delta:g} is not below 1/N = {1 / self.public_size:.3g} for N = {self.public_size} "
                "patients: such a guarantee would allow one patient to be published outright.",
                remedy=f"Leave delta unset for {default_delta(self.public_size):.3g}, or choose a smaller one.",
            )
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise ConfigError(f"noise_multiplier={self.noise_multiplier} must be finite and at least 0.")
        if math.isnan(self.max_grad_norm) or self.max_grad_norm <= 0:
            raise ConfigError(f"max_grad_norm={self.max_grad_norm} must be above 0.")
        if self.noise_multiplier > 0 and not math.isfinite(self.max_grad_norm):
            raise ConfigError("Noise without clipping protects nobody: max_grad_norm must be finite.")
        if self.generator not in list(Generator):
            raise ConfigError(f"generator={self.generator} is unknown: cryptographic or fast.")
        object.__setattr__(self, "generator", Generator(self.generator))
        noise = self.calibration_noise_multiplier
        if noise is not None and not (math.isfinite(noise) and noise >= 0):
            raise ConfigError(f"calibration_noise_multiplier={noise} must be finite and at least 0.")
        for purpose in self.declares:
            if purpose not in list(Purpose):
                raise ConfigError(f"'{purpose}' is no purpose: allowed are {', '.join(Purpose)}.")

    @property
    def sample_rate(self) -> float:
        """q, the probability with which each patient takes part in a step."""
        return self.expected_batch_size / self.public_size

    @property
    def private(self) -> bool:
        """Whether a finite epsilon exists at all."""
        return all(mechanism.noise_multiplier > 0 for mechanism in self.mechanisms)

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """Everything this plan releases about the patients: the charge is computed from these alone."""
        training = Mechanism(self.sample_rate, self.noise_multiplier, self.steps)
        if self.calibration_noise_multiplier is None:
            return (training,)
        return (training, Mechanism(1.0, self.calibration_noise_multiplier, 1, "calibration"))

    def to_dict(self) -> Json:
        """Plain values for JSON (an infinite norm as "inf"); :meth:`from_dict` gives the same plan back."""
        norm = self.max_grad_norm if math.isfinite(self.max_grad_norm) else "inf"
        words = {"generator": str(self.generator), "declares": [str(purpose) for purpose in self.declares]}
        return {**dataclasses.asdict(self), "max_grad_norm": norm, **words}

    @classmethod
    def from_dict(cls, values: Json) -> Plan:
        """The plan of :meth:`to_dict`. Raises ConfigError for unknown or missing fields."""
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = set(values) - names
        if unknown:
            raise ConfigError(f"a plan has no field {', '.join(sorted(unknown))}.")
        try:
            return cls(**{**values, "max_grad_norm": float(values["max_grad_norm"])})
        except (TypeError, KeyError, ValueError) as error:
            raise ConfigError(f"the plan is incomplete: {error}.") from None

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, hex."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()
