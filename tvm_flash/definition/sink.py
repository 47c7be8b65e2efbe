"""Softmax attention with a sink: a learned logit per head that takes weight and has no value."""

from __future__ import annotations

from tvm import tirx

from .derive.formula import LOWEST
from .softmax import Softmax


class Sink(Softmax):
    """P = exp(S - m) / (exp(sink - m) + the sum of exp(S - m)), one sink (H,) float32 per head.

    As in GPT-OSS and in StreamingLLM (Xiao et al., 2023). A sink of -inf is none.
    """

    def first_max(self, row):
        """m before the first key: the sink's logit."""
        return tirx.max(self.sig.inputs["sink"][row[1]], tirx.const(LOWEST, "float32"))

    def first_sum(self, row, m):
        """l before the first key: the sink's weight."""
        return tirx.exp(self.sig.inputs["sink"][row[1]] - m)
