"""Softmax attention whose denominator has a one added: a row may attend to nothing."""

from __future__ import annotations

from tvm import tirx

from .softmax import Softmax


class Softmax1(Softmax):
    """P = exp(S) / (1 + the sum of exp(S)): a sink of logit 0 (Miller, 2023)."""

    def first_max(self, row):
        """m before the first key: 0, the logit of the one."""
        return tirx.const(0, "float32")

    def first_sum(self, row, m):
        """l before the first key: the one."""
        return tirx.exp(tirx.const(0, "float32") - m)
