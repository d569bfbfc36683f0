"""What a reconstruction attack does."""

from __future__ import annotations

from dataclasses import dataclass

from dptrain.errors import ConfigError
from dptrain.settings.fields import at_least, between, one_of, setting

ATTACK_GAMES = ("lineup", "message", "weights")


@dataclass(frozen=True)
class AttackConfig:
    """What a reconstruction attack does."""

    game: list[str] = setting([*ATTACK_GAMES], "lineup, message, weights")
    targets: str = setting("patients", "of the line-up: patients, or canaries at right angles, which test the engine")
    candidates: int | None = setting(None, "in a line-up; null: 100, or more where the promise is weak")
    trials: int = setting(30, "trainings of a line-up; patients of a message or of weights")
    draws: str = setting("secret", "of the one in question: secret, or known, which has a bound of its own")
    patients_in_message: list[int] = setting([1, 16, 64], "how many patients a message sums")
    epsilons: list[float] = setting([], "further promises that are attacked beside the plan's, of training alone")
    prior: str = setting("none", "what the attacker knows of such pictures: none, or public (everybody else's)")
    pictures: str = setting("none", "none; public (of public cohorts); permitted (by the controller's signature)")
    side: int = setting(64, "pixels of a side of the pictures that are attacked")
    known: int = setting(2000, "pictures of others that the attacker has, at most")
    shadows: int = setting(32, "shadow trainings of a network that has no closed form")
    penalty: float = setting(10.0, "of the converged head that the closed form is shown on")
    confidence: float = setting(0.95, "of intervals")

    def __post_init__(self) -> None:
        if not self.game:
            raise ConfigError("attack.game names no game.", remedy=f"Games: {', '.join(ATTACK_GAMES)}.")
        for name in self.game:
            one_of("attack.game", name, ATTACK_GAMES)
        one_of("attack.targets", self.targets, ("patients", "canaries"))
        one_of("attack.draws", self.draws, ("secret", "known"))
        one_of("attack.prior", self.prior, ("none", "public"))
        one_of("attack.pictures", self.pictures, ("none", "public", "permitted"))
        at_least("attack.candidates", self.candidates, 2)
        at_least("attack.trials", self.trials, 1)
        at_least("attack.side", self.side, 16)
        at_least("attack.known", self.known, 20)
        at_least("attack.shadows", self.shadows, 8)
        at_least("attack.penalty", self.penalty, 0, above=True)
        between("attack.confidence", self.confidence, 0.5, 1)
        for count in self.patients_in_message:
            at_least("attack.patients_in_message", count, 1)
        for epsilon in self.epsilons:
            at_least("attack.epsilons", epsilon, 0, above=True)
