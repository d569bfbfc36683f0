"""restricted/metrics.json: how good the model is, overall and by group. Un-noised; not covered by epsilon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from dptrain.plain import Json
from dptrain.records.parts import Estimate
from dptrain.records.shape import Path, Reader, Record, entries

METRICS_SCHEMA = "dptrain.metrics/1"
METRIC_NAMES = (
    "auroc",
    "average_precision",
    "sensitivity_at_90_specificity",
    "sensitivity_at_95_specificity",
    "brier",
    "calibration_error",
    "dice",
)
Estimates = dict[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class Group(Record):
    """One group of one column. In the file the metrics stand beside the counts."""

    patients: int | None = None
    records: int | None = None
    metrics: Estimates

    @classmethod
    def from_json(cls, value: object, reader: Reader | None = None, path: Path | None = ()) -> Self | None:
        if not isinstance(value, dict):
            return None
        counts = {name: value.get(name) for name in ("patients", "records")}
        rest = {key: inner for key, inner in value.items() if key not in counts}
        return super().from_json({**counts, "metrics": rest.get("metrics", rest)}, reader, None)

    def to_json(self) -> Json:
        values = super().to_json()
        metrics: Json = values.pop("metrics")
        return {**values, **metrics}

    @classmethod
    def own_schema(cls, definitions: Json) -> Json:
        """Counts, and any number of metrics by name."""
        counts = {one.name: {"type": ["integer", "null"]} for one in entries(cls) if one.kind is int}
        return {
            "type": "object",
            "properties": counts,
            "required": [*counts],
            "additionalProperties": {"$ref": "#/$defs/Estimate"},
        }


@dataclass(frozen=True, kw_only=True)
class Suppressed(Record):
    """A cell that is withheld, and why."""

    group: str = ""
    value: str = ""
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Bin(Record):
    """A bin of the reliability diagram: its ends, mean confidence, observed frequency, records."""

    low: float | None = None
    high: float | None = None
    confidence: float | None = None
    observed: float | None = None
    count: int | None = None


@dataclass(frozen=True, kw_only=True)
class Conformal(Record):
    """How often the conformal sets hold the truth, and how large they are."""

    miscoverage: float | None = None
    threshold: float | None = None
    coverage: float | None = None
    set_size: float | None = None

    @classmethod
    def from_json(cls, value: object, reader: Reader | None = None, path: Path | None = ()) -> Self | None:
        older = {"miscoverage": value.get("alpha"), **value} if isinstance(value, dict) else value
        return super().from_json(older, reader, path)


@dataclass(frozen=True, kw_only=True)
class Bootstrap(Record):
    """How the intervals were made."""

    replicates: int | None = None
    level: float | None = None
    unit: str | None = None


@dataclass(frozen=True, kw_only=True)
class Metrics(Record):
    """metrics.json, of one split. groups: column -> group -> its cell."""

    SCHEMA = METRICS_SCHEMA

    schema: str = METRICS_SCHEMA
    split: str | None = None
    level: str | None = None
    task: str | None = None
    patients: int | None = None
    records: int | None = None
    overall: Estimates
    by_class: dict[str, Estimates]
    groups: dict[str, dict[str, Group]]
    suppressed: tuple[Suppressed, ...] = ()
    reliability: tuple[Bin, ...] = ()
    temperature: float | None = None
    conformal: Conformal | None = None
    bootstrap: Bootstrap = Bootstrap()
