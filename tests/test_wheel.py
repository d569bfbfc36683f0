"""conf/ and recipes/ are found from an installed wheel as from a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOOK = """
from pathlib import Path
from dptrain.settings import load
from dptrain.settings.places import recipe_folders
from dptrain.shipped import shipped
assert "_shipped" in str(shipped("conf")), shipped("conf")
found = recipe_folders()
assert "chest_xray_pneumonia" in found, found
for name in found:
    load([f"recipe={name}"])
print(len(found))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(out.glob("*.whl"))


def test_the_wheel_holds_what_it_needs(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "dptrain/_shipped/conf/train.yaml" in names
    assert any(name.startswith("dptrain/_shipped/recipes/") and name.endswith(".yaml") for name in names)
    assert any(name.startswith("dptrain/report/templates/") for name in names)
    assert "dptrain/_shipped/docs/ledger.md" in names
    assert any("ledger/migrations" in name for name in names)
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)


def test_recipes_are_found_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", LOOK], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 1


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[pretrained]"]
    subprocess.run(install, check=True, capture_output=True)  # type: ignore[arg-type]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([python, "-c", LOOK], cwd=tmp_path, env=environment, check=True, capture_output=True)
    plan = [python.with_name("dptrain"), "plan", "public_size=1000", "privacy.target_epsilon=3"]
    assert subprocess.run(plan, cwd=tmp_path, env=environment, capture_output=True).returncode == 0  # type: ignore[arg-type]
