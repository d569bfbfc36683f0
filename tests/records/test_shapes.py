"""Records: what was written is read again, what is hostile is survived, and the schemas are those of the types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dptrain.records import Audit, Metrics, Run, read_file
from dptrain.records.shape import Record
from tests.report import made

OLD = Path(__file__).parents[1] / "fixtures" / "run_42972b7" / "run"
FILES: list[tuple[type[Record], str]] = [
    (Run, "run.json"),
    (Metrics, "restricted/metrics.json"),
    (Audit, "restricted/audit/audit.json"),
]


@pytest.mark.parametrize(("kind", "name"), FILES, ids=lambda value: getattr(value, "__name__", value))
def test_what_an_earlier_version_wrote_keeps_every_byte(kind: type[Record], name: str) -> None:
    text = (OLD / name).read_text(encoding="utf-8")
    again = json.dumps(kind.of(json.loads(text)).to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    assert again == text


MADE: dict[type[Record], Any] = {Run: made.run_facts, Metrics: made.metrics, Audit: made.audit}


@pytest.mark.parametrize("kind", MADE, ids=lambda kind: kind.__name__)
def test_any_value_anywhere_is_survived(kind: type[Record], tmp_path: Path) -> None:
    """Each leaf and branch replaced, one after another, by values that do not belong there."""

    def paths(value: Any, path: tuple[str, ...] = ()) -> Any:
        if path:
            yield path
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from paths(inner, (*path, key))

    for path in paths(MADE[kind]()):
        for wrong in (None, [], {}, "x\x00", -1e308, 10**400, True, [{"run": {}}, [1]], {"a": {"b": 1}}):
            values = MADE[kind]()
            place = values
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = wrong
            file = tmp_path / "file.json"
            file.write_text(json.dumps(values))
            json.dumps(read_file(file, kind, "file").record.to_json(), allow_nan=False)


def test_a_needed_field_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    values = made.run_facts()
    del values["id"], values["privacy"]["epsilon"]
    values["privacy"]["mu"] = "much"
    (tmp_path / "run.json").write_text(json.dumps(values))
    reading = read_file(tmp_path / "run.json", Run, "run")
    assert {fault.detail for fault in reading.faults} == {"id", "privacy.epsilon", "privacy.mu"}


def test_text_is_cleaned_where_anybody_may_have_written_it(tmp_path: Path) -> None:
    values = made.run_facts()
    values["recipe"] = values["cohort"]["cautions"][0] = "a\x1b[31mb\u202e"
    values["program"] = {"torch\x00": "\x00"}
    (tmp_path / "run.json").write_text(json.dumps(values))
    run = read_file(tmp_path / "run.json", Run, "run").record
    assert run.recipe == run.cohort.cautions[0] == "a⟨U+001B⟩[31mb⟨U+202E⟩"
    assert run.program == {"torch⟨U+0000⟩": "⟨U+0000⟩"}
    assert Run.of(values).recipe == values["recipe"]  # what this program wrote is taken as it is
