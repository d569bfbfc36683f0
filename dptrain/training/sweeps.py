"""Which sweep a run belongs to: the command that started its trials left word of it in the environment."""

from __future__ import annotations

import os
from pathlib import Path

OUTCOMES = "DPTRAIN_SWEEP"  # names the folder in which every trial writes how it ended
PREFIX = ".dptrain-sweep-"


def sweep_id() -> str | None:
    """What all trials of this sweep have in common; None for a run that stands alone."""
    folder = os.environ.get(OUTCOMES)
    return None if folder is None else Path(folder).name.removeprefix(PREFIX)
