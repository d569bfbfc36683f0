"""Settings of the report."""

from __future__ import annotations

from dataclasses import dataclass

from dptrain.errors import ConfigError


@dataclass
class ReportConfig:
    """lang: de or en. purpose and recipient are named on the first page."""

    lang: str = "en"

    def __post_init__(self) -> None:
        if self.lang not in ("de", "en"):
            raise ConfigError(f"report.lang={self.lang} is unknown: de or en.")
