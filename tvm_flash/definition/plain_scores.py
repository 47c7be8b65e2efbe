"""The blocks that both plain definitions begin with: dot products, scores, masked scores."""

from __future__ import annotations

from tvm.script import tirx as T

from .dropout import Dropout
from .scores import Scores

# An inline function numbers the blocks of its second use: each definition makes its own.


def score_blocks(scores: Scores):
    """S = Q K^T, X = score_mod(S), Y = mask(X), float32 (B, H, Sq, Sk); "scores" to "mask"."""
    dot = dot_products("scores", scores.sig.group)

    @T.inline
    def masked_scores(Q, K, S, X, Y):
        dot(Q, K, S)
        for b, h, i, j in T.grid(*S.shape):
            with T.sblock("score_mod"):
                vb, vh, vi, vj = T.axis.remap("SSSS", [b, h, i, j])
                bound = T.meta_var(scores.at(vb, vh))
                X[vb, vh, vi, vj] = bound.scaled(S[vb, vh, vi, vj], vi, vj)
        for b, h, i, j in T.grid(*S.shape):
            with T.sblock("mask"):
                vb, vh, vi, vj = T.axis.remap("SSSS", [b, h, i, j])
                bound = T.meta_var(scores.at(vb, vh))
                Y[vb, vh, vi, vj] = bound.masked(X[vb, vh, vi, vj], vi, vj)

    return masked_scores


def dot_products(name: str, group):
    """S (B, H, Sq, Sk) = R C^T of rows R (B, Sq, H, D) and C (B, Sk, Hk, D), as block ``name``."""

    @T.inline
    def products(R, C, S):
        for b, h, i, j, d in T.grid(*S.shape, R.shape[3]):
            with T.sblock(name):
                vb, vh, vi, vj, vd = T.axis.remap("SSSSR", [b, h, i, j, d])
                with T.init():
                    S[vb, vh, vi, vj] = T.float32(0)
                S[vb, vh, vi, vj] += T.Cast("float32", R[vb, vi, vh, vd]) * T.Cast(
                    "float32", C[vb, vj, T.truncdiv(vh, group), vd]
                )

    return products


def dropout_block(dropout: Dropout):
    """Block "drop": Z (B, H, Sq, Sk), what each weight's value is multiplied by."""

    @T.inline
    def drop(Z):
        for b, h, i, j in T.grid(*Z.shape):
            with T.sblock("drop"):
                vb, vh, vi, vj = T.axis.remap("SSSS", [b, h, i, j])
                Z[vb, vh, vi, vj] = dropout.factor_at(vb, vh, vi, vj)

    return drop


def dropped(value, z):
    """``value`` times ``z``, of the block "drop"; None: there is no dropout."""
    return value if z is None else value * z
