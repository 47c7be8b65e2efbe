"""The block sizes and operand precision that a streaming definition is written over."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx


@dataclass(frozen=True)
class Float32Operand:
    """Matrix operands staged as float32, one element a word."""

    dtype = "float32"
    pack = 1

    def stage(self, value):
        """The staged word of one element of an input."""
        return value

    def encode(self, value):
        """The staged word of one float32 element."""
        return value

    def dot(self, a, b):
        """Product of two words."""
        return a * b


@dataclass(frozen=True)
class Bf16PairOperand:
    """Matrix operands rounded to bf16, two neighbours of the reduction axis in an int32 word.

    The layout that VDPBF16PS and AMX tiles multiply; products and sums stay float32. Words and not
    bf16 arrays, because TVM widens local bf16 arrays to float32.
    """

    dtype = "int32"
    pack = 2

    def stage(self, low, high):
        """The word of two elements of a bf16 input, which need no rounding."""
        low_bits = tirx.shift_right(tirx.reinterpret("uint32", low), tirx.const(16, "uint32"))
        high_bits = tirx.reinterpret("uint32", high)
        return tirx.reinterpret("int32", tirx.bitwise_or(low_bits, high_bits))

    def encode(self, low, high):
        """Both elements rounded to nearest even; ``low`` comes first in memory."""
        low_bits = tirx.shift_right(_rounded(low), tirx.const(16, "uint32"))
        high_bits = tirx.bitwise_and(_rounded(high), tirx.const(0xFFFF0000, "uint32"))
        return tirx.reinterpret("int32", tirx.bitwise_or(low_bits, high_bits))

    def dot(self, a, b):
        """Sum of the two products of a pair of words."""
        return _low(a) * _low(b) + _high(a) * _high(b)


def _rounded(value):
    bits = tirx.reinterpret("uint32", value)
    tie = tirx.bitwise_and(
        tirx.shift_right(bits, tirx.const(16, "uint32")), tirx.const(1, "uint32")
    )
    # Rounding would carry a NaN with a full mantissa into the exponent: it is kept as it is.
    rounded = bits + tirx.const(0x7FFF, "uint32") + tie
    return tirx.Select(value == value, rounded, tirx.const(0x7FC00000, "uint32"))


def _low(word):
    return tirx.reinterpret("float32", tirx.shift_left(word, tirx.const(16, "int32")))


def _high(word):
    return tirx.reinterpret("float32", tirx.bitwise_and(word, tirx.const(-65536, "int32")))


FLOAT32 = Float32Operand()


@dataclass(frozen=True)
class ForwardTile:
    """Rows of queries and keys per block, and head dims rounded up to what a tile covers.

    block_q: most query rows that share a staged block of keys; group: rows that go through it at a
    time, a divisor of block_q. square: edge of the blocks that are transposed. tasks_per_thread:
    tiles are smaller than block_q where there would be fewer. Columns and rows past the true sizes
    are staged as zeros; all of these change speed, never results beyond rounding.
    """

    block_q: int
    block_k: int
    depth: int
    depth_v: int
    operand: Float32Operand | Bf16PairOperand = FLOAT32
    group: int = 32
    square: int = 1
    tasks_per_thread: int = 4


@dataclass(frozen=True)
class BackwardTile:
    """Rows and keys per block of the backward, and head dims rounded up to what a tile covers.

    block_q: query rows of a block. block_k: keys that stay staged while all query rows pass, of
    which step_k are multiplied at once. depth, depth_v: head dims as reductions, in words of the
    operand. depth_lanes, lanes_v: head dims as columns. words, words_v: columns of the staged rows
    of Q, K and of V, dO, in words. head_rows: dK^T and dV^T are accumulated, and not dK and dV, for
    units whose operand A must lie row by row.
    """

    block_q: int
    block_k: int
    step_k: int
    depth: int
    depth_v: int
    depth_lanes: int
    lanes_v: int
    words: int
    words_v: int
    operand: Float32Operand | Bf16PairOperand = FLOAT32
    head_rows: bool = False


@dataclass(frozen=True)
class LinearTile:
    """Rows of a chunk of linear attention, and widths rounded up to what a tile covers.

    depth: columns of q and k with the one in float32. depth_square: the same for the transposed
    copy of q. lanes_v: columns of v with the one in float32.
    """

    chunk: int
    depth: int
    depth_square: int
    lanes_v: int

    @property
    def block_q(self) -> int:
        """Queries that are computed together."""
        return self.chunk

    @property
    def block_k(self) -> int:
        """Keys that are computed together."""
        return self.chunk
