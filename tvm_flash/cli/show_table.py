"""Tables on terminals: coloured, and as wide as there is room; whole in files and pipes."""

from __future__ import annotations

import re

from rich.box import SIMPLE
from rich.cells import cell_len
from rich.table import Table as Drawing
from rich.text import Text

from ..bench.table import Mark, Table
from .console import Output, console

_STYLES = {"good": "green", "bad": "bold red", "doubtful": "yellow", "faint": "dim"}
# The least width of a folded column.
_FOLDED = 16


def show(table: Table) -> None:
    """Print ``table`` on stdout: on a terminal with the columns that fit, else with all."""
    width = console.width if console.is_terminal else max(console.width, width_of(table))
    kept, left_out = fitting(table, width)
    if table.title:
        console.print(Text(table.title, "italic"), soft_wrap=True)
    wide = console if console.is_terminal else Output(width=width, file=console.file)
    wide.print(drawn(kept, width))
    if left_out:
        text = f"no room here for: {', '.join(left_out)}"
        console.print(Text(text, "dim italic"), soft_wrap=True)


def drawn(table: Table, width: int) -> Drawing:
    """``table`` without its title, at most ``width`` wide where that can be."""
    drawing = Drawing(box=SIMPLE, padding=(0, 1, 0, 0))
    for column, room in zip(table.columns, _allotted(table, width), strict=True):
        justify = "left" if column.text else "right"
        drawing.add_column(Text(column.heading), justify=justify, width=room, overflow="fold")
    for row in table.rows:
        cells = map(_styled, row)
        drawing.add_row(*map(_broken, cells, _allotted(table, width)))
    return drawing


def fitting(table: Table, width: int) -> tuple[Table, list[str]]:
    """``table`` without the columns of the highest ranks while it is too wide, and their names.

    Words are folded only where they would be without all such columns too.
    """
    unranked = [n for n, column in enumerate(table.columns) if not column.rank]
    folded = width_of(table.only(unranked)) > width
    places = list(range(len(table.columns)))
    while places != unranked and width_of(table.only(places), folded) > width:
        places.remove(max(places, key=lambda place: table.columns[place].rank))
    left_out = [c.name for n, c in enumerate(table.columns) if n not in places]
    return table.only(places), left_out


def width_of(table: Table, folded: bool = False) -> int:
    """Characters of a line; with ``folded`` words and headings as narrow as may be."""
    widths = _widths(table, folded)
    # Each column has a blank after it, and another one between it and the next.
    return sum(widths) + 2 * len(widths) + 1


def _allotted(table: Table, width: int) -> list[int]:
    """The width of each column: who lacks the least gets what is left first."""
    given, wanted = _widths(table, folded=True), _widths(table, folded=False)
    left = max(0, width - width_of(table, folded=True))
    for n in sorted(range(len(given)), key=lambda n: wanted[n] - given[n]):
        more = min(left, wanted[n] - given[n])
        given[n], left = given[n] + more, left - more
    return given


def _widths(table: Table, folded: bool) -> list[int]:
    """The width of each column: numbers are never folded, their headings only between words."""
    widths = []
    for n, column in enumerate(table.columns):
        rows = max((cell_len(str(_styled(row[n]))) for row in table.rows), default=0)
        heading = [column.heading] if not folded else column.heading.split()
        widest = max([rows, *map(cell_len, heading)])
        widths.append(min(widest, _FOLDED) if folded and column.text else widest)
    return widths


def _broken(cell: Text, room: int) -> Text:
    """``cell`` in lines of at most ``room``, ended behind blanks, "_" and "/" where there are some.

    Names of kernels and of files are the longest cells.
    """
    lines = [""]
    for piece in re.findall(r"[^\s_/]*[\s_/]?", cell.plain):
        if lines[-1] and cell_len(f"{lines[-1]}{piece}".rstrip()) > room:
            lines.append("")
        lines[-1] += piece
    return Text("\n".join(line.rstrip() for line in lines), cell.style)


def _styled(cell: str | Mark) -> Text:
    return Text(cell.text, _STYLES[cell.tone]) if isinstance(cell, Mark) else Text(cell)
