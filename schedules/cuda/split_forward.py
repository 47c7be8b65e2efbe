"""Forward by parts of the keys: a block per tile of a group's rows and part (Flash-Decoding)."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from ...problem.spec import AttentionSpec
from .arch import CudaArch
from .builder import Tensor, emit, leave_unless, store, when
from .entries import group_grid
from .forward import Forward, ForwardConfig
from .group_tile import GroupRow, GroupScores, GroupTile
from .parameters import parameter_tensors
from .program import Grid, Launch
from .rows import address_of, pointer
from .softmax import OnlineSoftmax, WeightsAlone, held_inverse_cap
from .tiling import round_up


@dataclass(frozen=True)
class SplitForwardConfig(ForwardConfig):
    """The numbers of ``ForwardConfig``, for a tile of a group's rows and one part of its keys."""

    schedule = "cuda.forward_split"
    block_q: int = 64
    stages: int = 2

    def reasons(self, spec: AttentionSpec, arch: CudaArch) -> list[str]:
        """Why this config cannot serve ``spec`` on ``arch`` (empty: it can)."""
        dropout = "dropout is of training: rows of several heads in a tile draw no words together"
        return [*super().reasons(spec, arch), *[dropout] * spec.dropout]


def parts_launch(spec: AttentionSpec, config: ForwardConfig, arch: CudaArch, symbol: str) -> Launch:
    """The kernel that leaves the states of each row and part of the keys in workspaces.

    Sums of a part are not normalised, and start with nothing: ``merge_launch`` makes results of
    them. The last parts may have no tile of keys (``Visits.part``): nothing is written there.
    """
    return _Parts(spec, config, arch, symbol).launch()


class _Parts(Forward):
    """A forward that ends with its states."""

    def _tensors(self) -> list[Tensor]:
        states = ("part_m", "part_l") if self.row.has_sum else ()
        names, depth = ("q", "k", "v", "part_out", *states), round_up(self.spec.head_dim_v, 16)
        return parameter_tensors(self.sig, names, depth)

    def _grid(self) -> Grid:
        return group_grid(self.config.block_q, split=True)

    def _open_tile(self) -> None:
        kernel = self.kernel
        self.tile = tile = GroupTile(kernel, self.config.block_q, split=True)
        leave_unless(tile.part < tile.parts(self.config.block_q, self.config.block_k))
        held = held_inverse_cap(kernel, self.scores), (tile.queries, tile.keys)
        self.bound = GroupScores(lambda head: self.scores.at(tile.batch, head, *held))

    def _allocate(self) -> None:
        super()._allocate()
        tiles = range(self.s.m_tiles)
        self._rows = {(m, half): self._held_row(m, half) for m in tiles for half in range(2)}

    def _held_row(self, m: int, half: int) -> GroupRow:
        row = self.tile.row(self._number(m, half))
        return GroupRow(self.kernel.scalar(row.query), self.kernel.scalar(row.head))

    def _row_states(self) -> OnlineSoftmax | WeightsAlone:
        if not self.row.has_sum:
            return WeightsAlone(self.row)
        return OnlineSoftmax(self.kernel, self.scores, self.row, self.s.m_tiles, None)

    def _number(self, m: int, half: int):
        """Number in the group of a row of this thread."""
        return self.tile.first + self._row(m, half)

    def _q_index(self, m: int, half: int) -> GroupRow:
        return self._rows[m, half]

    def _finish(self) -> None:
        self.softmax.finish()
        self.copies.drain()
        for (m, half), row in self._rows.items():
            with when(self._number(m, half) < self.tile.rows):
                self._store_row(m, half, (self.tile.part, *self.tile.statistic(row)))

    def _store_row(self, m: int, half: int, at: tuple) -> None:
        kernel, softmax = self.kernel, self.softmax
        if self.row.has_sum:
            with when(kernel.lane % 4 == 0):
                store(kernel.buffers["part_m"], at, softmax.maximum[m, half])
                store(kernel.buffers["part_l"], at, softmax.total[m, half])
        first = address_of(kernel.buffers["part_out"].ptr_to([*at, self.out.column(0, 0)]))
        first = kernel.scalar(first, "int64")
        for n in range(self.out.n_tiles):
            pair = (self.out.registers[m, n, 2 * half + odd] for odd in range(2))
            emit(T.ptx["st.global.v2.f32"](pointer(first + tirx.const(32 * n, "int64")), *pair))

    def check(self) -> None:
        # Results are of the launch that merges.
        results = ("out", *self.statistics)
        self.row.check(self.statistics, "scores", "pv", *results, *self.scores.used)
