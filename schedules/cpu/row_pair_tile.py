"""Tensor intrinsics of few rows over pairs of bf16: ``row_tile``'s products by VDPBF16PS."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T
from tvm.tirx.script.builder import ir as build

from .forms.regions import whole
from .forms.tiles import Bf16PairOperand
from .llvm_text import with_llvm
from .micro_tile import DOT_BF16
from .row_tile import RowTile, add_output, get, registers, set_to, store_scores, zero

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

    @property
    def row_words(self) -> int:
        """Words of a row of Q or K."""
        return self.columns // PAIR.pack

    @property
    def k_shape(self) -> tuple[int, ...]:
        return (self.keys, self.row_words) if self.staged else self.shape

    @property
    def v_shape(self) -> tuple[int, ...]:
        return (self.keys // PAIR.pack, self.columns) if self.staged else self.shape

    def k_word(self, K, key, word):
        """The word of two columns of a key."""
        if self.staged:
            return K[key, word]
        return PAIR.stage(*[self.element(K, key, word * 2 + e) for e in (0, 1)])

    def v_word(self, V, word, column):
        """The word of a column of two keys."""
        if self.staged:
            return V[word, column]
        return PAIR.stage(*[self.element(V, word * 2 + e, column) for e in (0, 1)])

    def k_words(self, K, key, word):
        """A vector of words of a key."""
        return K[key, self.lanes(word)] if self.staged else self._loaded(K, key, word * 2)

    def v_words(self, V, word, column) -> list:
        """Vectors of words of two keys: of even and of odd columns, or, staged, as they lie."""
        if self.staged:
            return [V[word, self.lanes(column + n)] for n in (0, self.vector)]
        first, second = (
            tirx.reinterpret(f"uint32x{self.vector}", self._loaded(V, word * 2 + e, column))
            for e in (0, 1)
        )
        low, half = (tirx.Broadcast(tirx.const(n, "uint32"), self.vector) for n in (0xFFFF, 16))
        even = tirx.bitwise_or(tirx.bitwise_and(first, low), tirx.shift_left(second, half))
        high = tirx.shift_left(tirx.shift_right(second, half), half)
        odd = tirx.bitwise_or(tirx.shift_right(first, half), high)
        return [tirx.reinterpret(f"int32x{self.vector}", words) for words in (even, odd)]

    def _loaded(self, buffer, key, column):
        row = buffer[self.index(key, T.ramp(column, 1, 2 * self.vector))]
        return tirx.reinterpret(f"int32x{self.vector}", row)


@cache
def register_pair_scores(tile: RowPairTile) -> str:
    """S[rows, keys] += Q . K, in words."""
    name = tile.name("row_pair_scores")
    TensorIntrin.register(name, _scores_description(tile), _scores(tile), override=True)
    return name


@cache
def register_pair_pv(tile: RowPairTile) -> str:
    """O[rows, columns] += P . V, in words."""
    name = tile.name("row_pair_pv")
    TensorIntrin.register(name, _pv_description(tile), _pv(tile), override=True)
    return name


def _scores_description(tile: RowPairTile) -> tirx.PrimFunc:
    rows, keys, words, shape = tile.rows, tile.keys, tile.row_words, tile.k_shape

    @T.prim_func(s_tir=True)
    def description(q: T.handle, k: T.handle, s: T.handle):
        Q = T.match_buffer(q, (rows, words), "int32", offset_factor=1)
        K = T.match_buffer(k, shape, tile.dtype, offset_factor=1)
        S = T.match_buffer(s, (rows, keys), "float32", offset_factor=1)
        with T.sblock("root"):
            T.reads(whole([S, Q, K]))
            T.writes(whole([S]))
            for i, j, d in T.grid(rows, keys, words):
                with T.sblock("update"):
                    vi, vj, vd = T.axis.remap("SSR", [i, j, d])
                    S[vi, vj] = S[vi, vj] + PAIR.dot(Q[vi, vd], tile.k_word(K, vj, vd))

    return description


def _pv_description(tile: RowPairTile) -> tirx.PrimFunc:
    rows, pairs, columns, shape = tile.rows, tile.keys // PAIR.pack, tile.columns, tile.v_shape

    @T.prim_func(s_tir=True)
    def description(p: T.handle, v: T.handle, o: T.handle):
        P = T.match_buffer(p, (rows, pairs), "int32", offset_factor=1)
        V = T.match_buffer(v, shape, tile.dtype, offset_factor=1)
        O = T.match_buffer(o, (rows, columns), "float32", offset_factor=1)
        with T.sblock("root"):
            T.reads(whole([O, P, V]))
            T.writes(whole([O]))
            for i, d, j in T.grid(rows, columns, pairs):
                with T.sblock("update"):
                    vi, vd, vj = T.axis.remap("SSR", [i, d, j])
                    O[vi, vd] = O[vi, vd] + PAIR.dot(P[vi, vj], tile.v_word(V, vj, vd))

    return description


def _scores(tile: RowPairTile) -> tirx.PrimFunc:
    rows, keys, words, step = tile.rows, tile.keys, tile.row_words, tile.step
    shape = tile.k_shape

    @T.prim_func(s_tir=True)
    def implementation(q: T.handle, k: T.handle, s: T.handle):
        q_row = T.int32()
        k_row = T.int64()
        k_head = T.int64()
        s_row = T.int32()
        Q = T.match_buffer(q, (rows, words), "int32", offset_factor=1, strides=[q_row, 1])
        K = T.match_buffer(
            k, shape, tile.dtype, offset_factor=1, strides=tile.strides(k_row, k_head)
        )
        S = T.match_buffer(s, (rows, keys), "float32", offset_factor=1, strides=[s_row, 1])
        with T.sblock("root"):
            T.reads(whole([S, Q, K]))
            T.writes(whole([S]))
            acc = T.meta_var(registers(rows * step, tile))
            for j in T.serial(keys // step):
                zero(acc, tile)
                for d in T.serial(words // tile.vector):
                    _add_scores(acc, Q, K, j * step, d * tile.vector, tile)
                store_scores(S, acc, j * step, tile)

    return implementation


def _pv(tile: RowPairTile) -> tirx.PrimFunc:
    rows, pairs, columns, shape = tile.rows, tile.keys // PAIR.pack, tile.columns, tile.v_shape

    @T.prim_func(s_tir=True)
    def implementation(p: T.handle, v: T.handle, o: T.handle):
        p_row = T.int32()
        v_row = T.int64()
        v_head = T.int64()
        o_row = T.int32()
        P = T.match_buffer(p, (rows, pairs), "int32", offset_factor=1, strides=[p_row, 1])
        V = T.match_buffer(
            v, shape, tile.dtype, offset_factor=1, strides=tile.strides(v_row, v_head)
        )
        O = T.match_buffer(o, (rows, columns), "float32", offset_factor=1, strides=[o_row, 1])
        with T.sblock("root"):
            T.reads(whole([O, P, V]))
            T.writes(whole([O]))
            acc = T.meta_var(registers(rows * columns // tile.vector, tile))
            zero(acc, tile)
            for j in T.serial(pairs):
                _add_values(acc, P, V, j, tile)
            add_output(O, acc, tile)

    return implementation


def _dot(register, name: str, left, right, tile: RowPairTile) -> None:
    lanes = f"float32x{tile.vector}"
    set_to(register, tirx.call_extern(lanes, name, get(register, tile), left, right), tile)


def _add_scores(acc: list, Q, K, key, word, tile: RowPairTile) -> None:
    keys = [_held(tile.k_words(K, key + n, word), tile) for n in range(tile.step)]
    for i in range(tile.rows):
        query = _held(Q[i, tile.lanes(word)], tile)
        for n in range(tile.step):
            at = acc[i * tile.step + n]
            _dot(at, "tvm_flash_dot_bf16_vectors", get(query, tile), get(keys[n], tile), tile)


def _add_values(acc: list, P, V, word, tile: RowPairTile) -> None:
    starts = range(0, tile.columns, 2 * tile.vector)
    values = [_held(x, tile) for d in starts for x in tile.v_words(V, word, d)]
    for i in range(tile.rows):
        for n, value in enumerate(values):
            at = acc[i * len(values) + n]
            _dot(at, "tvm_flash_dot_bf16", P[i, word], get(value, tile), tile)


def _held(value, tile: RowPairTile):
    """``value`` in a register of its own: an expression would be written out at every use."""
    register = build.alloc_buffer((tile.vector,), "int32")
    set_to(register, value, tile)
    return register
