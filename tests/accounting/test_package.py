"""The start of the package, and its names."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dptrain import accounting


def test_importing_the_package_imports_nothing_heavy() -> None:
    """The ledger's `show` starts in under half a second; units and conversions need no scipy at all."""
    script = (
        "import sys, dptrain.accounting as a; "
        "heavy = {'numpy', 'scipy', 'dp_accounting', 'torch'} & set(sys.modules); assert not heavy, heavy; "
        "a.to_units(1.0); a.from_units(5); assert 'numpy' not in sys.modules; "
        "a.rdp_epsilon(1.0, 2.0, 1e-5); a.budget_units(1.0, 1e-5, 18.0); "
        "heavy = {'scipy', 'dp_accounting', 'torch'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_public_name_exists() -> None:
    for name in accounting.__all__:
        assert getattr(accounting, name) is not None
    assert "rdp" in dir(accounting)
    with pytest.raises(AttributeError):
        accounting.no_such_name  # noqa: B018
