"""What a warp does with its rows where dQ is summed over keys, whatever multiplied them."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from ...definition.scores import Scores
from ...definition.signature import Signature
from ...problem.spec import AttentionSpec
from .builder import CudaKernel, store
from .fragments import Accumulator
from .math import CudaMath
from .recompute import Recompute
from .tiling import KeyVisits, QueryTile


class QueryGradientRows:
    """A kernel of query tiles being written: the part that knows scores, and not products.

    A kind makes, before it uses them: kernel, tile, visits, s, recompute.
    """

    kernel: CudaKernel
    tile: QueryTile
    visits: KeyVisits
    s: Accumulator
    recompute: Recompute

    def __init__(self, spec: AttentionSpec, warp_rows: int):
        """warp_rows: rows of a query tile that a warp has."""
        self.spec, self.warp_rows = spec, warp_rows
        self.sig = Signature(spec)
        self.scores = Scores(self.sig, CudaMath())
        self.statistics = spec.row_statistics

    def load_statistics(self) -> None:
        """Those of this thread's rows, converted, to registers."""
        kernel, tile, shape = self.kernel, self.tile, (self.s.m_tiles, 2)
        self.row_statistics = {name: kernel.registers(shape, "float32") for name in self.statistics}
        for m in range(self.s.m_tiles):
            for half in range(2):
                row = tirx.min(self._q_index(m, half), tile.rows - 1)
                at = tile.statistic(row)
                for name, held in self.row_statistics.items():
                    value = self.recompute.converted(name, kernel.buffers[name][at])
                    store(held, (m, half), value)

    def check(self) -> None:
        """Raise AssertionError unless the kernel used all that its direction is made of."""
        # delta, dK and dV are of other launches.
        self.recompute.check("delta", "scores", "dp", "dq", "dk", "dv")

    @property
    def site(self) -> tuple[Callable, Callable]:
        """Query and key of an element of S, by (m, n, r)."""
        return (
            lambda m, n, r: self._q_index(m, r // 2),
            lambda m, n, r: self.visits.first + self.s.column(n, r % 2),
        )

    def statistic(self, name: str) -> Callable:
        """That of the row of an element of S, by (m, n, r)."""
        return lambda m, n, r: self.row_statistics[name][m, r // 2]

    @property
    def delta(self) -> Callable | None:
        """delta by (m, n, r), where the kind of attention has it."""
        return self.statistic("delta") if self.statistics else None

    def _row(self, m: int, half: int):
        return self.kernel.warp * self.warp_rows + self.s.row(m, half)

    def _q_index(self, m: int, half: int):
        return self.tile.first + self._row(m, half)
