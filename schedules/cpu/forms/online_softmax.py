"""The forward's statistics from one block of keys to the next: maxima raised, sums rescaled."""

from __future__ import annotations

from tvm.script import tirx as T

from ....definition.derive.bound import BoundRecurrence
from ....definition.scores import SLACK

# An inline function numbers the blocks of its second use: each definition makes its own.


def raised_maxima(softmax: BoundRecurrence):
    """Blocks that raise group r's maxima m (G, R) to m_new (R,), if any rose by over SLACK.

    m_kept (R,) is what they are then, alpha (R,) what sums made before are multiplied by; growth
    (1,) is how far maxima rose, found in lanes (W,) first.
    """

    @T.inline
    def raise_maxima(m, m_new, m_kept, alpha, lanes, growth, r):
        R, W = T.meta_var(int(m.shape[1])), T.meta_var(int(lanes.shape[0]))
        with T.sblock("growth_scope"):
            T.reads(m[r, 0:R], m_new[0:R])
            T.writes(lanes[0:W], growth[0:1])
            for j, i in T.grid(R // W, W):
                with T.sblock("growth_lanes"):
                    vj, vi = T.axis.remap("RS", [j, i])
                    with T.init():
                        lanes[vi] = T.float32(0)
                    rise = T.meta_var(softmax.growth(m[r, vj * W + vi], m_new[vj * W + vi]))
                    lanes[vi] = T.max(lanes[vi], rise)
            for i in range(W):
                with T.sblock("growth"):
                    vi = T.axis.reduce(W, i)
                    with T.init():
                        growth[0] = T.float32(0)
                    growth[0] = T.max(growth[0], lanes[vi])
        with T.sblock("rescale_scope"):
            T.reads(m[r, 0:R], m_new[0:R], growth[0])
            T.writes(alpha[0:R], m_kept[0:R], m[r, 0:R])
            outgrown = T.meta_var(growth[0] > T.float32(SLACK))
            for i in range(R):
                with T.sblock("alpha"):
                    vi = T.axis.spatial(R, i)
                    factor = T.meta_var(softmax.factor(m[r, vi], m_new[vi]))
                    alpha[vi] = T.if_then_else(outgrown, factor, T.float32(1))
            for i in range(R):
                with T.sblock("choose_m"):
                    vi = T.axis.spatial(R, i)
                    m_kept[vi] = T.if_then_else(outgrown, m_new[vi], m[r, vi])
            for i in range(R):
                with T.sblock("keep_m"):
                    vi = T.axis.spatial(R, i)
                    m[r, vi] = m_kept[vi]

    return raise_maxima


def rescaled_sums(softmax: BoundRecurrence):
    """Blocks that add a block's l_block (R,) to group r's l (G, R), and rescale acc (G, Dv, R)."""

    @T.inline
    def rescale_sums(l, l_block, l_new, alpha, acc, growth, r):
        R, Dv = T.meta_var(int(l.shape[1])), T.meta_var(int(acc.shape[1]))
        for i in range(R):
            with T.sblock("add_l"):
                vi = T.axis.spatial(R, i)
                l_new[vi] = softmax.join("l", l[r, vi] * alpha[vi], l_block[vi])
        for i in range(R):
            with T.sblock("keep_l"):
                vi = T.axis.spatial(R, i)
                l[r, vi] = l_new[vi]
        with T.sblock("acc_scope"):
            T.where(growth[0] > T.float32(SLACK))
            T.reads(growth[0], acc[r, 0:Dv, 0:R], alpha[0:R])
            T.writes(acc[r, 0:Dv, 0:R])
            for d, i in T.grid(Dv, R):
                with T.sblock("rescale"):
                    vd, vi = T.axis.remap("SS", [d, i])
                    acc[r, vd, vi] = acc[r, vd, vi] * alpha[vi]

    return rescale_sums
