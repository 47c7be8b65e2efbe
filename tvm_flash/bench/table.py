"""A table: columns with their units, and rows of text; a value that others show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Mark(NamedTuple):
    """A cell that a terminal colours; ``tone`` is "good", "bad", "doubtful" or "faint"."""

    text: str
    tone: str


@dataclass(frozen=True)
class Column:
    """A heading. text: words, which stand left and may be folded; else numbers, which stand right.

    rank: where there is no room for all columns, those of the highest rank are left out first; 0
    stays.
    """

    name: str
    unit: str = ""
    text: bool = False
    rank: int = 0

    @property
    def heading(self) -> str:
        """The name with its unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name


@dataclass(frozen=True)
class Table:
    """Rows of cells, each a string or a ``Mark``, one for each column."""

    title: str
    columns: tuple[Column, ...]
    rows: Sequence[Sequence[str | Mark]]

    def markdown(self) -> list[str]:
        """The lines of a table in Markdown, without the title."""
        rule = ["---" if column.text else "---:" for column in self.columns]
        rows = [[_text(cell).replace("|", "\\|") for cell in row] for row in self.rows]
        return [_line([c.heading for c in self.columns]), _line(rule), *map(_line, rows)]

    def without_empty(self) -> Table:
        """The table of the columns that say something in a row."""
        said = [
            any(_text(row[n]) not in ("", "-") for row in self.rows)
            for n in range(len(self.columns))
        ]
        return self.only([n for n, says in enumerate(said) if says])

    def only(self, places: Sequence[int]) -> Table:
        """The table of the columns at ``places``."""
        columns = tuple(self.columns[place] for place in places)
        return Table(self.title, columns, [[row[place] for place in places] for row in self.rows])


def words(*names: str, rank: int = 0) -> list[Column]:
    """Columns of text."""
    return [Column(name, text=True, rank=rank) for name in names]


def numbers(*names: str, unit: str = "", rank: int = 0) -> list[Column]:
    """Columns of numbers."""
    return [Column(name, unit, rank=rank) for name in names]


def _text(cell: str | Mark) -> str:
    return cell.text if isinstance(cell, Mark) else cell


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
