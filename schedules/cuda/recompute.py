"""Probabilities again from dot products and the saved lse, with the score's own gradient."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.script import tirx as T

from ...definition.pipeline import Pipeline
from .builder import CudaKernel, name_registers, store, when
from .fragments import Accumulator


class Recompute:
    """P = exp2(score - lse) and dS = P o (dP - delta) o d score / d dot, on fragments.

    Where the score is the dot product times softmax_scale, its gradient is that constant, which
    multiplies dQ and dK once at the end (``final_factor``) and not each element here.
    """

    def __init__(self, kernel: CudaKernel, scores: Pipeline, s: Accumulator):
        self.kernel, self.scores, self.s = kernel, scores, s
        scale = kernel.softmax_scale
        self.factor = kernel.scalar(scores.factor(scale), "float32") if scores.linear else None
        shape = [] if scores.linear else [(s.m_tiles, s.n_tiles, 4)]
        self._gradient = kernel.registers(shape[0], "float32") if shape else None
        name_registers(self)

    @property
    def final_factor(self):
        """What dQ and dK, summed from ``dscores``, are still to be multiplied by."""
        return self.kernel.softmax_scale if self.scores.linear else T.float32(1)

    def probabilities(self, boundary, b, h, q_index: Callable, k_index: Callable, lse2: Callable):
        """The dot products in ``s`` become P; indices and lse2 are functions of (m, n, r)."""
        s, scores, scale = self.s, self.scores, self.kernel.softmax_scale
        for m, n, r in s.elements():
            raw = s.registers[m, n, r]
            if self.factor is not None:
                score = raw * self.factor
            else:
                site = (b, h, q_index(m, n, r), k_index(m, n, r), scale)
                score = scores.scaled(raw, *site)
                store(self._gradient, (m, n, r), scores.gradient(raw, *site))
            store(s.registers, (m, n, r), scores.exp2(score - lse2(m, n, r)))
        rows = tirx.Cast("int32", scores.sig.seqlen_q)
        with when(boundary):
            for m, n, r in s.elements():
                query, key = q_index(m, n, r), k_index(m, n, r)
                seen = tirx.And(query < rows, scores.visible(b, h, query, key, scale))
                value = tirx.Select(seen, s.registers[m, n, r], T.float32(0))
                store(s.registers, (m, n, r), value)

    def dscores(self, dp: Accumulator, delta: Callable, first: int = 0) -> None:
        """dP becomes dS (but for final_factor), given P in ``s``; delta is a function of (m, n, r).

        ``dp`` may be a part: its tile columns are those from ``first`` on of ``s``.

        A hidden key has no gradient even where its score's derivative is not finite.
        """
        for m, n, r in dp.elements():
            whole = (m, first + n, r)
            p = self.s.registers[whole]
            value = p * (dp.registers[m, n, r] - delta(*whole))
            if self._gradient is not None:
                value = value * self._gradient[whole]
                value = tirx.Select(p == T.float32(0), T.float32(0), value)
            store(dp.registers, (m, n, r), value)
