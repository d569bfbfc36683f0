"""Plain values, as JSON has them."""

from __future__ import annotations

from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]  # an object: what is in it is known once it has been read
