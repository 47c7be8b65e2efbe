"""``tvm-flash study``: memory traffic beside what papers prove, and searches on measured tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..bench.table import Mark, Table, numbers, words
from ..errors import UnsupportedSpec
from .command import App
from .console import PLAIN, notes, progress, refuse_unwritable
from .json_output import AsJson, print_json
from .show import require_tvm
from .show_table import show
from .study_export import export
from .study_models import models
from .study_search import search
from .study_table import table

if TYPE_CHECKING:
    from ..study.io.counts import Row

_HELP = "Bytes moved, counted beside theory; search strategies and cost models on measured tables."
study = App("study", _HELP)


@study.command("io")
def io(
    seqlens: Annotated[
        str, typer.Option(metavar="N,...", help="Sequence lengths; the fits need two.")
    ] = "128,256,512,1024",
    head_dim: Annotated[int, typer.Option(metavar="N", help="Head dimension, 8 to 128.")] = 64,
    tiles: Annotated[
        str,
        typer.Option(metavar="N,...", help="Tile sides, multiples of 16; the fits need two."),
    ] = "16,32,64,128",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a picture into this file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bytes through device memory: standard attention, FlashAttention-1, FlashAttention-2."""
    require_tvm()
    from ..study.io import counts as library
    from ..study.io import plot as io_plot

    refuse_unwritable(plot)
    lengths, sides = _numbers("seqlens", seqlens), _numbers("tiles", tiles)
    rows = []
    with progress("count", len(lengths) * len(sides) * 3) as advance:
        for row in library.sweep(lengths, head_dim, sides):
            rows.append(row)
            advance(f"{row.algorithm} S={row.seqlen} tile {row.tile}")
    if as_json:
        print_json(library.document(rows))
    else:
        show(count_table(rows))
        show(fit_table(rows))
    if plot is not None:
        io_plot.draw(rows, plot)
        notes.print(f"drawn in {plot}", **PLAIN)


def count_table(rows: Sequence[Row]) -> Table:
    """One line for each length and tile: KiB of every algorithm, and how they compare."""
    from ..study.io.theory import EXACT, FLASH2, STANDARD, least_bytes

    columns = numbers("S", "D", "tile", "M", "standard", "FA-1", "FA-2", "least", "std/FA-2")
    lines = []
    for place, found in _by_place(rows).items():
        seqlen, head_dim, tile = place
        any_row = next(iter(found.values()))
        lines.append((
            str(seqlen), str(head_dim), str(tile), f"{any_row.memory * 2 / 1024:g}",
            *(f"{found[name].bytes / 1024:,.0f}" for name in EXACT),
            f"{least_bytes(seqlen, head_dim) / 1024:,.0f}",
            f"{found[STANDARD].bytes / found[FLASH2].bytes:.1f}x",
            _agreement(found.values()),
        ))  # fmt: skip
    title = "KiB through device memory, one head"
    return Table(title, (*columns, *words("model")), lines)


def fit_table(rows: Sequence[Row]) -> Table:
    """The constants of the fits, and how far the counts lie from them."""
    from ..study.io.counts import fits

    lines = []
    for algorithm, both in fits(rows).items():
        for name, one in both.items():
            constants = " + ".join(f"{c:.2f} {term}" for term, c in one.constants.items())
            lines.append((algorithm, name, constants, f"{one.deviation:.1%}"))
    columns = (*words("algorithm", "terms", "constants"), *numbers("furthest"))
    return Table("bytes = sum of constant x term", columns, lines)


def _by_place(rows: Iterable[Row]) -> dict[tuple[int, int, int], dict[str, Row]]:
    places: dict[tuple[int, int, int], dict[str, Row]] = {}
    for row in rows:
        places.setdefault((row.seqlen, row.head_dim, row.tile), {})[row.algorithm] = row
    return dict(sorted(places.items()))


def _agreement(rows: Iterable[Row]) -> Mark:
    wrong = [row.algorithm for row in rows if row.bytes != row.predicted]
    return Mark(f"not {', '.join(wrong)}", "bad") if wrong else Mark("equal", "good")


def _numbers(name: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UnsupportedSpec([f"--{name} {text!r} must be positive numbers, as in 128,256"])
    return numbers


for command in (search, models, table, export):
    study.command(command.__name__)(command)
