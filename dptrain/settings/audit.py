"""What an audit does."""

from __future__ import annotations

from dataclasses import dataclass

from dptrain.cells import SMALL_CELL
from dptrain.errors import ConfigError
from dptrain.settings.fields import at_least, between, one_of, setting

ATTACK_NAMES = ("student_t", "lira_online", "lira_offline", "rmia", "loss")
GAMES = ("population", "release")
TRAINERS = ("auto", "together", "engine")


@dataclass(frozen=True)
class AuditConfig:
    """What the audit does."""

    declare: bool = setting(True, "the audit belongs to the run's own grant")
    models: int = setting(64, "reference models, each trained on a random half of the patients")
    attack: str = setting("student_t", "student_t, lira_online, lira_offline, rmia or loss")
    game: str = setting("population", "population screens everyone; release also confirms on fresh models")
    false_discovery_rate: float = setting(0.05, "share of wrong verdicts that is accepted")
    exposed_above: float = setting(0.6, "an AUC above which a patient counts as exposed")
    tolerance: float = setting(0.75, "an AUC below which a patient counts as not shown to be exposed")
    unit_column: str | None = setting(None, "a column of data.columns.groups: audit persons or families by it")
    small_cell: int = setting(SMALL_CELL, "groups below this size are suppressed")
    confirm: int = setting(3, "patients that `game=release` confirms at most")
    confirm_models: int = setting(32, "fresh models with and as many without each of them")
    canaries: int = setting(200, "planted patients a canary training")
    canary_trainings: int = setting(2, "trainings with canaries, by the engine")
    confidence: float = setting(0.999, "that no correct trainer is accused, by all checks and bounds; at least 0.999")
    new_scan: float = setting(0.25, "share of patients of whom one record is never trained on")
    trainer: str = setting("auto", "together (many models at once), engine, or auto")
    stack: int = setting(64, "models trained together at most")
    processes: int = setting(0, "of the engine; 0 for one a core")

    def __post_init__(self) -> None:
        one_of("audit.attack", self.attack, ATTACK_NAMES)
        one_of("audit.game", self.game, GAMES)
        one_of("audit.trainer", self.trainer, TRAINERS)
        if self.unit_column is not None and self.game != "population":
            raise ConfigError(
                f"audit.unit_column={self.unit_column} goes with audit.game=population only.",
                remedy="Leave audit.game out.",
            )
        at_least("audit.models", self.models, 2)
        at_least("audit.small_cell", self.small_cell, 1)
        at_least("audit.confirm", self.confirm, 0)
        at_least("audit.confirm_models", self.confirm_models, 8)
        at_least("audit.canaries", self.canaries, 0)
        at_least("audit.canary_trainings", self.canary_trainings, 0)
        at_least("audit.stack", self.stack, 1)
        at_least("audit.processes", self.processes, 0)
        between("audit.false_discovery_rate", self.false_discovery_rate, 0, 1)
        between("audit.exposed_above", self.exposed_above, 0.5, 1)
        between("audit.tolerance", self.tolerance, 0.5, 1)
        between("audit.confidence", self.confidence, 0.5, 1)
        if not 0 <= self.new_scan < 1:
            raise ConfigError(f"audit.new_scan={self.new_scan:g} must be at least 0 and below 1.")
