"""How often exit code 6 may be wrong about a correct trainer, and how that is divided: here and nowhere else.

Every bound and check takes its part, so that the sum holds whatever the others say. A detector that speaks is heard
again on a fresh run before anything is said; that makes a false alarm rarer still.
"""

from __future__ import annotations

LARGEST = 1e-3
PARTS = {"residual": 0.5, "canaries": 0.5}


def level(part: str, confidence: float) -> float:
    """The false-alarm rate of one part of an audit that may be wrong in 1 − `confidence`, at most 1 of 1,000."""
    return min(LARGEST, 1 - confidence) * PARTS[part]
