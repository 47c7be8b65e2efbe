"""Dropout on accumulator fragments: the words of the squares that a thread has."""

from __future__ import annotations

from collections.abc import Callable, Collection

from tvm import tirx

from ...definition.dropout import Dropout
from ...problem.dropout import without_side
from .builder import CudaKernel, assign
from .fragments import Accumulator


class FragmentDropout:
    """Which elements of an accumulator are kept, in the tile whose places it is told.

    A thread's elements of two tile columns, of both halves and both sides, are squares of queries
    {q, q + 8} and keys {k, k + 8}, of S as of its transpose: none of the words is left over.
    """

    def __init__(self, kernel: CudaKernel, s: Accumulator, is_transposed: bool = False):
        self._kernel, self._s, self._is_transposed = kernel, s, is_transposed
        self._dropout = Dropout(kernel.sig, "uint32", kernel.buffers["rng"])
        self._threshold = kernel.scalar(self._dropout.threshold, "uint32")
        self._key = [kernel.scalar(tirx.const(0, "uint32"), "uint32") for n in range(4)]

    def at(self, b, h) -> None:
        """Draw for entry ``b`` and query head ``h`` from now on."""
        for word, value in zip(self._key, self._dropout.head_key(b, h, self._hold), strict=True):
            assign(word, value)

    def each(
        self, q_index: Callable, k_index: Callable, change: Callable,
        columns: Collection[int] | None = None,
    ) -> None:  # fmt: skip
        """change(m, n, r, whether the weight of element (m, n, r) is kept), for each element.

        q_index, k_index: of (m, n, r). columns: even tile columns, each of which stands for itself
        and the next; None is all.
        """
        s = self._s
        for n in range(0, s.n_tiles, 2) if columns is None else columns:
            for m in range(s.m_tiles):
                for odd in range(2):
                    place = (without_side(index(m, n, odd)) for index in (q_index, k_index))
                    words = self._dropout.square(self._key, *place, self._hold)
                    for number, word in enumerate(words):
                        half, side = self._place(number)
                        is_kept = self._dropout.kept(word, self._threshold)
                        change(m, n + side, 2 * half + odd, is_kept)

    def _place(self, number: int) -> tuple[int, int]:
        """Half and side of a tile that word ``number`` of a square is of."""
        lower_key, lower_query = divmod(number, 2)
        return (lower_key, lower_query) if self._is_transposed else (lower_query, lower_key)

    def _hold(self, value):
        return self._kernel.scalar(value, "uint64")
