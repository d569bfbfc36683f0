"""Settings of the audit."""

from __future__ import annotations

from dataclasses import dataclass

from dptrain.errors import ConfigError


@dataclass
class AuditConfig:
    """What the audit does. declare: the audit belongs to the run's own grant. models: reference models."""

    declare: bool = True
    models: int = 64
    attack: str = "student_t"
    false_discovery_rate: float = 0.05

    def __post_init__(self) -> None:
        if self.models < 2:
            raise ConfigError(f"audit.models={self.models} must be at least 2.")
