"""Dropout of attention weights in TIR: words of positions, which of them keep, and the factor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx

from ..problem import dropout
from ..problem.dropout import Words
from .derive.formula import Expr
from .signature import Signature

Hold = Callable[[Expr], Expr]

_ONE, _NOTHING = tirx.const(1, "float32"), tirx.const(0, "float32")


class Dropout:
    """Z is 1 / (1 - p) where the word of a weight is at the threshold or above, else 0.

    It multiplies the values that a row attends to (P o Z in FlashAttention's algorithm 4), so that
    a softmax and its statistics know nothing of it. dtype: that of words. "uint64" is of vectors,
    which multiply the lower halves of such lanes; "uint32" of registers. ``hold`` names an
    expression that is read more than once. rng: where a kernel has seed and offset, else as ``sig``
    has it.
    """

    def __init__(self, sig: Signature, dtype: str = "uint64", rng: tirx.Buffer | None = None):
        self.dtype, self._probability = dtype, sig.numbers["dropout"]
        self._rng = sig.rng if rng is None else rng

    @property
    def factor(self) -> Expr:
        """What weights that are kept are multiplied by, float32."""
        return _ONE / (_ONE - self._probability)

    @property
    def threshold(self) -> Expr:
        """What ``kept`` compares with."""
        return self._word(tirx.Cast("int64", self._probability * tirx.const(2.0**32, "float32")))

    def head_key(self, b: Expr, h: Expr, hold: Hold) -> tuple[Expr, ...]:
        """What the words of entry ``b`` and query head ``h`` are made with: four words."""
        seed, offset = (self._halves(self._rng[n]) for n in range(2))
        return dropout.head_key(seed, offset, *map(self._word, (b, h)), self._words(hold))

    def head_word(self, b: Expr, h: Expr, number: int) -> Expr:
        """Word ``number`` of ``head_key``, as one expression."""
        return with_names(lambda hold: self.head_key(b, h, hold)[number])

    def square(self, key: Sequence[Expr], row: Expr, column: Expr, hold: Hold) -> tuple[Expr, ...]:
        """Words of queries {q, q + 8} and keys {k, k + 8} (``problem.dropout.square``)."""
        return dropout.square(key, *map(self._word, (row, column)), self._words(hold))

    def kept(self, word: Expr, threshold: Expr | None = None) -> Expr:
        """Whether the weight of ``word`` is kept; threshold: where it is held."""
        threshold = self.threshold if threshold is None else threshold
        return self._signed(self._lower(word)) >= self._signed(threshold)

    def factor_at(self, b: Expr, h: Expr, q_idx: Expr, k_idx: Expr) -> Expr:
        """Z of one weight, from nothing but its place."""
        side = tirx.const(3, q_idx.ty.dtype)
        places = [dropout.without_side(x) for x in (q_idx, k_idx)]

        def factor(hold: Hold) -> Expr:
            words = self.square(self.head_key(b, h, hold), *places, hold)
            word = chosen(words, q_idx >> side & 1, k_idx >> side & 1)
            return tirx.Select(self.kept(word), self.factor, _NOTHING)

        return with_names(factor)

    def _word(self, number: Expr) -> Expr:
        return tirx.Cast(self.dtype, number)

    def _halves(self, number: Expr) -> tuple[Expr, Expr]:
        """Low and high word of an int64."""
        whole = tirx.Cast("uint64", number)
        return tuple(self._word(whole >> _u64(shift) & _u64(dropout.WORD)) for shift in (0, 32))

    def _lower(self, word: Expr) -> Expr:
        """``word`` without what lies above its 32 bits."""
        return word & _u64(dropout.WORD) if self.dtype == "uint64" else word

    def _signed(self, word: Expr) -> Expr:
        """``word`` to compare, of 64 bits with room for a sign: AVX2 compares no others."""
        return tirx.Cast("int64", word) if self.dtype == "uint64" else word

    def _words(self, hold: Hold) -> Words:
        def multiply(constant: int, word: Expr) -> tuple[Expr, Expr]:
            product = hold(tirx.Cast("uint64", self._lower(word)) * _u64(constant))
            return self._word(product >> _u64(32)), self._word(product)

        return Words(lambda number: tirx.const(number, self.dtype), multiply)


def chosen(words: Sequence[Expr], lower_query: Expr, lower_key: Expr) -> Expr:
    """The word of a square's query and key: ``lower_query`` 1 is q + 8, ``lower_key`` k + 8."""
    nothing = tirx.const(0, lower_query.ty.dtype)
    first, second = (tirx.Select(lower_query > nothing, words[n + 1], words[n]) for n in (0, 2))
    return tirx.Select(lower_key > nothing, second, first)


def with_names(make: Callable[[Hold], Expr]) -> Expr:
    """The expression that ``make(hold)`` gives, inside definitions of all that was held.

    Not for a part of a condition, which TVM reads twice: it then takes a name for another.
    """
    held: list[tuple[tirx.Var, Expr]] = []

    def hold(value: Expr) -> Expr:
        held.append((tirx.Var("w", value.ty.dtype), value))
        return held[-1][0]

    result = make(hold)
    for name, value in reversed(held):
        result = tirx.Let(name, value, result)
    return result


def _u64(number: int) -> Expr:
    return tirx.const(number, "uint64")
