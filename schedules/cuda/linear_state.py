"""The state of linear attention in a block: sums in registers, a tile that products read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import reduce

from tvm import tirx
from tvm.script import tirx as T

from ...problem.spec import AttentionSpec
from .arch import WARP
from .builder import CudaKernel, assign, barrier, emit, loop, name_registers, store, when
from .fragments import accumulator, fragment, gemm
from .linear_config import EXTRA_COLUMNS, LinearConfig
from .linear_walk import Walk
from .program import blocks
from .shared_tile import SharedTile
from .softmax import any_lane
from .state_product import state_product_for
from .tiling import round_up


class StateTile(SharedTile):
    """A tile of float32 that fragments of B are read from and sums are written to, as pairs.

    Reads take rows 0, 2, 4, 6 (or 1, 3, 5, 7) of 8 columns at once, writes rows 0 to 3 (or 4 to 7):
    the xor puts each such four into different pairs of chunks. Rows are whole lines of 8 chunks.
    """

    def chunk_of(self, row, chunk):
        return chunk ^ (row // 2 % 2 * 2 + (row + row // 4) % 2 * 4)


def state_tile(kernel: CudaKernel, rows: int, columns: int) -> StateTile:
    """A new one, with as many columns or more."""
    columns = round_up(columns, 32)
    buffer = kernel.shared((1, rows, columns), "float32")
    return StateTile(kernel, buffer, 1, rows, columns, "float32")


class State:
    """M = sum_j g^(n - 1 - j) w_j k^_j v^_j of a block's columns of V, and of the one beside them.

    Warps hold its rows in registers, threads the columns of its last row, which belongs to k_extra.
    ``tile`` is M as products read it: its last row is row ``depth``, the column beside V's the
    first of EXTRA_COLUMNS.
    """

    def __init__(self, kernel: CudaKernel, spec: AttentionSpec, config: LinearConfig, walk: Walk):
        self.kernel, self.spec, self.config, self.walk = kernel, spec, config, walk
        self.product = state_product_for(spec.dtype, turing=not walk.arch.bf16)
        self.depth, self.columns = config.depth(spec), config.columns + EXTRA_COLUMNS
        self._warp_rows = 16 * config.row_tiles(spec)
        self.tile = state_tile(kernel, self.depth + 1, self.columns)
        name_registers(self)

    def make_sums(self) -> None:
        """Registers for what ``add`` adds to, of zeros."""
        kernel = self.kernel
        self.sums = accumulator(kernel, self._warp_rows, self.columns)
        self.last_row = kernel.scalar(T.float32(0), "float32")
        self._fragment = fragment(kernel, self.product, self.sums.m_tiles)
        name_registers(self)
        self.sums.zero()

    def take(self) -> None:
        """Let the sums be what the tile holds."""
        with self._own_rows():
            for pair, at in self._pairs():
                emit(T.ptx["ld.shared.v2.f32"](*pair, at))
        with when(self.kernel.thread < self.columns):
            assign(self.last_row, self.tile.buffer[self._last_place()])

    def publish(self) -> None:
        """Write the sums to the tile, which nobody reads meanwhile."""
        with self._own_rows():
            for pair, at in self._pairs():
                emit(T.ptx["st.shared.v2.f32"](at, *pair))
        with when(self.kernel.thread < self.columns):
            store(self.tile.buffer, self._last_place(), self.last_row)

    def add(self, age) -> None:
        """Add the keys of the chunk at hand.

        age: of the sums before them, 0 where those are what the chunk's first row sees, else 1.
        """
        kernel, walk, step = self.kernel, self.walk, self.product.step
        rows = kernel.scalar(tirx.min(walk.rows - walk.first, self.config.chunk), name="rows")
        if self.spec.causal:
            passed = kernel.scalar(walk.powers[rows - 1 + age], "float32", name="passed")
            self.sums.map(lambda value, *_: value * passed)
            assign(self.last_row, self.last_row * passed)

        def keys(number: int) -> list[list]:
            own = self.product.reduction_rows(kernel.lane, number * step)
            factors = [kernel.scalar(self._factor(rows, row), "float32") for row in own]
            for m in range(self.sums.m_tiles):
                pair = kernel.warp * self.sums.m_tiles + m
                self.product.load_a_transposed(
                    self._fragment(m), walk.tiles["k"], walk.stage, number * step, pair, factors
                )
            return [self._fragment(m) for m in range(self.sums.m_tiles)]

        with self._own_rows():
            gemm(self.sums, self.product, self.config.chunk // step, keys, self.load_values)
        self._add_extra(rows)

    def load_values(self, b: list, number: int, pair: int) -> None:
        """B of rows of V and of the column beside them."""
        depth = number * self.product.step
        if pair < self.config.columns // 16:
            self.product.load_b_rows(b, self.walk.tiles["v"], self.walk.stage, depth, pair)
            return
        rows = self.product.reduction_rows(self.kernel.lane, depth)
        self.product.set_b_column(
            b, self.kernel.lane, [self.walk.number("v_extra", row) for row in rows]
        )

    def read(self, name: str, *part) -> None:
        """The tile of what the argument ``name`` has for this head, before a barrier."""
        kernel, buffer, columns = self.kernel, self.tile.buffer, self.tile.columns
        with loop(blocks(self.tile.rows * columns, kernel.threads), "turn") as turn:
            at = kernel.scalar(turn * kernel.threads + kernel.thread)
            with when(at < self.tile.rows * columns):
                store(buffer, (0, at // columns, at % columns), T.float32(0))
        barrier()
        source = kernel.buffers[name]
        for at, element in self._elements(source, part):
            store(buffer, at, source[element])

    def write(self, name: str, *part) -> None:
        """The tile to the argument ``name``; the column beside V's by the block of the first."""
        target = self.kernel.buffers[name]
        for at, element in self._elements(target, part, self.walk.tile == 0):
            store(target, element, self.tile.buffer[at])

    def _elements(self, argument, part: tuple, is_first=None) -> Iterator[tuple[tuple, tuple]]:
        """Where a thread's elements lie in the tile and in ``argument``, inside their conditions.

        is_first: of the column beside V's alone.
        """
        kernel, walk, columns = self.kernel, self.walk, self.config.columns
        last, width = self.spec.head_dim, self.spec.head_dim_v
        with loop(blocks(last + 1, kernel.num_warps), "turn") as turn:
            d = kernel.scalar(turn * kernel.num_warps + kernel.warp)
            with when(tirx.Cast("int64", d) < argument.shape[-2]):
                row = tirx.Select(d == last, self.depth, d)
                for start in range(0, columns, WARP):
                    column = kernel.lane + start
                    e = walk.first_column + column
                    with when(tirx.And(column < columns, e < width)):
                        at = self.tile.index(0, row, column)
                        yield at, (*part, walk.entry, walk.head, d, e)
                is_own = kernel.lane == 0
                with when(is_own if is_first is None else tirx.And(is_own, is_first)):
                    at = self.tile.index(0, row, columns)
                    yield at, (*part, walk.entry, walk.head, d, width)

    def _factor(self, rows, row):
        """w_j g^(n - 1 - j) of the key in ``row``, of n ``rows`` in the chunk."""
        steps = tirx.max(rows - 1 - row, 0)
        return self.walk.decayed(self.walk.number("key_weight", row), steps)

    def _add_extra(self, rows) -> None:
        """The last row, where keys have something beside them: features have not."""
        kernel, walk, chunk = self.kernel, self.walk, self.config.chunk
        keys = [kernel.lane + start for start in range(0, chunk, WARP)]
        some = [walk.number("k_extra", key) != T.float32(0) for key in keys]
        value = walk.tiles["v"]
        has_some = any_lane(reduce(tirx.Or, some))
        with when(has_some), loop(chunk, "key") as key:
            extra = walk.number("k_extra", key) * self._factor(rows, key)
            column = tirx.min(kernel.thread, self.config.columns - 1)
            own = tirx.Cast("float32", value.buffer[value.index(walk.stage, key, column)])
            is_beside = kernel.thread == self.config.columns
            own = tirx.Select(is_beside, walk.number("v_extra", key), own)
            assign(self.last_row, self.last_row + extra * own)

    def _own_rows(self):
        """Statements of the warps that have rows."""
        if self._warp_rows * self.kernel.num_warps == self.depth:
            return nullcontext()
        return when(self.kernel.warp * self._warp_rows < self.depth)

    def _last_place(self) -> tuple:
        """Place of this thread's column of the last row."""
        return self.tile.index(0, self.depth, self.kernel.thread)

    def _pairs(self) -> Iterator[tuple[list, tirx.Expr]]:
        """Neighbouring sums of this lane, and their address in the tile."""
        registers = self.sums.registers
        for m in range(self.sums.m_tiles):
            for n in range(self.sums.n_tiles):
                for half in range(2):
                    pair = [registers[m, n, 2 * half + odd] for odd in range(2)]
                    yield pair, self.tile.element(0, self._row(m, half), self.sums.column(n, 0))

    def _row(self, m: int, half: int):
        return self.kernel.warp * self._warp_rows + self.sums.row(m, half)
