"""The tables, and the README's two main ones, follow from the rows that were measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import coverage, forgery, step_time, utility
from benchmarks._results import RESULTS, command_of, joined, origin, stamp, table, write

README = Path(__file__).parents[1] / "README.md"


def rows_of(name: str) -> list[dict]:
    return json.loads((RESULTS / f"{name}.json").read_text())["rows"]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_table_names_the_origin_of_its_rows(path):
    head = json.loads(path.read_text())["meta"]
    assert path.with_suffix(".md").read_text().splitlines()[2] == origin(head)


@pytest.mark.parametrize("name", ["coverage", "step_time", "ledger", "ledger_faults", "forgery"])
def test_a_table_shows_every_row(name):
    rows = rows_of(name)
    written = (RESULTS / f"{name}.md").read_text()
    header = next(line for line in written.splitlines() if line.startswith("| "))
    columns = header.strip("| ").split(" | ")
    assert table(rows, columns) in written


@pytest.mark.parametrize("name", ["coverage", "step_time"])
def test_every_row_names_the_commit_that_it_was_measured_at(name):
    for row in rows_of(name):
        assert row["commit"]
        assert row["date"]
        assert bool(row.get("peak_bytes")) == bool(row.get("peak_commit"))


def test_every_forgery_that_was_tried_was_noticed():
    rows = rows_of("forgery")
    assert {"run.json", "restricted/audit/audit.json", "restricted/metrics.json", "report/facts.json"} <= {
        row["file"] for row in rows
    }
    for row in rows:
        assert row["fields"] > 1
        assert row["verify"] == row["fields"], row["unnoticed"]
        assert row["release"] == row["release_fields"], row["unnoticed"]


def test_a_forgery_changes_one_field_and_none_is_left_out(tmp_path):
    values = {
        "a": [1, {"b": None}],
        "c": {"d": True, "e": "x", "f": 0.0, "g": []},
        "h": [0, 1, 2, 3, 4],
        "sweep": None,
    }
    file = tmp_path / "x.json"
    fields = []
    for forged in forgery.forgeries(_written(file, values)):
        fields.append(forged.field)
        forged.edit(_written(file, values))
        assert not file.exists() or json.loads(file.read_text()) != values
    assert fields == ["a.0", "a.1.b", "c.d", "c.e", "c.f", "c.g", "h.0", "h.2", "h.4", "sweep", "removed"]


def _written(file: Path, values: object) -> Path:
    file.write_text(json.dumps(values))
    return file


def test_a_head_says_that_rows_have_commits_of_their_own(tmp_path):
    for rows, told in (([{"a": 1}], False), ([{"a": 1, **stamp()}], True)):
        write("some", rows, command="make some", table_columns=("a",), title="Some", folder=tmp_path)
        head = json.loads((tmp_path / "some.json").read_text())["meta"]
        line = (tmp_path / "some.md").read_text().splitlines()[2]
        assert line == origin(head)
        assert ("each with its own date and commit" in line) == told


def test_a_command_is_named_without_the_folders_of_one_machine() -> None:
    words = ["ecg_beats", "--folder", "elsewhere", "--cache", "kept", "--quick"]
    assert command_of("utility", words) == "python -m benchmarks.utility ecg_beats --quick"


def test_commands_are_named_once_and_in_order() -> None:
    assert joined("", "a") == "a"
    assert joined("a; b", "c") == "a; b; c"
    assert joined("a; b", "a") == joined("a; b") == "a; b"


# ------------------------------------------------------------------------------- rows of coverage and step times


def test_a_row_that_is_kept_keeps_its_commit(tmp_path, monkeypatch):
    """One mode at the first commit, both at the second: the first row stays, and the head names both commands."""

    def examined(entry, mode):
        facts = {"network": entry.network, "dims": entry.dims, "mode": mode, "ok": True, "max_rel_error": 0.0}
        return {**facts, "reason": "", "listed": True}

    monkeypatch.setattr(coverage, "examine", examined)
    words = ["--only", "FullyConnectedNet", "--here", "--folder", str(tmp_path), "--modes"]
    for commit, modes in (("first", ["engine"]), ("second", ["engine,opacus hooks", "--resume"])):
        made = {"date": "2026-01-01", "commit": commit}
        monkeypatch.setattr(coverage, "stamp", lambda made=made: made)
        assert coverage.main([*words, *modes]) == 0
    held = json.loads((tmp_path / "coverage.json").read_text())
    assert {(row["mode"], row["commit"]) for row in held["rows"]} == {("engine", "first"), ("opacus hooks", "second")}
    assert held["meta"]["command"].count("python -m benchmarks.coverage") == 2


def step_row(mode: str, **figures) -> dict:
    facts = {"network": "unet", "size": 48, "chunks": 1, "precision": "float32", "device": "cpu"}
    return {**facts, "records_per_patient": 1, "patients": 8, "mode": mode, **figures}


def test_no_ratio_to_another_runs_plain_steps_is_left() -> None:
    row = step_row("hooks", seconds=4.0, ratio=4.0, cpu_ratio=4.0, plain_seconds=1.0, commit="old", peak_bytes=9)
    step_time.timed(row, {"mode": "hooks", "seconds": 3.0, "spread": 0.1, "steps": 3}, {"commit": "new"})
    assert row == step_row("hooks", seconds=3.0, spread=0.1, steps=3, commit="new", peak_bytes=9)


def test_a_run_without_an_answer_leaves_earlier_times_alone() -> None:
    row = step_row("hooks", seconds=4.0, ratio=4.0, commit="old")
    step_time.timed(row, {"mode": "hooks", "note": "not finished within 60 s"}, {"commit": "new"})
    assert row == step_row("hooks", seconds=4.0, ratio=4.0, commit="old")
    step_time.timed(row, {"mode": "hooks", "note": "fails: RuntimeError: no"}, {"commit": "new"})
    assert row == step_row("hooks", note="fails: RuntimeError: no", commit="new")


def test_peaks_are_held_against_the_plain_row_as_it_is_now() -> None:
    rows = [
        step_row("plain", peak_bytes=200, peak_ratio=1.0),
        step_row("ours", peak_bytes=300, peak_ratio=9.0),
        step_row("ghost", peak_ratio=9.0),
        {**step_row("ours", peak_bytes=300, peak_ratio=9.0), "size": 96},
    ]
    step_time.peak_ratios(rows)
    assert [row.get("peak_ratio") for row in rows] == [1.0, 1.5, None, None]


def test_the_table_of_step_times_has_present_peak_ratios() -> None:
    rows = rows_of("step_time")
    held = [row.get("peak_ratio") for row in rows]
    step_time.peak_ratios(rows)
    assert [row.get("peak_ratio") for row in rows] == held


# ------------------------------------------------------------------------------------- the README's figures


def readme_table(title: str) -> list[dict[str, str]]:
    """The first table below the paragraph that begins with this title: a line an object, by the header's words."""
    text = README.read_text(encoding="utf-8")
    assert text.count(f"**{title}**") == 1, title
    lines = text.partition(f"**{title}**")[2].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    cells = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        cells.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    header, _, *body = cells
    return [dict(zip(header, line, strict=True)) for line in body]


def wrong(where: str, shown: str, value: float | None) -> list[str]:
    """What is to be said where the README shows another figure than the row holds, at as many digits as shown."""
    if value is None:
        return [f"{where}: the README says {shown}, no row does"]
    there = f"{value:.{len(shown.partition('.')[2])}f}"
    return [] if there == shown else [f"{where}: the README says {shown}, the row {there}"]


NETWORKS = {
    "ResNet-18": "resnet18",
    "DenseNet121": "densenet121",
    "EfficientNet-B0": "efficientnet_b0",
    "3-D UNet": "unet",
    "3-D SegResNet": "segresnet",
}
STEP_COLUMNS = {"dptrain": "ours", "Opacus hooks": "hooks", "ghost": "ghost", "functorch": "functorch"}
PEAK = re.compile(r"(.+)'s peak memory")


def test_what_a_private_step_costs_in_the_readme() -> None:
    rows = {
        (r["network"], r["size"], r["patients"], r["chunks"], r["mode"]): r
        for r in rows_of("step_time")
        if r["records_per_patient"] == 1 and (r["precision"], r["device"]) == ("float32", "cpu")
    }
    lines = readme_table("What a private step costs.")
    assert len(lines) == len(NETWORKS)
    errors, compared = [], 0
    for line in lines:
        label = line["network, batch"]
        told = re.fullmatch(r"(.+?), (\d+)(?: px|³), (\d+) (?:images|volumes)(; four such chunks a step)?", label)
        assert told, label
        network, size, images = NETWORKS[told[1]], int(told[2]), int(told[3])
        for column, cell in line.items():
            peak = PEAK.fullmatch(column)
            name = peak[1] if peak else column
            if name not in STEP_COLUMNS:
                assert column == "network, batch", column
                continue
            key = "peak_ratio" if peak else "ratio"
            shown = cell.split("; ")
            assert len(shown) == (2 if told[4] and not peak else 1), (label, column)
            for chunks, figure in zip((1, 4), shown, strict=False):
                row = rows.get((network, size, images, chunks, STEP_COLUMNS[name]), {})
                errors += wrong(f"{label}, {column}, {chunks} chunks", figure, row.get(key))
                compared += 1
    assert not errors, "\n".join(errors)
    assert compared == 5 * len(NETWORKS) + len(STEP_COLUMNS)


def test_what_epsilon_costs_in_the_readme() -> None:
    measured = [row for row in rows_of("utility") if row["epsilon"] is not None]
    means = {
        (row["recipe"], row["variant"], row["epsilon"]): row["value"]
        for row in utility.summary(measured)
        if row["metric"] == "auroc"
    }
    lines = readme_table("What ε costs.")
    errors, recipe = [], ""
    for line in lines:
        label = line["recipe"]
        linked = re.search(r"\(recipes/(\w+)/README\.md\)", label)
        recipe = linked[1] if linked else recipe
        opacus = "stock Opacus" in label
        assert bool(linked) != opacus, label
        variant = label.removeprefix("the same, ") if opacus else utility.MAIN
        assert any(key[:2] == (recipe, variant) for key in means), label
        for column, shown in line.items():
            if not shown or column in ("recipe", "goal"):
                continue
            level = column.removeprefix("ε = ")
            key = {
                "∞, same settings": (recipe, variant, "∞"),
                "∞, tuned": (recipe, utility.TUNED, "∞"),
            }.get(column) or (recipe, variant, float(level))
            errors += wrong(f"{label}, {column}", shown, means.get(key))
    assert not errors, "\n".join(errors)
    assert sum(bool(cell) for line in lines for cell in line.values()) >= 26 + len(lines)


def test_the_readmes_goals_are_met_or_missed_as_the_rows_have_it() -> None:
    measured = [row for row in rows_of("utility") if row["epsilon"] is not None and row["seed"] in utility.SEEDS]
    means = {
        (row["recipe"], row["variant"], row["epsilon"]): row["value"]
        for row in utility.summary(measured)
        if row["metric"] == "auroc"
    }
    for line in readme_table("What ε costs."):
        linked = re.search(r"\(recipes/(\w+)/README\.md\)", line["recipe"])
        if not linked:
            assert not line["goal"]
            continue
        recipe = linked[1]
        best = max(value for (place, _, level), value in means.items() if place == recipe and level == "∞")
        over = max(
            best - means[recipe, utility.MAIN, epsilon] - goal
            for (place, epsilon), goal in utility.GOALS.items()
            if place == recipe
        )
        assert line["goal"] == ("met" if over <= 0 else f"missed by {over:.3f}"), recipe
