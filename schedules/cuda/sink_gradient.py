"""The gradient of each head's sink: what its rows add, in a fixed order; a block per head."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from ...definition.arithmetic import sequences_of
from ...definition.derive.bound import BoundGradient
from ...definition.kinds import gradient_of, row_numbers
from ...definition.signature import Signature
from ...problem.spec import AttentionSpec
from .builder import CudaKernel, assign, barrier, loop_while, store, when
from .math import CudaMath
from .parameters import parameter_tensors
from .program import Launch
from .row_kernels import join_lanes

_WARPS = 8


def sink_gradient_launch(spec: AttentionSpec, symbol: str) -> Launch:
    """dsink (H,) float32 of the saved statistics and delta; rows of no entry have lse -inf."""
    sig, gradient = Signature(spec), BoundGradient(gradient_of(spec.softmax), CudaMath())
    names = (*spec.saved_statistics, "delta", "dsink", *sig.inputs)
    tensors = parameter_tensors(sig, names)
    with CudaKernel(symbol, sig, tensors, lambda sizes: (sizes["H"], 1, 1), _WARPS) as kernel:
        buffers, head = kernel.buffers, kernel.block
        totals = kernel.shared((_WARPS,), "float32", "totals")
        sink = kernel.scalar(row_numbers(sig, head, buffers)["sink"], "float32")
        entries, rows, sequences = sequences_of(sig).every_query(sig.batch)
        number = kernel.scalar(tirx.Cast("int64", kernel.thread), "int64", name="number")
        total = kernel.scalar(T.float32(0), "float32", name="total")
        with loop_while(number < entries * rows):
            entry, row = tirx.truncdiv(number, rows), tirx.truncmod(number, rows)
            at = sequences.statistic(entry, head, row)
            lse, *low = (buffers[name][at] for name in spec.saved_statistics)
            weight = kernel.scalar(gradient.weight(sink, gradient.row(lse), *low), "float32")
            assign(total, total + gradient.by_sink(weight, buffers["delta"][at]))
            assign(number, number + kernel.threads)
        join_lanes(total, lambda a, b: a + b)
        with when(kernel.lane == 0):
            store(totals, (kernel.warp,), total)
        barrier()
        with when(kernel.warp == 0):
            inside = kernel.lane < _WARPS
            own = totals[tirx.Select(inside, kernel.lane, 0)]
            assign(total, tirx.Select(inside, own, T.float32(0)))
            join_lanes(total, lambda a, b: a + b)
            with when(kernel.lane == 0):
                store(buffers["dsink"], (head,), total)
    return kernel.launch()
