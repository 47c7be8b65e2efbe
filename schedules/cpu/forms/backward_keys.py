"""The gradients of a tile of keys: dV = P^T dO and dK = dS^T Q, summed over query rows."""

from __future__ import annotations

from tvm.script import tirx as T

from .regions import whole

# An inline function numbers the blocks of its second use: each gradient makes its own.


def key_gradient(name: str, dot, place):
    """A block ``name`` that adds weights^T rows to the rows of ``total`` from step s on.

    weights (rows / pack, keys) of a step; rows (rows / pack, columns) and total (keys of a tile,
    columns) have the axes that ``place(row, column)`` gives; dot multiplies two words.
    """

    @T.inline
    def add(weights, rows, total, s):
        with T.sblock(f"{name}_scope"):
            T.reads(whole([rows, weights, total]))
            T.writes(whole([total]))
            step = T.meta_var(weights.shape[1])
            columns = T.meta_var(place(*total.shape)[1])
            for x, y, i in T.grid(*place(step, columns), weights.shape[0]):
                with T.sblock(name):
                    vx, vy, vi = T.axis.remap("SSR", [x, y, i])
                    key = T.meta_var(place(vx, vy)[0])
                    col = T.meta_var(place(vx, vy)[1])
                    to = T.meta_var(place(s * step + key, col))
                    total[to] = total[to] + dot(*place(weights[vi, key], rows[place(vi, col)]))

    return add


def tile_gradient(name: str, finish=lambda total: total):
    """(zero, store) of the sums of a tile of keys: blocks "init_`name`" and "store_`name`".

    store: to the rows of the gradient from ``first`` on, each sum by ``finish``.
    """

    @T.inline
    def zero(total):
        for j, d in T.grid(*total.shape):
            with T.sblock(f"init_{name}"):
                vj, vd = T.axis.remap("SS", [j, d])
                total[vj, vd] = T.float32(0)

    @T.inline
    def store(total, rows, first):
        for j, d in T.grid(total.shape[0], rows.columns):
            with T.sblock(f"store_{name}"):
                T.where(first + j < rows.count)
                vj, vd = T.axis.remap("SS", [j, d])
                to = T.meta_var(rows.buffer)
                to[rows.index(first + vj, vd)] = T.Cast(to.dtype, finish(total[vj, vd]))

    return zero, store
