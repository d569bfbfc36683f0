"""`predict`: a row for each image; what the model was not trained for is flagged or refused in plain words."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dptrain import cli
from dptrain.data.expected import Expected, doubts
from dptrain.errors import DataUnreadable
from dptrain.records import RunFolder
from dptrain.settings import load
from dptrain.training.bundle import load_bundle, predict
from dptrain.training.prediction import FLAGGED, OK, REFUSED
from tests.training.conftest import Site

SCALED = (
    "data.transforms=[{_target_: monai.transforms.ScaleIntensityRanged, keys: [image], a_min: 0, a_max: 255, "
    "b_min: 0, b_max: 1}]"
)


@pytest.fixture
def trained(make_site: Callable[..., Site]) -> tuple[Site, Path]:
    """A site and the folder of a run that learned shadows on images of 0…255."""
    site = make_site(public=True)
    words = [*site.words, "privacy=none", "privacy.steps=60", "privacy.expected_batch_size=30", "optimizer=adam"]
    folder = site.folder / "run"
    assert cli.main(["train", *words, "optimizer.lr=0.02", SCALED, f"training.run={folder}"]) == 0
    return site, folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_folder_and_a_manifest_get_their_answers(
    trained: tuple[Site, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site, run = trained
    out = tmp_path / "answers" / "all.csv"
    assert cli.main(["predict", f"run={run}", f"input={site.folder / 'images'}", f"out={out}"]) == 0
    rows = rows_of(out)
    assert {row["status"] for row in rows} == {OK}
    right = sum((float(row["probability shadow"]) > 0.5) == (int(row["file"][:3]) % 2 == 1) for row in rows)
    assert right > 0.9 * len(rows)
    assert all("score" in row["certainty"] for row in rows)  # no calibration was paid for
    listed = tmp_path / "list.csv"
    listed.write_text(f"path,ward\n{site.folder / 'images' / rows[0]['file']},north\nnone.png,south\n")
    capsys.readouterr()
    words = [f"run={RunFolder(run).model}", f"input={listed}", "column=path", f"out={out}"]
    assert cli.main(["predict", *words]) == 0
    assert [(row["ward"], row["status"]) for row in rows_of(out)] == [("north", OK), ("south", REFUSED)]
    assert "does not exist" in capsys.readouterr().out
    assert cli.main(["predict", f"run={run}", f"input={listed}", f"out={out}"]) == 5
    assert "There are: path, ward" in capsys.readouterr().err


def test_an_image_of_another_kind_is_refused_in_plain_words(
    trained: tuple[Site, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = trained
    new = tmp_path / "new"
    new.mkdir()
    random = np.random.default_rng(0)
    images = {
        "scale.npy": random.uniform(0, 1, (1, 8, 8)),
        "hounsfield.npy": random.uniform(-1000, 1000, (1, 8, 8)),
        "colour.npy": random.uniform(0, 255, (3, 8, 8)),
        "bright.npy": np.where(random.uniform(0, 1, (1, 8, 8)) < 0.2, 400.0, random.uniform(0, 255, (1, 8, 8))),
        "fine.npy": random.uniform(0, 255, (1, 8, 8)),
        "large.npy": random.uniform(0, 255, (1, 9, 9)),
    }
    for name, pixels in images.items():
        np.save(new / name, pixels.astype(np.float32))
    out = tmp_path / "answers.csv"
    assert cli.main(["predict", f"run={run}", f"input={new}", f"out={out}"]) == 0
    rows = {row["file"]: row for row in rows_of(out)}
    wanted = {"scale": REFUSED, "hounsfield": REFUSED, "colour": REFUSED, "bright": FLAGGED, "fine": OK}
    assert {name.removesuffix(".npy"): row["status"] for name, row in rows.items()} == {**wanted, "large": REFUSED}
    assert "another scale" in rows["scale.npy"]["why"]
    assert "has 3 channels; the model takes 1" in rows["colour.npy"]["why"]
    assert rows["hounsfield.npy"]["probability shadow"] == ""
    assert rows["bright.npy"]["probability shadow"] != ""
    with pytest.raises(DataUnreadable, match="another scale"):  # MONAI's own way to run the bundle
        predict(load_bundle(RunFolder(run).model), new / "scale.npy")
    for name in ("fine.npy", "bright.npy"):
        (new / name).unlink()
    assert cli.main(["predict", f"run={run}", f"input={new}", f"out={out}"]) == 5
    assert len(capsys.readouterr().out.splitlines()) < 40


def test_the_bundle_carries_the_contract_of_its_inputs(trained: tuple[Site, Path]) -> None:
    _, run = trained
    metadata = json.loads((RunFolder(run).model / "configs" / "metadata.json").read_text())
    assert metadata["expects"] == {"channels": 1, "value_range": [0, 255], "spacing": None, "modality": None}
    assert metadata["how_to_run"].startswith("dptrain predict run=")
    assert metadata["network_data_format"]["inputs"]["image"]["value_range"] == [0, 1]


def test_what_is_expected_follows_from_public_settings_alone() -> None:
    spacing = "data.transforms=[{_target_: monai.transforms.Spacingd, keys: [image], pixdim: [1, 1, 2]}]"
    words = [spacing, "data.image_shape=[1,8,8,8]", "data=dicom", "+data.keep.Modality=CT"]
    expected = Expected.of(load(words).data)
    assert (expected.spacing, expected.modality, expected.range) == ((1, 1, 2), "CT", None)
    reasons = doubts(expected, Path("none.npy"), np.zeros((1, 8, 8, 8)), None)
    assert [reason.refused for reason in reasons] == [False]
    assert "spacing" in reasons[0].why


def test_where_there_is_no_model_or_no_image_it_says_so(
    trained: tuple[Site, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = trained
    assert cli.main(["predict", f"run={tmp_path / 'none'}", f"input={run / 'config.yaml'}"]) == 2
    assert "holds no model" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main(["predict", f"run={run}", f"input={tmp_path / 'empty'}"]) == 2
    assert "holds no image" in capsys.readouterr().err
