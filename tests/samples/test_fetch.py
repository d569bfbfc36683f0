"""The download: checked, resumed, whole or not at all; and the phantom that needs no network."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dptrain.data import load_tensors, scan
from dptrain.errors import ConfigError, DataUnreadable
from dptrain.samples import FetchFailed, download, find_demo_data, phantom
from dptrain.samples.fetch import KERMANY_FILE, KERMANY_FOLDER, kermany_config, who
from dptrain.settings import load
from tests.data.shared import FakeGrant, FakeKeys, kermany


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "jpeg")
    return out.getvalue()


def archive(extra: dict[str, bytes] | None = None) -> bytes:
    """A small archive in the original's layout: 40 patients, one exact copy, and files that do not belong."""
    entries: dict[str, bytes] = {"chest_xray/.DS_Store": b"x", "__MACOSX/chest_xray/train/NORMAL/._IM-1.jpeg": b"x"}
    for i in range(20):
        part = "test" if i % 4 == 0 else "train"
        entries[f"chest_xray/{part}/NORMAL/IM-{i:04d}-0001.jpeg"] = jpeg(i)
        kind = "virus" if i % 2 else "bacteria"
        entries[f"chest_xray/{part}/PNEUMONIA/person{i}_{kind}_{i}.jpeg"] = jpeg(100 + i)
    entries["chest_xray/train/PNEUMONIA/person1_bacteria_77.jpeg"] = jpeg(500)
    entries["chest_xray/train/NORMAL/NORMAL2-IM-0400-0001.jpeg"] = jpeg(3)
    entries.update(extra or {})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as opened:
        for name, content in entries.items():
            opened.writestr(name, content)
    return out.getvalue()


class Server:
    """Serves /file and /list on 127.0.0.1; `breaks` connections end after half of what was asked for."""

    def __init__(self, content: bytes, sha256: str | None = None) -> None:
        self.content, self.breaks = content, 0
        self.starts: list[Any] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/list":
                    details = {"sha256_hash": sha256 or hashlib.sha256(content).hexdigest(), "size": len(content)}
                    details["download_url"] = outer.url + "/file"
                    body, status, start = json.dumps([{"filename": KERMANY_FILE, "content_details": details}]), 200, 0
                    payload = body.encode()
                elif self.path == "/file":
                    span = self.headers.get("Range")
                    start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
                    outer.starts.append(start)
                    payload, status = content[start:], 206 if span else 200
                else:
                    self.send_error(404)
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                if self.path == "/file" and outer.breaks > 0:
                    outer.breaks -= 1
                    payload = payload[: len(payload) // 2]
                self.wfile.write(payload)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Server:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def options(self) -> dict:
        return {"url": f"{self.url}/file", "listing": f"{self.url}/list", "size": 32, "timeout": 2.0, "pause": 0.01}


def test_the_original_is_fetched_checked_and_prepared(tmp_path):
    with Server(archive()) as server:
        config = download(tmp_path, **server.options())
        again = download(tmp_path, **server.options())
        assert len(server.starts) == 1  # what is there is not fetched again
    assert again == config
    rows = list(csv.DictReader((tmp_path / KERMANY_FOLDER / "manifest.csv").open(encoding="utf-8")))
    assert len(rows) == 42
    groups = {row["patient_group"] for row in rows if row["file"].startswith("images/person1_")}
    assert groups == {"person1"}  # bacteria and virus of one number are one unit
    (copy,) = [row for row in rows if row["duplicate_of"]]
    assert copy["file"] == "images/NORMAL2-IM-0400-0001.jpeg"
    assert copy["patient_group"] == "IM-0003"
    cohort = scan(config, FakeKeys())
    assert (len(cohort.patients), len(cohort.records)) == (40, 41)
    assert load_tensors(cohort, [0], FakeGrant())[0].shape == (1, 1, 32, 32)
    assert not list(tmp_path.glob("*.part"))


def test_a_broken_connection_is_resumed(tmp_path):
    content = archive()
    with Server(content) as server:
        server.breaks = 2
        download(tmp_path, **server.options())
        assert len(server.starts) == 3
        assert server.starts[0] == 0
        assert 0 < server.starts[1] < server.starts[2] < len(content)
    assert (tmp_path / KERMANY_FILE).read_bytes() == content


def test_a_wrong_checksum_leaves_nothing_behind(tmp_path):
    with Server(archive(), sha256="0" * 64) as server, pytest.raises(FetchFailed, match="published SHA-256"):
        download(tmp_path, **server.options())
    assert list(tmp_path.iterdir()) == []


def test_no_checksum_no_download(tmp_path):
    with Server(archive()) as server:
        options = {**server.options(), "listing": f"{server.url}/nothing"}
        with pytest.raises(FetchFailed, match="cannot be checked") as caught:
            download(tmp_path, **options)
        assert "State its SHA-256 yourself" in str(caught.value)
        assert caught.value.exit_code == 5
        assert server.starts == []
        download(tmp_path, **options, sha256=hashlib.sha256(server.content).hexdigest().upper())
        with pytest.raises(FetchFailed, match="states another"):
            download(tmp_path / "other", **server.options(), sha256="1" * 64)


def test_a_dead_server_and_a_plain_address_are_refused(tmp_path):
    with Server(archive()) as server:
        options = server.options()
    with pytest.raises(FetchFailed, match="connection failed 5 times"):
        download(tmp_path, **{**options, "listing": None, "sha256": "0" * 64})
    with pytest.raises(FetchFailed, match="Only https"):
        download(tmp_path, url="file:///etc/passwd", listing=None, sha256="0" * 64)


def test_names_in_the_archive_never_choose_where_files_go(tmp_path):
    evil = {
        "chest_xray/train/NORMAL/../../../../../evil.jpeg": jpeg(900),
        "/chest_xray/train/NORMAL/a b$(touch x).jpeg": jpeg(901),
        "chest_xray/train/NORMAL/sub/../IM-0001-0001.jpeg": jpeg(902),
    }
    place = tmp_path / "deep" / "place"
    with Server(archive(evil)) as server:
        download(place, **server.options())
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and place not in path.parents]
    assert outside == []
    assert {path.parent.name for path in place.rglob("*.jpeg")} == {"images"}


def test_damaged_archives_leave_no_half_prepared_folder(tmp_path):
    for content in (b"no zip", archive({"chest_xray/train/NORMAL/IM-0999-0001.jpeg": jpeg(1)[:300]})):
        with Server(content) as server, pytest.raises(DataUnreadable):
            download(tmp_path, **server.options())
        assert not (tmp_path / KERMANY_FOLDER).exists()
        (tmp_path / KERMANY_FILE).unlink()
    with Server(archive()[:-2000]) as server, pytest.raises(DataUnreadable, match="no whole zip"):
        download(tmp_path, **server.options())


def test_names_give_patients_as_the_shared_manifest_does(shared_data):
    path = shared_data / "kermany_paediatric_cxr_224" / "manifest.csv"
    for row in csv.DictReader(path.open(encoding="utf-8")):
        if not row["duplicate_of"]:
            found = who(Path(row["file"]).stem, row["class_name"].upper())
            assert found == (row["patient_id"], row["patient_group"], row["subtype"])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "cohort"
    return folder, phantom(folder, patients=300, size=64, seed=1)


def test_a_phantom_is_a_sound_cohort_that_a_small_model_learns(drawn):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler

    _, config = drawn
    cohort = scan(config, FakeKeys())
    assert len(cohort.patients) == 300
    assert max(len(patient.records) for patient in cohort.patients) > 3
    assert set(cohort.groups["sex"]) == {"F", "M"}
    parts = {}
    for split in ("train", "test"):
        images, labels = load_tensors(cohort, cohort.records_of(cohort.split(split)), FakeGrant())
        pooled = images.unfold(2, 8, 8).unfold(3, 8, 8).mean((-1, -2)).flatten(1)
        parts[split] = pooled.numpy(), labels.numpy()
    scaler = StandardScaler().fit(parts["train"][0])
    model = LogisticRegression(C=0.01, max_iter=500).fit(scaler.transform(parts["train"][0]), parts["train"][1])
    score = roc_auc_score(parts["test"][1], model.decision_function(scaler.transform(parts["test"][0])))
    assert score > 0.8


def test_a_phantom_is_drawn_once_and_alike(drawn, tmp_path):
    folder, config = drawn
    before = (folder / "manifest.csv").stat().st_mtime_ns
    assert phantom(folder, patients=300, size=64, seed=1) == config
    assert (folder / "manifest.csv").stat().st_mtime_ns == before
    other = tmp_path / "again"
    phantom(other, patients=30, size=32, seed=5)
    third = tmp_path / "third"
    phantom(third, patients=30, size=32, seed=5)
    for path in sorted(other.rglob("*.png")):
        assert path.read_bytes() == (third / path.relative_to(other)).read_bytes()
    with pytest.raises(ConfigError, match="something else"):
        phantom(folder, patients=301, size=64, seed=1)
    with pytest.raises(ConfigError, match="at least 30"):
        phantom(tmp_path / "small", patients=2)


def test_the_demo_finds_given_shared_cached_or_made_up_data(tmp_path, monkeypatch, shared_data):
    given = find_demo_data(shared_data)
    assert given.kind == "kermany"
    assert given.overrides == [f'data.root="{shared_data.resolve()}"']
    assert given.public_size == 2215
    assert find_demo_data(shared_data / "kermany_paediatric_cxr_224").config == given.config
    with pytest.raises(DataUnreadable, match="holds no prepared"):
        find_demo_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPTRAIN_DATA", str(shared_data))
    assert find_demo_data().kind == "kermany"
    monkeypatch.delenv("DPTRAIN_DATA")
    monkeypatch.setattr(phantom, "__kwdefaults__", {"patients": 30, "size": 32, "seed": 0})
    said: list[str] = []

    def drawn_after_it_was_said(*words: Any) -> object:
        assert "phantom" in said[-1]
        return phantom(*words)

    monkeypatch.setattr("dptrain.samples.sources.phantom", drawn_after_it_was_said)
    made_up = find_demo_data(cache=tmp_path / "cache", fetch_public=False, say=said.append)
    assert made_up.kind == "phantom"
    assert "phantom" in made_up.description
    assert "fetching was not wanted" in made_up.description
    assert 15 < made_up.public_size < 30
    settings = load(["recipe=chest_xray_pneumonia", *made_up.overrides])
    assert settings.data.columns.groups == ["sex", "age_group"]
    assert settings.data.unit == "patient"  # a patient group's numbers may join several children
    assert settings.data.cautions == made_up.config.cautions
    assert len(scan(settings.data, FakeKeys()).records) > 30


def test_the_prepared_settings_fit_the_shared_copy(shared_data):
    found = find_demo_data(shared_data).config
    ours = kermany(shared_data)
    assert (found.columns.patient, found.columns.split, found.drop) == (
        ours.columns.patient,
        ours.columns.split,
        ours.drop,
    )


def test_the_fetched_cohort_and_the_recipe_make_the_same_patient_keys():
    recipe = load(["recipe=chest_xray_pneumonia"]).data
    assert kermany_config(Path(".")).issuer == recipe.issuer
