"""dQ without atomics: a block per query tile, the keys summed in order (deterministic)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx

from ...problem.spec import AttentionSpec
from .arch import CudaArch
from .builder import CudaKernel, Tensor, barrier, loop_while, name_registers, when
from .copies import Copies, store_rows
from .entries import query_grid
from .forward import ForwardConfig
from .fragments import Accumulator, accumulator, fragment, gemm, reloading
from .listed import visited_keys
from .parameters import attention_tensors
from .program import Launch
from .query_gradient_rows import QueryGradientRows
from .recompute import Recompute
from .shared_tile import SharedTile, shared_tile
from .softmax import block_scores
from .tensor_core import product_for
from .tiling import QueryTile, round_up


def ordered_query_gradient_launch(
    spec: AttentionSpec, config: ForwardConfig, arch: CudaArch, symbol: str
) -> Launch:
    """dQ of a query tile: S = Q K^T and dP = dO V^T again, dQ += dS K in registers.

    7 products in all instead of 5, no scratch memory, no zeroing, and bits that do not depend on
    the order in which blocks run. ``config`` is read as for the forward kernel (one stage).
    """
    return QueryTileGradient(spec, config, arch, symbol).launch()


def ordered_reasons(spec: AttentionSpec, config: ForwardConfig, arch: CudaArch) -> list[str]:
    """Why ``config`` cannot serve ``spec`` on ``arch`` here, where dO is held too."""
    depth = round_up(spec.head_dim, 16) + round_up(spec.head_dim_v, 16)
    shared = spec.element.bytes * (config.block_q + config.block_k) * depth
    reasons = config.reasons(spec, arch)
    if shared > arch.shared_bytes:
        needed = f"it needs {shared} bytes of shared memory, {arch.name} has {arch.shared_bytes}"
        reasons.append(needed)
    return reasons


class QueryTileGradient(QueryGradientRows):
    """One kernel being written; the methods follow the order of its body.

    outputs: what it writes of a query tile. Another sum than dQ overrides the ``sums`` methods.
    """

    outputs = ("dq",)
    recompute_of = Recompute

    def __init__(self, spec: AttentionSpec, config: ForwardConfig, arch: CudaArch, symbol: str):
        super().__init__(spec, config.block_q // config.num_warps)
        self.config = config
        self.product = product_for(spec.dtype, turing=not arch.asynchronous_copy)
        names = ("q", "k", "v", "dout", *self.statistics, *self.outputs)
        self.kernel = CudaKernel(
            symbol, self.sig, [*attention_tensors(self.sig, names), *self.other_tensors()],
            query_grid(config.block_q), config.num_warps, tables=True,
            min_blocks=config.min_blocks,
        )  # fmt: skip
        self.copies = Copies(self.kernel, arch.asynchronous_copy)

    def launch(self) -> Launch:
        with self.kernel as kernel:
            self.tile = tile = QueryTile(kernel, self.config.block_q)
            self.bound = block_scores(kernel, self.scores, tile, tile.head)
            self._allocate()
            self.visits = visited_keys(kernel, tile.key_visits(self.config.block_k))
            self._start()
            # A warp whose rows all lie past the last one only brings tiles; the second loop finds
            # none left. Before it, not in it: docs/decisions.md, "few rows beside many".
            is_idle = tirx.Not(tile.has_row(kernel.warp * self.warp_rows))
            with when(is_idle), loop_while(self.visits.any):
                self._key_tile(lambda: None)
            with loop_while(self.visits.any):
                kernel.forget_offsets()
                self._key_tile(self._multiply)
            self.finish_sums()
        self.check()
        return kernel.launch()

    def _allocate(self) -> None:
        kernel, config, dtype = self.kernel, self.config, self.spec.dtype
        depth, depth_v = round_up(self.spec.head_dim, 16), round_up(self.spec.head_dim_v, 16)
        self.q_tile = shared_tile(kernel, config.block_q, depth, dtype)
        self.do_tile = shared_tile(kernel, config.block_q, depth_v, dtype)
        self.k_tile = shared_tile(kernel, config.block_k, depth, dtype)
        self.v_tile = shared_tile(kernel, config.block_k, depth_v, dtype)
        self.s = accumulator(kernel, self.warp_rows, config.block_k)
        self.dp = accumulator(kernel, self.warp_rows, config.block_k)
        self.allocate_sums()
        self.a = fragment(kernel, self.product, self.s.m_tiles)
        self.recompute = self.recompute_of(kernel, self.scores, self.s)
        self.recompute.draw(self.tile.batch, self.tile.head)
        name_registers(self)

    def _start(self) -> None:
        kernel, tile = self.kernel, self.tile
        for name, target in (("q", self.q_tile), ("dout", self.do_tile)):
            self.copies.rows(target, 0, tile.query_rows(name), tile.first, tile.rows)
        self.start_sums()
        self.load_statistics()
        first = self.visits.first
        self.cursors = [
            self.visits.cursor(kernel, target, tile.key_rows(name))
            for name, target in (("k", self.k_tile), ("v", self.v_tile))
        ]
        with when(self.visits.any):
            for cursor in self.cursors:
                self.copies.tile(cursor, 0, tile.keys - first)
        self.copies.commit()

    def _key_tile(self, multiply: Callable[[], None]) -> None:
        self.copies.landed()
        multiply()
        barrier()
        with when(self.visits.has_next):
            for cursor in self.cursors:  # all tiles but the first are whole
                self.copies.tile(cursor, 0)
        self.copies.commit()
        self.visits.step()

    def _multiply(self) -> None:
        self._product(self.s, self.q_tile, self.k_tile)
        statistics = [self.statistic(name) for name in self.spec.saved_statistics]
        pieces = self.recompute.parts(self.bound, self.site, statistics, range(self.s.n_tiles))
        self._product(self.dp, self.do_tile, self.v_tile, pieces)
        self.recompute.hide(self.bound, self.site, self.visits)
        self.add_sums(self.delta)

    def _product(
        self, acc: Accumulator, rows: SharedTile, keys: SharedTile, beside: Sequence = ()
    ) -> None:
        """acc = rows keys^T over the head dimension."""
        product, first = self.product, self.kernel.warp * self.warp_rows
        acc.zero()
        gemm(
            acc, product, rows.columns // product.step,
            reloading(
                self.a, acc.m_tiles,
                lambda a, m, step: product.load_a(a, rows, 0, first + m * 16, step),
            ),
            lambda b, step, pair: product.load_b(b, keys, 0, pair * 16, step),
            beside,
        )  # fmt: skip

    def other_tensors(self) -> list[Tensor]:
        """Parameters besides those that every problem has."""
        return []

    def allocate_sums(self) -> None:
        self.dq = accumulator(self.kernel, self.warp_rows, self.q_tile.columns)

    def start_sums(self) -> None:
        self.dq.zero()

    def add_sums(self, delta: Callable | None) -> None:
        """dQ += dS K."""
        self.recompute.dscores(self.dp, delta)
        product = self.product
        gemm(
            self.dq, product, self.config.block_k // product.step,
            reloading(
                self.a, self.dp.m_tiles,
                lambda a, m, step: product.pack(a, self.dp.values(m, step, product)),
            ),
            lambda b, step, pair: product.load_b_rows(
                b, self.k_tile, 0, step * product.step, pair
            ),
        )  # fmt: skip

    def finish_sums(self) -> None:
        kernel, tile = self.kernel, self.tile
        self.copies.landed()
        with kernel.overlay():
            staged = shared_tile(kernel, self.config.block_q, self.q_tile.columns, self.spec.dtype)
        first = kernel.warp * self.warp_rows
        self.dq.to_shared(self.product, staged, first, 0, self.recompute.final_factor)
        barrier()
        store_rows(kernel, staged, tile.query_rows("dq"), tile.first, tile.rows)
