"""The score pipeline bound to one signature: scores, weights, masks, gradient."""

from __future__ import annotations

from tvm import tirx

from .arithmetic import int32
from .score_expressions import (
    Site,
    is_scale_only,
    legalise,
    mask_expr,
    score_expr,
    score_grad_expr,
)
from .signature import Signature

LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453

# Where a row maximum starts: the lowest float32, so that no finite score is taken for a hidden key.
# Finite, so that a row without a visible key gives exp(-inf - FLOOR) = 0 and not exp(-inf + inf).
FLOOR = -3.4028234663852886e38

# How far a row's maximum may rise before the sums made with the old one are rescaled. The largest
# unnormalised probability is e**SLACK = 2**8: far below float16's 2^16, no precision is lost.
SLACK = 8 * LN2

_ZERO = tirx.const(0, "float32")


class Scores:
    """Softmax of ``sig.spec``; ``at`` gives the scores of a batch entry and head.

    Scores are in natural units: times log2(e), a finite one could overflow. ``math`` replaces
    transcendental intrinsics (see ``score.legalise``); None keeps them.
    """

    def __init__(self, sig: Signature, math=None):
        self.sig, self.math = sig, math
        self.spec = sig.spec

    def weight(self, x):
        """e**x, for the difference x of a score and its row's maximum or lse."""
        return tirx.exp(x) if self.math is None else self.math.weight(x)

    def probability(self, score, lse, lse_low=0.0):
        """e**(score - lse - lse_low): what the softmax gave, from the saved statistics of a row.

        lse is ``saved_lse``'s; where lse_low is not saved it is the number 0.
        """
        difference = score - lse
        return self.weight(difference if isinstance(lse_low, float) else difference - lse_low)

    @property
    def scale_only(self) -> bool:
        """Whether the score is the dot product times softmax_scale, with nothing in between."""
        return is_scale_only(self.spec)

    def at(self, b, h, softmax_scale) -> BoundScores:
        """The scores of batch entry ``b`` and query head ``h``; softmax_scale float32."""
        return BoundScores(self, b, h, softmax_scale)

    @property
    def hides_rows(self) -> bool:
        """Whether rows past the last one must be hidden.

        Staged as zeros they have dot products 0, where a score function may be NaN.
        """
        return not self.scale_only

    def dscore(self, p, dp, delta, gradient=None):
        """Gradient by the raw dot product: P (dP - delta) times ``gradient``, that of the score.

        Without ``gradient`` that is multiplied later. A pair of probability 0 contributes nothing,
        even where its score's derivative is not finite.
        """
        product = p * (dp - delta)
        if gradient is not None:
            product = product * gradient
        if self.scale_only:
            return product
        return tirx.Select(p == _ZERO, _ZERO, product)

    def inverse(self, row_sum):
        """1 / l, and 0 for a row without a visible key: its output is zero."""
        return tirx.Select(row_sum == _ZERO, _ZERO, tirx.const(1, "float32") / row_sum)

    def lse(self, row_max, row_sum):
        """log sum exp of a row; -inf for an empty one.

        row_sum: of the weights of its scores less ``row_max``.
        """
        lse = row_max + _log(row_sum)
        return tirx.Select(row_sum == _ZERO, tirx.const(float("-inf"), "float32"), lse)

    def lse_low(self, lse, row_max, row_sum):
        """What a float32 ``lse`` lost of row_max + log(row_sum).

        Beside a maximum of 1e9 that is all of the logarithm. ``lse`` is read from memory or a
        register, or it would be folded away.
        """
        return tirx.Select(row_sum == _ZERO, _ZERO, _log(row_sum) - (lse - row_max))

    def saved_lse(self, lse):
        """A saved lse; +inf for an empty row, so that its probabilities are 0, not NaN."""
        inf = tirx.const(float("inf"), "float32")
        return tirx.Select(lse == -inf, inf, lse)

    def lengths(self):
        """(seqlen_q, seqlen_k), int32."""
        return int32(self.sig.seqlen_q), int32(self.sig.seqlen_k)

    def legal(self, expr):
        """``expr`` with the intrinsics that ``math`` replaces."""
        return expr if self.math is None else legalise(expr, self.math)


class BoundScores:
    """Scores of one batch entry and query head: functions of a value and its (q_idx, k_idx)."""

    def __init__(self, scores: Scores, b, h, softmax_scale):
        self._scores, self._b, self._h, self._scale = scores, int32(b), int32(h), softmax_scale

    def scaled(self, raw, q_idx, k_idx):
        """Score of the raw dot product ``raw``, before the mask."""
        scores = self._scores
        if scores.scale_only:
            return raw * self._scale
        return scores.legal(score_expr(scores.spec, raw, self._site(q_idx, k_idx)))

    def gradient(self, raw, q_idx, k_idx):
        """d score / d raw, derived from the score expression."""
        scores = self._scores
        return scores.legal(score_grad_expr(scores.spec, raw, self._site(q_idx, k_idx)))

    def masked(self, score, q_idx, k_idx, boundary=None):
        """``score`` where the row sees the key, -inf elsewhere (also past the last key).

        Only tiles with ``boundary`` pay for it (None: all do). A user's mask_mod makes every tile a
        boundary, without a branch around its expression.
        """
        minus_inf = tirx.const(float("-inf"), "float32")
        masked = tirx.Select(self.visible(q_idx, k_idx), score, minus_inf)
        if boundary is None or self._scores.spec.mask_mod:
            return masked
        return tirx.if_then_else(boundary, masked, score)

    def visible(self, q_idx, k_idx):
        """Whether query row ``q_idx`` sees key ``k_idx``; either may lie past the last one."""
        scores, site = self._scores, self._site(q_idx, k_idx)
        inside = site.k_idx < site.seqlen_k
        if scores.hides_rows:
            inside = tirx.And(site.q_idx < site.seqlen_q, inside)
        mask = mask_expr(scores.spec, site)
        return inside if mask is None else tirx.And(inside, scores.legal(mask))

    def _site(self, q_idx, k_idx) -> Site:
        scores = self._scores
        return Site(
            self._b, self._h, int32(q_idx), int32(k_idx), *scores.lengths(),
            self._scale, scores.sig.tables,
        )  # fmt: skip


def _log(x):
    return tirx.log2(x) * tirx.const(LN2, "float32")
