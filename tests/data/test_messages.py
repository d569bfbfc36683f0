"""Messages: hostile text in every field leaves no trace; tables are understood or refused with words that help."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dptrain.data import load_records, scan
from dptrain.errors import ConfigError, DataUnreadable, DptrainError, shown
from dptrain.settings import TableConfig
from tests.data import made
from tests.data.dicom_made import write_dicom
from tests.data.shared import FakeGrant, FakeKeys
from tests.data.test_identity import by_csv, by_table, config_of

HOSTILE = [
    "SECRET\x1b[2J\x1b[31m",
    "SECRET\r\n\x07",
    "\u202eTERCES SECRET",
    "SECRET\u0000",
    "SECRET'; DROP TABLE",
    "SECRET %s {x} ${oc.env:HOME} [red]",
    "../SECRET",
    "/etc/SECRET",
    "SECRET" * 2000,
    "SECRET\ud800",
]


def said_of(config: Any) -> str:
    try:
        cohort = scan(config, FakeKeys())
    except DptrainError as error:
        return str(error)
    return repr(cohort) + "".join(cohort.notes) + "".join(cohort.unread)


def check(text: str) -> None:
    assert "SECRET" not in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", text)
    assert len(text) < 5000


@pytest.mark.parametrize("column", [*made.FIELDS, "header"])
@pytest.mark.parametrize("text", HOSTILE[:-1], ids=range(len(HOSTILE) - 1))
def test_hostile_text_in_every_field_of_a_csv(tmp_path: Path, column: str, text: str) -> None:
    rows = made.rows(6, 1)
    made.write(tmp_path, rows)
    if column == "header":
        lines = (tmp_path / "manifest.csv").read_text().splitlines()
        content = "\n".join([",".join([f'"{text}"'] * 6), *lines[1:]])
    else:
        rows[2][column] = text
        with (tmp_path / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        content = (tmp_path / "manifest.csv").read_text()
    (tmp_path / "manifest.csv").write_text(content, newline="")
    check(said_of(made.settings(tmp_path)))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_in_json_and_headers(tmp_path: Path, text: str) -> None:
    config = made.changed(by_csv(tmp_path, ["a", "b"]), {"format": "decathlon", "manifest": "d.json"})
    for place in ("patient_id", "file", "label"):
        items = [{"file": f"{i}.png", "patient_id": f"p{i}", "label": i} for i in range(2)]
        items[1][place] = text
        (tmp_path / "d.json").write_text(json.dumps({"training": items, text: {text: [text]}}))
        check(said_of(config))
    (tmp_path / "d.json").write_text(json.dumps({text: [{text: text}]}))
    check(said_of(config))
    (tmp_path / "dicom").mkdir()
    plain = text.encode("ascii", "ignore").decode().replace("\0", "")[:60]
    short = plain[:16]
    tags: dict[str, Any] = {"PatientID": plain, "ViewPosition": short, "AccessionNumber": short}
    tags["IssuerOfPatientID"] = plain
    write_dicom(tmp_path / "dicom" / "a.dcm", np.zeros((4, 4), np.uint16), **tags)
    check(said_of(config_of(tmp_path / "dicom", format="dicom", **{"columns.groups": ["view"]})))


def test_a_csv_without_a_header_shows_no_patient(tmp_path: Path) -> None:
    """Its first row was printed three times, as names of columns."""
    made.write(tmp_path, made.rows(6, 1))
    lines = (tmp_path / "manifest.csv").read_text().splitlines()
    (tmp_path / "manifest.csv").write_text("\n".join(lines[1:]))
    text = said_of(made.settings(tmp_path))
    assert "secret" not in text
    assert "has the file a header row?" in text


def test_the_filter_shows_what_is_harmless() -> None:
    assert shown("Röntgen: 12 µm\n\tλ 骨 🩻") == "Röntgen: 12 µm\n\tλ 骨 🩻"
    assert shown("a\x1b[31mb\u202ec\rd\ud800") == "a\ufffd[31mb\ufffdc\ufffdd\ufffd"
    error = ConfigError("data.root=\x1b[2J", remedy="\x07")
    assert str(error) == "data.root=\ufffd[2J\n\ufffd"


@pytest.mark.parametrize(("delimiter", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_the_delimiter_is_found_out_and_told(tmp_path: Path, delimiter: str, name: str) -> None:
    made.write(tmp_path, made.rows())
    path = tmp_path / "manifest.csv"
    path.write_text(path.read_text().replace(",", delimiter))
    cohort = scan(made.settings(tmp_path), FakeKeys())
    assert len(cohort.records) == 16
    assert cohort.notes == [f"manifest.csv is separated by {name}"]
    assert len(scan(made.settings(tmp_path, delimiter=delimiter), FakeKeys()).records) == 16


def test_another_encoding_is_refused_with_the_setting_that_reads_it(tmp_path: Path) -> None:
    made.write(tmp_path, made.rows())
    path = tmp_path / "manifest.csv"
    path.write_bytes(path.read_text().replace(",FM", ",Müller").replace(",F,", ",Weiß,").encode("cp1252"))
    config = made.settings(tmp_path)
    text = said_of(config)
    assert "data.encoding=cp1252" in text
    assert len(text.splitlines()) < 8
    assert "Weiß" in scan(made.changed(config, {"encoding": "cp1252"}), FakeKeys()).groups["sex"]
    path.write_bytes(path.read_bytes().decode("cp1252").encode("utf-16"))
    cohort = scan(config, FakeKeys())
    assert "the manifest is read as UTF-16" in cohort.notes


def test_a_workbook_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_bytes(b"PK\x03\x04 a workbook")
    with pytest.raises(DataUnreadable, match="workbook") as caught:
        scan(made.settings(tmp_path), FakeKeys())
    assert "Save it as CSV" in str(caught.value.remedy)


def test_numbers_of_a_table_are_numbers_or_faults(tmp_path: Path) -> None:
    """Decimal commas and limits of detection were taken as missing, a whole column as one constant."""
    config = by_table(tmp_path, ["a", "b", "c", "d"])
    header, *rows = (tmp_path / "t.csv").read_text().splitlines()
    cells = [row.split(",") for row in rows]
    (tmp_path / "t.csv").write_text(
        "\n".join([header, *(f'{cell[0]},"{i},5",{cell[2]}' for i, cell in enumerate(cells))])
    )
    text = said_of(config)
    assert "row 2, row 3, row 4, row 5: no number in column 'x'" in text
    assert "data.decimal=','" in text
    cohort = scan(made.changed(config, {"decimal": ","}), FakeKeys())
    assert len(np.unique(load_records(cohort, range(4), FakeGrant()))) == 4
    values = ["<5", "12 mg/l", "", "7"]
    (tmp_path / "t.csv").write_text(
        "\n".join([header, *(f"{cell[0]},{value},{cell[2]}" for cell, value in zip(cells, values))])
    )
    assert "row 2, row 3: no number in column 'x'" in said_of(config)
    table = TableConfig(numeric={"x": [0, 99]}, missing=["", "<5", "12 mg/l"])
    cohort = scan(made.changed(config, {"table": table}), FakeKeys())
    assert cohort.unread == {"cells of 'x' without a value: they become 0": 3}


def test_a_column_that_is_other_throughout_is_told(tmp_path: Path) -> None:
    config = by_table(tmp_path, ["a", "b"])
    table = TableConfig(categorical={"x": ["10", "11"]})
    cohort = scan(made.changed(config, {"table": table}), FakeKeys())
    assert cohort.notes == ["every row of 'x' counts as 'other': are its values the declared ones?"]
    assert cohort.unread == {"cells of 'x' that count as 'other'": 2}


def test_ages_of_dicom_in_a_csv_are_years(tmp_path: Path) -> None:
    rows = made.rows()
    for row, age in zip(rows, ["045Y", "018M", "old"]):
        row["age"] = age
    made.write(tmp_path, rows)
    cohort = scan(made.settings(tmp_path), FakeKeys())
    at = {record.row: i for i, record in enumerate(cohort.records)}
    ages = [cohort.groups["age"][at[f"row {i}"]] for i in (2, 3, 4)]
    assert ages == ["18 to below 65", "below 18", "unknown"]
    assert cohort.unread == {"texts of column 'age' that are no number: their group is 'unknown'": 1}


@pytest.mark.parametrize("name", ["../out.png", "/tmp/out.png", "images/../../out.png", "link.png", "linked/out.png"])
def test_files_outside_of_the_folder_are_refused_unless_declared(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "cohort"
    rows = made.rows(6, 1)
    made.write(folder, rows)
    Image.fromarray(made.picture(99)).save(tmp_path / "out.png")
    (folder / "link.png").symlink_to(tmp_path / "out.png")
    (folder / "linked").symlink_to(tmp_path)
    rows[0]["file"] = name.replace("/tmp/out.png", str(tmp_path / "out.png"))
    made.write(folder, rows, images=False)
    with pytest.raises(DataUnreadable) as caught:
        scan(made.settings(folder), FakeKeys())
    assert caught.value.faults == ["row 2: the image lies outside of the cohort's folder"]
    assert len(scan(made.settings(folder, outside="allowed"), FakeKeys()).records) == 6


def test_links_inside_the_folder_are_files(tmp_path: Path) -> None:
    rows = made.rows(6, 1)
    made.write(tmp_path, rows)
    (tmp_path / "alias.png").symlink_to(tmp_path / rows[0]["file"])
    rows[0]["file"] = "alias.png"
    made.write(tmp_path, rows, images=False)
    assert len(scan(made.settings(tmp_path), FakeKeys()).records) == 6


def test_archives_are_measured_before_they_are_unpacked(tmp_path: Path) -> None:
    """Two megabytes that would become a quarter of a gigabyte, in an NPZ, a gzip CSV and a NIfTI."""
    import gzip

    import nibabel

    from dptrain.data.records import read_image
    from dptrain.source import Unreadable

    np.savez_compressed(tmp_path / "a.npz", image=np.zeros((1, 256, 1024, 1024), np.uint8), patient_id=["a"])
    with pytest.raises(DataUnreadable, match="unpack to far more"):
        scan(config_of(tmp_path, format="npz", manifest="a.npz", **{"columns.image": "image"}), FakeKeys())
    with gzip.open(tmp_path / "m.csv.gz", "wb") as file:
        file.write(b"file,patient_id,label\n" + bytes(256 << 20))
    with pytest.raises(DataUnreadable, match="unpack to far more"):
        scan(config_of(tmp_path, manifest="m.csv.gz"), FakeKeys())
    header = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).header
    header.set_data_shape((1024, 1024, 300))
    with gzip.open(tmp_path / "a.nii.gz", "wb") as file:
        file.write(header.binaryblock + bytes(4))
    with pytest.raises(Unreadable, match="unpack to far more"):
        read_image(tmp_path / "a.nii.gz", dims=4)
