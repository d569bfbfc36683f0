"""The committed schemas are those of the types, and files follow them.

After a change of a type: `python -m tests.records.test_schemas` writes them anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dptrain.records.schemas import FOLDER, RECORDS, text, write
from dptrain.records.shape import Record
from dptrain.report.shapes import Facts
from tests.records.test_shapes import FILES, MADE, OLD

REPORT = Path(__file__).parents[2] / "dptrain" / "report" / "schema"
FACTS: dict[str, tuple[type[Record], str]] = {"facts-1.json": (Facts, "Facts of a dptrain report")}
EVERY = [(FOLDER / name, *about) for name, about in RECORDS.items()]
EVERY += [(REPORT / name, *about) for name, about in FACTS.items()]


@pytest.mark.parametrize(("path", "kind", "title"), EVERY, ids=lambda value: getattr(value, "name", ""))
def test_a_committed_schema_is_that_of_the_types(path: Path, kind: type[Record], title: str) -> None:
    assert path.read_text(encoding="utf-8") == text(kind, title), "python -m tests.records.test_schemas"


@pytest.mark.parametrize(("kind", "name"), FILES, ids=lambda value: getattr(value, "__name__", ""))
def test_files_follow_their_schema(kind: type[Record], name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = next(json.loads(text(*about)) for about in RECORDS.values() if about[0] is kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads((OLD / name).read_text(encoding="utf-8")), schema)
    wrong = MADE[kind]() | {"unheard_of": 1}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


if __name__ == "__main__":
    write(FOLDER, RECORDS)
    write(REPORT, FACTS)
