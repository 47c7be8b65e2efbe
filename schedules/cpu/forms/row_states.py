"""A number of each row over the keys of a chunk: in lanes first, then over the lanes."""

from __future__ import annotations

from tvm.script import tirx as T

from ....definition.derive.bound import BoundRecurrence


def row_states(softmax: BoundRecurrence, state: str, verb: str):
    """Blocks "lane_`verb`" and "row_`verb`", which join ``state`` over the keys of each row.

    values (rows, keys), lanes (rows, W) and result (rows,); rows and groups of W keys are counted.
    """

    # An inline function numbers the blocks of its second use: each state makes its own.
    @T.inline
    def reduce(values, lanes, result, rows, groups):
        R, W = T.meta_var(lanes.shape[0]), T.meta_var(lanes.shape[1])
        for i, n, w in T.grid(rows, groups, W):
            with T.sblock(f"lane_{verb}"):
                vi = T.axis.spatial(R, i)
                vn = T.axis.reduce(T.truncdiv(values.shape[1], W), n)
                vw = T.axis.spatial(W, w)
                with T.init():
                    lanes[vi, vw] = softmax.nothing(state)
                lanes[vi, vw] = softmax.join(state, lanes[vi, vw], values[vi, vn * W + vw])
        for i, w in T.grid(rows, W):
            with T.sblock(f"row_{verb}"):
                vi = T.axis.spatial(R, i)
                vw = T.axis.reduce(W, w)
                with T.init():
                    result[vi] = softmax.nothing(state)
                result[vi] = softmax.join(state, result[vi], lanes[vi, vw])

    return reduce
