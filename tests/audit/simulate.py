"""Made-up score matrices whose truth is known."""

from __future__ import annotations

import numpy as np


def gaussian_scores(
    generator: np.random.Generator,
    models: int,
    patients: int,
    separation: float | np.ndarray,
    *,
    records: int = 1,
    correlation: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scores [M, R], member [M, P], patient [R]): unit normal scores, `separation` higher where trained on.

    `separation` is one number or one a record [R]; records of a patient correlate over models.
    """
    patient = np.repeat(np.arange(patients), records)
    member = generator.random((models, patients)) < 0.5
    own = generator.normal(size=(models, patients * records))
    common = generator.normal(size=(models, patients))[:, patient]
    noise = np.sqrt(1 - correlation) * own + np.sqrt(correlation) * common
    return noise + separation * member[:, patient], member, patient
