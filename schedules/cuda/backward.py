"""Backward for tensor-core GPUs: a block per key tile holds dK and dV (FlashAttention-2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from tvm import tirx

from ...definition.scores import Scores
from ...definition.signature import Signature
from ...problem.spec import AttentionSpec
from .arch import CudaArch
from .backward_config import BackwardConfig
from .builder import CudaKernel, assign, barrier, forget, loop, name_registers, when
from .copies import Copies, each, store_rows
from .entries import key_grid
from .fragments import Accumulator, accumulator, fragment
from .key_share import KeyShare
from .listed import visited_queries
from .math import CudaMath
from .parameters import attention_tensors
from .program import Launch
from .query_sums import QuerySums
from .query_tiles import QueryTiles
from .recompute import Recompute
from .row_statistics import RowStatistics
from .shared_tile import shared_tile
from .softmax import block_scores
from .tensor_core import product_for
from .tiling import KeyTile


def key_gradient_launch(
    spec: AttentionSpec, config: BackwardConfig, arch: CudaArch, symbol: str, with_dq: bool
) -> Launch:
    """dK and dV of a key tile; with_dq: also adds its share of dQ to dq_acc, atomically.

    S^T = K Q^T and dP^T = V dO^T are computed transposed: the accumulators of P^T and dS^T are then
    the A operands of dV += P^T dO and dK += dS^T Q without leaving registers. Only dS^T goes
    through shared memory, for dQ += dS K, which mixes the keys of all warps.
    """
    return _KeyGradients(spec, config, arch, symbol, with_dq).launch()


class _KeyGradients:
    """One kernel being written; the methods follow the order of its body."""

    def __init__(self, spec, config: BackwardConfig, arch: CudaArch, symbol: str, with_dq: bool):
        self.spec, self.config, self.with_dq = spec, config, with_dq
        self.sig = Signature(spec)
        self.scores = Scores(self.sig, CudaMath())
        self.product = product_for(spec.dtype, turing=not arch.asynchronous_copy)
        self.split = config.column_groups
        self.depth, self.depth_v = config.depth(spec.head_dim), config.depth(spec.head_dim_v)
        self.statistics = spec.row_statistics
        names = ("q", "k", "v", "dout", *self.statistics, "dk", "dv")
        tensors = attention_tensors(self.sig, (*names, *["dq_acc"] * with_dq), self.depth)
        self.kernel = CudaKernel(
            symbol, self.sig, tensors, key_grid(config.block_k), config.num_warps,
            tables=True, min_blocks=config.min_blocks,
        )  # fmt: skip
        self.copies = Copies(self.kernel, arch.asynchronous_copy)

    def launch(self) -> Launch:
        with self.kernel as kernel:
            self.tile = KeyTile(kernel, self.config.block_k)
            self.share = KeyShare(kernel, self.product, self.config)
            self._allocate()
            self.visits = visited_queries(kernel, self.tile, self.config.block_q)
            self.queries = QueryTiles(
                kernel, self.copies, self.tile, self.visits,
                {"q": self.q_tile, "dout": self.do_tile}, self.row_statistics,
            )  # fmt: skip
            self.bound = block_scores(kernel, self.scores, self.tile, self.visits.head)
            self._start()
            has_keys = self.tile.has_key(self.share.first_key(0))
            with when(tirx.Not(has_keys)):
                self._leave_zeros()
                self._query_tiles(lambda stage, asked: each(asked), lambda stage: None)
            with when(has_keys):
                self._query_tiles(self._own_products, self._other_products)
            self._finish()
        # delta is of a launch of its own, dQ too where it is not added here.
        self.recompute.check("delta", "scores", "dp", "dq", "dk", "dv")
        return kernel.launch()

    def _allocate(self) -> None:
        kernel, config, dtype = self.kernel, self.config, self.spec.dtype
        stages, rows = config.stages, config.block_q
        self.k_tile = shared_tile(kernel, config.block_k, self.depth, dtype)
        self.v_tile = shared_tile(kernel, config.block_k, self.depth_v, dtype)
        self.q_tile = shared_tile(kernel, rows, self.depth, dtype, stages)
        self.do_tile = shared_tile(kernel, rows, self.depth_v, dtype, stages)
        if self.with_dq or self.split > 1:
            self.ds_tile = shared_tile(kernel, config.block_k, rows, dtype)
            read = self.ds_tile, self.k_tile
            self.query_sums = QuerySums(kernel, self.product, config, self.tile, *read)
        if self.split > 1:
            self.p_tile = shared_tile(kernel, config.block_k, rows, dtype)
        keys, queries = self.share.keys, self.share.queries
        self.s = accumulator(kernel, keys, queries)
        self.dp = accumulator(kernel, keys, queries // config.dp_parts)
        self.dk = accumulator(kernel, keys, self.depth // self.split)
        self.dv = accumulator(kernel, keys, self.depth_v // self.split)
        self.a = fragment(kernel, self.product, self.s.m_tiles)
        self.ds_fragment = fragment(kernel, self.product, self.s.m_tiles)
        self.recompute = Recompute(kernel, self.scores, self.s, is_transposed=True)
        self.own_query = kernel.scalar(self.share.query_column(self.s, 0, 0))
        self.own_key = kernel.scalar(self.tile.first + self.share.key_row(self.s, 0, 0))
        self.row_statistics = RowStatistics(kernel, self.recompute, self.statistics, rows, stages)
        name_registers(self)

    def _start(self) -> None:
        tile = self.tile
        for name, target in (("k", self.k_tile), ("v", self.v_tile)):
            self.copies.rows(target, 0, tile.key_rows(name), tile.first, tile.keys)
        with when(self.visits.count > 0):
            self.queries.ask_first()
            self.row_statistics.settle(0)
        self.copies.commit()
        self.dk.zero()
        self.dv.zero()

    def _leave_zeros(self) -> None:
        """What a warp without keys has for the dQ of all tiles."""
        if self.with_dq:
            for word in (w for m in range(self.s.m_tiles) for w in self.ds_fragment(m)):
                assign(word, tirx.const(0, "uint32"))
            for step in range(self.share.queries // self.product.step):
                self.share.exchange(self.s, self.ds_fragment, self.ds_tile, step)

    def _query_tiles(self, own: Callable, others: Callable) -> None:
        """S^T and dP^T, P and dS of all tiles, then what they add to dV, dK and dQ.

        own(stage, asked): this warp's products of its own queries, from registers, before the block
        meets; others(stage): of those of the warps that share its keys, from shared memory, after
        that. A warp without keys has none, and does what all do together.
        """
        with loop(self.visits.count) as number:
            self.kernel.forget_offsets()
            # Else there are registers for all that is made of these; spans take a few.
            if self.split > 2 or self.kernel.sig.spans:
                forget(self.own_key)
            if self.split > 2:
                forget(self.own_query)
            self._query_tile(number, own, others)

    def _query_tile(self, number, own: Callable, others: Callable) -> None:
        double = self.config.stages == 2
        self.recompute.draw(self.tile.batch, self.visits.head)
        stage = tirx.truncmod(number, 2) if double else 0
        self.copies.landed()
        asked = self.queries.next_parts(number, 1 - stage) if double else []
        own(stage, asked)
        if self.split > 1:
            barrier()
            others(stage)
        # dS is complete for dQ, and Q and dO are free; split warps have met after dS already.
        if not double or (self.with_dq and self.split == 1):
            barrier()
        if not double:
            each(self.queries.next_parts(number, 0))
        if self.with_dq:
            self.query_sums.add(self.visits.head, self.visits.first)
        self.row_statistics.settle(1 - stage if double else 0)
        self.visits.step()

    def _own_products(self, stage, asked: Sequence[Callable]) -> None:
        self.share.transposed_product(self.s, self.a, self.k_tile, self.q_tile, stage, 0, asked)
        for first in range(0, self.s.n_tiles, self.dp.n_tiles):
            self._own_queries(first, stage)

    def _other_products(self, stage) -> None:
        self.share.add_others(self.dv, self.a, self.p_tile, self.do_tile, stage)
        self.share.add_others(self.dk, self.a, self.ds_tile, self.q_tile, stage)

    def _own_queries(self, first: int, stage) -> None:
        """A part of this warp's queries: tile columns first .. of S^T, as many as dP^T has."""
        statistics = [self._statistic(name, stage) for name in self.spec.saved_statistics]
        tiles, per_step = self.dp.n_tiles, self.product.tiles_per_step
        own = range(first, first + tiles)
        columns = self.recompute.parts(self.bound, self._site(), statistics, own)
        self.share.transposed_product(
            self.dp, self.a, self.v_tile, self.do_tile, stage, first * 8, columns
        )
        self.recompute.hide(self.bound, self._site(), self.visits, own)
        delta = self._statistic("delta", stage) if self.statistics else None
        for start in range(0, tiles, per_step):
            own = range(start, start + per_step)
            dscores = partial(self.recompute.dscores, self.dp, delta, first, own)
            self._own_step((first + start) // per_step, start // per_step, dscores, stage)

    def _own_step(self, step: int, step_in_part: int, dscores: Callable, stage) -> None:
        """A step of dV += P^T dO, with dS made beside it, then of dK += dS^T Q.

        Stores come after the loads of the same step, which could not pass them.
        """
        p, ds, share = self.a, self.ds_fragment, self.share
        group, exchange = share.column_group, partial(share.exchange, self.s)
        self._pack(p, self.s, step, self.recompute.kept)
        beside = [partial(exchange, p, self.p_tile, step)] if self.split > 1 else []
        beside += [dscores, partial(self._pack, ds, self.dp, step_in_part)]
        share.add(self.dv, p, self.do_tile, stage, group, step, beside)
        exchanged = self.with_dq or self.split > 1
        beside = [partial(exchange, ds, self.ds_tile, step)] if exchanged else []
        share.add(self.dk, ds, self.q_tile, stage, group, step, beside)

    def _site(self) -> tuple[Callable, Callable]:
        """Query and key of an element of S^T, by (m, n, r)."""
        return (
            lambda m, n, r: self.visits.first + self.own_query + (n * 8 + r % 2),
            lambda m, n, r: self.own_key + (m * 16 + r // 2 * 8),
        )

    def _pack(
        self, words: Callable, acc: Accumulator, step: int, part: Callable = lambda value: value
    ) -> None:
        """Step ``step`` of ``acc``, of each element the ``part``, as A fragments."""
        for m in range(acc.m_tiles):
            values = map(part, acc.values(m, step, self.product))
            self.product.pack(words(m), list(values))

    def _finish(self) -> None:
        """dK and dV through shared memory, so that global stores are whole lines."""
        kernel, rows, dtype, tile = self.kernel, self.config.block_k, self.spec.dtype, self.tile
        self.copies.landed()
        with kernel.overlay():
            dk_tile = shared_tile(kernel, rows, self.depth, dtype)
            dv_tile = shared_tile(kernel, rows, self.depth_v, dtype)
        first, group = self.share.first_key(0), self.share.column_group * 8
        factors = self.recompute.final_factor, self.recompute.kept_factor
        self.dk.to_shared(self.product, dk_tile, first, group * self.dk.n_tiles, factors[0])
        self.dv.to_shared(self.product, dv_tile, first, group * self.dv.n_tiles, factors[1])
        barrier()
        for name, staged in (("dk", dk_tile), ("dv", dv_tile)):
            store_rows(kernel, staged, tile.key_rows(name), tile.first, tile.keys)

    def _statistic(self, name: str, stage) -> Callable:
        """The statistic of the query that element (m, n, r) of S^T belongs to."""
        return self.row_statistics.of_columns(name, stage, self.s, self.share.first_query)
