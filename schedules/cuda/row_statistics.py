"""What the backward knows of the rows of a query tile: their statistics, in shared memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.script import tirx as T

from .builder import CudaKernel, emit, store
from .fragments import Accumulator
from .recompute import Recompute
from .tiling import round_up


class RowStatistics:
    """Statistics of the rows of query tiles, as ``Recompute`` takes them.

    They pass through registers of threads that have a row each, which convert them: the threads of
    a product, which need them by column, would all do so again. The order of calls, by all threads
    of a block: ``ask`` loads those of a tile, ``settle`` writes them to shared memory, where all
    threads may read them after a barrier.
    """

    def __init__(
        self, kernel: CudaKernel, recompute: Recompute, names: Sequence[str],
        rows: int, stages: int, threads: tuple | None = None,
    ):  # fmt: skip
        """threads: this one's number and how many bring them; None: all of the block."""
        self._kernel, self._recompute, self._rows = kernel, recompute, rows
        self._thread, self._threads = threads or (kernel.thread, kernel.threads)
        shape, passes = (stages, round_up(rows, 32)), -(-rows // self._threads)
        self._tiles = {name: kernel.shared(shape, "float32", f"{name}_tile") for name in names}
        self._asked = {name: kernel.registers((passes,), "float32") for name in names}
        self._pairs = {name: kernel.registers((2,), "float32") for name in names}

    def ask(self, index: Callable, first, end) -> None:
        """Load those of rows first .., at index(row); zeros from row ``end`` on."""
        for name, asked in self._asked.items():
            for n, own, held in self._own_rows(asked):
                row, source = first + own, self._kernel.buffers[name]
                store(asked, (n,), T.float32(0))
                origin = source.ptr_to(list(index(row)))
                inside = row < end if held is None else tirx.And(held, row < end)
                emit(T.ptx["ld.global.f32"](asked[n], origin, pred=inside, preserve_dst=True))

    def settle(self, stage) -> None:
        """What was asked for, converted, to shared memory."""
        for name, asked in self._asked.items():
            for n, own, held in self._own_rows(asked):
                store(asked, (n,), self._recompute.converted(name, asked[n]))
                place = self._tiles[name].ptr_to([stage, own])
                emit(T.ptx["st.shared.f32"](place, asked[n], pred=held))

    def of_columns(self, name: str, stage, acc: Accumulator, first=0) -> Callable:
        """The statistic of the row that stands in an element's column of ``acc``, by (m, n, r).

        first: the tile's row that the first column is. Each column is loaded when first asked for.
        """
        source, pair, loaded = self._tiles[name], self._pairs[name], []

        def value(m: int, n: int, r: int):
            if n not in loaded:
                at = source.ptr_to([stage, first + acc.column(n, 0)])
                emit(T.ptx["ld.shared.v2.f32"](pair[0], pair[1], at))
                loaded.append(n)
            return pair[r % 2]

        return value

    def _own_rows(self, asked) -> list[tuple]:
        """(number, row, whether the tile has it; None: surely) of each row of this thread."""
        found = []
        for n in range(int(asked.shape[0])):
            own = self._thread + n * self._threads
            partial = (n + 1) * self._threads > self._rows
            found.append((n, own, own < self._rows if partial else None))
        return found
