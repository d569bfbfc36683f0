"""`python -m benchmarks.forgery [--folder DIR] [--workers N]`: every field of every file of a finished run, forged.

A small run is trained, evaluated, audited, reported and released on made-up images. Then each field of each of its
files is changed, one at a time, by a forger who also mends every hash that lies beside it in the folder: in run.json
(model, bundle, configuration) and in the manifests of the reports. Counted is what `report verify` calls changed, and
what `release` refuses before the run was released. The ledger is out of the forger's reach.

Of a list of more than four numbers (a curve) the first, the middle and the last are forged. A page (HTML, PDF, model
card) gets one change; each file is also removed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._finished_run import DECISION, Site, released, trained
from benchmarks._results import RESULTS, command_of, write
from dptrain.errors import DptrainError
from dptrain.files import file_sha256
from dptrain.ledger import Ledger, open_ledger
from dptrain.records import RunFolder
from dptrain.records.bound import metadata_sha256
from dptrain.report import facts as facts_module
from dptrain.report import verify as verify_module
from dptrain.report.release import refuse
from dptrain.report.verify import verify

Edit = Callable[[Path], None]
LONG = 4
FACES = (".html", ".pdf", ".md")
LOGS = ("tensorboard", "restricted/tensorboard", "restricted/training.jsonl", "restricted/access.log")
TABLE = ("file", "fields", "verify", "release_fields", "release", "unnoticed")
NOTES = """\
`fields`: forgeries of the released folder; `verify`: how many of them `report verify` calls changed.
`release_fields`: forgeries of the folder before its release; `release`: how many of them a release refuses before
anything is signed (empty for what it makes anew). The goal is all. Each forgery mends the hashes that lie beside it
in the folder. Not forged: logs on which no page rests (TensorBoard, `training.jsonl`, `access.log`), and the
ledger. A version in a manifest's `made_with` that is changed is answered with "made by other versions; hashes
compared only": named, not counted."""


@dataclass(frozen=True)
class Forgery:
    """One change of one file: its field, and what makes it."""

    field: str
    edit: Edit


def forgeries(path: Path) -> Iterator[Forgery]:
    """Every change of a file that is tried."""
    if path.suffix == ".json":
        values = json.loads(path.read_text(encoding="utf-8"))
        for names in leaves(values):
            yield Forgery(".".join(map(str, names)), _in_json(names))
    elif path.suffix == ".yaml":
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            if line.strip():
                yield Forgery(f"line {number + 1}", _in_line(number))
    elif path.suffix == ".csv":
        for column, name in enumerate(path.read_text(encoding="utf-8").splitlines()[0].split(",")):
            yield Forgery(name, _in_cell(column))
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            names_of_arrays = list(arrays)
        for name in names_of_arrays:
            yield Forgery(name, _in_array(name))
    elif path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        for name in load_file(path):
            yield Forgery(name, _in_tensor(name))
    else:
        yield Forgery("a byte", _a_byte)
    yield Forgery("removed", lambda file: file.unlink())


def leaves(value: Any, names: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The place of every field of a JSON value."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, (*names, name))
    elif isinstance(value, list) and value:
        numbers = [*range(len(value))]
        if len(value) > LONG and not isinstance(value[0], dict):
            numbers = [0, len(value) // 2, len(value) - 1]
        for number in numbers:
            yield from leaves(value[number], (*names, number))
    else:
        yield names


SECTIONS = ("sweep", "released")


def other(value: Any, name: str | int = "") -> Any:
    """Another value of the same type; in place of a section that is not there, an invented one."""
    if value is None and name in SECTIONS:
        return {"id": "x", "trials": 1, "epsilon_total": 0.1, "items": ["model"], "recipient": "x", "entry": "9 (ab)"}
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if isinstance(value, int) else value * 0.5 + 0.001
    if isinstance(value, str):
        return f"{value[:-1]}{'1' if value[-1:] != '1' else '2'}"
    return "forged" if value is None else [1]


def _in_json(names: tuple[str | int, ...]) -> Edit:
    def edit(path: Path) -> None:
        values = json.loads(path.read_text(encoding="utf-8"))
        place = values
        for name in names[:-1]:
            place = place[name]
        place[names[-1]] = other(place[names[-1]], names[-1])
        path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    return edit


def _in_line(number: int) -> Edit:
    def edit(path: Path) -> None:
        lines = path.read_text(encoding="utf-8").splitlines()
        lines[number] = other(lines[number])
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    return edit


def _in_cell(column: int) -> Edit:
    def edit(path: Path) -> None:
        lines = path.read_text(encoding="utf-8").splitlines()
        cells = lines[1].split(",")
        cells[column] = other(cells[column])
        path.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n", encoding="utf-8")

    return edit


def _in_array(name: str) -> Edit:
    def edit(path: Path) -> None:
        with np.load(path) as arrays:
            values = {key: arrays[key].copy() for key in arrays}
        flat = values[name].reshape(-1)
        flat[0] = ~flat[0] if flat.dtype == bool else flat[0] + 1 if flat.dtype.kind in "fiu" else b"forged"
        with open(path, "wb") as file:
            np.savez_compressed(file, **values)

    return edit


def _in_tensor(name: str) -> Edit:
    def edit(path: Path) -> None:
        from safetensors.numpy import load_file, save_file

        values = load_file(path)
        values[name] = values[name].copy()
        values[name].reshape(-1)[0] += 1
        save_file(values, path)

    return edit


def _a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def mend(run: RunFolder, path: Path) -> None:
    """Write the forged file's new hash wherever the folder states it."""
    if not path.exists():
        return
    sha256 = file_sha256(path)
    if (path.parent / "manifest.json").exists() and path.name != "manifest.json":
        manifest = path.parent / "manifest.json"
        values = json.loads(manifest.read_text(encoding="utf-8"))
        values["files"][path.name] = sha256
        manifest.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    values = json.loads(run.facts.read_text(encoding="utf-8"))
    if path == run.weights:
        values["model"]["sha256"] = sha256
    elif path == run.config:
        values["config_sha256"] = sha256
    elif path.is_relative_to(run.model):
        stated = metadata_sha256(path) if path == run.metadata else sha256
        values["model"]["files"][path.relative_to(run.model).as_posix()] = stated
    else:
        return
    run.facts.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def files_of(run: RunFolder) -> list[Path]:
    """The files that are forged."""
    return [
        path
        for path in sorted(run.path.rglob("*"))
        if path.is_file() and not path.relative_to(run.path).as_posix().startswith(LOGS)
    ]


def noticed_by_verify(run: RunFolder, ledger: Ledger) -> bool:
    """Whether `report verify` calls something changed."""
    try:
        return any(tie.ok is False for tie in verify(run.path, ledger=ledger))
    except DptrainError:
        return True


def noticed_by_release(run: RunFolder, ledger: Ledger) -> bool:
    """Whether a release refuses, before it signs."""
    try:
        evidence = ledger.evidence(str(run.read().id))
        refuse(facts_module.read(run.path, ledger=evidence), DECISION)
    except DptrainError:
        return True
    return False


def tried(site: Site, name: str, forgery: Forgery, notices: Callable[[RunFolder, Ledger], bool]) -> bool:
    """Forge, mend the hashes, ask, and put everything back."""
    run = site.run
    path = run.path / name
    kept = {file: file.read_bytes() for file in {path, run.facts, path.parent / "manifest.json"} if file.exists()}
    try:
        forgery.edit(path)
        mend(run, path)
        return notices(run, site.ledger)
    finally:
        for file, content in kept.items():
            file.write_bytes(content)


def tally(name: str, before: Site, after: Site, part: int = 0, parts: int = 1) -> dict[str, Any]:
    """Every `parts`-th forgery of a file from the `part`-th on: how many were tried and noticed, and which not."""
    path = after.run.path / name
    earlier = before.run.place_of(name)
    rests = earlier.exists() and "report" not in path.relative_to(after.run.path).parts
    row: dict[str, Any] = {"file": name, "fields": 0, "verify": 0, "release_fields": None, "release": None}
    unnoticed = []
    for forgery in [*forgeries(path)][part::parts]:
        if forgery.field.startswith("made_with.") and forgery.field != "made_with.dptrain":
            continue
        with faces_made_anew(path.suffix in FACES or path.name == "registry.yaml" or forgery.field == "lang"):
            seen = tried(after, name, forgery, noticed_by_verify)
        row["fields"] += 1
        row["verify"] += seen
        unnoticed += [] if seen else [f"verify: {forgery.field}"]
    if rests:
        row.update(release_fields=0, release=0)
        for forgery in [*forgeries(earlier)][part::parts]:
            if (path.name, forgery.field) == ("metadata.json", "privacy"):  # a release writes it
                continue
            seen = tried(before, earlier.relative_to(before.run.path).as_posix(), forgery, noticed_by_release)
            row["release_fields"] += 1
            row["release"] += seen
            unnoticed += [] if seen else [f"release: {forgery.field}"]
    return {**row, "unnoticed": ", ".join(unnoticed)}


@contextmanager
def faces_made_anew(wanted: bool) -> Iterator[None]:
    """Rendering takes seconds: it is done where a face was forged, and not where its hash alone can tell."""
    own = verify_module._against_facts
    if not wanted:
        verify_module._against_facts = lambda *_: []
    try:
        yield
    finally:
        verify_module._against_facts = own


def main() -> None:
    """Make the run, forge it, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the table is written")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that forge side by side")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = measured(Path(temporary), words.workers)
    write(
        "forgery",
        rows,
        command=command_of("forgery", []),
        table_columns=TABLE,
        title="Forgeries that were noticed",
        notes=NOTES,
        folder=words.folder,
    )
    total = rows[-1]
    print(
        f"report verify noticed {total['verify']} of {total['fields']}, release {total['release']} of "
        f"{total['release_fields']}"
    )


def measured(folder: Path, workers: int) -> list[dict[str, Any]]:
    """The rows, of a run made in `folder`."""
    (folder / "original").mkdir()
    after = trained(_made(folder / "original" / "after"))
    shutil.copytree(after.folder, folder / "original" / "before")
    released(after)
    before, after = _sites(folder / "original")
    assert not noticed_by_verify(after.run, after.ledger)
    assert not noticed_by_release(before.run, before.ledger)
    names = [path.relative_to(after.run.path).as_posix() for path in files_of(after.run)]
    tasks = [(name, part) for name in names for part in range(PARTS)]
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (folder / "original", folder)) as pool:
        counts = [*pool.map(_task, tasks)]
    rows = [_joined(name, [count for count in counts if count["file"] == name]) for name in names]
    return [*rows, {**_joined("all", rows), "unnoticed": ""}]


PARTS = 8  # of a file's forgeries, for several processes
SITES: list[Site] = []  # of this process: before and after the release


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _sites(folder: Path) -> tuple[Site, Site]:
    sites = []
    for name in ("before", "after"):
        place = folder / name
        ledger, keys = open_ledger(str(place / "ledger.sqlite"), str(place / "keys"), None)
        sites.append(Site(place, keys, ledger, RunFolder(place / "run")))
    return sites[0], sites[1]


def _begin(original: Path, folder: Path) -> None:
    """A worker forges a copy of its own."""
    own = folder / f"worker-{os.getpid()}"
    shutil.copytree(original, own)
    SITES[:] = _sites(own)


def _task(task: tuple[str, int]) -> dict[str, Any]:
    name, part = task
    return tally(name, SITES[0], SITES[1], part, PARTS)


def _joined(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The sum of rows; None where none has a number."""
    row: dict[str, Any] = {"file": name}
    for key in ("fields", "verify", "release_fields", "release"):
        numbers = [one[key] for one in rows if one[key] is not None]
        row[key] = sum(numbers) if numbers else None
    return {**row, "unnoticed": ", ".join(filter(None, (one["unnoticed"] for one in rows)))}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
