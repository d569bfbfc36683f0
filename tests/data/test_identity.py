"""One person, one key, from whatever file; nothing merges or splits people silently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dptrain.data import cohort_from_dataset, scan
from dptrain.errors import DataUnreadable
from dptrain.identity import oddity, patient_text
from dptrain.ledger import Keys
from dptrain.settings import ColumnsConfig, DataConfig, DicomConfig, SplitConfig, TableConfig
from tests.data import made
from tests.data.dicom_made import write_dicom
from tests.data.shared import FakeKeys

ALL_TRAIN = SplitConfig(train=1.0, validation=0.0, test=0.0)
# What stands in a file, and the one text that it means.
IDS: list[tuple[Any, str]] = [
    ("0017", "0017"),
    ("AB 12", "AB 12"),
    ("ab12x", "ab12x"),
    ("P-1.10", "P-1.10"),
    ("Mueller/3", "Mueller/3"),
    ("Zoë", "Zoë"),
    ("1E5", "1E5"),
    (17, "17"),
    (2024001001, "2024001001"),
    (12345678901234567, "12345678901234567"),
    (9007199254740991.0, "9007199254740991"),
    (2024001001.0, "2024001001"),
    (1e6, "1000000"),
    (3.5, "3.5"),
]


def config_of(folder: Path, **changes: Any) -> DataConfig:
    return made.changed(
        DataConfig(
            root=str(folder),
            issuer="clinic",
            columns=ColumnsConfig(),
            split=ALL_TRAIN,
            label_values={"0": "negative", "1": "positive"},
            image_shape=[1, 4, 4],
        ),
        changes,
    )


def by_csv(folder: Path, ids: list[Any]) -> DataConfig:
    for i in range(len(ids)):
        Image.fromarray(made.picture(i, (4, 4))).save(folder / f"{i}.png")
    rows = [f'{i}.png,"{value}",{i % 2}' for i, value in enumerate(ids)]
    (folder / "manifest.csv").write_text("\n".join(["file,patient_id,label", *rows]), encoding="utf-8")
    return config_of(folder)


def by_json(folder: Path, ids: list[Any]) -> DataConfig:
    changes = {"format": "decathlon", "manifest": "d.json", "columns.image": "image"}
    config = made.changed(by_csv(folder, ids), changes)
    items = [{"image": f"{i}.png", "patient_id": value, "label": i % 2} for i, value in enumerate(ids)]
    (folder / "d.json").write_text(json.dumps({"training": items}), encoding="utf-8")
    return config


def by_npz(folder: Path, ids: list[Any]) -> DataConfig:
    images = np.stack([made.picture(i, (1, 4, 4)) for i in range(len(ids))])
    np.savez(folder / "d.npz", image=images, patient_id=np.array(ids), label=np.arange(len(ids)) % 2)
    return config_of(folder, format="npz", manifest="d.npz", **{"columns.image": "image"})


def by_table(folder: Path, ids: list[Any]) -> DataConfig:
    rows = [f'"{value}",{i},{i % 2}' for i, value in enumerate(ids)]
    (folder / "t.csv").write_text("\n".join(["patient_id,x,label", *rows]), encoding="utf-8")
    return config_of(
        folder, format="table", manifest="t.csv", image_shape=[], table=TableConfig(numeric={"x": [0, 99]})
    )


def by_dicom(folder: Path, ids: list[Any]) -> DataConfig:
    lines = ["AccessionNumber,label"]
    for i, value in enumerate(ids):
        text = str(value)
        write_dicom(
            folder / f"{i:02d}.dcm",
            made.picture(i, (4, 4)).astype(np.uint16),
            PatientID=text,
            AccessionNumber=f"A{i}",
            SpecificCharacterSet="ISO_IR 192",
        )
        lines.append(f"A{i},{i % 2}")
    (folder / "l.csv").write_text("\n".join(lines))
    return config_of(folder, format="dicom", dicom=DicomConfig(labels="l.csv", labels_on="AccessionNumber"))


@pytest.mark.parametrize("write", [by_csv, by_json, by_npz, by_table, by_dicom])
def test_one_person_has_one_key_from_every_format(tmp_path: Path, write: Any) -> None:
    keys = FakeKeys()
    for number, (value, text) in enumerate(IDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        cohort = scan(write(folder, [value]), keys)
        assert {patient.key for patient in cohort.patients} == {keys.patient_key("clinic", text)}, (value, text)


def test_a_dataset_in_python_gives_the_same_keys() -> None:
    keys = FakeKeys()
    items = [
        {"image": np.full((1, 4, 4), i, np.float32), "label": i % 2, "patient_id": value}
        for i, (value, _) in enumerate(IDS)
        if value not in (17, 2024001001)  # 0017 and the other number stand for them here
    ]
    cohort = cohort_from_dataset(items, keys=keys, issuer="clinic", task="binary", split=None, name="x")
    expected = {keys.patient_key("clinic", text) for value, text in IDS if value not in (17, 2024001001)}
    assert {patient.key for patient in cohort.patients} == expected


def test_the_ledgers_keys_take_an_id_as_it_is_typed(tmp_path: Path) -> None:
    keys = Keys.create(tmp_path / "keys", "a long enough passphrase")
    for value, text in IDS:
        assert keys.patient_key("clinic", patient_text(value)) == keys.patient_key("clinic", text)
    assert keys.patient_key("clinic", "17.0") == keys.patient_key("clinic", "17")  # pandas wrote it
    apart = ["17", "0017", "AB", "ab", "A B", "ID²", "ID2", "1.10", "1.1", "1E5", "100000"]
    assert len({keys.patient_key("clinic", text) for text in apart}) == len(apart)


def test_floats_of_an_npz_stay_different_people(tmp_path: Path) -> None:
    """%g made one person of forty."""
    config = by_npz(tmp_path, list(np.arange(10000001, 10000041).astype(np.float64)))
    assert len(scan(config, FakeKeys()).patients) == 40


def test_floats_that_can_tell_nobody_apart_are_a_fault(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "d.npz",
        image=np.stack([made.picture(i, (1, 4, 4)) for i in range(3)]),
        patient_id=np.array([16777217, 16777219, 5], dtype=np.float32),
        label=np.arange(3) % 2,
    )
    config = config_of(tmp_path, format="npz", manifest="d.npz", **{"columns.image": "image"})
    with pytest.raises(DataUnreadable) as caught:
        scan(config, FakeKeys())
    assert "row 0, row 1: array 'patient_id' holds patient ids that are too large for float32" in str(caught.value)


@pytest.mark.parametrize(
    "ids",
    [["5", "5.0"], ["0007", "7"], ["AB", "ab"], ["A 1", "A1"], ["45E3", "45000"], ["AB", "ＡＢ"], ["a\u200bb", "ab"]],
)
def test_ids_that_look_alike_are_a_fault_that_names_rows(tmp_path: Path, ids: list[str]) -> None:
    config = by_csv(tmp_path, ["x1", *ids])
    with pytest.raises(DataUnreadable) as caught:
        scan(config, FakeKeys())
    text = str(caught.value)
    assert "row 4" in text or "row 3" in text
    assert "data.near_ids=different" in text
    assert not any(one in text.replace("such as", "") for one in ("AB,", "ＡＢ", "a\u200bb", "45000"))


def test_ids_that_look_alike_can_be_declared_different(tmp_path: Path) -> None:
    ids = ["0007", "7", "AB", "ab", "ＡＢ", "NA", "None", "a\u200bb"]
    cohort = scan(made.changed(by_csv(tmp_path, ids), {"near_ids": "different"}), FakeKeys())
    assert len(cohort.patients) == len(ids)
    (tmp_path / "again").mkdir()
    config = made.changed(by_csv(tmp_path / "again", ["17", "17.0"]), {"near_ids": "different"})
    with pytest.raises(DataUnreadable, match="one number"):  # one key: they cannot be two people
        scan(config, FakeKeys())


@pytest.mark.parametrize("text", ["nan", "NaN", "NA", "n/a", "None", "NULL", "ANONYMOUS", "Anonymized", "-", "?"])
def test_ids_that_name_nobody_are_a_fault_with_their_count(tmp_path: Path, text: str) -> None:
    config = by_csv(tmp_path, ["x1", text, text, text])
    with pytest.raises(DataUnreadable) as caught:
        scan(config, FakeKeys())
    assert caught.value.faults[0].startswith("row 3, row 4, row 5: the patient id names nobody")


def test_a_column_that_a_spreadsheet_rounded_is_a_fault(tmp_path: Path) -> None:
    config = by_csv(tmp_path, ["2.02E+09", "1234567890"])
    with pytest.raises(DataUnreadable, match="scientific notation"):
        scan(config, FakeKeys())


def test_letters_of_two_encodings_are_one_person_and_lost_letters_are_a_fault() -> None:
    assert patient_text("Zoe\u0308") == patient_text("Zoë") == "Zoë"
    assert oddity("M\ufffdller") is not None
    assert oddity("Müller 12") is None
    assert oddity("ID²") is not None
    assert oddity("12\u200d3") is not None


def test_a_thousand_faults_of_one_cause_are_one_line(tmp_path: Path) -> None:
    config = by_table(tmp_path, ["" for _ in range(1000)])
    with pytest.raises(DataUnreadable) as caught:
        scan(config, FakeKeys())
    lines = str(caught.value).splitlines()
    assert len(lines) <= 12
    assert "row 2, row 3, row 4, row 5, row 6 and 995 more (1,000 in all): no patient id" in str(caught.value)
