"""The picture of a study of searches: regret over trials and over seconds, and at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import TvmFlashError
from .replay_table import ReplayTable
from .search import Run
from .search_curves import Curves, Summary, expected_random, over_seconds, starts_of

# Okabe and Ito's colours, told apart by everybody, best strategy first; then again, dashed.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Baselines are grey, whatever their place.
_BASELINES = {"random": ("#777777", "-"), "grid": ("#777777", (0, (1, 1.2)))}
# Per cent from which on the scale is logarithmic; below it is linear, to reach 0.
_LINEAR = 1.0
_TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_PLAIN = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}

Study = tuple[ReplayTable, Sequence[Run], Mapping[str, Curves], Sequence[Summary]]


@dataclass(frozen=True)
class Style:
    """How a strategy is drawn in every panel."""

    colour: str
    line: Any


def draw(studies: Sequence[Study], path: Path) -> None:
    """Write the picture to ``path`` (its suffix gives the format), a row for each study.

    Lines are medians over seeds, bands quartiles. Needs matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise TvmFlashError(
            "a picture needs matplotlib, which is missing: pip install 'tvm-flash[plot]'"
        ) from error
    styles = _styles([summary.strategy for summary in studies[0][3]])
    with rc_context(_PLAIN):
        figure = Figure(figsize=(13, 4.6 * len(studies)), layout="constrained")
        rows = figure.subplots(len(studies), 3, squeeze=False, sharey=False, width_ratios=(3, 3, 2))
        for (trials, seconds, final), (table, runs, found, summed) in zip(
            rows, studies, strict=True
        ):
            _over_trials(trials, table, runs, found, styles)
            _over_seconds(seconds, found, styles)
            _final(final, found, summed, styles)
        figure.savefig(path, dpi=130)


def _styles(names: Sequence[str]) -> dict[str, Style]:
    learners = [name for name in names if name not in _BASELINES]
    styles = {name: Style(*look) for name, look in _BASELINES.items()}
    for place, name in enumerate(learners):
        again, colour = divmod(place, len(_COLOURS))
        styles[name] = Style(_COLOURS[colour], ("-", "--", "-.", ":")[min(again, 3)])
    return styles


def _over_trials(axes, table: ReplayTable, runs, found: Mapping[str, Curves], styles) -> None:
    trials = next(iter(found.values())).best.shape[1] - 1
    exact = 100 * expected_random(table, starts_of(runs), trials)
    axes.plot(exact, color="#BBBBBB", linewidth=5, solid_capstyle="round", zorder=0)
    place = trials // 2
    axes.annotate(
        "random, exact mean", (place, exact[place]), xytext=(4, 8), textcoords="offset points",
        color="#777777", fontsize=8,
    )  # fmt: skip
    for name, each in found.items():
        _band(axes, np.arange(trials + 1), 100 * each.regret, styles[name])
    axes.set(title=_title(table), xlabel="trials", ylabel="% slower than the best of the table")
    axes.set_xlim(0, trials)
    _regret_scale(axes, exact[0])


def _over_seconds(axes, found: Mapping[str, Curves], styles) -> None:
    first = max(float(each.spent[:, 0].max()) for each in found.values())
    last = min(float(np.median(each.spent[:, -1])) for each in found.values())
    times = np.linspace(first, last, 400)
    for name, each in found.items():
        _band(axes, times, 100 * over_seconds(each, times), styles[name])
    axes.set(title="the same over what the trials cost", xlabel="seconds: compile, check, measure")
    axes.set_xlim(first, last)
    worst = max(float(each.regret[:, 0].max()) for each in found.values())
    _regret_scale(axes, 100 * worst)


def _final(axes, found: Mapping[str, Curves], summed: Sequence[Summary], styles) -> None:
    """Best strategy on top. The names, in the colours of the curves, are the legend."""
    jitter = np.random.default_rng(0)
    for row, summary in enumerate(summed):
        style, values = styles[summary.strategy], 100 * found[summary.strategy].regret[:, -1]
        heights = row + jitter.uniform(-0.2, 0.2, len(values))
        axes.scatter(values, heights, s=9, color=style.colour, alpha=0.4, linewidths=0)
        middle, low, high = (100 * value for value in summary.final)
        axes.plot((low, high), (row, row), color=style.colour, linewidth=2.5)
        axes.plot(middle, row, "o", color=style.colour, markersize=7, markeredgecolor="white")
    names = [summary.strategy for summary in summed]
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set(color=styles[name].colour, fontweight="bold")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set(title="at the end: seeds, median, quartiles", xlabel="% slower")
    axes.set_xscale("symlog", linthresh=_LINEAR, linscale=0.7)
    most = max(float(each.regret[:, -1].max()) for each in found.values())
    _ticks(axes.xaxis, axes.set_xlim, 100 * most)
    axes.grid(axis="x", alpha=0.3)


def _band(axes, x, values: np.ndarray, style: Style) -> None:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
    axes.fill_between(x, low, high, step="post", color=style.colour, alpha=0.1, linewidth=0)
    drawn = {"color": style.colour, "linestyle": style.line, "linewidth": 1.8}
    axes.step(x, middle, where="post", **drawn)


def _regret_scale(axes, worst: float) -> None:
    axes.set_yscale("symlog", linthresh=_LINEAR, linscale=0.7)
    _ticks(axes.yaxis, axes.set_ylim, worst)
    axes.grid(alpha=0.3)


def _ticks(axis, set_limits, worst: float) -> None:
    top = max(worst * 1.15, _LINEAR)
    shown = [tick for tick in _TICKS if tick <= top]
    axis.set_ticks(shown, [f"{tick:g}" for tick in shown])
    axis.set_ticks([], minor=True)
    set_limits(-0.06, top)


def _title(table: ReplayTable) -> str:
    spec, problem = table.head["spec"], table.head["problem"]
    return (
        f"{table.head['direction']} {spec['dtype']} D={spec['head_dim']} "
        f"S={problem['seqlen_q']}: {len(table.measured)} points"
    )


def _short(name: str) -> str:
    """Of "module:Class", the class."""
    return name.rpartition(":")[2]
