"""The picture of a study of searches: regret over trials and over seconds, and at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import TvmFlashError
from ..replay.table import ReplayTable
from .curves import Curves, Summary, over_seconds

# Okabe and Ito's colours, told apart by everybody. One colour for each family, its second member
# dashed and hollow; grey for what does not learn; other strategies take what is left.
_GREY, _BLUE, _RED, _GREEN = "#777777", "#0072B2", "#D55E00", "#009E73"
_PINK, _ORANGE, _SKY, _BLACK = "#CC79A7", "#E69F00", "#56B4E9", "#000000"
_FIRST, _SECOND = "-", (0, (4, 1.5))
_KNOWN = {
    "random": (_GREY, _FIRST), "grid": (_GREY, _SECOND),
    "xgb": (_BLUE, _FIRST), "ranked-xgb": (_BLUE, _SECOND),
    "mlp": (_RED, _FIRST), "ranked-mlp": (_RED, _SECOND),
    "analytical": (_GREEN, _FIRST), "analytical-measured": (_GREEN, _SECOND),
    "evolutionary": (_ORANGE, _FIRST), "replay": (_ORANGE, _SECOND),
    "coordinate": (_PINK, _FIRST),
}  # fmt: skip
_OTHERS = ((_BLACK, _FIRST), (_SKY, _FIRST), (_BLACK, _SECOND), (_SKY, _SECOND))
# Per cent from which on the scale is logarithmic; below it is linear, to reach 0.
_LINEAR = 1.0
_TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_PLAIN = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}

Study = tuple[ReplayTable, Mapping[str, Curves], Sequence[Summary]]


@dataclass(frozen=True)
class Style:
    """How a strategy is drawn in every panel."""

    colour: str
    line: Any

    @property
    def fill(self) -> str:
        """The fill of markers: hollow where the line is dashed."""
        return self.colour if self.line == _FIRST else "white"


def refuse(path: Path) -> None:
    """Raise TvmFlashError where no picture could be drawn to ``path``."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise TvmFlashError(
            "a picture needs matplotlib, which is missing: pip install 'tvm-flash[plot]'"
        ) from error
    known = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise TvmFlashError(f"{path}: a picture's suffix must be one of {', '.join(sorted(known))}")


def draw(studies: Sequence[Study], path: Path) -> None:
    """Write the picture to ``path`` (its suffix gives the format), a row for each study.

    Lines are medians over seeds, bands quartiles. Needs matplotlib.
    """
    refuse(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    styles = _styles([summary.strategy for summary in studies[0][2]])
    with rc_context(_PLAIN):
        figure = Figure(figsize=(13, 4.4 * len(studies)), layout="constrained")
        rows = figure.subplots(len(studies), 3, squeeze=False, sharey=False, width_ratios=(3, 3, 2))
        for (trials, seconds, final), (table, found, summed) in zip(rows, studies, strict=True):
            _over_trials(trials, table, found, styles)
            _over_seconds(seconds, found, styles)
            _final(final, found, summed, styles)
        figure.savefig(path, dpi=130)


def _styles(names: Sequence[str]) -> dict[str, Style]:
    others = [name for name in names if name not in _KNOWN]
    looks = {name: _OTHERS[place % len(_OTHERS)] for place, name in enumerate(others)}
    return {name: Style(*_KNOWN.get(name) or looks[name]) for name in names}


def _over_trials(axes, table: ReplayTable, found: Mapping[str, Curves], styles) -> None:
    trials = next(iter(found.values())).best.shape[1] - 1
    for name, each in found.items():
        _band(axes, np.arange(trials + 1), 100 * each.regret, styles[name])
    axes.set(xlabel="trials", ylabel="slower than the best of the table, %")
    axes.set_title(_title(table), loc="left", fontweight="bold")
    axes.set_xlim(0, trials)
    _regret_scale(axes, found)


def _over_seconds(axes, found: Mapping[str, Curves], styles) -> None:
    first = max(float(each.spent[:, 0].max()) for each in found.values())
    last = min(float(np.median(each.spent[:, -1])) for each in found.values())
    times = np.linspace(first, last, 400)
    for name, each in found.items():
        _band(axes, times, 100 * over_seconds(each, times), styles[name])
    seeds = len(next(iter(found.values())).best)
    note = f"lines: medians of {seeds} seeds, bands: quartiles"
    axes.set_title(note, loc="left", fontsize=9, color=_GREY)
    axes.set_xlabel("seconds of compiling, checking and measuring")
    axes.set_xlim(first, last)
    _regret_scale(axes, found)


def _final(axes, found: Mapping[str, Curves], summed: Sequence[Summary], styles) -> None:
    """Best strategy on top. The names, in the colours of the curves, are the legend."""
    jitter = np.random.default_rng(0)
    for row, summary in enumerate(summed):
        style, values = styles[summary.strategy], 100 * found[summary.strategy].regret[:, -1]
        heights = row + jitter.uniform(-0.22, 0.22, len(values))
        axes.scatter(values, heights, s=8, color=style.colour, alpha=0.35, linewidths=0)
        middle, low, high = (100 * value for value in summary.final)
        axes.plot((low, high), (row, row), color=style.colour, linewidth=2.5, zorder=3)
        drawn = {"color": style.colour, "markerfacecolor": style.fill, "markeredgewidth": 1.8}
        axes.plot(middle, row, "o", markersize=7, zorder=4, **drawn)
    names = [summary.strategy for summary in summed]
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set(color=styles[name].colour, fontweight="bold")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    trials = next(iter(found.values())).best.shape[1] - 1
    axes.set_xlabel(f"slower after {trials} trials, %")
    axes.set_xscale("symlog", linthresh=_LINEAR, linscale=0.7)
    most = max(float(each.regret[:, -1].max()) for each in found.values())
    _ticks(axes.xaxis, axes.set_xlim, 100 * most)
    axes.grid(axis="x", alpha=0.3)


def _band(axes, x, values: np.ndarray, style: Style) -> None:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
    axes.fill_between(x, low, high, step="post", color=style.colour, alpha=0.07, linewidth=0)
    drawn = {"color": style.colour, "linestyle": style.line, "linewidth": 1.8}
    axes.step(x, middle, where="post", **drawn)


def _regret_scale(axes, found: Mapping[str, Curves]) -> None:
    axes.set_yscale("symlog", linthresh=_LINEAR, linscale=0.7)
    highest = max(float(np.quantile(each.regret[:, 0], 0.75)) for each in found.values())
    _ticks(axes.yaxis, axes.set_ylim, 100 * highest)
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
    """The class in "module:Class"; other names as they are."""
    return name.rpartition(":")[2]
