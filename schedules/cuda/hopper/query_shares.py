"""What two consumers add to the dQ of a query tile: dS K, each a part of it, and its way to dq_acc.

Sums lie in dq_acc by fragments of 16 x 8, as each lane's four numbers: 512 bytes that a warp adds.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.script import tirx as T

from ..arch import WARP
from ..builder import CudaKernel, emit, warp_barrier, when
from ..fragments import Accumulator, accumulator
from ..gradient_sums import InQuads
from ..tiling import KeyTile
from .backward_config import HopperBackwardConfig
from .box_tile import BoxTile
from .roles import GROUP_WARPS, Roles
from .tensor_maps import proxy_fence
from .wgmma import GROUP_ROWS, STEP, WARP_ROWS, GroupProduct, operand

_REDUCE = "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32"


class QueryShares:
    """dQ of a query tile, in accumulators ``dq`` until it is added.

    Of tiles of 64 queries a consumer has all, and the columns of its box; of 128 it has 64, and
    all columns. scores: dS as [query][key], keys: K.
    """

    def __init__(
        self, kernel: CudaKernel, config: HopperBackwardConfig, tile: KeyTile, roles: Roles,
        scores: BoxTile, keys: BoxTile,
    ):  # fmt: skip
        self._kernel, self._config, self._tile, self._roles = kernel, config, tile, roles
        self._scores, self._keys = scores, keys
        self._product = GroupProduct(scores.dtype)
        self._depth = keys.boxes * keys.box_columns
        self._by_rows = config.block_q > GROUP_ROWS
        columns = self._depth if self._by_rows else keys.box_columns
        self._order = InQuads(kernel, self._depth)
        warps, size = roles.warps, WARP_ROWS * columns
        is_bulk = config.sums == "bulk"
        self._staged = kernel.shared((warps, size), "float32", "dq_staged") if is_bulk else None
        self.dq: Accumulator
        self._n_tiles = columns // 8

    def open(self) -> None:
        """Registers of a consumer."""
        kernel, roles = self._kernel, self._roles
        self.dq = accumulator(kernel, WARP_ROWS, 8 * self._n_tiles)
        row, box = (roles.row, 0) if self._by_rows else (0, roles.group)
        self._a = operand(kernel, self._scores, row, name="ds_operand")
        self._b = operand(kernel, self._keys, box=box, name="k_columns")

    def ask(self, stage) -> None:
        """Ask for dS K, of buffer ``stage`` of dS."""
        self._product.down(self.dq, self._a, self._b, self._config.block_k // STEP, stage)

    def add(self, head, first) -> None:
        """What has landed to the sums of the query tile at ``first`` of query head ``head``."""
        add = self._add_staged if self._staged is not None else self._add_quads
        add(lambda row, column: self._tile.gradient_sum(head, row, column), first)

    def settled(self) -> None:
        """Wait until all that was staged has been added."""
        if self._staged is not None:
            with when(self._kernel.lane == 0):
                emit(T.ptx["cp.async.bulk.wait_group"](0))

    def _place(self) -> tuple:
        """Row and column, in fragments, of this warp's part."""
        group, warp = self._roles.group, self._kernel.warp % GROUP_WARPS
        return (self._kernel.warp, 0) if self._by_rows else (warp, group * self._n_tiles)

    def _add_quads(self, index: Callable, first) -> None:
        self._order.add(self.dq, index, first, self._place(), self._tile.rows)

    def _add_staged(self, index: Callable, first) -> None:
        """Through a piece of shared memory of the warp's own, whose fragments are neighbours."""
        kernel, staged, quad = self._kernel, self._staged, 4
        with when(kernel.lane == 0):
            emit(T.ptx["cp.async.bulk.wait_group.read"](0))
        warp_barrier()
        for n in range(self._n_tiles):
            at = staged.ptr_to([kernel.warp, (n * WARP + kernel.lane) * quad])
            emit(T.ptx["st.shared.v4.f32"](at, *self.dq.tile(0, n)))
        proxy_fence()
        warp_barrier()
        row, column = self._place()
        fragment = row * (self._depth // 8) + column
        with when(kernel.lane == 0):
            target = kernel.buffers["dq_acc"].ptr_to(list(index(first, fragment * WARP * quad)))
            size = T.uint32(self._n_tiles * WARP * quad * 4)
            emit(T.ptx[_REDUCE](target, staged.ptr_to([kernel.warp, 0]), size))
            emit(T.ptx["cp.async.bulk.commit_group"]())


def store_transposed(kernel: CudaKernel, tile: BoxTile, stage, step: int, words: list) -> None:
    """A fragment of 16 keys x 16 queries to rows of queries, the keys this warp's (stmatrix).

    step: which 16 queries. Lanes 8 i .. 8 i + 7 give the rows of the i-th 8 x 8 matrix, whose
    halves are keys, then queries.
    """
    lane = kernel.lane
    query = step * STEP + lane // 16 * 8 + lane % 8
    key = kernel.warp * WARP_ROWS + tirx.truncdiv(lane, 8) % 2 * 8
    place = tile.element(stage, query, key)
    emit(T.ptx["stmatrix.sync.aligned.m8n8.x4.trans.shared.b16"](place, *words))
