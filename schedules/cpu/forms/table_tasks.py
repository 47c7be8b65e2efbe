"""Which tiles of rows a task of the gradients of tables takes, to whose elements no other adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from ....definition.arithmetic import TIR
from ....definition.signature import Signature
from ....problem.work import Work
from .equal_entries import Places

# By the axis of ``Work``, the symbol of scores that its places stand for.
_SYMBOLS = {"entry": "b", "head": "h", "tile": "q_idx"}


class TableTasks:
    """A task for each place of the axes that every index has (``AttentionSpec.owned_symbols``).

    ``parts`` tasks share the tiles of a place, dealt out in turn: each adds to a copy of its own.
    """

    def __init__(self, sig: Signature, places: Places, rows: int):
        axes = places.row_work(places.row_tiles(rows)).axes
        owned = sig.spec.owned_symbols
        own = {name: n for name, n in axes.items() if _SYMBOLS.get(name) in owned}
        rest = {name: n for name, n in axes.items() if name not in own}
        self._parts = sig.parts
        self.work = Work({"part": sig.parts, **own}, arithmetic=TIR)
        self._tiles = Work({"all": tirx.const(1, "int64"), **rest}, arithmetic=TIR)

    def count(self, part):
        """How many tiles a task of this ``part`` takes."""
        return tirx.truncdiv(self._tiles.count - part + (self._parts - 1), self._parts)

    def tiles(self, task, part) -> _TilesOfTask:
        """Those of ``task``, as ``Places.find_row_tile`` takes them."""
        return _TilesOfTask(self.work.place(task), self._tiles, part, self._parts)


@dataclass(frozen=True)
class _TilesOfTask:
    place_of_task: dict[str, Any]
    work: Work
    part: Any
    parts: Any

    def place(self, number) -> dict[str, Any]:
        return {**self.place_of_task, **self.work.place(number * self.parts + self.part)}
