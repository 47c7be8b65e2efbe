"""The picture of a run: how many times faster than SDPA, cell by cell, beside the targets.

That of a GPU's run has everybody's TFLOP/s instead (``plot_lengths``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import TvmFlashError
from ..problem.dtype import DTYPES
from .host import sentence
from .plot_lengths import length_figure, of_lengths
from .verdicts import rival

# Okabe and Ito's colours, told apart by everybody.
_FULL, _CAUSAL, _OTHER, _TARGET, _INK = "#56B4E9", "#0072B2", "#009E73", "#D55E00", "#333333"
_WIDTH = 0.4
_DIRECTIONS = ("forward", "backward")
_TICKS = (0.75, 1, 1.5, 2, 3, 4, 6, 8)
_ONLY_FOR = (0, (1, 1))  # dotted: a target that this CPU is not held to

# A bar that leaves the panel is cut; its number is written anyway.
_LOW, _HIGH = 0.62, 4.4


def require_matplotlib() -> None:
    """TvmFlashError where it is missing."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise TvmFlashError(
            "a picture needs matplotlib, which is missing: pip install 'tvm-flash[plot]'"
        ) from error


def draw(data: dict, path: Path) -> None:
    """Write the picture of a document to ``path`` (its suffix gives the format).

    Raises TvmFlashError without matplotlib, or when the document has no timed cell.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    timed = [cell for cell in data["cells"] if "ratio" in cell]
    if not timed:
        raise TvmFlashError("nothing to draw: no cell was timed")
    if any(cell.get("device") == "cuda" for cell in timed):
        figure = length_figure(of_lengths(timed), sentence(data["host"]))
        figure.savefig(path, dpi=130)
        return
    main = [cell for cell in timed if cell["section"] == "main"]
    columns = _columns([cell for cell in timed if cell["section"] != "main"])
    rows = max(map(len, columns))
    heights = [5.4] * bool(main) + [0.35 + 0.155 * rows] * bool(rows)
    figure = Figure(figsize=(11, 0.8 + sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    if main:
        _draw_main(parts[0], main)
    if rows:
        axes = parts[-1].subplots(1, 2, sharex=True)
        for axis, column in zip(axes, columns, strict=True):
            _draw_column(axis, column, rows)
    others = {rival(cell) for cell in timed}
    whom = "torch's scaled_dot_product_attention" if others == {"sdpa"} else "what is beside us"
    figure.suptitle(f"Times faster than {whom}", weight="bold")
    figure.supxlabel(_caption(data), fontsize=8, color=_INK)
    figure.savefig(path, dpi=130)


def _caption(data: dict) -> str:
    noisy = sum(cell.get("noisy", False) for cell in data["cells"])
    return sentence(data["host"]) + f"; pale: {noisy} noisy cells" * bool(noisy)


def _draw_main(figure, cells: Sequence[dict]) -> None:
    """A panel for each direction and dtype."""
    dtypes = [dtype for dtype in DTYPES if any(cell["dtype"] == dtype for cell in cells)]
    axes = figure.subplots(2, len(dtypes), squeeze=False, sharex=True, sharey=True)
    places = sorted({(cell["head_dim"], cell["seqlen_k"]) for cell in cells})
    most = max(cell["threads"] for cell in cells)
    _scale(axes[0][0], "y", _LOW, _HIGH)
    for row, direction in enumerate(_DIRECTIONS):
        for column, dtype in enumerate(dtypes):
            panel = [c for c in cells if (c["dtype"], c["direction"]) == (dtype, direction)]
            _draw_panel(axes[row][column], panel, places, most)
            axes[row][column].set_title(f"{dtype}, {direction}", fontsize=10)
        axes[row][0].set_ylabel("times faster", fontsize=9)
    figure.legend(
        handles=_legend(cells, most), loc="outside lower center", ncols=5, fontsize=8, frameon=False
    )


def _draw_panel(axis, cells: Sequence[dict], places: Sequence[tuple], most: int) -> None:
    """Bars stand on 1: up is faster, down is slower."""
    for cell in cells:
        centre = places.index((cell["head_dim"], cell["seqlen_k"]))
        x = centre + _WIDTH * (0.5 if cell["causal"] else -0.5)
        ratio = cell["ratio"]["sdpa"]
        if cell["threads"] != most:
            axis.plot(x, ratio, "o", ms=3.5, mfc="white", mec=_INK, mew=0.8, zorder=4)
            continue
        colour = _CAUSAL if cell["causal"] else _FULL
        shape = {"color": colour, "alpha": _alpha(cell)}
        axis.bar(x, ratio - 1, _WIDTH * 0.92, bottom=1, zorder=2, **shape)
        number = f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:.0f}"
        axis.text(x, _LOW * 1.03, number, ha="center", va="bottom", fontsize=6, color=_INK)
        if cell["target"] is not None:
            ends = [x - _WIDTH / 2, x + _WIDTH / 2]
            axis.plot(ends, [cell["target"]] * 2, color=_TARGET, lw=1.6, ls=_style(cell), zorder=3)
    axis.axhline(1, color=_INK, linewidth=1, zorder=2.5)
    axis.set_xticks(range(len(places)), [f"{seqlen}\nD={dim}" for dim, seqlen in places])
    axis.tick_params(labelsize=7.5)
    axis.tick_params(axis="x", length=0)
    _frame(axis, "y")


def _alpha(cell: dict) -> float:
    return 0.45 if cell["noisy"] else 1.0


def _style(cell: dict):
    return "-" if cell["counts"] else _ONLY_FOR


def _scale(axis, direction: str, low: float, high: float) -> None:
    """Logarithmic, so that twice and half are as far from 1."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axis.set(**{f"{direction}scale": "log", f"{direction}lim": (low, high)})
    dimension = getattr(axis, f"{direction}axis")
    dimension._set_axes_scale("log", base=2)
    dimension.set_major_locator(FixedLocator(_TICKS))
    dimension.set_minor_locator(NullLocator())
    dimension.set_major_formatter("{x:g}")


def _frame(axis, grid: str) -> None:
    axis.grid(True, axis=grid, alpha=0.3, zorder=0)
    axis.spines[["top", "right", "left" if grid == "y" else "bottom"]].set_visible(False)


def _legend(cells: Sequence[dict], most: int) -> list:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    threads = f"{most} thread" + "s" * (most > 1)
    handles: list = [Patch(color=_FULL, label=f"full, {threads}")]
    handles.append(Patch(color=_CAUSAL, label=f"causal, {threads}"))
    if any(cell["threads"] != most for cell in cells):
        marker = {"marker": "o", "ls": "", "ms": 4, "mfc": "white", "mec": _INK}
        handles.append(Line2D([], [], label="on fewer threads", **marker))
    handles.append(Line2D([], [], color=_TARGET, lw=1.6, label="target"))
    if any(cell["target"] is not None and not cell["counts"] for cell in cells):
        dotted = {"color": _TARGET, "lw": 1.6, "ls": _ONLY_FOR}
        handles.append(Line2D([], [], label="target for CPUs with AMX", **dotted))
    return handles


def _columns(cells: Sequence[dict]) -> tuple[list[dict], list[dict]]:
    """Two lists of about equal length, no section cut; the largest number of threads alone."""
    sections: dict[str, list[dict]] = {}
    for cell in cells:
        sections.setdefault(cell["section"], []).append(cell)
    left: list[dict] = []
    right: list[dict] = []
    for found in sorted(sections.values(), key=len, reverse=True):
        most = max(cell["threads"] for cell in found)
        shorter = left if len(left) <= len(right) else right
        shorter.extend(cell for cell in found if cell["threads"] == most)
    return left, right


def _words(cell: dict) -> str:
    mask = f"window {cell['window']}" if cell["window"] else "causal" if cell["causal"] else "full"
    size = f"D={cell['head_dim']} S={cell['seqlen_k']}"
    parts = [cell["section"], cell["dtype"].replace("float", "f"), size]
    parts += [cell["lengths"]] if "lengths" in cell else []
    parts += [f"page={cell['page_size']}"] if "page_size" in cell else []
    parts += [mask] if cell["seqlen_q"] > 1 else []
    return " ".join([*parts, cell["direction"][:3].replace("for", "fwd").replace("bac", "bwd")])


def _draw_column(axis, cells: Sequence[dict], rows: int) -> None:
    """A bar a line."""
    _scale(axis, "x", 0.45, 9.5)
    for row, cell in enumerate(cells):
        ratio, target = cell["ratio"][rival(cell)], cell["target"]
        axis.barh(row, ratio - 1, 0.72, left=1, color=_OTHER, alpha=_alpha(cell), zorder=2)
        axis.annotate(
            f"{ratio:.2f}", (min(max(1, ratio, target or 0), 8.2), row), (4, 0), va="center",
            textcoords="offset points", fontsize=6, color=_INK, zorder=5,
        )  # fmt: skip
        if target is not None:
            axis.plot([target] * 2, [row - 0.4, row + 0.4], color=_TARGET, lw=1.6, zorder=4)
    axis.axvline(1, color=_INK, linewidth=1, zorder=3)
    axis.set_yticks(range(len(cells)), map(_words, cells), fontsize=6.5)
    axis.set_ylim(rows - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=7.5)
    _frame(axis, "x")
