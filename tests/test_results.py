"""The tables that the README quotes follow from the rows that were measured."""

import json

import pytest

from benchmarks._results import RESULTS, command_of, origin, table


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_table_names_the_origin_of_its_rows(path):
    head = json.loads(path.read_text())["meta"]
    assert path.with_suffix(".md").read_text().splitlines()[2] == origin(head)


@pytest.mark.parametrize("name", ["coverage", "step_time", "ledger", "ledger_faults"])
def test_a_table_shows_every_row(name):
    rows = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    written = (RESULTS / f"{name}.md").read_text()
    header = next(line for line in written.splitlines() if line.startswith("| "))
    columns = header.strip("| ").split(" | ")
    assert table(rows, columns) in written


def test_a_command_is_named_without_the_folders_of_one_machine() -> None:
    words = ["ecg_beats", "--folder", "elsewhere", "--cache", "kept", "--quick"]
    assert command_of("utility", words) == "python -m benchmarks.utility ecg_beats --quick"
