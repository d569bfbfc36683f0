"""What a registration binds: columns, the rule of the split, salt and groups, and who fell on which side of it.

Un-noised scores are of test patients alone. Who they are follows from settings, so settings are part of what the
steward signs: with another word for "test" the training patients of an earlier run would be scored.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from dptrain.data.cohort import Cohort
from dptrain.errors import LedgerRefused
from dptrain.plain import Json


def binding_of(cohort: Cohort) -> Json:
    """The binding of a cohort, in plain JSON.

    `split.assignment` is a SHA-256 over the sorted patient keys with their splits where a column decides (somebody
    may edit it); where the keyed hash of the patient alone decides, rule and salt say it all.
    """
    config, columns = cohort.config, cohort.config.columns
    by_hash = columns.split is None and config.split.by is None
    values: Json = {
        "columns": {"patient": columns.patient, "issuer": columns.issuer, "label": columns.label},
        "groups": {"columns": columns.groups, "bins": columns.bins},
        "split": {
            "column": columns.split,
            **asdict(config.split),
            "assignment": None if by_hash else _assignment(cohort),
        },
        "task": {"task": config.task, "classes": config.classes, "label_values": config.label_values},
    }
    plain: Json = json.loads(json.dumps(values))
    return plain


def _assignment(cohort: Cohort) -> str:
    digest = hashlib.sha256(b"dptrain.split\0")
    for patient in cohort.patients:  # in order of their keys
        digest.update(patient.key + patient.split.encode() + b"\0")
    return digest.hexdigest()


def require_binding(cohort: Cohort, bound: Json | None) -> None:
    """Raise LedgerRefused where a cohort is read in another way than it was registered; None binds nothing."""
    if bound is None:
        return
    own = binding_of(cohort)
    other = [
        f"{section}.{name}"
        for section in own
        for name in own[section]
        if bound.get(section, {}).get(name) != own[section][name]
    ]
    if other:
        raise LedgerRefused(
            f"These settings read '{cohort.config.name}' in another way than it was registered: {', '.join(other)}.",
            remedy="Use the settings of the registration, or register a new version with these.",
        )
