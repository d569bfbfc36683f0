"""Where conf/, recipes/ and docs/ lie: beside the package in a checkout, inside it in an installed wheel."""

from __future__ import annotations

import re
from pathlib import Path

from dptrain.errors import ConfigError


def shipped(kind: str) -> Path:
    """The folder `conf`, `recipes` or `docs`. Raises ConfigError where this installation lacks it."""
    package = Path(__file__).parent
    for folder in (package / "_shipped" / kind, package.parent / kind):
        if folder.is_dir():
            return folder
    raise ConfigError(f"the folder '{kind}' is missing from this installation.", remedy="Install dptrain again.")


def resolved(text: str) -> str:
    """Text whose `docs/<page>.md` names the page where it lies on this machine."""
    return re.sub(r"\bdocs/(?=[\w-]+\.md)", lambda _: f"{shipped('docs')}/", text)
