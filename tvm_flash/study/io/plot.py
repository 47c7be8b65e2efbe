"""The picture of the bytes study: counts beside theory, over the length and over on-chip memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import TvmFlashError
from .counts import Row, fits
from .theory import EXACT, FLASH2, ORIGINAL, STANDARD, Fit, least_bytes, memory_elements

# Okabe and Ito's colours, told apart by everybody, and a marker each.
_STYLES = {STANDARD: ("#D55E00", "s"), ORIGINAL: ("#0072B2", "o"), FLASH2: ("#009E73", "^")}
_FORMS = {
    STANDARD: "fit of Nd + N²",
    ORIGINAL: "fit of N²d²/M",
    FLASH2: "fit of N²d²/M",
}
MIB = 2**20


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the picture to ``path`` (its suffix gives the format); needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise TvmFlashError(
            "a picture needs matplotlib, which is missing: pip install 'tvm-flash[plot]'"
        ) from error
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _over_seqlen(left, rows)
    _over_memory(right, rows)
    left.set_ylabel("MiB through device memory, one head")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=130)


def _over_seqlen(axes, rows: Sequence[Row]) -> None:
    widest, head_dim = max(row.tile for row in rows), rows[0].head_dim
    chosen = [row for row in rows if row.tile == widest]
    lengths = _spread([row.seqlen for row in chosen])
    found = fits(rows)
    for algorithm in EXACT:
        counted = [(row.seqlen, row.bytes) for row in chosen if row.algorithm == algorithm]
        _points(axes, algorithm, counted)
        places = [(n, head_dim, widest) for n in lengths]
        _curves(axes, algorithm, found[algorithm], lengths, places)
    _least(axes, lengths, [least_bytes(n, head_dim) for n in lengths])
    memory = memory_elements(widest, head_dim) * 2 // 1024
    _finish(axes, f"over the length: d = {head_dim}, M = {memory} KiB", "sequence length N")
    _ticks(axes, sorted({row.seqlen for row in chosen}))


def _over_memory(axes, rows: Sequence[Row]) -> None:
    longest, head_dim = max(row.seqlen for row in rows), rows[0].head_dim
    chosen = [row for row in rows if row.seqlen == longest]
    tiles = _spread([row.tile for row in chosen])
    found = fits(rows)
    kib = memory_elements(1, head_dim) * 2 / 1024
    for algorithm in EXACT:
        counted = [(row.tile * kib, row.bytes) for row in chosen if row.algorithm == algorithm]
        _points(axes, algorithm, counted)
        places = [(longest, head_dim, tile) for tile in tiles]
        _curves(axes, algorithm, found[algorithm], tiles * kib, places)
    _least(axes, tiles * kib, [least_bytes(longest, head_dim)] * len(tiles))
    title = f"over on-chip memory: d = {head_dim}, N = {longest}"
    _finish(axes, title, "M, KiB: four tiles of b x d float16")
    sides = sorted({row.tile for row in chosen})
    _ticks(axes, [side * kib for side in sides], [f"{side * kib:g}\nb={side}" for side in sides])


def _spread(values: Sequence[int]) -> np.ndarray:
    return np.geomspace(min(values), max(values), 50)


def _points(axes, algorithm: str, counted: Sequence[tuple[float, int]]) -> None:
    colour, marker = _STYLES[algorithm]
    x, y = zip(*counted, strict=True)
    axes.plot(x, np.array(y) / MIB, marker, color=colour, label=f"{algorithm}, counted")


def _curves(axes, algorithm: str, fitted: dict[str, Fit], x, places) -> None:
    """Dashed: the theorem's terms alone. Pale: all three terms."""
    colour = _STYLES[algorithm][0]
    theorem, whole = (
        [fitted[name](*place) / MIB for place in places] for name in ("theorem", "all")
    )
    axes.plot(x, theorem, "--", color=colour, label=f"{algorithm}, {_FORMS[algorithm]}")
    axes.plot(x, whole, "-", color=colour, alpha=0.35, linewidth=3)


def _least(axes, places, values) -> None:
    label = "inputs and outputs once"
    axes.plot(places, np.array(values) / MIB, ":", color="black", label=label)
    axes.plot([], [], "-", color="grey", alpha=0.5, linewidth=3, label="pale: all three terms")


def _finish(axes, title: str, xlabel: str) -> None:
    axes.set(title=title, xlabel=xlabel, xscale="log", yscale="log")
    axes.grid(True, which="major", alpha=0.4)
    axes.yaxis.set_major_formatter("{x:g}")


def _ticks(axes, places: Sequence[float], labels: Sequence[str] | None = None) -> None:
    axes.set_xticks(places, labels or [f"{place:g}" for place in places])
    axes.set_xticks([], minor=True)
