"""The pictures that are attacked, and the one figure in which they may be shown.

Pictures of patients are drawn only where the caller was allowed to (:mod:`dptrain.audit.reconstruction`), into one
file, each with a mark across it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor, nn

from dptrain.audit.scores import Array
from dptrain.data import Cohort
from dptrain.files import whole_or_nothing
from dptrain.leave import Leave
from dptrain.records.attack import AttackRow
from dptrain.training import inputs

MARK = "RECONSTRUCTION ATTACK"
SHOWN = 4  # patients in the figure


class Downsample(nn.Module):
    """Images [N, C, H, W] -> grey pictures [N, side, side], by the mean over areas."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        grey = x.float().mean(dim=1, keepdim=True)
        if grey.shape[-2:] != (self.side, self.side):
            grey = nn.functional.adaptive_avg_pool2d(grey, self.side)
        return grey[:, 0]


@dataclass(frozen=True)
class Line:
    """The pictures of a game, between 0 and 1.

    pictures: [K, side, side] of the line-up; known: [N, side, side] of others; labels, known_labels: 0 or 1 of each.
    """

    pictures: Array
    known: Array
    labels: np.ndarray
    known_labels: np.ndarray


@dataclass(frozen=True)
class Column:
    """One column of the figure: a name and a picture of each patient shown [n, side, side]."""

    name: str
    pictures: Array


def load(cohort: Cohort, positions: Sequence[int], grant: Leave, side: int) -> tuple[Array, np.ndarray]:
    """One picture a patient, of the first record: [P, side, side], NaN where it cannot be read; labels [P, …].

    Args:
        positions: of patients in `cohort.patients`.
    """
    records = np.array([cohort.patients[p].records[0] for p in positions], dtype=np.int64)
    pictures, labels = inputs.load_inputs(
        cohort, records, grant, Downsample(side), torch.device("cpu"), label="reading pictures"
    )
    return pictures.numpy(), labels.numpy()


def scaled(pictures: Array, known: Array) -> tuple[Array, Array]:
    """Both between 0 and 1, by the range of what is known."""
    low, high = float(known.min()), float(known.max())
    span = max(high - low, 1e-12)
    return np.clip((pictures - low) / span, 0, 1), np.clip((known - low) / span, 0, 1)


def draw(path: Path, rows: Sequence[AttackRow], columns: Sequence[Column], note: str) -> None:
    """The figure: pictures (where there are columns) above, success against epsilon with its bound below.

    Args:
        note: said below the pictures: whose they are, by whose leave, until when.
    """
    count = len(columns[0].pictures) if columns else 0
    width = max(7.0, 1.35 * len(columns))
    figure = Figure(figsize=(width, 1.42 * count + 3.4), layout="constrained")
    below: Figure | SubFigure = figure
    if columns:
        above, below = np.asarray(figure.subfigures(2, 1, height_ratios=[1.42 * count + 0.4, 3.0])).tolist()
        axes = np.atleast_2d(above.subplots(count, len(columns)))
        for place, column in enumerate(columns):
            axes[0, place].set_title(column.name, fontsize=8)
            for patient, picture in enumerate(column.pictures):
                _picture(axes[patient, place], picture)
        above.supxlabel(note, fontsize=7)
    _success(below.subplots(1, 1), rows)
    with whole_or_nothing(path, "wb") as file:
        figure.savefig(file, format="png", dpi=160, metadata={"Software": None})


def _picture(axes: Axes, picture: Array) -> None:
    axes.imshow(np.clip(np.nan_to_num(picture), 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    side = picture.shape[0] / 2
    axes.text(side, side, MARK, color="#ffd400", alpha=0.55, fontsize=5, rotation=35, ha="center", va="center")


def _success(axes: Axes, rows: Sequence[AttackRow]) -> None:
    """Share of patients named or reconstructed against epsilon; a hollow triangle is the bound of its row."""
    finite = [row.epsilon for row in rows if row.epsilon is not None]
    last = 10 ** (math.log10(max(finite)) + 1) if finite else 1.0
    for game, colour in (("lineup", "#1f4e9c"), ("message", "#b03a2e"), ("weights", "#2e7d4f")):
        chosen = [row for row in rows if row.game == game and row.success is not None and _shown(row)]
        beside = {"lineup": 1.0, "message": 0.93, "weights": 1.07}[game]  # not one on top of the other
        x = [beside * (last if row.epsilon is None else row.epsilon) for row in chosen]
        y = np.array([row.success for row in chosen], dtype=float)
        if not chosen:
            continue
        low = y - np.array([row.low for row in chosen], dtype=float)
        high = np.array([row.high for row in chosen], dtype=float) - y
        axes.errorbar(x, y, yerr=np.clip([low, high], 0, 1), fmt="o", color=colour, capsize=3, label=_NAMES[game])
        bounded = [(at, row.bound) for at, row in zip(x, chosen) if row.bound is not None]
        if bounded:
            label = "most that the promise allows" if game == "lineup" else None
            axes.plot(*zip(*bounded), linestyle="", marker="v", markerfacecolor="none", color=colour, label=label)
    chances = [row.chance for row in rows if row.game == "lineup" and row.chance is not None]
    if chances:
        axes.axhline(chances[0], color="grey", linewidth=0.8, linestyle=":", label="guessing who it was")
    axes.set(xscale="log", ylim=(-0.03, 1.05), xlabel="ε (far right: no protection)", ylabel="share of patients")
    axes.legend(fontsize=7, loc="upper left", frameon=False)


_NAMES = {
    "lineup": "named in a line-up",
    "message": "picture from one message",
    "weights": "picture from the weights",
}


def _shown(row: AttackRow) -> bool:
    """The plainest row of each game: one patient a message of an honest coordinator, a head on pixels, no prior."""
    if row.game == "message":
        return row.patients_in_message == 1 and row.coordinator == "honest" and row.prior != "public"
    if row.game == "lineup":
        return row.targets != "canaries" and row.draws != "known"
    return row.returns == "picture" and row.arm != "clip only"
