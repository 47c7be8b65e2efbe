"""Sigmoid attention: each key by itself, without a sum over the row."""

from __future__ import annotations

from tvm import tirx

from .softmax import Softmax


class Sigmoid(Softmax):
    """P = 1 / (1 + exp(-S)) (Ramapuram et al., 2024); a bias of -log n is a score_mod's."""

    has_sum = False

    def weight(self, x, m):
        """A key's share, which is final."""
        return tirx.sigmoid(x)

    def out(self, acc, l):
        """An element of the output: the sum itself."""
        return acc
