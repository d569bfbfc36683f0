"""Settings of the audit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dptrain.cells import SMALL_CELL
from dptrain.errors import ConfigError
from dptrain.terminal.words import suggest

ATTACK_NAMES = ("student_t", "lira_online", "lira_offline", "rmia", "loss")
GAMES = ("population", "release")
TRAINERS = ("auto", "together", "engine")


@dataclass
class AuditConfig:
    """What the audit does.

    declare: the audit belongs to the run's own grant. models: reference models. game: `population` screens
    everyone; `release` then confirms those found on fresh models of the whole cohort, `confirm` of them at
    most, with `confirm_models` models each with and without the patient together. tolerance: an AUC below
    which a patient counts as not shown to be exposed. small_cell: groups below this size are suppressed.
    canaries: planted patients a canary training; canary_trainings: trainings with them, by the engine.
    new_scan: share of the patients with several records of whom one record is never trained on. trainer:
    `together`, `engine`, or auto. stack: models trained together at most. processes: of the engine; 0 for one
    a core.
    """

    declare: bool = True
    models: int = 64
    attack: str = "student_t"
    game: str = "population"
    false_discovery_rate: float = 0.05
    tolerance: float = 0.75
    small_cell: int = SMALL_CELL
    confirm: int = 3
    confirm_models: int = 32
    canaries: int = 200
    canary_trainings: int = 2
    confidence: float = 0.95
    new_scan: float = 0.25
    trainer: str = "auto"
    stack: int = 64
    processes: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("attack", self.attack, ATTACK_NAMES),
            ("game", self.game, GAMES),
            ("trainer", self.trainer, TRAINERS),
        ):
            if value not in allowed:
                raise ConfigError(f"audit.{name}={value} is unknown.", remedy=suggest(str(value), list(allowed)))
        for name, least in (
            ("models", 2),
            ("small_cell", 1),
            ("confirm", 0),
            ("confirm_models", 8),
            ("canaries", 0),
            ("canary_trainings", 0),
            ("stack", 1),
            ("processes", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"audit.{name}={getattr(self, name)} must be at least {least}.")
        for name, low, high in (
            ("false_discovery_rate", 0.0, 1.0),
            ("tolerance", 0.5, 1.0),
            ("confidence", 0.5, 1.0),
            ("new_scan", -1e-9, 1.0),
        ):
            value = getattr(self, name)
            if math.isnan(value) or not low < value < high:
                raise ConfigError(f"audit.{name}={value:g} must lie between {max(low, 0):g} and {high:g}.")
