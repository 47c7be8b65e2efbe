"""P of a step, computed again from its dot products, in the forms of gradients."""

from __future__ import annotations

from tvm.script import tirx as T

from ....definition.derive.bound import BoundGradient

# An inline function numbers the blocks of its second use: each form makes its own.


def dot_products(name: str, dot):
    """A block ``name``: result (rows, keys) of rows (rows, words) and the turned keys of step s.

    turned (steps, words, keys); dot multiplies two words, of which the first ``depth`` are summed.
    """

    @T.inline
    def multiply(rows, turned, result, s, depth):
        for i, j, d in T.grid(*result.shape, depth):
            with T.sblock(name):
                vi, vj, vd = T.axis.remap("SSR", [i, j, d])
                with T.init():
                    result[vi, vj] = T.float32(0)
                result[vi, vj] = result[vi, vj] + dot(rows[vi, vd], turned[s, vd, vj])

    return multiply


def recomputed_weights(gradient: BoundGradient):
    """Blocks "score_mod", "mask" and "p": the weights P of the dot products S of a step.

    X, Y: scores, and masked ones. bound: its scores; q0, k0: where it begins; edge: whether it
    needs the mask. statistics: those of its rows that ``gradient.weight`` takes.
    """

    @T.inline
    def weigh(S, X, Y, P, bound, q0, k0, edge, statistics):
        for i, j in T.grid(*S.shape):
            with T.sblock("score_mod"):
                vi, vj = T.axis.remap("SS", [i, j])
                X[vi, vj] = bound.scaled(S[vi, vj], q0 + vi, k0 + vj)
        for i, j in T.grid(*S.shape):
            with T.sblock("mask"):
                vi, vj = T.axis.remap("SS", [i, j])
                Y[vi, vj] = bound.masked(X[vi, vj], q0 + vi, k0 + vj, edge)
        for i, j in T.grid(*S.shape):
            with T.sblock("p"):
                vi, vj = T.axis.remap("SS", [i, j])
                P[vi, vj] = gradient.weight(Y[vi, vj], *[x[vi] for x in statistics])

    return weigh
