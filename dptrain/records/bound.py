"""What of a run's facts its close in the ledger binds: exactly which bytes are hashed.

The hash is SHA-256 over canonical JSON (UTF-8, sorted names, no blanks, no NaN; numbers as Python writes them) of one
object: of `run.json` the names in :data:`BOUND` that it holds with a value, and under `sweep` the sweep's id alone.

What is left out is known only afterwards, or is the ledger's own, and is compared with the ledger by itself:
`status`, `finished`, `gate` and `ledger` follow from the close; `released` from the controller's decision. What all
trials of a sweep cost together (`sweep.trials`, `sweep.epsilon_total`) is known when the last has ended. So none of
them, written later, breaks the hash; and whatever else is changed does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from dptrain.plain import Json

BOUND = (
    "schema",
    "id",
    "created",
    "program",
    "recipe",
    "command",
    "task",
    "classes",
    "plan",
    "cohort",
    "resume",
    "config_sha256",
    "privacy",
    "weights",
    "model",
    "calibration",
    "not_covered",
    "checks",
)


def canonical_sha256(values: Mapping[str, object]) -> str:
    """SHA-256 (hex) of canonical JSON. Raises ValueError for NaN or infinity."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def facts_sha256(values: Json) -> str:
    """The hash that a close carries, of `run.json` as it is read (or :meth:`dptrain.records.Run.to_json`)."""
    bound = {name: values[name] for name in BOUND if values.get(name) is not None}
    sweep = values.get("sweep")
    if sweep is not None:
        bound["sweep"] = sweep.get("id") if isinstance(sweep, dict) else sweep
    return canonical_sha256(bound)


def metadata_sha256(path: Path) -> str:
    """SHA-256 of a bundle's metadata without `privacy`, which a release fills in and which is compared by itself.

    Raises OSError or ValueError where it cannot be read.
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError("not an object")
    return canonical_sha256({name: value for name, value in values.items() if name != "privacy"})
