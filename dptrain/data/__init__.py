"""Data: from a manifest to a cohort, and from a grant to batches of whole patients.

`import dptrain.data` is light; torch and MONAI are imported where records are read.
"""

from __future__ import annotations

from dptrain.data.binding import binding_of, require_binding
from dptrain.data.cohort import Cohort, Record, cohort_from_dataset, cohort_of, scan
from dptrain.data.inference import load_image
from dptrain.data.loading import (
    LogicalBatch,
    PatientBatch,
    PatientLoader,
    PoissonSampler,
    Tensors,
    check_sampler,
    load_available,
    load_records,
    load_tensors,
    tensors_of,
)
from dptrain.data.manifest import Manifest
from dptrain.data.reading import read_manifest
from dptrain.data.units import Patient
from dptrain.randomness import CryptoRandom
from dptrain.settings import DataConfig

__all__ = [
    "Cohort",
    "CryptoRandom",
    "DataConfig",
    "LogicalBatch",
    "Manifest",
    "Patient",
    "PatientBatch",
    "PatientLoader",
    "PoissonSampler",
    "Record",
    "Tensors",
    "binding_of",
    "check_sampler",
    "cohort_from_dataset",
    "cohort_of",
    "load_available",
    "load_image",
    "load_records",
    "load_tensors",
    "read_manifest",
    "require_binding",
    "scan",
    "tensors_of",
]
