"""The picture of a GPU's run: TFLOP/s of everybody against the length."""

from __future__ import annotations

from collections.abc import Sequence

from .contender import OURS


def length_figure(cells: Sequence[dict], title: str):
    """A figure of timed ``cells``: a panel for each head_dim, direction, dtype and mask."""
    from matplotlib.figure import Figure

    dims = sorted({cell["head_dim"] for cell in cells})
    lines = list(dict.fromkeys((c["dtype"], c["direction"], c["causal"]) for c in cells))
    size = (1 + 4 * len(dims), 1 + 2.6 * len(lines))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(lines), len(dims), squeeze=False, sharex=True)
    for row, (dtype, direction, causal) in enumerate(lines):
        for column, dim in enumerate(dims):
            known = (dtype, direction, causal, dim)
            axis = axes[row][column]
            _draw_panel(axis, [c for c in cells if _place(c) == known])
            mask = "causal" if causal else "full"
            axis.set_title(f"D={dim}, {direction}, {mask}, {dtype}", fontsize=9)
    axes[0][0].legend(fontsize=7)
    figure.suptitle(title)
    return figure


def of_lengths(cells: Sequence[dict]) -> list[dict]:
    """Those of ``cells`` whose work is the same at every length; all, where there are none."""
    return [cell for cell in cells if "lengths" in cell["section"]] or [*cells]


def _place(cell: dict) -> tuple[str, str, bool, int]:
    return cell["dtype"], cell["direction"], cell["causal"], cell["head_dim"]


def _draw_panel(axis, cells: Sequence[dict]) -> None:
    cells = sorted(cells, key=lambda cell: cell["seqlen_k"])
    for name in dict.fromkeys(name for cell in cells for name in cell["gflops"]):
        points = [(c["seqlen_k"], c["gflops"][name] / 1e3) for c in cells if name in c["gflops"]]
        width = 2.2 if name == OURS else 1.0
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=width, label=name)
    axis.set_xscale("log", base=2)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("sequence length", fontsize=8)
    axis.set_ylabel("TFLOP/s", fontsize=8)
