"""Settings: frozen, validated dataclasses, and how Hydra's groups, recipes and overrides become them.

Light on purpose: no torch, no MONAI, and Hydra only once something is composed or read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dptrain.lazy import attach
from dptrain.settings.attack import AttackConfig
from dptrain.settings.audit import AuditConfig
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

if TYPE_CHECKING:
    from dptrain.settings.compose import load, settings_of
    from dptrain.settings.kept import from_yaml, to_yaml

__all__ = [
    "AttackConfig",
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
__getattr__ = attach(__name__, {"compose": ["load", "settings_of"], "kept": ["from_yaml", "to_yaml"]})[0]
