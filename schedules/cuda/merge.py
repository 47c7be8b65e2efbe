"""The states of parts of the keys merged to results, in the order of the parts: a warp per row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tvm import tirx
from tvm.script import tirx as T

from ...definition.derive.bound import BoundRecurrence
from ...definition.kinds import recurrence_of, row_numbers
from ...definition.scores import Scores
from ...definition.signature import Signature
from ...problem.spec import AttentionSpec
from .arch import WARP
from .builder import CudaKernel, assign, leave_unless, loop_while, name_registers, store, when
from .entries import group_grid
from .forward import ForwardConfig
from .group_tile import GroupRow, GroupTile
from .math import CudaMath
from .parameters import parameter_tensors
from .program import Launch
from .row_kernels import join_lanes
from .softmax import MaximumUnits
from .tiling import round_up

_WARPS = 4
# Parts whose loads are in flight together.
_TOGETHER = 4


def merge_launch(spec: AttentionSpec, config: ForwardConfig, symbol: str) -> Launch:
    """The kernel that makes out and its statistics of what ``parts_launch`` left.

    config: that of the parts, whose tiles say how many a row has.
    """
    return _Merge(spec, config, symbol).launch()


class _Merge:
    """One kernel being written; the methods follow the order of its body."""

    def __init__(self, spec: AttentionSpec, config: ForwardConfig, symbol: str):
        self.spec, self.config = spec, config
        self.sig = Signature(spec)
        self.scores = Scores(self.sig, CudaMath())
        self.row = BoundRecurrence(recurrence_of(spec.softmax), CudaMath())
        self.statistics = spec.forward_statistics
        states = ("part_m", "part_l") if self.row.has_sum else ()
        # k tells how many keys there are.
        names = ("k", "out", *self.statistics, "part_out", *states, *self.sig.inputs)
        tensors = parameter_tensors(self.sig, names, round_up(spec.head_dim_v, 16))
        grid = group_grid(_WARPS, split=False)
        self.kernel = CudaKernel(symbol, self.sig, tensors, grid, _WARPS)

    def launch(self) -> Launch:
        with self.kernel as kernel:
            self.tile = tile = GroupTile(kernel, _WARPS, split=False)
            number = kernel.scalar(tile.first + kernel.warp)
            leave_unless(number < tile.rows)
            row = tile.row(number)
            self.own = GroupRow(kernel.scalar(row.query), kernel.scalar(row.head))
            self.count = kernel.scalar(tile.parts(self.config.block_q, self.config.block_k))
            name_registers(self)
            if self.row.has_sum:
                self._merge_states()
                self._store_statistics()
            self._store_out(self._merged_out())
        # Scores and weights are of the launch before.
        self.row.check(self.statistics, "scores", "score_mod", "mask", "exp", "pv")
        return kernel.launch()

    def _merge_states(self) -> None:
        """The row's maximum and sum: each lane takes some of the parts, then lanes are joined."""
        kernel, row = self.kernel, self.row
        numbers = row_numbers(self.sig, self.own.head, kernel.buffers)
        self.units = MaximumUnits(kernel, self.scores, row)
        self.maximum = kernel.scalar(row.start("m", **numbers), "float32")
        with self._parts(kernel.lane, WARP) as part:
            own = self._state("part_m", part)
            assign(self.maximum, row.join("m", self.maximum, own))
        join_lanes(self.maximum, lambda a, b: row.join("m", a, b))
        self.total = kernel.scalar(row.nothing("l"), "float32")
        with self._parts(kernel.lane, WARP) as part:
            share = self._state("part_l", part) * self._alpha(part)
            assign(self.total, row.join("l", self.total, share))
        join_lanes(self.total, lambda a, b: row.join("l", a, b))
        first = row.start("l", m=self.maximum, **numbers)
        assign(self.total, row.join("l", first, self.total))
        name_registers(self)

    def _store_statistics(self) -> None:
        buffers, at = self.kernel.buffers, self.tile.statistic(self.own)
        if not self.statistics:
            return
        with when(self.kernel.lane == 0):
            lse = self.kernel.scalar(self.units.lse(self.maximum, self.total), "float32")
            store(buffers["lse"], at, lse)
            if "lse_low" in buffers:
                low = self.row.lse_low(lse, self.maximum, self.total)
                store(buffers["lse_low"], at, low)

    def _merged_out(self) -> tirx.Buffer:
        """The lane's elements of the product: columns lane, lane + 32, ..."""
        kernel, row, columns = self.kernel, self.row, range(-(-self.columns // WARP))
        out = kernel.registers((len(columns),), "float32")
        for n in columns:
            store(out, (n,), row.start("acc"))
        with self._parts(0, _TOGETHER) as first:
            shares = [self._shares(first + n) for n in range(_TOGETHER)]
            for n in columns:
                for share in shares:
                    store(out, (n,), row.join("acc", out[n], share[n]))
        return out

    def _shares(self, part) -> list:
        """What the lane's elements get of ``part``: nothing past the last one."""
        kernel, there = self.kernel, part < self.count
        alpha = self._alpha(part) if self.row.has_sum else T.float32(1)
        alpha = kernel.scalar(tirx.if_then_else(there, alpha, T.float32(0)), "float32")
        shares = []
        for column in range(0, self.columns, WARP):
            own = kernel.lane + column
            inside = there if column + WARP <= self.columns else tirx.And(there, own < self.columns)
            at = (part, *self.tile.statistic(self.own), own)
            value = tirx.if_then_else(inside, kernel.buffers["part_out"][at], T.float32(0))
            shares.append(kernel.scalar(value, "float32") * alpha)
        return shares

    def _store_out(self, out: tirx.Buffer) -> None:
        inverse = T.float32(1)
        if self.row.has_sum:
            inverse = self.kernel.scalar(self.row.inverse(self.total), "float32")
        buffer = self.kernel.buffers["out"]
        for n in range(int(out.shape[0])):
            own = self.kernel.lane + n * WARP
            at = self.tile.element(self.own, own)
            with when(own < self.spec.head_dim_v):
                store(buffer, at, tirx.Cast(buffer.dtype, self.row.out(out[n], inverse)))

    @property
    def columns(self) -> int:
        """Columns of the parts' products."""
        return round_up(self.spec.head_dim_v, 16)

    def _state(self, name: str, part):
        return self.kernel.buffers[name][(part, *self.tile.statistic(self.own))]

    def _alpha(self, part):
        """What the sums of ``part`` are multiplied by."""
        return self.units.rescaling(self._state("part_m", part), self.maximum)[0]

    @contextmanager
    def _parts(self, first, step: int) -> Iterator[tirx.Expr]:
        """A loop over the parts first, first + step, ... that the row has."""
        part = self.kernel.scalar(first, name="part")
        with loop_while(part < self.count):
            yield part
            assign(part, part + step)
