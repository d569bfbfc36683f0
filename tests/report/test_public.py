"""The public edition holds what is allowed by name; what nobody thought of reaches it by no way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from dptrain.records.shape import RESTRICTED, After, Record, disclosed, entries
from dptrain.report import facts as facts_module
from dptrain.report.faces import render
from dptrain.report.shapes import Facts
from tests.report import made

PLANTED = 0.123454321
EVERYTHING: dict[str, Any] = {"items": ["model", "metrics", "groups", "audit"], "recipient": "x"}
FILES: dict[str, Callable[[], dict[str, Any]]] = {
    "run": made.run_facts,
    "with_metrics": made.metrics,
    "with_audit": made.audit,
}


def objects(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the objects of a file are: the whole, and every one inside."""
    if isinstance(value, dict):
        yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from objects(inner, (*path, key))


def planted(name: str, path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    """The files of a released run, one of them with a key that nobody knows."""
    files: dict[str, Any] = {file: make() for file, make in FILES.items()}
    files["run"]["released"] = dict(EVERYTHING)
    place = files[name]
    for key in path:
        place = place[key]
    place["reconstruction"] = value
    return files


A_CELL = {"auroc": PLANTED}
VALUES = (PLANTED, str(PLANTED), [PLANTED], {"value": PLANTED}, A_CELL, {"reconstruction": {"mean": PLANTED}})
PLACES = {
    "run": "run.json",
    "with_metrics": "restricted/metrics.json",
    "with_audit": "restricted/audit/audit.json",
}


@pytest.mark.parametrize("name", FILES)
def test_an_unknown_key_at_any_level_stays_in_the_house(name: str, tmp_path: Path) -> None:
    """Everything is released, and all the same: a later version's section must be declared before it is shown."""
    start = FILES[name]() | ({"released": EVERYTHING} if name == "run" else {})
    folder = made.make_run(tmp_path / "run")
    for path in objects(start):
        for value in VALUES:
            if path[:1] == ("groups",) and len(path) == 2 and value == A_CELL:
                continue  # there the keys are names of groups
            for file, values in planted(name, path, value).items():
                (folder / PLACES[file]).write_text(json.dumps(values))
            facts = facts_module.public(facts_module.read(folder))
            assert facts.items == {*EVERYTHING["items"]}
            assert str(PLANTED) not in json.dumps(facts.to_json()), (path, value)


def test_no_face_shows_what_is_not_declared(tmp_path: Path) -> None:
    files = {file: make() for file, make in FILES.items()}
    files["run"]["released"] = dict(EVERYTHING)
    for file in files.values():
        file["reconstruction"] = file["sites"] = {"psnr": PLANTED, "site": f"{PLANTED}"}
        for section in ("cohort", "privacy", "program", "bootstrap", "auc"):
            if section in file:
                file[section]["sites"] = f"{PLANTED}"
    facts = facts_module.public(facts_module.read(made.make_run(tmp_path / "run", **files)))
    for name, face in render(facts, "en").items():
        assert str(PLANTED).encode() not in face, name


def reached(kind: Any) -> Iterator[type[Record]]:
    """Every record inside a type."""
    if isinstance(kind, type) and issubclass(kind, Record):
        yield kind
        for one in entries(kind):
            yield from reached(one.kind)
    elif get_origin(kind) is not None:
        for inner in get_args(kind):
            yield from reached(inner)


def test_every_field_of_the_facts_says_who_may_read_it() -> None:
    for kind in {*reached(Facts)}:
        for one in entries(kind):
            marks = [mark for mark in one.marks if isinstance(mark, After) or mark == RESTRICTED]
            assert len(marks) == 1, f"{kind.__name__}.{one.name} declares {marks}"


@dataclass(frozen=True, kw_only=True)
class Later(Record):
    """A record whose field nobody thought about."""

    secret: str | None = "patient"


def test_a_field_that_declares_nothing_is_restricted() -> None:
    assert disclosed(Later(), frozenset(EVERYTHING["items"])) == Later(secret=None)
