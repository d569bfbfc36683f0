"""docs/first-hour.md, run as it stands: from a folder of images and a table to a model and its answers."""

from __future__ import annotations

import csv
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from dptrain import cli

PAGE = Path(__file__).parents[1] / "docs" / "first-hour.md"


def made_up(folder: Path, patients: int = 100) -> None:
    """200 images of 100 people; pneumonia is a bright lower half."""
    from PIL import Image

    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = [["file", "patient_id", "finding"]]
    for patient in range(patients):
        ill = patient % 2
        for number in range(2):
            pixels = random.integers(40, 160, (48, 48)).astype(np.uint8)
            pixels[24:] += np.uint8(80 * ill)
            name = f"images/{patient:03d}-{number}.png"
            Image.fromarray(pixels).save(folder / name)
            rows.append([name, f"P{patient}", ["normal", "pneumonia"][ill]])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def test_the_first_hour_as_it_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made_up(tmp_path / "thorax")
    (recipe,) = blocks("yaml")
    place = tmp_path / "recipes" / "thorax" / "recipe" / "thorax.yaml"
    place.parent.mkdir(parents=True)
    place.write_text(recipe, encoding="utf-8")
    free, exports, own = blocks("bash")
    for line in exports.splitlines():
        name, _, value = shlex.split(line)[1].partition("=")
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("DPTRAIN_KEYS", raising=False)
    assert len(own.strip().splitlines()) <= 5
    begun = os.times()
    for line in [*free.strip().splitlines(), *own.strip().splitlines()]:
        words = shlex.split(line)
        assert words[0] == "dptrain"
        assert cli.main([*words[1:], *(["seconds=20"] if words[1] == "rehearse" else [])]) == 0, capsys.readouterr()
    ended = os.times()
    assert ended.user + ended.system - begun.user - begun.system < 180
    assert not (tmp_path / "data").exists()
    with (tmp_path / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 200
    assert {row["status"] for row in rows} == {"ok"}
    capsys.readouterr()
    again = shlex.split(own.strip().splitlines()[3])[1:]
    assert cli.main(["train", *again[1:-1], "training.run=runs/again"]) == 3
    assert "reading and hashing" not in capsys.readouterr().out
    assert cli.main(["check", "recipe=thorax"]) == 3
