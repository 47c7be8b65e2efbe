"""Softmax attention: what stands between the scores of a row and its output."""

from __future__ import annotations

from tvm import tirx

from .derive.formula import LOWEST
from .signature import Signature

_ZERO = tirx.const(0, "float32")


class Softmax:
    """P = exp(S - m) / l with m the row's maximum and l the sum of exp(S - m).

    ``plain_forward`` writes these formulas into its blocks. Other kinds of attention override what
    differs. A row: b, h, i as the block that asks has them.
    """

    # Whether a row has a maximum and a sum; if not, only ``weight`` and ``out`` are asked.
    has_sum = True

    def __init__(self, sig: Signature):
        self.sig = sig

    def first_max(self, row):
        """m before the first key: the lowest number, so that no finite score is below it.

        Finite, so that a row without a visible key gets exp(-inf - m) = 0 and not exp(-inf + inf).
        """
        return tirx.const(LOWEST, "float32")

    def first_sum(self, row, m):
        """l before the first key, for the row's maximum ``m``."""
        return _ZERO

    def weight(self, x, m):
        """A key's share before it is normalised."""
        return tirx.exp(x - m)

    def out(self, acc, l):
        """An element of the output of ``acc``, the sum of weights times values; 0 for no keys."""
        return acc * tirx.Select(l == _ZERO, _ZERO, tirx.const(1, "float32") / l)

    def lse(self, m, l):
        """log of the sum of e**S; -inf for a row without a visible key."""
        return tirx.Select(l == _ZERO, tirx.const(float("-inf"), "float32"), m + tirx.log(l))

    def lse_low(self, lse, m, l):
        """What the float32 ``lse`` lost: beside a maximum of 1e9 that is all of the logarithm."""
        return tirx.Select(l == _ZERO, _ZERO, tirx.log(l) - (lse - m))
