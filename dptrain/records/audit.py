"""restricted/audit/audit.json: what the attacks found, as aggregates. Un-noised; the controller's until released."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

from dptrain.records.metrics import Suppressed
from dptrain.records.parts import Curve, columns
from dptrain.records.shape import LATE, Path, Reader, Record, Share

AUDIT_SCHEMA = "dptrain.audit/1"


@dataclass(frozen=True, kw_only=True)
class NotFinite(Record):
    """Models and records that were left out, since their scores are not finite."""

    models: int | None = None
    records: int | None = None


@dataclass(frozen=True, kw_only=True)
class Exposed(Record):
    """How many patients are exposed (a trace is shown); the share with its interval.

    above: the AUC above which theirs is shown to lie. Audits without it called exposed whoever left a trace.
    """

    count: int | None = None
    share: Share | None = None
    low: Share | None = None
    high: Share | None = None
    above: Annotated[Share | None, LATE] = None


@dataclass(frozen=True, kw_only=True)
class TrueShare(Record):
    """Limits of the share of patients whose true AUC is at least `auc`; all of an audit hold together."""

    auc: Share | None = None
    low: Share | None = None
    high: Share | None = None


@dataclass(frozen=True, kw_only=True)
class SmallestSeen(Record):
    """The smallest AUC of one patient alone that such an audit sees in 8 of 10 cases; None: not even 1."""

    trace: Share | None = None
    exposed: Share | None = None


@dataclass(frozen=True, kw_only=True)
class Verdicts(Record):
    """Patients by verdict. trace_shown: a trace, and no exposure."""

    exposed: int | None = None
    trace_shown: Annotated[int | None, LATE] = None
    not_shown: int | None = None
    inconclusive: int | None = None


@dataclass(frozen=True, kw_only=True)
class FreshAuc(Record):
    """One patient's AUC on fresh models."""

    auc: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Confirmed(Record):
    """The release game: how many of those tested were confirmed on fresh models."""

    game: str | None = None
    tested: int | None = None
    confirmed: int | None = None
    auc: tuple[FreshAuc, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Auc(Record):
    """AUC over patients. max_by_chance: what the largest stays below in 95 of 100 audits where nothing leaks."""

    mean: float | None = None
    median: float | None = None
    max: float | None = None
    max_by_chance: float | None = None
    low: float | None = None
    high: float | None = None
    ceiling: float | None = None


@dataclass(frozen=True, kw_only=True)
class Survival(Record):
    """Share of patients whose AUC is at least so high, and the same where nothing leaks (`null`)."""

    auc: tuple[Share, ...]
    share: tuple[Share, ...]
    null: tuple[Share, ...] | None = None

    @classmethod
    def holds(cls, value: object) -> bool:
        return value is not None

    @classmethod
    def from_json(cls, value: object, reader: Reader | None = None, path: Path | None = ()) -> Self | None:
        shown, chance = columns(value, ("auc", "share")), columns(value, ("auc", "null"))
        says_chance = isinstance(value, dict) and value.get("null") is not None
        if reader is not None and (shown is None or (chance is None and says_chance)):
            reader.fault(path)
        if shown is None:
            return None
        return cls(auc=shown[0], share=shown[1], null=None if chance is None else chance[1])


@dataclass(frozen=True, kw_only=True)
class Rate(Record):
    """True positive rates over patients at one false positive rate. ceiling: what the guarantee allows."""

    mean: float | None = None
    median: float | None = None
    max: float | None = None
    low: float | None = None
    high: float | None = None
    pooled: float | None = None
    ceiling: float | None = None
    extrapolated: bool = False


@dataclass(frozen=True, kw_only=True)
class ByRecords(Record):
    """How the best record's AUC grows with the number of records, beside the pooled one, which does not."""

    records: str = ""
    patients: int | None = None
    best_record: float | None = None
    pooled: float | None = None


@dataclass(frozen=True, kw_only=True)
class Baseline(Record):
    """AUC of each patient's best record: grows with the number of records where nothing leaks; no risk."""

    mean: float | None = None
    max: float | None = None
    by_records: tuple[ByRecords, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GroupShare(Record):
    """The share of exposed patients of a group, with its interval; raw_share is not standardised."""

    patients: int | None = None
    share: Share | None = None
    low: Share | None = None
    high: Share | None = None
    raw_share: float | None = None

    @classmethod
    def from_json(cls, value: object, reader: Reader | None = None, path: Path | None = ()) -> Self | None:
        cell = super().from_json(value, reader, None)
        return None if cell is None or cell.share is None else cell


@dataclass(frozen=True, kw_only=True)
class SuspectedLinks(Record):
    """Pairs of patients who may be one person under two ids; patients.csv names them."""

    pairs: int | None = None
    patients: int | None = None


@dataclass(frozen=True, kw_only=True)
class NewScan(Record):
    """Is a patient recognised by a record that no model was trained on?"""

    auc: float | None = None
    low: float | None = None
    high: float | None = None
    patients: int | None = None


@dataclass(frozen=True, kw_only=True)
class Promised(Record):
    """What the plan promises. epsilon: None where infinite."""

    epsilon: float | None = None
    infinite: bool = False
    delta: float | None = None
    tradeoff: Curve | None = None


@dataclass(frozen=True, kw_only=True)
class Canary(Record):
    """The lower bound on epsilon that planted patients proved.

    provable: what they would have proved with every guess right; a promise above it they could not have refuted.
    """

    kind: str | None = None
    count: int | None = None
    trainings: int | None = None
    epsilon_lower: float | None = None
    confidence: float | None = None
    method: str | None = None
    beyond_curve: bool | None = None
    broken: bool | None = None
    provable: Annotated[float | None, LATE] = None


@dataclass(frozen=True, kw_only=True)
class AuditCheck(Record):
    """One statistic of the residual test. failed: p_value at most level; confirmed: on fresh steps, too."""

    name: str = ""
    p_value: Share | None = None
    level: Share | None = None
    failed: bool | None = None
    confirmed: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Withheld(Record):
    """What is not said, since there are too few models: how many there are, how many it takes."""

    what: str = ""
    have: int | None = None
    need: int | None = None


@dataclass(frozen=True, kw_only=True)
class Audit(Record):
    """audit.json. Sections that too few models allow are None."""

    SCHEMA = AUDIT_SCHEMA

    schema: str = AUDIT_SCHEMA
    created: str | None = None
    game: str | None = None
    attack: str | None = None
    verdicts_by: str | None = None
    models: int | None = None
    references: int | None = None
    patients: int | None = None
    withheld: tuple[Withheld, ...] = ()
    not_finite: NotFinite | None = None
    exposed: Exposed | None = None
    traced: Annotated[Exposed | None, LATE] = None
    true_auc: Annotated[tuple[TrueShare, ...], LATE] = ()
    smallest_seen: Annotated[SmallestSeen | None, LATE] = None
    verdicts: Verdicts | None = None
    confirmed: Confirmed | None = None
    roc: Curve | None = None
    auc: Auc | None = None
    survival: Survival | None = None
    tpr_at: dict[str, Rate]
    baseline_max: Baseline | None = None
    groups: dict[str, dict[str, GroupShare]]
    suppressed: tuple[Suppressed, ...] = ()
    new_scan: NewScan | None = None
    suspected_links: Annotated[SuspectedLinks | None, LATE] = None
    promised: Promised | None = None
    canary: Canary | None = None
    checks: Annotated[tuple[AuditCheck, ...], LATE] = ()
    masks_sha256: str | None = None
    plan_sha256: str | None = None
    unit: str | None = None
    trainer: str | None = None
    asked_sha256: str | None = None
    cohort_sha256: str | None = None
    seconds: float | None = None
