"""What comes before and after the backward's products: delta of the rows, dQ out of its sums."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.script import tirx as T

from ...definition.derive.bound import BoundGradient
from ...definition.kinds import gradient_of
from ...definition.scores import Scores
from ...definition.signature import Signature
from ...problem.spec import AttentionSpec
from .arch import FULL_WARP, CudaArch
from .builder import WARP, CudaKernel, assign, barrier, store, when
from .copies import store_rows
from .entries import find_row, query_grid, row_grid
from .gradient_sums import sum_order
from .math import CudaMath
from .parameters import parameter_tensors
from .program import Launch
from .shared_tile import shared_tile
from .tensor_core import product_for
from .tiling import QueryTile

_WARPS = 4


def join_lanes(register, join: Callable) -> None:
    """Combine over the lanes of a warp, in place; all of them get the result."""
    for distance in (16, 8, 4, 2, 1):
        other = T.tvm_warp_shuffle_xor(T.uint32(FULL_WARP), register, distance, WARP, WARP)
        assign(register, join(register, other))


def delta_launch(spec: AttentionSpec, symbol: str) -> Launch:
    """delta of the rows, (B, H, Sq) float32: a warp per row."""
    sig, gradient = Signature(spec), BoundGradient(gradient_of(spec.softmax))
    names = ("out", "dout", "dlse", "delta")
    with CudaKernel(symbol, sig, parameter_tensors(sig, names), row_grid(_WARPS), _WARPS) as kernel:
        tile, buffers = QueryTile(kernel, _WARPS, find_row), kernel.buffers
        row = kernel.scalar(tile.first + kernel.warp)
        total = kernel.registers((1,), "float32")
        store(total, (0,), T.float32(0))
        with when(row < tile.rows):
            for start in range(0, spec.head_dim_v, WARP):
                column = kernel.lane + start
                at = tile.query_rows("out").index(row, column)
                product = gradient.delta_term(
                    *(tirx.Cast("float32", buffers[name][at]) for name in ("out", "dout"))
                )
                if start + WARP <= spec.head_dim_v:
                    store(total, (0,), total[0] + product)
                else:
                    with when(column < spec.head_dim_v):
                        store(total, (0,), total[0] + product)
        join_lanes(total[0], lambda a, b: a + b)
        with when(tirx.And(kernel.lane == 0, row < tile.rows)):
            at = tile.statistic(row)
            store(buffers["delta"], at, total[0] + gradient.delta_start(buffers["dlse"][at]))
    return kernel.launch()


def query_gradient_launch(
    spec: AttentionSpec, arch: CudaArch, symbol: str, block_q: int, depth: int,
    order_of: Callable = sum_order,
) -> Launch:  # fmt: skip
    """dQ of the sums in dq_acc, which lie as ``order_of`` says: a block per query tile.

    block_q, depth: rows and columns of a tile of dq_acc.
    """
    sig = Signature(spec)
    scores = Scores(sig, CudaMath())
    product = product_for(spec.dtype, turing=not arch.asynchronous_copy)

    tensors = parameter_tensors(sig, ("dq", "dq_acc"), depth)
    with CudaKernel(symbol, sig, tensors, query_grid(block_q), _WARPS) as kernel:
        tile = QueryTile(kernel, block_q)
        staged = shared_tile(kernel, block_q, depth, spec.dtype)
        factor = kernel.softmax_scale if scores.scale_only else T.float32(1)
        dq_acc, order = kernel.buffers["dq_acc"], order_of(kernel, depth)
        for start in range(0, block_q // 16 * (depth // 8), _WARPS):
            number = kernel.warp + start
            with when(number < block_q // 16 * (depth // 8)):
                sums = [
                    dq_acc[tile.gradient_sum(*order.place(tile.first, number, r))] for r in range(4)
                ]
                for half in range(2):
                    row = tirx.truncdiv(number, depth // 8) * 16 + half * 8 + kernel.lane // 4
                    column = tirx.truncmod(number, depth // 8) * 8 + kernel.lane % 4 * 2
                    low, high = (sums[2 * half + odd] * factor for odd in range(2))
                    product.store_pair(staged, row, column, low, high)
        barrier()
        store_rows(kernel, staged, tile.query_rows("dq"), tile.first, tile.rows)
    return kernel.launch()
