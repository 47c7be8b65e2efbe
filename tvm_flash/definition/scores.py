"""The score pipeline bound to one signature: scores, weights, masks, gradient, ranges."""

from __future__ import annotations

from tvm import tirx

from .score_expressions import (
    Site,
    is_scale_only,
    key_range,
    legalise,
    mask_expr,
    query_range,
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
    """Score expressions of ``sig.spec`` as functions of one (score, b, h, q_idx, k_idx) site.

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

    def scaled(self, raw, b, h, q_idx, k_idx, softmax_scale):
        """score_mod of the raw dot product ``raw``, before the mask."""
        if self.scale_only:
            return raw * softmax_scale
        return self._legal(
            score_expr(self.spec, raw, self._site(b, h, q_idx, k_idx, softmax_scale))
        )

    def masked(self, raw, b, h, q_idx, k_idx, softmax_scale):
        """``scaled`` where the key is visible, -inf elsewhere (also past the last key)."""
        return tirx.Select(
            self.visible(b, h, q_idx, k_idx, softmax_scale),
            self.scaled(raw, b, h, q_idx, k_idx, softmax_scale),
            tirx.const(float("-inf"), "float32"),
        )

    def hidden(self, score, boundary, b, h, q_idx, k_idx, softmax_scale):
        """``score`` with -inf for keys the row does not see; only ``boundary`` blocks pay for it.

        A user's mask_mod makes every block a boundary, without a branch around its expression.
        """
        minus_inf = tirx.const(float("-inf"), "float32")
        seen = self.visible(b, h, q_idx, k_idx, softmax_scale)
        masked = tirx.Select(seen, score, minus_inf)
        return masked if self.spec.mask_mod else tirx.if_then_else(boundary, masked, score)

    def visible(self, b, h, q_idx, k_idx, softmax_scale):
        """Whether query row ``q_idx`` sees key ``k_idx``; either may lie past the last one."""
        q_idx, k_idx = _int32(q_idx), _int32(k_idx)
        inside = k_idx < _int32(self.sig.seqlen_k)
        if self.hides_rows:
            inside = tirx.And(q_idx < _int32(self.sig.seqlen_q), inside)
        mask = mask_expr(self.spec, self._site(b, h, q_idx, k_idx, softmax_scale))
        return inside if mask is None else tirx.And(inside, self._legal(mask))

    @property
    def hides_rows(self) -> bool:
        """Whether rows past the last one must be hidden.

        Staged as zeros they have dot products 0, where a score function may be NaN.
        """
        return not self.scale_only

    def full_end(self, full_hi, row_end):
        """``full_hi`` of ``key_range`` for a tile of rows that ends before ``row_end``.

        0, so that no key counts as fully visible, where rows past the last one must be hidden.
        """
        if not self.hides_rows:
            return full_hi
        return tirx.Select(row_end > _int32(self.sig.seqlen_q), tirx.const(0, "int32"), full_hi)

    def gradient(self, raw, b, h, q_idx, k_idx, softmax_scale):
        """d score_mod / d raw, derived from the score expression."""
        site = self._site(b, h, q_idx, k_idx, softmax_scale)
        return self._legal(score_grad_expr(self.spec, raw, site))

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

    def key_range(self, q_first, q_last):
        """(lo, hi, full_lo, full_hi) of the keys that rows q_first..q_last see (int32)."""
        return key_range(self.spec, _int32(q_first), _int32(q_last), *self._lengths())

    def query_range(self, k_first, k_last):
        """(lo, hi, full_lo, full_hi) of the rows that see keys k_first..k_last (int32)."""
        return query_range(self.spec, _int32(k_first), _int32(k_last), *self._lengths())

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

    def _site(self, b, h, q_idx, k_idx, softmax_scale) -> Site:
        return Site(
            _int32(b), _int32(h), _int32(q_idx), _int32(k_idx), *self._lengths(),
            softmax_scale, self.sig.tables,
        )  # fmt: skip

    def _lengths(self):
        return _int32(self.sig.seqlen_q), _int32(self.sig.seqlen_k)

    def _legal(self, expr):
        return expr if self.math is None else legalise(expr, self.math)


def _log(x):
    return tirx.log2(x) * tirx.const(LN2, "float32")


def _int32(x):
    # Lengths are checked to fit 31 bits: half-width lanes for masks and positions.
    return x if isinstance(x, int) or x.ty.dtype == "int32" else tirx.Cast("int32", x)
