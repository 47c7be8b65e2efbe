"""P of a step, computed again from its dot products, and dS, in the forms of gradients."""

from __future__ import annotations

from tvm.script import tirx as T

from ....definition.derive.bound import BoundGradient
from ....definition.scores import Scores

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


def linear_weights(gradient: BoundGradient):
    """Block "p": as ``recomputed_weights``, of scores that are only scaled."""

    def weight(bound, raw, lse, edge, *site):
        # The exponent before the mask: LLVM then fuses the scale's product with its difference.
        exponent = gradient.exponent(bound.scaled(raw, *site), lse)
        return gradient.exp(bound.masked(exponent, *site, edge))

    @T.inline
    def weigh(S, X, Y, P, bound, q0, k0, edge, statistics):
        for i, j in T.grid(*S.shape):
            with T.sblock("p"):
                vi, vj = T.axis.remap("SS", [i, j])
                P[vi, vj] = weight(bound, S[vi, vj], statistics[0][vi], edge, q0 + vi, k0 + vj)

    return weigh


def score_gradients(gradient: BoundGradient, scores: Scores):
    """Block "ds": the gradients dS of the dot products S, from dP and the weights of a step."""

    @T.inline
    def differentiate(S, P, P_kept, dP, delta, dS, bound, q0, k0):
        for i, j in T.grid(*S.shape):
            with T.sblock("ds"):
                vi, vj = T.axis.remap("SS", [i, j])
                by_weight = T.meta_var(
                    gradient.derivative(P[vi, vj], dP[vi, vj], delta[vi], P_kept[vi, vj])
                )
                by_score = T.meta_var(bound.gradient(S[vi, vj], q0 + vi, k0 + vj))
                dS[vi, vj] = scores.dscore(P[vi, vj], by_weight, by_score)

    return differentiate


def paired(name: str, operand, of_rows: bool):
    """A block ``name``: words of the neighbours of a column in two rows, or else of a row."""

    @T.inline
    def pair(source, to):
        for i, j in T.grid(*to.shape):
            with T.sblock(name):
                vi, vj = T.axis.remap("SS", [i, j])
                first = T.meta_var((vi * 2, vj) if of_rows else (vi, vj * 2))
                second = T.meta_var((vi * 2 + 1, vj) if of_rows else (vi, vj * 2 + 1))
                to[vi, vj] = operand.encode(source[first], source[second])

    return pair
