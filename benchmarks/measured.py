"""What `dptrain rehearse` tells of a recipe: means of its rows in benchmarks/results/utility.json.

python -m benchmarks.measured     # writes recipes/<recipe>/measured.json
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from dptrain.files import write_json

RESULTS = Path(__file__).parent / "results" / "utility.json"
RECIPES = Path(__file__).parents[1] / "recipes"
METRICS = ("auroc", "dice")


def tables() -> dict[str, list[dict[str, Any]]]:
    """Recipe -> a row for each epsilon: the mean over seeds of the first metric, over all test patients."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["variant"] == "recipe" and row["metric"] in METRICS and "group" not in row:
            values[row["recipe"], str(row["epsilon"]), row["metric"]].append(row["value"])
    made: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (recipe, epsilon, metric), seeds in sorted(values.items(), key=lambda item: float(item[0][1])):
        row = {"epsilon": "inf" if epsilon == "inf" else float(epsilon), "metric": metric}
        made[recipe].append({**row, "value": round(sum(seeds) / len(seeds), 6), "seeds": len(seeds)})
    return dict(made)


if __name__ == "__main__":
    for name, table in tables().items():
        write_json(RECIPES / name / "measured.json", {"from": "benchmarks/results/utility.json", "rows": table})
