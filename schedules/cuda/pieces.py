"""A few neighbouring elements of a row in registers: loaded, read as float32, stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.script import tirx as T

from ...problem.dtype import DTYPES
from .builder import CudaKernel, assign, emit, store
from .copies import VECTOR, words_of
from .product import Product


class Piece:
    """``width`` elements of ``product``'s dtype, moved by one access: a multiple of 2, or 1."""

    def __init__(self, kernel: CudaKernel, product: Product, width: int):
        self._kernel, self._product, self._width = kernel, product, width
        self._bytes = DTYPES[product.dtype].bytes
        self._kind = VECTOR[width * self._bytes]
        self._words = words_of(kernel, self._kind)
        self._pair = kernel.scalar(T.uint32(0), "uint32")

    def load(self, pointer) -> None:
        """Bring what ``pointer`` shows."""
        emit(T.ptx[f"ld.global.{self._kind}"](*self._words, pointer))

    def store(self, pointer) -> None:
        """Write it where ``pointer`` shows."""
        emit(T.ptx[f"st.global.{self._kind}"](pointer, *self._words))

    def values(self) -> list:
        """Its elements, float32."""
        return [self._value(number) for number in range(self._width)]

    def _value(self, number: int):
        if self._bytes == 4:
            return tirx.reinterpret("float32", self._words[number])
        return half_of(self._words[number // 2], number % 2, self._product.dtype)

    def change(self, value: Callable, *others: Piece) -> None:
        """Let each element be ``value`` of itself and of those of ``others`` at its place."""
        made = self._kernel.registers((self._width,), "float32")
        given = zip(self.values(), *(other.values() for other in others), strict=True)
        for number, elements in enumerate(given):
            store(made, (number,), value(*elements))
        self.set([made[number] for number in range(self._width)])

    def set(self, values: Sequence) -> None:
        """Let these float32 be its elements, rounded."""
        if self._bytes == 4:
            for word, value in zip(self._words, values, strict=True):
                assign(word, tirx.reinterpret("uint32", value))
        elif self._width == 1:
            self._product.convert(self._pair, values[0], T.float32(0))
            assign(self._words[0], tirx.Cast("uint16", self._pair))
        else:
            for number, word in enumerate(self._words):
                self._product.convert(word, *values[2 * number : 2 * number + 2])


def half_of(word, number: int, dtype: str):
    """The element, float32, of 16 bits in the lower (``number`` 0) or upper half of ``word``."""
    word = tirx.Cast("uint32", word)
    if dtype == "bfloat16":  # the upper half of a float32
        word = word & T.uint32(0xFFFF0000) if number else word << T.uint32(16)
        return tirx.reinterpret("float32", word)
    half = tirx.Cast("uint16", word >> T.uint32(16 * number))
    return tirx.Cast("float32", tirx.reinterpret("float16", half))
