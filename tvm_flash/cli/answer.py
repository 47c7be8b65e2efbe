"""What a command prints on stdout: tables and lines for people, or one document for programs."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from ..bench.table import Table
from .console import PLAIN, console
from .json_output import print_json
from .show_table import show


class Answer:
    """The answer of one run of a command, which says it in both forms; one of them is printed."""

    def __init__(self, as_json: bool):
        self._as_json = as_json

    def table(self, table: Table) -> None:
        """Print ``table`` for people."""
        if not self._as_json:
            show(table)

    def line(self, text: str, style: str = "") -> None:
        """Print ``text``, all of it in ``style``, for people."""
        self.parts((text, style))

    def parts(self, *parts: str | tuple[str, str]) -> None:
        """Print a line of ``parts``, texts or texts with their styles, for people."""
        if not self._as_json:
            console.print(Text.assemble(*parts), **PLAIN)

    def document(self, document: Any) -> None:
        """Print ``document`` for programs, as ``print_json`` does."""
        if self._as_json:
            print_json(document)
