"""Backward for sm_90a: a block per key tile holds dK and dV; Q and dO come through a ring.

The sketch that it follows, with barriers and the order of issue: docs/schedules/hopper-backward.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ....definition.scores import Scores
from ....definition.signature import Signature
from ....problem.spec import AttentionSpec
from ..arch import WARP, CudaArch
from ..builder import (
    CudaKernel,
    assign,
    forget,
    loop_while,
    name_registers,
    warp_barrier,
    when,
)
from ..entries import key_grid
from ..fragments import Accumulator, accumulator, fragment
from ..listed import visited_queries
from ..math import CudaMath
from ..parameters import attention_tensors
from ..program import Launch
from ..recompute import Recompute
from ..row_statistics import RowStatistics
from ..softmax import block_scores
from ..tensor_core import product_for
from ..tiling import KeyTile, round_up
from . import wgmma
from .backward_config import CONSUMERS, HopperBackwardConfig
from .box_tile import BoxTile, box_tile
from .pieces import store_boxes
from .query_shares import QueryShares, store_transposed
from .ring import Landing, Ring, initialised
from .roles import Roles
from .tensor_maps import TensorMap, box_place, proxy_fence
from .wgmma import GROUP_ROWS, STEP, WARP_ROWS, GroupProduct, operand, words_of


def hopper_key_gradient_launch(
    spec: AttentionSpec, config: HopperBackwardConfig, arch: CudaArch, symbol: str, with_dq: bool
) -> Launch:
    """dK and dV of a key tile; with_dq: also adds its share of dQ to dq_acc.

    S^T = K Q^T and dP^T = V dO^T, so that the accumulators of P^T and dS^T are operands of dV and
    dK; dS^T goes through shared memory for dQ alone, which mixes the keys of both consumers.
    """
    return HopperKeyGradients(spec, config, arch, symbol, with_dq).launch()


class HopperKeyGradients:
    """One kernel being written; the methods follow the order of its body."""

    def __init__(
        self, spec: AttentionSpec, config: HopperBackwardConfig, arch: CudaArch, symbol: str,
        with_dq: bool,
    ):  # fmt: skip
        self.spec, self.config, self.with_dq = spec, config, with_dq
        self.sig = Signature(spec)
        self.scores = Scores(self.sig, CudaMath())
        self.product, self.group_product = product_for(spec.dtype), GroupProduct(spec.dtype)
        self.statistics = spec.row_statistics
        names = ("q", "k", "v", "dout", *self.statistics, "dk", "dv", *["dq_acc"] * with_dq)
        rows = {
            "q": config.block_q, "dout": config.block_q, "k": config.block_k, "v": config.block_k,
            "dk": GROUP_ROWS, "dv": GROUP_ROWS,
        }  # fmt: skip
        self.kernel = CudaKernel(
            symbol, self.sig, attention_tensors(self.sig, names, config.depth(spec.head_dim)),
            key_grid(config.block_k), config.num_warps, tables=True, min_blocks=config.min_blocks,
            tensor_maps=[TensorMap(name, count) for name, count in rows.items()],
        )  # fmt: skip

    def launch(self) -> Launch:
        with self.kernel as kernel:
            self.tile = KeyTile(kernel, self.config.block_k)
            self.visits = visited_queries(kernel, self.tile, self.config.block_q)
            self.roles = Roles(kernel, CONSUMERS)
            self._allocate()
            initialised(kernel, self.keys, self.values, self.queries, self.gradients)
            beside = [self._bring_statistics] if self.statistics else []
            self.roles.run(self._produce, self._consume, *beside)
        # delta is of a launch of its own, dQ too where it is not added here.
        self.recompute.check("delta", "scores", "dp", "dq", "dk", "dv")
        return replace(kernel.launch(), only=90)

    def _allocate(self) -> None:
        kernel, config, spec = self.kernel, self.config, self.spec
        widths, dtype = (spec.head_dim, spec.head_dim_v), spec.dtype
        self.k_tile, self.v_tile = (box_tile(kernel, config.block_k, n, dtype) for n in widths)
        self.q_tile, self.do_tile = (
            box_tile(kernel, config.block_q, n, dtype, config.stages) for n in widths
        )
        if self.with_dq:
            # Two, so that one barrier a tile is enough: dS is read until the next tile's is there.
            self.ds_tile = box_tile(kernel, config.block_q, config.block_k, dtype, stages=2)
            self.shares = QueryShares(
                kernel, config, self.tile, self.roles, self.ds_tile, self.k_tile
            )
        self.keys, self.values = Landing(kernel, "k"), Landing(kernel, "v")
        # A stage holds Q and dO. Q is read longest, so that one "empty" is of both.
        self.queries = Ring(kernel, "q", config.stages, self.roles.warps)
        bringers = 1 + bool(self.statistics)
        self.gradients = Landing(kernel, "do", config.stages, bringers)
        self.s = accumulator(kernel, WARP_ROWS, config.block_q)
        self.recompute = Recompute(kernel, self.scores, self.s, is_transposed=True)
        self.row_statistics = RowStatistics(
            kernel, self.recompute, self.statistics, config.block_q, config.stages,
            threads=(kernel.lane, WARP),
        )  # fmt: skip
        name_registers(self)

    # The producer: K and V once, then tile after tile of Q and dO.

    def _produce(self) -> None:
        kernel, visits = self.kernel, self.visits
        for name, tile, once in (("k", self.k_tile, self.keys), ("v", self.v_tile, self.values)):
            once.expect(tile.stage_bytes)
            place = self._place(name, self.tile.kv_head, self.tile.first)
            tile.load(kernel.maps[name], place, once)
        number = kernel.scalar(0)
        with loop_while(number < visits.count):
            self.queries.wait_empty(number)
            self._bring("q", self.queries, self.q_tile, number)
            self._bring("dout", self.gradients, self.do_tile, number)
            self._advance(number)

    def _bring(self, name: str, landing: Landing, tile: BoxTile, number) -> None:
        landing.expect(tile.stage_bytes, number)
        place = self._place(name, self.visits.head, self.visits.first)
        tile.load(self.kernel.maps[name], place, landing, number)

    def _advance(self, number) -> None:
        self.visits.look_ahead()
        self.visits.step()
        assign(number, number + 1)

    def _place(self, name: str, head, row) -> tuple:
        return box_place(self.kernel.buffers[name], (self.tile.batch, row, head, 0))

    # Beside it a warp brings the statistics of the rows, converted; they are full with dO.

    def _bring_statistics(self) -> None:
        visits, landing = self.visits, self.gradients
        number = self.kernel.scalar(0)
        with loop_while(number < visits.count):
            index = self.tile.statistics(visits.head)
            self.row_statistics.ask(index, visits.first, self.tile.rows)
            self.queries.wait_empty(number)
            self.row_statistics.settle(landing.stage(number))
            warp_barrier()
            with when(self.kernel.lane == 0):
                landing.arrive(number)
            self._advance(number)

    # A consumer: 64 keys. S^T of the next tile is asked for before dQ of this one leaves.

    def _consume(self) -> None:
        self._open()
        self.dk.zero()
        self.dv.zero()
        self.keys.wait_full()
        self.values.wait_full()
        with when(self.visits.count > 0):
            self.queries.wait_full(self.number)
            self._ask_scores(self.number)
            wgmma.wait(0, self.s)
            last = self.kernel.scalar(self.visits.count - 1, name="last")
            with loop_while(self.number < last):
                self._query_tile(is_last=False)
            self._query_tile(is_last=True)
        self._finish()

    def _open(self) -> None:
        kernel, spec, config = self.kernel, self.spec, self.config
        self.bound = block_scores(kernel, self.scores, self.tile, self.visits.head)
        self.dp = accumulator(kernel, WARP_ROWS, config.block_q)
        self.dk = accumulator(kernel, WARP_ROWS, round_up(spec.head_dim, STEP))
        self.dv = accumulator(kernel, WARP_ROWS, round_up(spec.head_dim_v, STEP))
        self.steps = config.block_q // STEP
        self.p = fragment(kernel, self.product, self.steps)
        self.ds = fragment(kernel, self.product, self.steps)
        row = self.roles.row
        self.k = operand(kernel, self.k_tile, row, name="k_operand")
        self.v = operand(kernel, self.v_tile, row, name="v_operand")
        self.q = operand(kernel, self.q_tile, name="q_operand")
        self.do = operand(kernel, self.do_tile, name="do_operand")
        self.first_row = kernel.warp * WARP_ROWS
        self.own_query = kernel.scalar(self.s.column(0, 0))
        self.own_key = kernel.scalar(self.tile.first + self.first_row + self.s.row(0, 0))
        self.number = kernel.scalar(0, name="number")
        if self.with_dq:
            self.shares.open()
        name_registers(self)

    def _query_tile(self, is_last: bool) -> None:
        """dP^T; P^T beside it; dV; dS^T beside it; dK; dQ and S^T of the next tile."""
        number, stage = self.number, self.gradients.stage(self.number)
        if not self.spec.dropout:  # which spills less otherwise
            for place in (self.own_query, self.own_key):
                forget(place)  # else what masks make of it is kept in registers for all tiles
        self.recompute.draw(self.tile.batch, self.visits.head)
        self.gradients.wait_full(number)
        self.group_product.along(self.dp, self.v, self.do, self.spec.head_dim_v, stage)
        self._weigh(stage)
        self.group_product.add_down(self.dv, self.p, self.do, self.steps, stage)
        wgmma.wait(1, self.dp)
        delta = self._statistic("delta", stage) if self.statistics else None
        self.recompute.dscores(self.dp, delta)
        for step in range(self.steps):
            self._pack(self.ds, self.dp, step)
        self._exchange(number)
        self.group_product.add_down(self.dk, self.ds, self.q, self.steps, stage)
        (self._add_dq if self.with_dq else self._skip_dq)(number, is_last)
        if not is_last:
            wgmma.wait(0, self.s)
            self._advance(number)

    def _weigh(self, stage) -> None:
        """P^T and its fragments, 16 queries at a time: few derivatives of scores are held."""
        statistics = [self._statistic(name, stage) for name in self.spec.saved_statistics]
        per_step = self.product.tiles_per_step
        for step in range(self.steps):
            columns = range(step * per_step, (step + 1) * per_step)
            for part in self.recompute.parts(self.bound, self._site(), statistics, columns):
                part()
            self.recompute.hide(self.bound, self._site(), self.visits, columns)
            self._pack(self.p, self.s, step, self.recompute.kept)
            self.recompute.fold(columns)

    def _exchange(self, number) -> None:
        """dS to the consumer that needs it for dQ."""
        if self.with_dq:
            for step in range(self.steps):
                store_transposed(self.kernel, self.ds_tile, number % 2, step, self.ds(step))
            proxy_fence()

    def _add_dq(self, number, is_last: bool) -> None:
        """dQ, while dK is still added to; it leaves its registers beside S^T of the next tile."""
        self.roles.meet_all()
        self.shares.ask(number % 2)
        landed, words = (self.dk, self.dv, self.shares.dq), words_of(self.steps, self.p, self.ds)
        if is_last:
            wgmma.wait(0, *landed, words=words)
        else:
            wgmma.wait(1, words=words)
            self.queries.release(number)
            self._ask_next(number)
            wgmma.wait(1, *landed)
        self.shares.add(self.visits.head, self.visits.first)

    def _skip_dq(self, number, is_last: bool) -> None:
        """In the place of ``_add_dq``, where dQ is another kernel's."""
        wgmma.wait(0, self.dk, self.dv, words=words_of(self.steps, self.p, self.ds))
        if not is_last:
            warp_barrier()  # all lanes have read their statistics
            self.queries.release(number)
            self._ask_next(number)

    def _ask_next(self, number) -> None:
        self.queries.wait_full(number + 1)
        self._ask_scores(number + 1)

    def _ask_scores(self, number) -> None:
        stage = self.queries.stage(number)
        self.group_product.along(self.s, self.k, self.q, self.spec.head_dim, stage)

    def _pack(
        self, words: Callable, acc: Accumulator, step: int, part: Callable = lambda value: value
    ) -> None:
        """Step ``step`` of ``acc``, of each element the ``part``, as fragments."""
        values = map(part, acc.values(0, step, self.product))
        self.product.pack(words(step), list(values))

    def _site(self) -> tuple[Callable, Callable]:
        """Query and key of an element of S^T, by (m, n, r)."""
        return (
            lambda m, n, r: self.visits.first + self.own_query + (n * 8 + r % 2),
            lambda m, n, r: self.own_key + r // 2 * 8,
        )

    def _statistic(self, name: str, stage) -> Callable:
        return self.row_statistics.of_columns(name, stage, self.s)

    # dK and dV take the places of K and V, of which TMA stores the keys that there are.

    def _finish(self) -> None:
        self.roles.meet_all()  # dQ of either consumer has read the keys of both
        factors = self.recompute.final_factor, self.recompute.kept_factor
        pairs = ("dk", self.dk, self.k_tile), ("dv", self.dv, self.v_tile)
        for (_, acc, tile), factor in zip(pairs, factors, strict=True):
            acc.to_shared(self.product, tile, self.first_row, 0, factor)
        proxy_fence()
        self.roles.meet()
        place = partial(self._place, head=self.tile.kv_head, row=self.tile.first + self.roles.row)
        store_boxes(self.roles, *((t, self.kernel.maps[name], place(name)) for name, _, t in pairs))
        if self.with_dq:
            self.shares.settled()
