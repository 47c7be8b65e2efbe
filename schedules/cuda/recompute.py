"""Probabilities again from dot products and the saved lse, with the score's own gradient."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

from tvm import tirx
from tvm.script import tirx as T

from ...definition.derive.bound import BoundGradient
from ...definition.dropout import Dropout
from ...definition.kinds import gradient_of
from ...definition.score_expressions import mask_expr, window_expr
from ...definition.scores import LOG2E, BoundScores, Scores
from ...problem.spec import has_sum
from .builder import CudaKernel, name_registers, store, when
from .dropout import FragmentDropout
from .fragments import Accumulator
from .math import CudaMath
from .tiling import KeyVisits, QueryVisits


class Recompute:
    """P = exp(score - lse) and dS = P o (dP - delta) o d score / d dot, on fragments.

    Where the score is the dot product times softmax_scale, its gradient is that constant, which
    multiplies dQ and dK once at the end (``final_factor``) and not each element here.

    What dropout drops of P is negative, so that no other registers tell it. is_transposed: ``s`` is
    of keys by queries.
    """

    def __init__(
        self, kernel: CudaKernel, scores: Scores, s: Accumulator, is_transposed: bool = False
    ):
        self.kernel, self.scores, self.s = kernel, scores, s
        self._hides_by_tile = bool(scores.spec.block_mask and scores.spec.mask_mod)
        has_dropout = scores.spec.dropout
        self.dropout = FragmentDropout(kernel, s, is_transposed) if has_dropout else None
        factor = Dropout(scores.sig).factor if has_dropout else None
        self.gradient = BoundGradient(gradient_of(scores.spec.softmax), CudaMath(), factor)
        factor = kernel.softmax_scale * T.float32(LOG2E)
        self.factor = kernel.scalar(factor, "float32") if scores.scale_only else None
        if scores.scale_only:
            scores.used.add("score_mod")  # all of it is the factor
        shape = [] if scores.scale_only else [(s.m_tiles, s.n_tiles, 4)]
        self._gradient = kernel.registers(shape[0], "float32") if shape else None
        self._is_folded = False
        name_registers(self)

    @property
    def final_factor(self):
        """What dQ and dK, summed from ``dscores``, are still to be multiplied by."""
        return self.kernel.softmax_scale if self.scores.scale_only else T.float32(1)

    def converted(self, name: str, statistic):
        """A statistic as ``weights`` and ``dscores`` take it, each row's made once."""
        if name == "lse":
            lse = self.gradient.row(statistic)
            return lse if self.factor is None else lse * T.float32(LOG2E)
        return statistic * T.float32(LOG2E) if name == "lse_low" else statistic

    def weights(
        self, bound: BoundScores, q_index: Callable, k_index: Callable,
        lse: Callable | None = None, lse_low: Callable | None = None,
        columns: Collection[int] | None = None,
    ) -> None:  # fmt: skip
        """The dot products in ``s`` become P.

        Indices and statistics, ``converted``, are functions of (m, n, r); lse None: a row has no
        sum. columns: of tiles; None is all. The mask is applied to every tile: a branch around it
        would keep the compiler from mixing these instructions with products, which hide them. Only
        a mask_mod beside lists of blocks, which hides nothing in most tiles, is left to ``hide``.
        """
        s, hiding = self.s, window_expr if self._hides_by_tile else mask_expr
        for m, n, r in s.elements(columns):
            raw, site = s.registers[m, n, r], (q_index(m, n, r), k_index(m, n, r))
            seen = bound.visible(*site, hiding)
            if lse is None:
                self._weigh_alone(bound, (m, n, r), site, seen)
                continue
            if self.factor is not None:
                # Rows past the last one add nothing: they are zeros, or not stored (backward_dq).
                exponent = self.gradient.exponent(raw * self.factor, lse(m, n, r))
            else:
                seen = tirx.And(site[0] < bound.rows, seen)
                score = bound.scaled(raw, *site)
                exponent = self.gradient.exponent(score, lse(m, n, r)) * T.float32(LOG2E)
                store(self._gradient, (m, n, r), self.held(bound, raw, *site))
            if lse_low is not None:
                exponent = self.gradient.lowered(exponent, lse_low(m, n, r))
            exponent = tirx.Select(seen, exponent, T.float32(float("-inf")))
            store(s.registers, (m, n, r), tirx.exp2(exponent))

    def hide(
        self, bound: BoundScores, site: tuple[Callable, Callable], visits: KeyVisits | QueryVisits,
        columns: Collection[int] | None = None,
    ) -> None:  # fmt: skip
        """P of what mask_mod hides becomes 0, where a list of blocks says that it hides any.

        visits: of lists (``listed``), which alone have ``hides``; else nothing is done.
        """
        if not self._hides_by_tile:
            return
        p, nothing = self.s.registers, T.float32(0)
        with when(visits.hides):
            for at in self.s.elements(columns):
                shown = bound.shown(*(index(*at) for index in site))
                store(p, at, tirx.Select(shown, p[at], nothing))

    def draw(self, b, h) -> None:
        """Drop weights of entry ``b`` and query head ``h`` from now on, where there is dropout."""
        if self.dropout is not None:
            self.dropout.at(b, h)

    def parts(
        self, bound: BoundScores, site: tuple[Callable, Callable], statistics: Sequence[Callable],
        columns: Sequence[int],
    ) -> list[Callable[[], None]]:  # fmt: skip
        """``weights`` as a piece of work for each of ``columns``, which begin at an even one."""
        weights = partial(self.weights, bound, *site, *statistics)
        return [partial(self._weights_of, weights, site, n) for n in columns]

    def _weights_of(self, weights: Callable, site: tuple, n: int) -> None:
        weights(columns=[n])
        if self.dropout is not None and n % 2:
            self.dropout.each(*site, self._mark, [n - 1])

    def _mark(self, m: int, n: int, r: int, is_kept) -> None:
        p = self.s.registers[m, n, r]
        store(self.s.registers, (m, n, r), tirx.Select(is_kept, p, T.float32(0) - p))

    def kept(self, p):
        """A weight of ``s``, 0 where it is dropped, but for ``kept_factor``."""
        return p if self.dropout is None else self.gradient.keep(p, p > T.float32(0))

    @property
    def kept_factor(self):
        """What dV, summed from ``kept`` weights, is still to be multiplied by."""
        return self.gradient.magnified(T.float32(1))

    def fold(self, columns: Collection[int]) -> None:
        """Multiply P, whose fragments have been made, by the derivative of its score.

        ``dscores`` finds the product there, and no registers hold derivatives meanwhile. Done where
        dS is proportional to P, which it is for shares of a sum, and not where dropped weights are
        told by their sign, which a derivative may turn.
        """
        spec, p = self.scores.spec, self.s.registers
        if self._gradient is None or self.dropout is not None or not has_sum(spec.softmax):
            return
        for at in self.s.elements(columns):
            store(p, at, self.scores.dscore(p[at], p[at], self._gradient[at]))
        self._is_folded = True

    def _weigh_alone(self, bound: BoundScores, at: tuple, site: tuple, seen) -> None:
        """P of a kind without a sum over a row."""
        raw = self.s.registers[at]
        if self._gradient is not None:
            seen = tirx.And(site[0] < bound.rows, seen)
            store(self._gradient, at, self.held(bound, raw, *site))
        weight = self.gradient.weight(self.kernel.scalar(bound.scaled(raw, *site), "float32"))
        store(self.s.registers, at, tirx.Select(seen, weight, T.float32(0)))

    def held(self, bound: BoundScores, raw, q_idx, k_idx):
        """What is held of a dot product: the score's own gradient."""
        return bound.gradient(raw, q_idx, k_idx)

    def weight(self, at: tuple):
        """P of element ``at`` of ``s``, before dropout."""
        p = self.s.registers[at]
        return p if self.dropout is None else tirx.abs(p)

    def by_score(self, at: tuple, dp, delta):
        """The gradient by the masked score of element ``at`` of ``s``, from its dP."""
        return self.gradient.derivative(self.weight(at), dp, delta, self.s.registers[at])

    def check(self, *products: str) -> None:
        """Raise AssertionError unless the kernel used every block of the backward's definition.

        products: those it computes, and what other launches of its program stand for.
        """
        self.gradient.check(*products, *self.scores.used)

    def dscores(
        self, dp: Accumulator, delta: Callable | None, first: int = 0,
        columns: Collection[int] | None = None,
    ) -> None:  # fmt: skip
        """dP becomes dS (but for final_factor), given P in ``s``; delta is a function of (m, n, r),
        None where the derivative takes none.

        ``dp`` may be a part: its tile columns are those from ``first`` on of ``s``. columns: those
        of ``dp`` that are wanted; None is all.
        """
        for m, n, r in dp.elements(columns):
            whole = (m, first + n, r)
            is_held = self._gradient is not None and not self._is_folded
            gradient = self._gradient[whole] if is_held else None
            own = None if delta is None else delta(*whole)
            by_score = self.by_score(whole, dp.registers[m, n, r], own)
            product = self.scores.dscore(self.weight(whole), by_score, gradient)
            store(dp.registers, (m, n, r), product)
