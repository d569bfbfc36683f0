"""After the first charge one patient's data stop nothing: such a patient counts as zero, in the restricted log alone.

Each place has its test: reading, decoding, transforms, augmentation, shapes, labels, calibration, evaluation. The run
goes on, and what is public of it equals that of a run in which the patient's data were not odd.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dptrain import data
from dptrain.data import sources
from dptrain.data.transforms import TransformFailed
from dptrain.source import Sample, Unreadable
from dptrain.training.run import train
from tests.training.conftest import Site

from .test_spine import quiet

VICTIM = {"train": "P003", "calibration": "P055", "test": "P070"}
RIGHT = sources.ImageSource.item


def spoil(site: Site, split: str, how: Callable[[Sample], Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    """From the end of the scan on, one patient's records are odd."""
    key = site.keys.patient_key("made-up", VICTIM[split])
    scanned = data.scan

    def scan(*some: Any, **named: Any) -> data.Cohort:
        cohort = scanned(*some, **named)
        (victim,) = [patient for patient in cohort.patients if patient.key == key]
        source = cohort.source

        def item(i: int) -> Sample:
            sample = RIGHT(source, i)  # type: ignore[arg-type]
            return how(sample) if i in victim.records else sample

        source.item = item
        return cohort

    monkeypatch.setattr(data, "scan", scan)


def unreadable(_: Sample) -> Sample:
    raise Unreadable("cannot be read")


def undecodable(_: Sample) -> Sample:
    raise OSError("broken data stream when reading image file P003.png")


def transform_fails(_: Sample) -> Sample:
    raise TransformFailed("CropForegroundd failed (ValueError)")


def memory(_: Sample) -> Sample:
    raise MemoryError


def another_shape(sample: Sample) -> Sample:
    return Sample(torch.zeros(1, 9, 9), sample.label)


def not_finite(sample: Sample) -> Sample:
    return Sample(sample.image / 0, sample.label)


def enormous(sample: Sample) -> Sample:
    return Sample(sample.image * 1e38, sample.label)


ODD = [unreadable, undecodable, transform_fails, memory, another_shape, not_finite, enormous]


def public_of(folder: Any) -> dict[str, Any]:
    """What anybody may see of a run, without what is random or a time."""
    facts = json.loads(folder.facts.read_text())
    for name in ("id", "created", "finished", "config_sha256", "ledger", "model", "calibration", "machine"):
        facts.pop(name, None)
    return facts


def trained(site: Site, place: Path, *words: str) -> tuple[dict[str, Any], list[str], Any]:
    said: list[str] = []
    outcome = train(site.settings(f"training.run={place}", "privacy.target_epsilon=2", *words), say=said.append)
    return public_of(outcome.folder), [line.replace(str(place), "") for line in said], outcome.folder


@pytest.mark.parametrize("how", ODD)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_run_goes_on_and_its_public_outputs_are_the_same(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, split: str, how: Callable[[Sample], Sample]
) -> None:
    site = make_site(8.0)
    spoil(site, split, how, monkeypatch)
    facts, said, folder = trained(site, site.folder / "odd")
    assert facts["status"] == "complete"
    assert folder.weights.is_file()
    assert folder.metrics.is_file()
    text = json.dumps(facts) + "\n".join(said)
    assert VICTIM[split] not in text
    log = [json.loads(line) for line in folder.training_log.read_text().splitlines()]
    if split == "train" and how is not enormous:
        assert any(entry["nonfinite_patients"] for entry in log)
    assert not np.isnan(np.array([entry["learning_rate"] for entry in log])).any()


def test_public_outputs_do_not_tell_whether_somebody_is_odd(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(8.0)
    sound = trained(site, site.folder / "sound")
    for split in ("train", "test"):
        with monkeypatch.context() as patch:
            spoil(site, split, unreadable, patch)
            odd = trained(site, site.folder / f"odd-{split}")
        assert {name for name, value in odd[0].items() if value != sound[0][name]} <= {"gate", "privacy", "resume"}
        assert odd[0].keys() == sound[0].keys()
        assert [line.split(" ")[0] for line in odd[1]] == [line.split(" ")[0] for line in sound[1]]


def test_augmentation_that_fails_for_one_patient(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(8.0)
    noise = "data.augment=[{_target_: monai.transforms.RandGaussianNoised, keys: [image], prob: 1.0}]"
    applied = data.transforms.apply

    def apply(transforms: Any, item: dict[str, Any]) -> Any:
        augments = bool(transforms) and type(transforms[0]).__name__.startswith("Rand")
        if augments and float(item["image"][0, 0, 0]) > 120:
            raise TransformFailed("RandGaussianNoised failed (ValueError)")
        return applied(transforms, item)

    monkeypatch.setattr(data.transforms, "apply", apply)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.zeros(*shape))  # the made-up image passes
    facts, _, folder = trained(site, site.folder / "run", noise)
    assert facts["status"] == "complete"
    log = [json.loads(line) for line in folder.training_log.read_text().splitlines()]
    assert any(entry["nonfinite_patients"] for entry in log)


@pytest.mark.parametrize("how", [unreadable, not_finite, another_shape])
def test_calibration_goes_on_without_the_odd(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, how: Callable[[Sample], Sample]
) -> None:
    site = make_site(8.0)
    spoil(site, "calibration", how, monkeypatch)
    facts, _, folder = trained(site, site.folder / "run", "privacy.calibration_noise_multiplier=10")
    assert facts["status"] == "complete"
    assert (folder.restricted / "calibration.json").is_file()
    assert np.isfinite(json.loads((folder.restricted / "calibration.json").read_text())["temperature"])


def test_a_folder_that_is_gone_is_said(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the place of all records is gone, nothing follows from one patient: the run stops and can be resumed."""
    from dptrain.errors import DataUnreadable

    site = make_site(8.0)
    monkeypatch.setattr(sources.ImageSource, "present", lambda _: False)
    spoil(site, "train", unreadable, monkeypatch)
    with pytest.raises(DataUnreadable, match="folder is gone"):
        train(site.settings(f"training.run={site.folder / 'run'}", "privacy.target_epsilon=2"), say=quiet)
