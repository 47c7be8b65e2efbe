"""The score pipeline bound to one signature: scores in log2 units, masks, gradient, ranges."""

from __future__ import annotations

from tvm import tirx

from .score import (
    Site,
    is_linear,
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

# Where a row maximum starts: finite, so that a row without a visible key gives exp2(-inf - FLOOR)
# = 0 and not exp2(-inf + inf) = NaN; far below any score of finite inputs.
FLOOR = -1.0e30

# How far a row's maximum may rise (log2 units) before the sums made with the old one are rescaled.
# The largest unnormalised probability is 2**SLACK: far below float16's 2^16, no precision is lost.
SLACK = 8.0

# Smallest factor that a score is multiplied by: products with finite scores vanish.
TINY = 1.0e-37


class Pipeline:
    """Score expressions of ``sig.spec`` as functions of one (score, b, h, q_idx, k_idx) site.

    ``math`` replaces transcendental intrinsics (see ``score.legalise``); None keeps them.
    """

    def __init__(self, sig: Signature, math=None):
        self.sig, self.math = sig, math
        self.spec = sig.spec

    def exp2(self, x):
        """2**x."""
        return tirx.exp2(x) if self.math is None else self.math.exp2(x)

    @property
    def linear(self) -> bool:
        """Whether the score is the dot product times softmax_scale, with nothing in between."""
        return is_linear(self.spec)

    def factor(self, softmax_scale):
        """Of a linear score: what makes log2 units of the dot product."""
        return softmax_scale * tirx.const(LOG2E, "float32")

    def positive_factor(self, softmax_scale):
        """Its size, kept above zero: zero would make NaN of a hidden key's -inf."""
        size = tirx.max(softmax_scale, tirx.const(0, "float32") - softmax_scale)
        return tirx.max(self.factor(size), tirx.const(TINY, "float32"))

    def scaled(self, raw, b, h, q_idx, k_idx, softmax_scale):
        """score_mod of the raw dot product ``raw``, in log2 units and before the mask."""
        if self.linear:
            return raw * self.factor(softmax_scale)
        expr = score_expr(self.spec, raw, self._site(b, h, q_idx, k_idx, softmax_scale))
        return self._legal(expr) * tirx.const(LOG2E, "float32")

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
        """Whether query row ``q_idx`` sees key ``k_idx``, which may lie past the last key."""
        k_idx = _int32(k_idx)
        inside = k_idx < _int32(self.sig.seqlen_k)
        mask = mask_expr(self.spec, self._site(b, h, q_idx, k_idx, softmax_scale))
        return inside if mask is None else tirx.And(inside, self._legal(mask))

    def gradient(self, raw, b, h, q_idx, k_idx, softmax_scale):
        """d score_mod / d raw, derived from the score expression."""
        site = self._site(b, h, q_idx, k_idx, softmax_scale)
        return self._legal(score_grad_expr(self.spec, raw, site))

    def dscore(self, p, dp, delta, raw, b, h, q_idx, k_idx, softmax_scale):
        """Gradient by the raw dot product: P (dP - delta), chained through score_mod."""
        grad = self.gradient(raw, b, h, q_idx, k_idx, softmax_scale)
        return p * (dp - delta) * grad

    def key_range(self, q_first, q_last):
        """(lo, hi, full_lo, full_hi) of the keys that rows q_first..q_last see (int32)."""
        return key_range(self.spec, _int32(q_first), _int32(q_last), *self._lengths())

    def query_range(self, k_first, k_last):
        """(lo, hi, full_lo, full_hi) of the rows that see keys k_first..k_last (int32)."""
        return query_range(self.spec, _int32(k_first), _int32(k_last), *self._lengths())

    def inverse(self, row_sum):
        """1 / l, and 0 for a row without a visible key: its output is zero."""
        one, zero = tirx.const(1, "float32"), tirx.const(0, "float32")
        return tirx.Select(row_sum == zero, zero, one / row_sum)

    def natural_lse(self, row_max, row_sum):
        """log sum exp in natural units from the log2 statistics; -inf for an empty row."""
        zero = tirx.const(0, "float32")
        lse = (row_max + tirx.log2(row_sum)) * tirx.const(LN2, "float32")
        return tirx.Select(row_sum == zero, tirx.const(float("-inf"), "float32"), lse)

    def log2_lse(self, lse):
        """lse in log2 units; +inf for an empty row, so that its probabilities are 0, not NaN."""
        inf = tirx.const(float("inf"), "float32")
        return tirx.Select(lse == -inf, inf, lse * tirx.const(LOG2E, "float32"))

    def _site(self, b, h, q_idx, k_idx, softmax_scale) -> Site:
        return Site(
            _int32(b), _int32(h), _int32(q_idx), _int32(k_idx), *self._lengths(),
            softmax_scale, self.sig.tables,
        )  # fmt: skip

    def _lengths(self):
        return _int32(self.sig.seqlen_q), _int32(self.sig.seqlen_k)

    def _legal(self, expr):
        return expr if self.math is None else legalise(expr, self.math)


def _int32(x):
    # Lengths are checked to fit 31 bits: half-width lanes for masks and positions.
    return x if isinstance(x, int) or x.ty.dtype == "int32" else tirx.Cast("int32", x)
