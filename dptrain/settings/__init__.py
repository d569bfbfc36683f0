"""Settings: frozen, validated dataclasses, and how Hydra's groups, recipes and overrides become them.

Light on purpose: no torch, no MONAI, and Hydra only where something is composed or read.
"""

from dptrain.settings.audit import AuditConfig
from dptrain.settings.compose import from_yaml, load, settings_of, to_yaml
from dptrain.settings.data import ColumnsConfig, DataConfig, DicomConfig, NpzConfig, SplitConfig, TableConfig
from dptrain.settings.run import (
    LedgerConfig,
    ModelConfig,
    OptimizerConfig,
    PrivacyConfig,
    ReportConfig,
    Settings,
    TrainingConfig,
)

__all__ = [
    "AuditConfig",
    "ColumnsConfig",
    "DataConfig",
    "DicomConfig",
    "LedgerConfig",
    "ModelConfig",
    "NpzConfig",
    "OptimizerConfig",
    "PrivacyConfig",
    "ReportConfig",
    "Settings",
    "SplitConfig",
    "TableConfig",
    "TrainingConfig",
    "from_yaml",
    "load",
    "settings_of",
    "to_yaml",
]
