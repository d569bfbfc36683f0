"""The JSON schemas of a run's files and of a report's facts, generated from their types.

`python -m dptrain.records.schemas` writes them anew; a test compares what is committed.
"""

from __future__ import annotations

import json
from pathlib import Path

from dptrain.records.attack import Attack
from dptrain.records.audit import Audit
from dptrain.records.metrics import Metrics
from dptrain.records.run import Run
from dptrain.records.shape import Record, json_schema

FOLDER = Path(__file__).parent / "schema"
RECORDS: dict[str, tuple[type[Record], str]] = {
    "run-1.json": (Run, "Public facts of a dptrain run"),
    "metrics-1.json": (Metrics, "Metrics of a dptrain run"),
    "audit-1.json": (Audit, "Aggregates of a dptrain audit"),
    "attack-1.json": (Attack, "Aggregates of dptrain reconstruction attacks"),
}


def text(kind: type[Record], title: str) -> str:
    """The schema as it is committed."""
    return json.dumps(json_schema(kind, title=title), indent=1, ensure_ascii=False) + "\n"


def write(folder: Path, records: dict[str, tuple[type[Record], str]]) -> None:
    """Write the schemas of these records."""
    folder.mkdir(exist_ok=True)
    for name, (kind, title) in records.items():
        (folder / name).write_text(text(kind, title), encoding="utf-8")


if __name__ == "__main__":
    write(FOLDER, RECORDS)
