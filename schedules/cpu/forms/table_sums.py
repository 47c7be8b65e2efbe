"""What a tile of pairs adds to gradients of tables, summed over the axes that an index has not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.script import tirx as T

from ....score.loads import Load
from .regions import whole

# Columns in which a sum over keys is added up first: lanes of the widest vector.
PARTS = 16


def in_turn(steps: Sequence[Callable]) -> Callable:
    """An inline function that calls ``steps``, inline functions of the same five arguments."""
    if not steps:

        @T.inline
        def nothing(a, b, c, d, e):
            pass

        return nothing
    first, others = steps[0], in_turn(steps[1:])

    @T.inline
    def both(a, b, c, d, e):
        first(a, b, c, d, e)
        others(a, b, c, d, e)

    return both


def shares_of(number: int, scores, gradient):
    """Block "share_`number`": what each pair adds to the element that read ``number`` took.

    Into G, (rows, keys) for each read, of P and what dropout leaves of it, dP, delta and the dot
    products; at(i, j): the read's ``TableGradient`` there.
    """

    @T.inline
    def share(G, weights, dP, delta, at):
        P = T.meta_var(weights[0])
        for i, j in T.grid(*P.shape):
            with T.sblock(f"share_{number}"):
                vi, vj = T.axis.remap("SS", [i, j])
                G[number][vi, vj] = scores.dscore(
                    P[vi, vj],
                    gradient.derivative(P[vi, vj], dP[vi, vj], delta[vi], weights[1][vi, vj]),
                    at(number, vi, vj).slope,
                )

    return share


def sums_of(number: int, load: Load):
    """The sum of the shares of read ``number`` over the pairs of a tile that have one element, and
    its way into copy ``part`` of the table's gradient."""
    by_row, by_key = (bool({"score", axis} & load.symbols) for axis in ("q_idx", "k_idx"))
    add = _added(number)

    @T.inline
    def of_pairs(G, D, part, at, _):
        add(G[number], D, part, at)

    @T.inline
    def of_rows(G, D, part, at, _):
        lanes = T.sblock_alloc_buffer((G[number].shape[0], PARTS), "float32")
        sums = T.sblock_alloc_buffer((G[number].shape[0], 1), "float32")
        for i, n, l in T.grid(G[number].shape[0], G[number].shape[1] // PARTS, PARTS):
            with T.sblock(f"lanes_{number}"):
                vi, vn, vl = T.axis.remap("SRS", [i, n, l])
                with T.init():
                    lanes[vi, vl] = T.float32(0)
                lanes[vi, vl] = lanes[vi, vl] + G[number][vi, vn * PARTS + vl]
        for i, l in T.grid(G[number].shape[0], PARTS):
            with T.sblock(f"rows_{number}"):
                vi, vl = T.axis.remap("SR", [i, l])
                with T.init():
                    sums[vi, 0] = T.float32(0)
                sums[vi, 0] = sums[vi, 0] + lanes[vi, vl]
        add(sums, D, part, at)

    @T.inline
    def of_keys(G, D, part, at, _):
        sums = T.sblock_alloc_buffer((1, G[number].shape[1]), "float32")
        for i, j in T.grid(G[number].shape[0], G[number].shape[1]):
            with T.sblock(f"keys_{number}"):
                vi, vj = T.axis.remap("RS", [i, j])
                with T.init():
                    sums[0, vj] = T.float32(0)
                sums[0, vj] = sums[0, vj] + G[number][vi, vj]
        if by_key:
            add(sums, D, part, at)
        else:
            total = T.sblock_alloc_buffer((1, 1), "float32")
            for j in range(G[number].shape[1]):
                with T.sblock(f"total_{number}"):
                    vj = T.axis.reduce(G[number].shape[1], j)
                    with T.init():
                        total[0, 0] = T.float32(0)
                    total[0, 0] = total[0, 0] + sums[0, vj]
            add(total, D, part, at)

    return of_keys if not by_row else of_pairs if by_key else of_rows


def _added(number: int):
    """Block "add_`number`": each sum to its element, one after the other."""

    @T.inline
    def add(sums, D, part, at):
        for i, j in T.grid(*sums.shape):
            with T.sblock(f"add_{number}"):
                vi, vj = T.axis.remap("SS", [i, j])
                T.reads(whole([sums, D[number]]))
                T.writes(whole([D[number]]))
                one = T.meta_var(at(number, vi, vj))
                to = T.meta_var((part, *one.index))
                target = T.meta_var(D[number])
                if one.kept:
                    target[to] = target[to] + sums[vi, vj]

    return add
