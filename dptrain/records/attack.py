"""restricted/attack/attack.json: what reconstruction attacks reached, as aggregates. Un-noised; the controller's."""

from __future__ import annotations

from dataclasses import dataclass

from dptrain.records.shape import Record, Share

ATTACK_SCHEMA = "dptrain.attack/1"


@dataclass(frozen=True, kw_only=True)
class AttackRow(Record):
    """One game under one protection.

    arm: none, clip only, or epsilon. network: of whom; coordinator: honest or imprint. returns: who, picture or
    features. success: share of patients named (line-up) or reconstructed, with its interval; first: share in which
    the right patient is the first of the line-up. bound: the most that the promise allows, for what `bound_of` names.
    ssim and psnr are means; nearest_other, guess and shuffled are the nulls. refutable: whether naming everybody
    would have passed the bound; above: whether it was passed, twice.
    """

    game: str = ""
    arm: str = ""
    epsilon: float | None = None
    coordinator: str | None = None
    network: str | None = None
    returns: str | None = None
    prior: str | None = None
    draws: str | None = None
    targets: str | None = None
    patients_in_message: int | None = None
    candidates: int | None = None
    trials: int | None = None
    successes: int | None = None
    success: Share | None = None
    low: Share | None = None
    high: Share | None = None
    chance: Share | None = None
    bound: Share | None = None
    bound_of: str | None = None
    p_value: Share | None = None
    first: Share | None = None
    mean_rank: float | None = None
    rank_p_value: Share | None = None
    ssim: float | None = None
    psnr: float | None = None
    nearest_other: float | None = None
    guess: float | None = None
    shuffled: float | None = None
    refutable: bool | None = None
    above: bool | None = None


@dataclass(frozen=True, kw_only=True)
class LeftOut(Record):
    """A game that was asked for and not played, and why."""

    game: str = ""
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Attack(Record):
    """attack.json. pictures: none, public or permitted; until: the last day of a permission."""

    SCHEMA = ATTACK_SCHEMA

    schema: str = ATTACK_SCHEMA
    created: str | None = None
    unit: str | None = None
    patients: int | None = None
    epsilon: float | None = None
    infinite: bool = False
    delta: float | None = None
    rows: tuple[AttackRow, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    pictures: str | None = None
    until: str | None = None
    broken: bool = False
    plan_sha256: str | None = None
    asked_sha256: str | None = None
    cohort_sha256: str | None = None
    seconds: float | None = None
