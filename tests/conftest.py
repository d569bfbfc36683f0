"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def find_shared_data() -> Path | None:
    """The public data sets, where the tester has them."""
    candidates = [os.environ.get("DPTRAIN_DATA"), Path(__file__).parents[2] / "shared" / "data"]
    for candidate in candidates:
        if candidate and (Path(candidate) / "kermany_paediatric_cxr_224").is_dir():
            return Path(candidate)
    return None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the public data sets; skips where there is none."""
    found = find_shared_data()
    if found is None:
        pytest.skip("the shared public data is absent: set DPTRAIN_DATA to its folder")
    return found
