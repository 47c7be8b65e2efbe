"""dQ of a block of rows, where rows past the end of an entry are another's, which others add to."""

from __future__ import annotations

from tvm.script import tirx as T

# An inline function numbers the blocks of its second use: each definition makes its own.


def query_gradient():
    """(zero, add) of a block's sums (block_q, columns): blocks "init_dq" and "add_dq".

    add: the rows below ``count``, from ``first`` on, to copy ``copy`` of the sums of all rows.
    """

    @T.inline
    def zero(block):
        for i, d in T.grid(*block.shape):
            with T.sblock("init_dq"):
                vi, vd = T.axis.remap("SS", [i, d])
                block[vi, vd] = T.float32(0)

    @T.inline
    def add(block, total, copy, index, first, count):
        for i, d in T.grid(*block.shape):
            with T.sblock("add_dq"):
                T.where(first + i < count)
                vi, vd = T.axis.remap("SS", [i, d])
                to = T.meta_var((copy, *index(first + vi, vd)))
                total[to] = total[to] + block[vi, vd]

    return zero, add
