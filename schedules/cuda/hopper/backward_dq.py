"""dQ in order for sm_90a: a block per query tile, as the forward has them, sums over its keys.

The sister of schedules/cuda/backward_dq.py. docs/schedules/hopper-backward.md, "dQ in order".
"""

from __future__ import annotations

from ....problem.spec import AttentionSpec
from ..arch import WIDEST, CudaArch, limit_reasons
from ..builder import CudaKernel, assign, loop_while, name_registers, when
from ..entries import query_grid
from ..fragments import accumulator, fragment
from ..parameters import attention_tensors
from ..program import Launch
from ..query_gradient_rows import QueryGradientRows
from ..recompute import Recompute
from ..softmax import block_scores
from ..tensor_core import product_for
from ..tiling import round_up
from . import wgmma
from .box_tile import box_bytes, box_tile
from .forward_config import HopperForwardConfig
from .pieces import store_boxes
from .query_tiles import QueryTileBlocks
from .reasons import operand_reasons
from .ring import BARRIER_BYTES, Landing, Ring
from .tensor_maps import TensorMap, box_place, proxy_fence
from .wgmma import GROUP_ROWS, STEP, WARP_ROWS, GroupProduct, operand, words_of


def hopper_ordered_launch(
    spec: AttentionSpec, config: HopperForwardConfig, arch: CudaArch, symbol: str
) -> Launch:
    """dQ of a query tile: S = Q K^T and dP = dO V^T again, dQ += dS K in registers.

    ``config`` is read as for the forward.
    """
    return HopperQueryGradients(spec, config, symbol).launch()


def hopper_ordered_reasons(
    spec: AttentionSpec, config: HopperForwardConfig, arch: CudaArch
) -> list[str]:
    """Why ``config`` cannot serve ``spec`` on ``arch`` here, where dO is held beside Q."""
    size, widths = spec.element.bytes, (spec.head_dim, spec.head_dim_v)
    shared = BARRIER_BYTES + sum(
        box_bytes(config.block_q, width, size)
        + box_bytes(config.block_k, width, size, config.stages)
        for width in widths
    )
    own = config.tile_reasons(spec)
    if config.stages < 2:
        own.append(f"stages={config.stages} must be 2 or more: dS K comes after the next S")
    return [*own, *operand_reasons(spec, arch), *limit_reasons(spec, arch, shared, WIDEST)]


class HopperQueryGradients(QueryGradientRows, QueryTileBlocks):
    """One kernel being written; the methods follow the order of its body."""

    def __init__(self, spec: AttentionSpec, config: HopperForwardConfig, symbol: str):
        super().__init__(spec, WARP_ROWS)
        self.config = config
        self.product, self.group_product = product_for(spec.dtype), GroupProduct(spec.dtype)
        names = ("q", "k", "v", "dout", *self.statistics, "dq")
        rows = {
            "q": config.block_q, "dout": config.block_q, "k": config.block_k, "v": config.block_k,
            "dq": GROUP_ROWS,
        }  # fmt: skip
        self.kernel = CudaKernel(
            symbol, self.sig, attention_tensors(self.sig, names), query_grid(config.block_q),
            config.num_warps, tables=True, min_blocks=config.min_blocks,
            tensor_maps=[TensorMap(name, count) for name, count in rows.items()],
        )  # fmt: skip

    def allocate(self) -> None:
        kernel, config, spec = self.kernel, self.config, self.spec
        widths, dtype = (spec.head_dim, spec.head_dim_v), spec.dtype
        self.q_tile, self.do_tile = (box_tile(kernel, config.block_q, n, dtype) for n in widths)
        self.k_tile, self.v_tile = (
            box_tile(kernel, config.block_k, n, dtype, config.stages) for n in widths
        )
        self.queries = Landing(kernel, "rows")  # of Q and dO
        self.keys = Ring(kernel, "k", config.stages, self.roles.warps)
        self.values = Ring(kernel, "v", config.stages, self.roles.warps)
        name_registers(self)

    # The producer: Q and dO once, then tile after tile of K and V.

    def produce(self) -> None:
        kernel, visits = self.kernel, self.visits
        self.queries.expect(self.q_tile.stage_bytes + self.do_tile.stage_bytes)
        for name, tile in (("q", self.q_tile), ("dout", self.do_tile)):
            place = self._place(name, self.tile.head, self.tile.first)
            tile.load(kernel.maps[name], place, self.queries)
        number = kernel.scalar(0)
        with loop_while(visits.any):
            for name, ring, tile in (
                ("k", self.keys, self.k_tile), ("v", self.values, self.v_tile),
            ):  # fmt: skip
                ring.wait_empty(number)
                ring.expect(tile.stage_bytes, number)
                place = self._place(name, self.tile.kv_head, visits.first)
                tile.load(kernel.maps[name], place, ring, number)
            visits.step()
            assign(number, number + 1)

    def _place(self, name: str, head, row) -> tuple:
        return box_place(self.kernel.buffers[name], (self.tile.batch, row, head, 0))

    # A consumer: S and dP of the next tile are asked for before dS K of this one.

    def consume(self) -> None:
        self._open()
        self.dq.zero()
        self.queries.wait_full()
        with when(self.visits.any):
            self._ask_scores(self.number)
            self._dscores(pending=0)
            with loop_while(self.visits.has_next):
                self.visits.step()
                self._ask_scores(self.number + 1)
                self._ask_sums()
                assign(self.number, self.number + 1)
                self._dscores(pending=1)
            self._ask_sums()
            wgmma.wait(0, self.dq)
        self._finish()

    def _open(self) -> None:
        kernel, spec, config = self.kernel, self.spec, self.config
        self.bound = block_scores(kernel, self.scores, self.tile, self.tile.head)
        self.s = accumulator(kernel, WARP_ROWS, config.block_k)
        self.dp = accumulator(kernel, WARP_ROWS, config.block_k)
        self.dq = accumulator(kernel, WARP_ROWS, round_up(spec.head_dim, STEP))
        self.steps = config.block_k // STEP
        self.ds = fragment(kernel, self.product, self.steps)
        self.recompute = Recompute(kernel, self.scores, self.s)
        self.recompute.draw(self.tile.batch, self.tile.head)
        self.load_statistics()
        self.q = operand(kernel, self.q_tile, self.roles.row, name="q_operand")
        self.do = operand(kernel, self.do_tile, self.roles.row, name="do_operand")
        self.k = operand(kernel, self.k_tile, name="k_operand")
        self.v = operand(kernel, self.v_tile, name="v_operand")
        self.number = kernel.scalar(0, name="number")  # of the tile whose dS is next
        name_registers(self)

    def _ask_scores(self, number) -> None:
        """S and dP of tile ``number``, a group each."""
        spec = self.spec
        for ring, acc, own, keys, width in (
            (self.keys, self.s, self.q, self.k, spec.head_dim),
            (self.values, self.dp, self.do, self.v, spec.head_dim_v),
        ):
            ring.wait_full(number)
            self.group_product.along(acc, own, keys, width, ring.stage(number))

    def _ask_sums(self) -> None:
        """dQ += dS K of the tile at hand."""
        stage = self.keys.stage(self.number)
        self.group_product.add_down(self.dq, self.ds, self.k, self.steps, stage)

    def _dscores(self, pending: int) -> None:
        """dS of the tile whose S and dP are in flight, ``pending`` groups behind them.

        Both run beside these, so that it does not matter where ptxas puts exponentials.
        """
        wgmma.wait(1 + pending, self.s)
        statistics = [self.statistic(name) for name in self.spec.saved_statistics]
        columns = range(self.s.n_tiles)
        for part in self.recompute.parts(self.bound, self.site, statistics, columns):
            part()
        self.recompute.hide(self.bound, self.site, self.visits)
        wgmma.wait(pending, self.dp)
        self.values.release(self.number)
        self.recompute.dscores(self.dp, self.delta)
        if pending:
            wgmma.wait(0, self.dq, words=words_of(self.steps, self.ds))
            self.keys.release(self.number - 1)
        for step in range(self.steps):
            self.product.pack(self.ds(step), self.dp.values(0, step, self.product))

    # dQ takes the place of Q, of which TMA stores the rows that there are.

    def _finish(self) -> None:
        self.roles.meet()  # its products have read the rows of Q
        row, factor = self.kernel.warp * WARP_ROWS, self.recompute.final_factor
        self.dq.to_shared(self.product, self.q_tile, row, 0, factor)
        proxy_fence()
        self.roles.meet()
        place = self._place("dq", self.tile.head, self.tile.first + self.roles.row)
        store_boxes(self.roles, (self.q_tile, self.kernel.maps["dq"], place))
