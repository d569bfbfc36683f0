"""The picture of `benchmarks.utility`: one panel a recipe, and the gaps between groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

LEVELS = (0.5, 1.0, 2.0, 4.0, 8.0, "inf")
#: Okabe & Ito's palette: told apart with any colour vision; markers differ as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#777777")
MARKERS = "osD^vPX*"
TITLES = {
    "chest_xray_pneumonia": "Pneumonia on chest X-ray",
    "readmission": "Readmission within 30 days",
    "chest_xray_findings": "Findings on chest X-ray",
    "ecg_beats": "Heart beats (33 patients)",
    "hippocampus_segmentation": "Hippocampus on MRI",
}
PLOTTED = (  # what was trained from scratch lies so far below that nothing else could be told apart
    "recipe",
    "stock Opacus, one image a patient",
    "image unit",
    "tuned without privacy",
    "stock Opacus, the recipe's clip, rate and steps",
)


def plot(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write `utility.png` and `utility.svg`, and `utility_groups.*` where there are groups."""
    import matplotlib

    matplotlib.use("Agg")
    recipes = [name for name in TITLES if any(row["recipe"] == name for row in rows)]
    if recipes:
        _curves(rows, recipes, folder)
    grouped = [name for name in recipes if _group_columns(rows, name)]
    if grouped:
        _groups(rows, grouped, folder)


def _points(
    rows: Sequence[dict[str, Any]], recipe: str, variant: str, metric: str, group: str | None = None
) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if (row["recipe"], row["variant"], row["metric"], row.get("group")) == (recipe, variant, metric, group):
            found.setdefault(LEVELS.index(row["epsilon"]), []).append(row)
    return dict(sorted(found.items()))


def _mean(rows: Sequence[dict[str, Any]], name: str = "value") -> float:
    have = [row[name] for row in rows if row[name] is not None]
    return sum(have) / len(have) if have else float("nan")


def _axes(count: int) -> tuple[Any, list[Any]]:
    import matplotlib.pyplot as plt

    wide = min(3, count)
    tall = -(-count // wide)
    figure, axes = plt.subplots(tall, wide, figsize=(4.6 * wide, 3.7 * tall), squeeze=False, layout="constrained")
    flat = list(axes.ravel())
    for spare in flat[count:]:
        spare.axis("off")
    for axis in flat[:count]:
        axis.set_xticks(range(len(LEVELS)), ["0.5", "1", "2", "4", "8", "∞"])
        axis.set_xlim(-0.4, len(LEVELS) - 0.6)
        axis.grid(alpha=0.3, linewidth=0.6)
        axis.set_xlabel("ε of one unit (∞: no privacy)")
        axis.spines[["top", "right"]].set_visible(False)
    return figure, flat


def _title(figure: Any, what: str, how: str) -> None:
    narrow = figure.get_size_inches()[0] < 9
    figure.suptitle(f"{what}\n{how}" if narrow else f"{what}: {how}", fontsize=9 if narrow else 11)


def _save(figure: Any, folder: Path, name: str) -> None:
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=150)
    figure.savefig(folder / f"{name}.svg")
    plt.close(figure)


def _curves(rows: Sequence[dict[str, Any]], recipes: Sequence[str], folder: Path) -> None:
    figure, axes = _axes(len(recipes))
    for axis, recipe in zip(axes, recipes):
        metric = "dice" if recipe == "hippocampus_segmentation" else "auroc"
        names = [v for v in PLOTTED if _points(rows, recipe, v, metric)]
        for number, variant in enumerate(names):
            points = _points(rows, recipe, variant, metric)
            at = [x + 0.06 * (number - (len(names) - 1) / 2) for x in points]
            middle = [_mean(same) for same in points.values()]
            colour, marker = COLOURS[PLOTTED.index(variant)], MARKERS[PLOTTED.index(variant)]
            unit = next(row["unit"] for same in points.values() for row in same)
            label = f"recipe, ε for each {unit}" if variant == "recipe" else variant
            if unit == "image":
                label += f" (at 8: ε {_patient_epsilon(rows, recipe, variant):.0f} for a patient)"
            axis.plot(at, middle, color=colour, marker=marker, markersize=5, linewidth=1.6, label=label)
            low = [max(0.0, m - _mean(same, "low")) for m, same in zip(middle, points.values())]
            high = [max(0.0, _mean(same, "high") - m) for m, same in zip(middle, points.values())]
            axis.errorbar(at, middle, yerr=[low, high], color=colour, linewidth=0, elinewidth=0.9, capsize=2)
            seeds = [[row["value"] for row in same] for same in points.values()]
            axis.fill_between(at, [min(s) for s in seeds], [max(s) for s in seeds], color=colour, alpha=0.25, lw=0)
        axis.set_title(TITLES[recipe], fontsize=11)
        axis.set_ylabel("Dice" if metric == "dice" else "AUROC")
        axis.legend(fontsize=8, framealpha=0.8, edgecolor="none", loc="best")
    _title(
        figure, "Utility against ε on test patients", "mean and range (band) of seeds, 95 % patient bootstrap (bars)"
    )
    _save(figure, folder, "utility")


def _patient_epsilon(rows: Sequence[dict[str, Any]], recipe: str, variant: str) -> float:
    """What ε = 8 for an image promises to the patient with most images."""
    return next(
        row["value"]
        for row in rows
        if (row["recipe"], row["variant"], row["epsilon"], row["metric"])
        == (recipe, variant, 8.0, "epsilon_of_a_patient")
    )


def _group_columns(rows: Sequence[dict[str, Any]], recipe: str) -> list[str]:
    columns = {
        row["group"].partition("=")[0]
        for row in rows
        if row["recipe"] == recipe and row.get("group") and row["variant"] == "recipe"
    }
    return sorted(columns - {"class"})


def _groups(rows: Sequence[dict[str, Any]], recipes: Sequence[str], folder: Path) -> None:
    panels = [(recipe, column) for recipe in recipes for column in _group_columns(rows, recipe)]
    figure, axes = _axes(len(panels))
    for axis, (recipe, column) in zip(axes, panels):
        names = {
            row["group"]
            for row in rows
            if row["recipe"] == recipe and (row.get("group") or "").startswith(f"{column}=")
        }
        for number, name in enumerate(sorted(names)):
            points = _points(rows, recipe, "recipe", "auroc", name)
            if not points:
                continue
            axis.plot(
                list(points),
                [_mean(same) for same in points.values()],
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                linestyle="-" if number < len(COLOURS) else "--",
                markersize=4,
                linewidth=1.3,
                label=name.partition("=")[2],
            )
        axis.set_title(f"{TITLES[recipe]}: by {column}", fontsize=10)
        axis.set_ylabel("AUROC")
        axis.legend(fontsize=7, frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    _title(figure, "AUROC of groups against ε", "mean of seeds; groups too small to score are left out")
    _save(figure, folder, "utility_groups")
