"""One way to write a benchmark's results: JSON rows, a Markdown table, and who, when, where, how."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def stamp() -> dict[str, str]:
    """Date and commit of now, for a row that is being measured."""
    commit = _git("describe", "--always")
    # Results are no dirt, nor are the recipes' pages, which the utility benchmark fills in as it runs.
    if _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!results", ":(top,exclude)recipes/*/*.md"):
        commit += "-dirty"
    return {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "commit": commit or "unknown"}


def meta(command: str) -> dict[str, str]:
    """Date, commit, machine and command of a table's last run."""
    return {**stamp(), "machine": _machine(), "command": command}


def command_of(benchmark: str, words: Sequence[str]) -> str:
    """The command that made rows, without the folders that they were written to first or features kept in."""
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and not word.lstrip("-").startswith(("folder", "cache")):
            kept.append(word)
        skip = word in ("--folder", "--cache")
    return " ".join([f"python -m benchmarks.{benchmark}", *kept])


def joined(earlier: str, command: str = "") -> str:
    """All commands that made a table's rows, in order, each once: those that it names already, and a further one."""
    return "; ".join(dict.fromkeys(filter(None, [*earlier.split("; "), command])))


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()


def _machine() -> str:
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        python = platform.python_version()
        return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, Python {python}"
    except (OSError, ValueError):
        return f"{name}, {os.cpu_count()} cores"


def write(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    command: str,
    table_columns: Sequence[str],
    title: str,
    notes: str = "",
    folder: Path = RESULTS,
    table_rows: Sequence[Mapping[str, Any]] | None = None,
    head: Mapping[str, str] | None = None,
) -> Path:
    """Write `<name>.json` and `<name>.md` below `folder`; returns the JSON's path.

    Args:
        rows: flat objects, one a row.
        table_columns: keys of the rows to show, in order; a missing value shows as an empty cell.
        table_rows: rows of the table, where it shows a summary; None for `rows`.
        notes: Markdown below the table: what was not run, and what bounds a figure.
        head: date, commit, machine and command of the last run, where that was earlier; None for now's. Where rows
            carry a commit of their own, the head says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    head = dict(meta(command) if head is None else head)
    if any("commit" in row for row in rows):
        head["rows"] = "each with its own date and commit"
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"meta": head, "rows": list(rows)}, indent=1, allow_nan=False) + "\n")
    lines = [
        f"# {title}",
        "",
        origin(head),
        "",
        table(rows if table_rows is None else table_rows, table_columns),
    ]
    if notes:
        lines += ["", notes.strip()]
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")
    return path


def origin(head: Mapping[str, str]) -> str:
    """The line that says when, from what, where and how the rows were made."""
    which = f" (the last run's; rows: {head['rows']})" if "rows" in head else ""
    return f"{head['date']} · commit {head['commit']}{which} · {head['machine']} · `{head['command']}`"


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A Markdown table; a missing value shows as an empty cell."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(key)) for key in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
