"""A number of each row over the keys of a chunk: in lanes first, then over the lanes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm.script import tirx as T

from ....definition.derive.bound import BoundRecurrence


def row_states(softmax: BoundRecurrence, state: str, verb: str, lanes: int):
    """Blocks "lane_`verb`" and "row_`verb`", which join ``state`` over the keys of one row.

    values (keys,), of which whole groups of ``lanes`` are counted; result (rows,).
    """
    join = partial(softmax.join, state)

    # An inline function numbers the blocks of its second use: each state makes its own.
    @T.inline
    def reduce(values, result, row, groups):
        parts = T.sblock_alloc_buffer((lanes,), "float32")
        for n, w in T.grid(groups, lanes):
            with T.sblock(f"lane_{verb}"):
                vn = T.axis.reduce(T.truncdiv(values.shape[0], lanes), n)
                vw = T.axis.spatial(lanes, w)
                with T.init():
                    parts[vw] = softmax.nothing(state)
                parts[vw] = join(parts[vw], values[vn * lanes + vw])
        with T.sblock(f"row_{verb}"):
            result[row] = in_pairs(join, [parts[w] for w in range(lanes)])

    return reduce


def in_pairs(join: Callable, values: list):
    """All ``values`` joined, a power of two: neighbours first, so that few wait for others."""
    while len(values) > 1:
        values = [join(*pair) for pair in zip(values[::2], values[1::2], strict=True)]
    return values[0]
