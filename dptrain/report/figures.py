"""The drawings of the report: facts -> SVG text. The same drawing goes into HTML and PDF.

Colours are those of Okabe and Ito, which people with any common colour blindness tell apart; every series also
differs by line style, marker or hatching, so the page can be read in black and white. Letters become paths,
so a drawing looks the same everywhere; what it says stands in the text alternative beside it. Narrow on
purpose: at 390 pixels the letters stay readable.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from math import floor, log10
from typing import TYPE_CHECKING, Any, TypeVar

from dptrain.report.language import Language
from dptrain.report.shapes import CohortReport, Facts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

T = TypeVar("T")
BLUE, ORANGE, GREEN, INK, SOFT, PALE = "#0072B2", "#B34700", "#00664B", "#1c2733", "#5b6672", "#d7dde3"
WIDTH = 4.8
LONGEST_LABEL = 30
STYLE: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "dptrain",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "text.usetex": False,
    "axes.formatter.use_mathtext": False,
    "text.parse_math": False,
}


def draw(name: str, facts: Facts | CohortReport, t: Language) -> str:
    """The SVG of the figure `name` as it stands in the document (`kind:column` for groups)."""
    import matplotlib

    kind, _, column = name.partition(":")
    with matplotlib.rc_context(STYLE):
        figure = DRAWINGS[kind](facts, t, column)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _tidy(buffer.getvalue(), re.sub(r"[^a-z_]", "", kind) + (f"-{_hash(column)}" if column else ""))


def _given(value: T | None) -> T:
    """A fact without which the document has no such figure."""
    assert value is not None
    return value


def _hash(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _tidy(svg: str, name: str) -> str:
    """One svg element whose ids are its own, so that several can stand in one page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\1{name}-", svg)
    return svg.strip()


def _axes(height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as MplFigure

    figure = MplFigure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _local_ticks(axes: Axes, t: Language, *, x: int | None = 1, y: int | None = 1) -> None:
    """Numbers on the axes as the language writes them."""
    from matplotlib.ticker import FuncFormatter

    for axis, digits in ((axes.xaxis, x), (axes.yaxis, y)):
        if digits is not None:
            axis.set_major_formatter(FuncFormatter(lambda value, _, d=digits: t.number(value, d)))


def _square(axes: Axes) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)


def odds(facts: Facts, t: Language, _: str) -> Figure:
    """Two fields of 100 circles."""
    pair = facts.odds.pairs[1]
    figure, axes = _axes(2.75)
    for left, title, words, count, fill, edge, hatch in (
        (0, "figure.odds.left", "figure.odds.left.count", pair.without, PALE, SOFT, "///"),
        (13, "figure.odds.right", "figure.odds.right.count", pair.with_at_most or 0, BLUE, BLUE, None),
    ):
        xs = [left + place % 10 for place in range(100)]
        ys = [9 - place // 10 for place in range(100)]
        axes.scatter(xs[count:], ys[count:], s=62, linewidths=0.8, facecolors="white", edgecolors="#9aa4ae")
        axes.scatter(xs[:count], ys[:count], s=62, linewidths=0.8, facecolors=fill, edgecolors=edge, hatch=hatch)
        axes.text(left + 4.5, 10.7, t(title), ha="center", va="bottom", fontsize=9.5, weight="bold")
        axes.text(left + 4.5, -1.0, t(words, count=t.integer(count)), ha="center", va="top", fontsize=9)
    axes.set_xlim(-1.2, 23.2)
    axes.set_ylim(-2.3, 12)
    axes.set_aspect("equal")
    axes.axis("off")
    return figure


def tradeoff(facts: Facts, t: Language, _: str) -> Figure:
    """What the guarantee allows (where there is one), what the audit measured and proved, and guessing."""
    figure, axes = _axes(3.7)
    curve, audit = facts.privacy.tradeoff, facts.audit
    _square(axes)
    if curve is not None:
        axes.fill_between(curve.fpr, curve.tpr, 1, color=PALE, alpha=0.45, linewidth=0)
        axes.plot(curve.fpr, curve.tpr, color=BLUE, linewidth=1.8, label=t("figure.tradeoff.ceiling"))
    if audit is not None and audit.roc is not None:
        roc = audit.roc
        label = t("figure.tradeoff.measured")
        axes.plot(roc.fpr, roc.tpr, color=ORANGE, linewidth=2, linestyle=(0, (1, 1.1)), label=label)
    bound = canary_bound(facts)
    if bound is not None:
        label = t("figure.tradeoff.canary", bound=t.number(bound, 2))
        x, y = lower_curve(bound, facts.privacy.delta or 1e-5)
        axes.plot(x, y, color=GREEN, linewidth=1.4, linestyle=(0, (6, 1.5, 1, 1.5)), label=label)
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (5, 3)), label=t("figure.tradeoff.chance"))
    axes.set_xlabel(t("figure.tradeoff.x"))
    axes.set_ylabel(t("figure.tradeoff.y"))
    axes.set_aspect("equal")
    axes.legend(loc="lower right", handlelength=2.6)
    _local_ticks(axes, t)
    return figure


def canary_bound(facts: Facts) -> float | None:
    """The lower bound on epsilon that planted patients proved; None where they proved nothing."""
    canary = None if facts.audit is None else facts.audit.canary
    return None if canary is None else canary.epsilon_lower or None


def lower_curve(epsilon: float, delta: float) -> tuple[list[float], list[float]]:
    """FPR and TPR of the Gaussian mechanism whose loss at `delta` is just `epsilon`.

    The curve of (epsilon, delta) itself has a corner that no training of this kind reaches: it would lie above
    the promise where the bound keeps it.
    """
    import numpy as np
    from scipy.optimize import brentq
    from scipy.stats import norm

    def excess(mu: float) -> float:
        spent = norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu))
        return float(np.log(max(spent, 1e-300)) - np.log(delta))

    mu = float(brentq(excess, 1e-3, 60.0)) if excess(1e-3) < 0 else 0.0
    x = np.concatenate([[0.0], np.geomspace(1e-6, 1.0, 80), np.linspace(0.0, 1.0, 60)])
    x.sort()
    return x.tolist(), norm.cdf(norm.ppf(x) + mu).tolist()


def epsilon_over_steps(facts: Facts, t: Language, _: str) -> Figure:
    """ε as it grows."""
    figure, axes = _axes(2.3)
    steps, epsilon = zip(*facts.privacy.epsilon_over_steps)
    axes.plot(steps, epsilon, color=BLUE, linewidth=1.8)
    axes.scatter([steps[-1]], [epsilon[-1]], color=BLUE, s=22, zorder=3)
    axes.annotate(
        f"ε = {t.epsilon(epsilon[-1])}",
        (steps[-1], epsilon[-1]),
        xytext=(-6, -12),
        textcoords="offset points",
        ha="right",
        va="top",
    )
    axes.set_xlim(0, steps[-1] * 1.02)
    axes.set_ylim(0, max(epsilon) * 1.08 or 1)
    axes.set_xlabel(t("figure.epsilon_over_steps.x"))
    axes.set_ylabel("ε")
    axes.grid(axis="y", color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    _local_ticks(axes, t, x=0, y=1)
    return figure


def budget(facts: Facts, t: Language, _: str) -> Figure:
    """What was spent before, what this run added, what remains."""
    spent = facts.budget
    return budget_bar(spent.before or 0, spent.this or 0, _given(spent.epsilon), "figure.budget.this", t)


def cohort_budget(facts: CohortReport, t: Language, _: str) -> Figure:
    """What a cohort has spent, the last run by itself, and what remains."""
    spent, runs = facts.budget, [row.gate_after for row in facts.history if row.gate_after is not None]
    total, last = _given(spent.epsilon), _given(spent.spent)
    before = runs[-2] if len(runs) > 1 else 0.0 if runs else last
    return budget_bar(min(before, last), max(last - before, 0.0), total, "figure.budget.last", t)


def budget_bar(before: float, this: float, total: float, this_key: str, t: Language) -> Figure:
    """One bar in three parts, each with its own hatching; the parts are named in a legend below."""
    figure, axes = _axes(1.35)
    remaining = max(total - before - this, 0.0)
    parts = (
        (before, "figure.budget.before", "#9aa4ae", "///", t.epsilon(before)),
        (this, this_key, BLUE, None, t.epsilon(this)),
        (remaining, "figure.budget.remaining", "white", "...", t.remaining(remaining)),
    )
    start = 0.0
    for length, key, colour, hatch, number in parts:
        axes.barh(0, length, left=start, color=colour, edgecolor=INK, hatch=hatch, linewidth=0.8, height=0.7,
                  label=f"{t(key)}: {number}")  # fmt: skip
        start += length
    axes.set_xlim(0, max(total, start) * 1.001)
    axes.set_ylim(-0.45, 0.45)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("ε")
    axes.locator_params(axis="x", nbins=5)
    _local_ticks(axes, t, x=1 if total < 20 else 0, y=None)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8.5, columnspacing=1.1, handlelength=1.6)
    return figure


def survival(facts: Facts, t: Language, _: str) -> Figure:
    """How many patients are at least so recognisable."""
    figure, axes = _axes(2.6)
    curve, chance = _given(_given(facts.audit).survival), _given(facts.audit).survival_by_chance
    axes.step(curve.auc, curve.share, where="post", color=BLUE, linewidth=1.8)
    axes.fill_between(curve.auc, curve.share, step="post", color=BLUE, alpha=0.12, linewidth=0)
    if chance is not None:
        label = t("figure.survival.null")
        axes.plot(chance.auc, chance.null, color=ORANGE, linewidth=1.4, linestyle=(0, (4, 2)), label=label)
        axes.legend(loc="upper right")
    axes.axvline(0.5, color=SOFT, linewidth=1, linestyle=(0, (1, 1.5)))
    axes.text(0.5, 1.015, t("figure.survival.chance"), ha="center", va="bottom", fontsize=8.5, color=SOFT)
    tail = [auc for auc, share in zip(curve.auc, curve.share) if share > 0]
    low, high = min([0.5, *curve.auc]), max([0.55, *tail])
    pad = 0.05 * (high - low or 1)
    axes.set_xlim(low - pad, high + pad)
    axes.set_ylim(0, 1)
    axes.set_xlabel(t("figure.survival.x"))
    axes.set_ylabel(t("figure.survival.y"))
    axes.grid(axis="y", color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    _local_ticks(axes, t, x=2)
    return figure


def _rows(
    t: Language,
    cells: list[tuple[str, float, float | None, float | None, float | None]],
    label: str,
    *,
    percent: bool,
) -> Figure:
    """One row a group: point, interval, count of patients."""
    figure, axes = _axes(0.75 + 0.36 * len(cells))
    ends = [value for _, point, low, high, _ in cells for value in (point, low, high) if value is not None]
    left, right = min(ends), max(ends)
    pad = 0.12 * (right - left or 0.1)
    for place, (name, point, low, high, patients) in enumerate(reversed(cells)):
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=INK, linewidth=1.3, solid_capstyle="butt")
            for end in (low, high):
                axes.plot([end, end], [place - 0.14, place + 0.14], color=INK, linewidth=1.3)
        axes.plot([point], [place], marker="o", markersize=6, color=BLUE, markeredgecolor="white")
        axes.text(1.02, place, t("figure.group.patients", count=t.integer(patients)), va="center",
                  fontsize=8, color=SOFT, transform=axes.get_yaxis_transform())  # fmt: skip
        del name
    names = [name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…" for name, *_ in reversed(cells)]
    axes.set_yticks(range(len(cells)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.6, len(cells) - 0.4)
    axes.set_xlim(max(0.0, left - pad), min(1.0, right + pad) if right <= 1 else right + pad)
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    ticks = axes.get_xticks()
    # as many digits as the distance of the ticks has, so that equal distances read as equal
    digits = max(0, -floor(log10(ticks[1] - ticks[0]) + 1e-9) - (2 if percent else 0))
    axes.set_xlabel(label)
    axes.grid(axis="x", color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    if percent:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: t.percent(value, digits)))
    else:
        _local_ticks(axes, t, x=digits, y=None)
    return figure


def utility_group(facts: Facts, t: Language, column: str) -> Figure:
    """The main metric by group."""
    utility = _given(facts.utility)
    main = _given(utility.main)
    cells: list[tuple[str, float, float | None, float | None, float | None]] = []
    for value, cell in utility.groups[column].items():
        result = cell.metrics.get(main)
        if result:
            cells.append((value, _given(result.value), result.low, result.high, cell.patients))
    return _rows(t, cells, t.known("metric", main), percent=False)


def risk_group(facts: Facts, t: Language, column: str) -> Figure:
    """The share of exposed patients by group."""
    cells = [
        (value, _given(cell.share), cell.low, cell.high, cell.patients)
        for value, cell in _given(facts.audit).groups[column].items()
    ]
    return _rows(t, cells, t("figure.group.share"), percent=True)


def reliability(facts: Facts, t: Language, _: str) -> Figure:
    """Observed frequency over predicted probability, with the share of records in each bin."""
    figure, axes = _axes(3.7)
    bins = _given(facts.utility).reliability
    total = sum(row.count or 0 for row in bins) or 1
    _square(axes)
    for row in bins:
        low, high = row.low or 0.0, row.high if row.high is not None else (row.low or 0.0) + 0.1
        axes.bar((low + high) / 2, (row.count or 0) / total, width=(high - low) * 0.9, color=PALE, edgecolor=SOFT,
                 linewidth=0.5)  # fmt: skip
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (5, 3)))
    predicted, observed = [_given(row.confidence) for row in bins], [_given(row.observed) for row in bins]
    axes.plot(predicted, observed, color=BLUE, linewidth=1.4, marker="o", markersize=5, markeredgecolor="white")
    axes.set_xlabel(t("figure.reliability.x"))
    axes.set_ylabel(t("figure.reliability.y"))
    axes.set_aspect("equal")
    _local_ticks(axes, t)
    return figure


DRAWINGS: dict[str, Callable[[Any, Language, str], Figure]] = {
    "odds": odds,
    "tradeoff_alone": tradeoff,
    "tradeoff_measured": tradeoff,
    "tradeoff_open": tradeoff,
    "epsilon_over_steps": epsilon_over_steps,
    "budget": budget,
    "cohort_budget": cohort_budget,
    "survival": survival,
    "risk_group": risk_group,
    "utility_group": utility_group,
    "reliability": reliability,
}
