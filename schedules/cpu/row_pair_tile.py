"""Tensor intrinsics of few rows over pairs of bf16: ``row_tile``'s products by VDPBF16PS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx.script.builder import ir as build

from .forms.tiles import Bf16PairOperand
from .llvm_text import with_llvm
from .micro_tile import DOT_BF16
from .row_lanes import lane_pairs
from .row_tile import RowTile, get, set_to

PAIR = Bf16PairOperand()

# As tvm_flash_dot_bf16, of 16 pairs with 16 others.
_DOT_VECTORS = r"""
define linkonce_odr <16 x float> @tvm_flash_dot_bf16_vectors(
    <16 x float> %acc, <16 x i32> %left, <16 x i32> %right) alwaysinline nounwind {
  %a = bitcast <16 x i32> %left to <32 x bfloat>
  %b = bitcast <16 x i32> %right to <32 x bfloat>
  %sum = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(
      <16 x float> %acc, <32 x bfloat> %a, <32 x bfloat> %b)
  ret <16 x float> %sum
}
"""


def with_pair_dots(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """``func`` with the LLVM functions that these intrinsics call."""
    return with_llvm(func, DOT_BF16 + _DOT_VECTORS)


@dataclass(frozen=True)
class RowPairTile(RowTile):
    """A ``RowTile`` whose Q and weights are words of two bf16, neighbours in the axis summed over.

    dtype: bfloat16, or that of words where K or V is staged, in such words too.
    """

    kind: ClassVar[str] = "row_pair"
    word: ClassVar[str] = PAIR.dtype
    pack: ClassVar[int] = PAIR.pack
    run: ClassVar[int] = 4

    @property
    def load(self) -> int:
        """Words of one load: a vector."""
        return self.vector

    def k_product(self, query, K, key, word):
        pair = [(key, word * 2 + e) for e in (0, 1)]
        return PAIR.dot(query, self._word(K, (key, word), pair))

    def v_product(self, weight, V, word, column):
        pair = [(word * 2 + e, column) for e in (0, 1)]
        return PAIR.dot(weight, self._word(V, (word, column), pair))

    def _word(self, buffer, index, pair):
        """The word that lies at ``index`` where words are staged, else made of a pair."""
        if self.staged:
            return buffer[index]
        return PAIR.stage(*[self.element(buffer, *at) for at in pair])

    def k_words(self, K, key, word):
        """A vector of words of a key."""
        return K[key, self.lanes(word)] if self.staged else self._loaded(K, key, word * 2)

    def v_words(self, V, word, column) -> list:
        """Vectors of words of two keys: of columns in runs by turns, or, staged, as they lie.

        Shuffles and not shifts and masks of words: of those LLVM makes permutations across lanes
        (VPERMT2W), which take Zen 4 as long as the products.
        """
        if self.staged:
            return [V[word, self.lanes(column + n)] for n in (0, self.vector)]
        elements = f"uint16x{2 * self.vector}"
        keys = [tirx.reinterpret(elements, self._loaded(V, word * 2 + e, column)) for e in (0, 1)]
        pairs = lane_pairs(*keys, 2 * self.vector, self.run)
        return [tirx.reinterpret(f"int32x{self.vector}", words) for words in pairs]

    def _loaded(self, buffer, key, column):
        row = buffer[self.index(key, T.ramp(column, 1, 2 * self.vector))]
        return tirx.reinterpret(f"int32x{self.vector}", row)

    def registers_of_row(self, count: int) -> list:
        """None: words are held where they are loaded."""
        return []

    def add_scores(self, acc: list, row: list, Q, K, key, word) -> None:
        keys = [self._held(self.k_words(K, key + n, word)) for n in range(self.step)]
        for i in range(self.rows):
            query = self._held(Q[i, self.lanes(word)])
            for n in range(self.step):
                words = get(query, self), get(keys[n], self)
                self._dot(acc[i * self.step + n], "tvm_flash_dot_bf16_vectors", *words)

    def add_values(self, acc: list, row: list, P, V, word) -> None:
        starts = range(0, self.columns, 2 * self.vector)
        values = [self._held(x) for d in starts for x in self.v_words(V, word, d)]
        for i in range(self.rows):
            for n, value in enumerate(values):
                words = P[i, word], get(value, self)
                self._dot(acc[i * len(values) + n], "tvm_flash_dot_bf16", *words)

    def _dot(self, sums, name: str, left, right) -> None:
        lanes = f"float32x{self.vector}"
        set_to(sums, tirx.call_extern(lanes, name, get(sums, self), left, right), self)

    def _held(self, value):
        """``value`` in a register of its own: an expression would be written out at every use."""
        register = build.alloc_buffer((self.vector,), self.word)
        set_to(register, value, self)
        return register
