"""Forward for tensor-core GPUs: a block per query tile, warps split its rows (FlashAttention-2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from ...problem.spec import AttentionSpec
from ..config_fields import Config
from ..space import Knob, block_reasons
from .arch import WIDEST, CudaArch, limit_reasons
from .builder import CudaKernel, assign, barrier, loop_while, name_registers, when
from .copies import Copies, each, store_rows
from .entries import query_grid
from .forward_rows import ForwardRows
from .fragments import accumulator, fragment, gemm
from .listed import visited_keys
from .program import Grid, Launch
from .shared_tile import shared_tile
from .softmax import block_scores
from .tensor_core import product_for
from .tiling import QueryTile, round_up


@dataclass(frozen=True)
class ForwardConfig(Config):
    """Numbers of the forward schedule; they change speed, never results beyond rounding.

    block_q, block_k: rows of a query and a key tile. num_warps: they split the query rows evenly.
    stages: key/value tiles held in shared memory, 1 or 2 (2: the next pair loads during a whole
    tile's work). q_in_registers: Q's fragments stay in registers, not in shared memory.
    min_blocks: blocks an SM shall hold, a register limit for the compiler (0: none).
    """

    schedule = "cuda.forward"
    block_q: int = 128
    block_k: int = 64
    num_warps: int = 4
    stages: int = 1
    q_in_registers: bool = False
    min_blocks: int = 0

    def reasons(self, spec: AttentionSpec, arch: CudaArch) -> list[str]:
        """Why this config cannot serve ``spec`` on ``arch`` (empty: it can)."""
        checks = [
            (
                self.block_q % (16 * self.num_warps),
                f"block_q={self.block_q} must be a multiple of 16 * {self.num_warps=}",
            ),
            (self.block_k % 16, f"block_k={self.block_k} must be a multiple of 16"),
            (self.stages not in (1, 2), f"stages={self.stages} must be 1 or 2"),
            (not 1 <= self.num_warps <= 32, f"num_warps={self.num_warps} must be 1 to 32"),
        ]
        own = [text for wrong, text in checks if wrong]
        own += block_reasons(spec, self.block_q, self.block_k)
        return [*own, *limit_reasons(spec, arch, self.shared_bytes(spec), WIDEST)]

    def shared_bytes(self, spec: AttentionSpec) -> int:
        """Shared memory of a block, bytes."""
        depth, depth_v = round_up(spec.head_dim, 16), round_up(spec.head_dim_v, 16)
        loop_bytes = self.block_q * depth + self.stages * self.block_k * (depth + depth_v)
        return spec.element.bytes * max(loop_bytes, self.block_q * depth_v)

    def registers(self, spec: AttentionSpec) -> int:
        """What a thread holds at once at least: sums of S and O, fragments of Q, P, and K or V.

        Row statistics, addresses and what the compiler keeps besides come on top.
        """
        product = product_for(spec.dtype)
        depth, depth_v = round_up(spec.head_dim, 16), round_up(spec.head_dim_v, 16)
        m_tiles = self.block_q // (16 * self.num_warps)
        sums = m_tiles * (self.block_k + depth_v) // 2
        held = m_tiles * depth // product.step if self.q_in_registers else 0
        return sums + (held + m_tiles) * product.words_a + product.words_b


# What tuning varies.
FORWARD_KNOBS = (
    Knob("block_q", (32, 64, 128, 192, 256), "rows of a query tile"),
    Knob("block_k", (16, 32, 48, 64, 80, 96, 128), "rows of a key tile"),
    Knob("num_warps", (2, 4, 8), "warps of a block: they split the query rows"),
    Knob("stages", (1, 2), "key/value tiles in shared memory"),
    Knob("q_in_registers", (False, True), "whether Q's fragments stay in registers"),
    Knob("min_blocks", (0, 2, 3), "blocks an SM shall hold: a register limit for the compiler"),
)


def forward_launch(
    spec: AttentionSpec, config: ForwardConfig, arch: CudaArch, symbol: str
) -> Launch:
    """The forward kernel of ``spec``: q, k, v, out, its statistics, tables, the call's numbers."""
    return Forward(spec, config, arch, symbol).launch()


class Forward(ForwardRows):
    """One kernel being written; the methods follow the order of its body."""

    def __init__(self, spec: AttentionSpec, config: ForwardConfig, arch: CudaArch, symbol: str):
        super().__init__(spec, arch, config.block_q // config.num_warps)
        self.config = config
        self.steps = round_up(spec.head_dim, 16) // self.product.step
        self.kernel = CudaKernel(
            symbol, self.sig, self._tensors(), self._grid(), config.num_warps,
            tables=True, min_blocks=config.min_blocks,
        )  # fmt: skip
        self.copies = Copies(self.kernel, arch.asynchronous_copy)

    def _grid(self) -> Grid:
        return query_grid(self.config.block_q)

    def launch(self) -> Launch:
        with self.kernel as kernel:
            self._open_tile()
            self._allocate()
            self.visits = visited_keys(kernel, self.tile.key_visits(self.config.block_k))
            self._make_cursors()
            self._start()
            # A warp whose rows all lie past the last one only brings tiles; the second loop finds
            # none left. Before it, not in it: docs/decisions.md, "few rows beside many".
            is_idle = tirx.Not(self.tile.has_row(kernel.warp * self.warp_rows))
            with when(is_idle), loop_while(self.visits.any):
                self._key_tile(each, lambda: None, each)
            with loop_while(self.visits.any):
                kernel.forget_offsets()
                self._key_tile(self._scores, self._softmax, self._output)
            self._finish()
        self.check()
        return kernel.launch()

    def _open_tile(self) -> None:
        self.tile = QueryTile(self.kernel, self.config.block_q)
        self.bound = block_scores(self.kernel, self.scores, self.tile, self.tile.head)

    def _allocate(self) -> None:
        kernel, config, spec = self.kernel, self.config, self.spec
        depth, depth_v = round_up(spec.head_dim, 16), round_up(spec.head_dim_v, 16)
        self.q_tile = shared_tile(kernel, config.block_q, depth, spec.dtype)
        self.k_tile = shared_tile(kernel, config.block_k, depth, spec.dtype, config.stages)
        self.v_tile = shared_tile(kernel, config.block_k, depth_v, spec.dtype, config.stages)
        self.s = accumulator(kernel, self.warp_rows, config.block_k)
        self.out = accumulator(kernel, self.warp_rows, depth_v)
        held = self.steps if config.q_in_registers else 1
        self.q_fragment = fragment(kernel, self.product, self.s.m_tiles, held)
        self.p_steps = config.block_k // self.product.step
        self.p_fragment = fragment(kernel, self.product, self.s.m_tiles, self.p_steps)
        self.stage = kernel.scalar(0) if config.stages == 2 else 0
        self.softmax = self._row_states()
        self._open_dropout()
        name_registers(self)

    def _make_cursors(self) -> None:
        """Cursors over the rows that the block reads."""
        tile = self.tile
        self.queries = tile.query_cursor("q", self.q_tile)
        targets = {"k": self.k_tile, "v": self.v_tile}
        self.keys, self.values = tile.key_cursors(targets, self.visits)
        name_registers(self)

    def _start(self) -> None:
        copies, tile, softmax = self.copies, self.tile, self.softmax
        copies.tile(self.queries, 0, tile.rows - tile.first)
        with when(self.visits.any):
            left = tile.keys - self.visits.first
            copies.tile(self.keys, 0, left)
            if self.config.stages == 2:
                copies.tile(self.values, 0, left)
        copies.commit()
        self.out.zero()
        if softmax.takes_positive_scale:  # the sign goes into Q, once
            with when(self.kernel.softmax_scale < T.float32(0)):
                copies.negate(self.queries)
        if self.config.q_in_registers:
            copies.landed()
            for step in range(self.steps):
                for m in range(self.s.m_tiles):
                    self._load_q(m, step, self.q_fragment(m, step))

    def _key_tile(self, scores: Callable, softmax: Callable, output: Callable) -> None:
        """One tile of keys: S = Q K^T, mask, softmax, O += P V.

        scores, output: take what later products read, to be asked for beside their products: the
        tensor cores are busy then. Only the first tile may reach past the end of the keys: all
        others are whole.
        """
        copies, visits = self.copies, self.visits
        copies.landed()
        if self.config.stages == 2:
            asked = [self.keys, self.values]
            other = 1 - self.stage
            parts = [p for x in asked for p in copies.parts(x, other, wanted=visits.has_next)]
            scores([*parts, copies.commit])
            softmax()
            output([])
            assign(self.stage, other)
        else:
            parts = copies.parts(self.values, 0, self.tile.keys - visits.first)
            scores([*parts, copies.commit])
            copies.landed()
            softmax()
            parts = copies.parts(self.keys, 0, wanted=visits.has_next)
            output([*parts, copies.commit])
        visits.step()

    def _scores(self, beside: Sequence[Callable[[], None]]) -> None:
        self.s.zero()
        gemm(
            self.s, self.product, self.steps, self._q_fragments,
            lambda b, step, pair: self.product.load_b(b, self.k_tile, self.stage, pair * 16, step),
            after_steps=beside,
        )  # fmt: skip

    def _q_fragments(self, step: int) -> list[list]:
        tiles = range(self.s.m_tiles)
        if self.config.q_in_registers:
            return [self.q_fragment(m, step) for m in tiles]
        for m in tiles:
            self._load_q(m, step, self.q_fragment(m, 0))
        return [self.q_fragment(m, 0) for m in tiles]

    def _load_q(self, m: int, step: int, words: list) -> None:
        row = self.kernel.warp * self.warp_rows + m * 16
        self.product.load_a(words, self.q_tile, 0, row, step)

    def _softmax(self) -> None:
        self._mask()
        self.softmax.update(self.s, self.out)
        self._drop()
        self._pack()

    def _output(self, beside: Sequence[Callable[[], None]]) -> None:
        product = self.product
        gemm(
            self.out, product, self.p_steps,
            lambda step: [self.p_fragment(m, step) for m in range(self.s.m_tiles)],
            lambda b, step, pair: product.load_b_rows(
                b, self.v_tile, self.stage, step * product.step, pair
            ),
            after_steps=beside,
        )  # fmt: skip

    def _finish(self) -> None:
        kernel, tile = self.kernel, self.tile
        self.softmax.finish()
        self.copies.landed()
        with kernel.overlay():
            out_tile = shared_tile(
                kernel, self.config.block_q, self.v_tile.columns, self.spec.dtype
            )
        self._finish_rows(out_tile)
        barrier()
        store_rows(kernel, out_tile, tile.query_rows("out"), tile.first, tile.rows)
