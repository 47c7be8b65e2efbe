"""Forward for sm_90a: a producer brings tiles by TMA, warp groups multiply by wgmma.

The sketch that it follows, with barriers and the order of issue: docs/schedules/hopper-forward.md.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from tvm.script import tirx as T

from ....problem.spec import AttentionSpec
from ..arch import CudaArch
from ..builder import CudaKernel, assign, if_else, loop_while, name_registers, when
from ..entries import query_grid
from ..forward_rows import ForwardRows
from ..fragments import accumulator, fragment
from ..program import Launch
from ..rows import Rows
from ..softmax import OnlineSoftmax, block_scores
from . import wgmma
from .box_tile import BoxTile, box_tile
from .forward_config import HopperForwardConfig
from .pieces import negate_rows, store_boxes, store_rows, zero_rows
from .query_tiles import QueryTileBlocks
from .ring import Landing, Ring
from .tensor_maps import TensorMap, box_place, proxy_fence
from .wgmma import GROUP_ROWS, STEP, WARP_ROWS, GroupProduct, operand, words_of


def hopper_forward_launch(
    spec: AttentionSpec, config: HopperForwardConfig, arch: CudaArch, symbol: str
) -> Launch:
    """The forward kernel of ``spec``: q, k, v, out, its statistics, tables, the call's numbers."""
    return HopperForward(spec, config, arch, symbol).launch()


class HopperForward(ForwardRows, QueryTileBlocks):
    """One kernel being written; the methods follow the order of its body."""

    def __init__(
        self, spec: AttentionSpec, config: HopperForwardConfig, arch: CudaArch, symbol: str
    ):
        super().__init__(spec, arch, WARP_ROWS)
        self.config, self.group_product = config, GroupProduct(spec.dtype)
        rows = {"q": config.block_q, "k": config.block_k, "v": config.block_k, "out": GROUP_ROWS}
        self.kernel = CudaKernel(
            symbol, self.sig, self._tensors(), query_grid(config.block_q), config.num_warps,
            tables=True, min_blocks=config.min_blocks,
            tensor_maps=[TensorMap(name, count) for name, count in rows.items()],
        )  # fmt: skip

    def allocate(self) -> None:
        kernel, config, spec = self.kernel, self.config, self.spec
        # O takes the place of Q, which may be narrower.
        widest = box_tile(kernel, config.block_q, max(spec.head_dim, spec.head_dim_v), spec.dtype)
        self.k_tile = box_tile(kernel, config.block_k, spec.head_dim, spec.dtype, config.stages)
        self.v_tile = box_tile(kernel, config.block_k, spec.head_dim_v, spec.dtype, config.stages)
        self.q_tile = replace(widest, boxes=self.k_tile.boxes)
        self.out_tile = replace(widest, boxes=self.v_tile.boxes)
        self.queries = Landing(kernel, "q")
        self.keys = Ring(kernel, "k", config.stages, self.roles.warps)
        self.values = Ring(kernel, "v", config.stages, self.roles.warps)
        name_registers(self)

    # The producer: Q, K0, then K of a tile before V of the one before it, as the consumers ask.

    def produce(self) -> None:
        kernel, visits = self.kernel, self.visits
        self.queries.expect(self.q_tile.stage_bytes)
        self.q_tile.load(kernel.maps["q"], self._place("q", self.tile.first), self.queries)
        bring_k = partial(self._bring, "k", self.keys, self.k_tile)
        bring_v = partial(self._bring, "v", self.values, self.v_tile)
        with when(visits.any):
            number, first = kernel.scalar(0), kernel.scalar(visits.first)
            bring_k(number, visits.first)
            with loop_while(visits.has_next):
                assign(first, visits.first)
                visits.step()
                bring_k(number + 1, visits.first)
                bring_v(number, first)
                assign(number, number + 1)
            bring_v(number, visits.first)

    def _bring(self, name: str, ring: Ring, tile: BoxTile, number, first) -> None:
        """Tile ``number`` of those visited, keys or values from ``first`` on."""
        ring.wait_empty(number)
        ring.expect(tile.stage_bytes, number)
        tile.load(self.kernel.maps[name], self._place(name, first), ring, number)

    def _place(self, name: str, first) -> tuple:
        rows = self._rows(name)
        return box_place(rows.buffer, rows.index(first, 0))

    def _rows(self, name: str) -> Rows:
        return (self.tile.key_rows if name in "kv" else self.tile.query_rows)(name)

    # A consumer: the next S is asked for before this tile's exponentials.

    def consume(self) -> None:
        self._open_rows()
        self.out.zero()
        self.queries.wait_full()
        if self.softmax.takes_positive_scale:  # the sign goes into Q, once
            with when(self.kernel.softmax_scale < T.float32(0)):
                negate_rows(self.q_tile, self.roles)
        with when(self.visits.any):
            self._first_tile()
            with loop_while(self.visits.has_next):
                self._next_tile()
            self.values.wait_full(self.number)
            self._ask_output()
            wgmma.wait(0, self.out)
        self._finish()

    def _open_rows(self) -> None:
        kernel, spec, config = self.kernel, self.spec, self.config
        self.bound = block_scores(kernel, self.scores, self.tile, self.tile.head)
        self.s = accumulator(kernel, WARP_ROWS, config.block_k)
        self.out = accumulator(kernel, WARP_ROWS, spec.head_dim_v)
        self.p_steps = config.block_k // STEP
        self.p_fragment = fragment(kernel, self.product, 1, self.p_steps)
        self.softmax = self._row_states()
        self._open_dropout()
        self.q = operand(kernel, self.q_tile, self.roles.row, name="q_operand")
        self.k = operand(kernel, self.k_tile, name="k_operand")
        self.v = operand(kernel, self.v_tile, name="v_operand")
        self.number = kernel.scalar(0, name="number")  # of the tile whose weights are next
        name_registers(self)

    def _first_tile(self) -> None:
        self.keys.wait_full(self.number)
        self._ask_scores(self.number)
        wgmma.wait(0, self.s)
        self.keys.release(self.number)
        self._weigh()
        self._pack()
        if self.spec.sequences == "packed":
            self._end_values()

    def _end_values(self) -> None:
        """Zeros behind the last key of the entry, which the first tile of values may have."""
        left = self.tile.keys - self.visits.first
        with when(left < self.config.block_k):
            self.values.wait_full(self.number)
            zero_rows(self.v_tile, self.values.stage(self.number), left, self.roles)

    def _next_tile(self) -> None:
        """S of the next tile and O += P V of this one; weights of the next while V is added."""
        following = self.number + 1
        self.visits.step()
        self.keys.wait_full(following)
        self._ask_scores(following)
        self.values.wait_full(self.number)
        self._ask_output()
        wgmma.wait(1, self.s)
        self.keys.release(following)
        self._weigh()
        wgmma.order_after(*self._last_made())
        wgmma.wait(0, self.out, words=words_of(self.p_steps, self._p))
        self.values.release(self.number)
        self.softmax.rescale(self.out)
        self._pack()
        assign(self.number, following)

    def _ask_scores(self, number) -> None:
        stage = self.keys.stage(number)
        self.group_product.along(self.s, self.q, self.k, self.spec.head_dim, stage)

    def _ask_output(self) -> None:
        stage = self.values.stage(self.number)
        self.group_product.add_down(self.out, self._p, self.v, self.p_steps, stage)

    def _weigh(self) -> None:
        self._mask()
        self.softmax.move(self.s)
        self.softmax.weigh(self.s)
        self._drop()

    def _p(self, step: int) -> list:
        return self.p_fragment(0, step)

    def _last_made(self) -> list:
        """Numbers, none below zero, that need all weights of the tile."""
        if isinstance(self.softmax, OnlineSoftmax):
            return [self.softmax.total[0, half] for half in range(2)]
        return [self.s.registers[element] for element in self.s.elements()]

    def _finish(self) -> None:
        self.softmax.finish()
        self.roles.meet()  # its products have read the rows of Q that O takes
        self._finish_rows(self.out_tile)
        proxy_fence()
        self.roles.meet()
        first = self.tile.first + self.roles.row
        if self.spec.sequences == "dense":
            self._store_box(first)  # rows past the last one are the tensor map's to leave out
            return
        left = self.kernel.scalar(self.tile.rows - first, name="left")
        if_else(
            left >= GROUP_ROWS,
            lambda: self._store_box(first),
            lambda: store_rows(self.out_tile, self._rows("out"), first, left, self.roles),
        )

    def _store_box(self, first) -> None:
        stored = self.out_tile, self.kernel.maps["out"], self._place("out", first)
        store_boxes(self.roles, stored)
