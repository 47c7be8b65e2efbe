"""The score pipeline bound to one signature: scores, weights, masks, gradient."""

from __future__ import annotations

from tvm import tirx

from .arithmetic import int32, lengths_of
from .score_expressions import (
    Site,
    TableGradient,
    is_scale_only,
    legalise,
    mask_expr,
    mask_mod_expr,
    score_expr,
    score_grad_expr,
    table_gradient_exprs,
)
from .signature import Signature

LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453

# How far a row's maximum may rise before the sums made with the old one are rescaled. The largest
# unnormalised probability is e**SLACK = 2**8: far below float16's 2^16, no precision is lost.
SLACK = 8 * LN2

_ZERO = tirx.const(0, "float32")


class Scores:
    """Scores of ``sig.spec``; ``at`` gives those of a batch entry and head.

    Scores are in natural units: times log2(e), a finite one could overflow. ``math`` replaces
    transcendental intrinsics (see ``score.legalise``); None keeps them.
    """

    def __init__(self, sig: Signature, math=None):
        self.sig, self.math = sig, math
        self.spec = sig.spec
        # Blocks of the definition that were asked for.
        self.used: set[str] = set()

    @property
    def scale_only(self) -> bool:
        """Whether the score is the dot product times softmax_scale, with nothing in between."""
        return is_scale_only(self.spec)

    def at(self, b, h, inverse_cap=None, lengths=None) -> BoundScores:
        """The scores of batch entry ``b`` and query head ``h``.

        inverse_cap: where 1 / softcap is held; None leaves it to a compiler to divide once.
        lengths: where those of the entry are held; None reads them in every expression.
        """
        lengths = lengths_of(self.sig, b) if lengths is None else map(int32, lengths)
        return BoundScores(self, b, h, inverse_cap, tuple(lengths))

    @property
    def inverse_cap(self):
        """1 / softcap, float32."""
        return tirx.const(1, "float32") / self.sig.numbers["softcap"]

    @property
    def hides_rows(self) -> bool:
        """Whether rows past the last one must be hidden.

        Staged as zeros they have dot products 0, where a score function may be NaN.
        """
        return not self.scale_only

    def dscore(self, p, derivative, gradient=None):
        """Gradient by the raw dot product: that by the score times ``gradient``, the score's own.

        derivative: that of the recurrence (``BoundGradient.derivative``), for the weight ``p``.
        Without ``gradient`` that is multiplied later. A pair of weight 0 contributes nothing, even
        where its score's derivative is not finite.
        """
        product = derivative if gradient is None else derivative * gradient
        if self.scale_only:
            return product
        return tirx.Select(p == _ZERO, _ZERO, product)

    def legal(self, expr):
        """``expr`` with the intrinsics that ``math`` replaces."""
        return expr if self.math is None else legalise(expr, self.math)


class BoundScores:
    """Scores of one batch entry and query head: functions of a value and its (q_idx, k_idx)."""

    def __init__(self, scores: Scores, b, h, inverse_cap, lengths: tuple):
        self._scores, self._b, self._h = scores, int32(b), int32(h)
        self._lengths = lengths
        self._numbers = dict(scores.sig.numbers)
        if scores.spec.softcap:
            self._numbers["inverse_cap"] = (
                scores.inverse_cap if inverse_cap is None else inverse_cap
            )

    @property
    def rows(self):
        """How many rows the entry has, int32."""
        return self._lengths[0]

    def scaled(self, raw, q_idx, k_idx):
        """Score of the raw dot product ``raw``, before the mask."""
        scores = self._scores
        scores.used.add("score_mod")
        if scores.scale_only:
            return raw * self._numbers["softmax_scale"]
        return scores.legal(score_expr(scores.spec, raw, self._site(q_idx, k_idx)))

    def gradient(self, raw, q_idx, k_idx):
        """d score / d raw, derived from the score expression."""
        scores = self._scores
        return scores.legal(score_grad_expr(scores.spec, raw, self._site(q_idx, k_idx)))

    def by_tables(self, raw, q_idx, k_idx) -> list[TableGradient]:
        """d score / d each element of a learned table that the score reads."""
        scores = self._scores
        found = table_gradient_exprs(scores.spec, raw, self._site(q_idx, k_idx))
        return [one._replace(slope=scores.legal(one.slope)) for one in found]

    def masked(self, score, q_idx, k_idx, boundary=None):
        """``score`` where the row sees the key, -inf elsewhere (also past the last key).

        Only tiles with ``boundary`` pay for it (None: all do). A user's mask_mod makes every tile a
        boundary, without a branch around its expression, unless a call lists where it hides any.
        """
        minus_inf = tirx.const(float("-inf"), "float32")
        masked = tirx.Select(self.visible(q_idx, k_idx), score, minus_inf)
        spec = self._scores.spec
        if boundary is None or (spec.mask_mod and not spec.block_mask):
            return masked
        return tirx.if_then_else(boundary, masked, score)

    def visible(self, q_idx, k_idx, hiding=mask_expr):
        """Whether query row ``q_idx`` sees key ``k_idx``; either may lie past the last one.

        hiding: what may hide it, ``mask_expr`` or ``window_expr``, which leaves out mask_mod.
        """
        scores, site = self._scores, self._site(q_idx, k_idx)
        scores.used.add("mask")
        inside = site.k_idx < site.seqlen_k
        if scores.hides_rows:
            inside = tirx.And(site.q_idx < site.seqlen_q, inside)
        mask = hiding(scores.spec, site)
        return inside if mask is None else tirx.And(inside, scores.legal(mask))

    def shown(self, q_idx, k_idx):
        """Whether mask_mod shows the key to the query row."""
        return self._scores.legal(mask_mod_expr(self._scores.spec, self._site(q_idx, k_idx)))

    def _site(self, q_idx, k_idx) -> Site:
        scores = self._scores
        return Site(
            self._b, self._h, int32(q_idx), int32(k_idx), *self._lengths,
            self._numbers, scores.sig.tables,
        )  # fmt: skip
