"""The mutants of `make test-mutation`: what is changed, how it is named, and when a verdict holds."""

from __future__ import annotations

import ast
import json
from dataclasses import replace

import pytest

from benchmarks import mutation


def changed(text: str) -> list[str]:
    """Every change of an expression or statement."""
    tree = ast.parse(text)
    return [ast.unparse(new) for node in ast.walk(tree) for new in mutation.edits(node)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a < b <= c", ["a <= b <= c", "a < b < c"]),
        ("a and b", ["a or b"]),
        ("a + b", ["a - b"]),
        ("a -= b", ["a += b"]),
        ("not a", ["a"]),
        ("True", ["False"]),
        ("7", ["8"]),
        ("0.5", ["1.0"]),
        ("math.ceil(a)", ["math.floor"]),
        ("x if min(a) else y", ["x if not min(a) else y", "max"]),
        ("'text' + a", []),
        ("None", []),
    ],
)
def test_one_thing_is_changed(text, expected):
    assert changed(text) == expected


def test_mutants_have_names_of_their_own_and_their_code_differs():
    made = mutation.mutants("dptrain/cells.py")
    assert len({mutant.name for mutant in made}) == len(made)
    codes = {mutation.code_of(mutant) for mutant in made}
    file = mutation.TOP / "dptrain/cells.py"
    codes.add(compile(file.read_text(), str(file), "exec"))
    assert len(codes) == len(made) + 1


def test_a_verdict_holds_until_code_or_tests_change():
    mutant = mutation.mutants("dptrain/cells.py")[0]
    tests = mutation.digest(mutation.TESTS[mutant.file])
    row = {"verdict": "survived", "around": mutant.around, "tests": tests}
    assert mutation.stands(mutant, row)
    assert not mutation.stands(mutant, None)
    assert not mutation.stands(mutant, row | {"tests": "others"})
    assert mutation.stands(mutant, row | {"tests": "others", "verdict": "killed"})
    assert not mutation.stands(replace(mutant, around="other"), row)


def test_the_table_of_tests_names_files():
    for file, tests in mutation.TESTS.items():
        assert all((mutation.TOP / name).is_file() for name in (file, *tests))


def test_each_accepted_survivor_is_a_mutant_and_has_a_reason():
    names = {mutant.name for file in mutation.TESTS for mutant in mutation.mutants(file)}
    for row in json.loads(mutation.ACCEPTED.read_text()):
        assert row["mutant"] in names
        assert len(row["reason"].split()) >= 5
