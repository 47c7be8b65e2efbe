"""How gradients of tables are summed: by float atomics, or by integers, in any order.

Sums of float32 depend on the order in which blocks run, those of integers do not. So a
deterministic gradient takes two passes over the pairs: the largest number that is added to each
table, then all of them as int64 in units of it that no sum can exceed.
"""

from __future__ import annotations

from functools import reduce
from operator import mul

from tvm import tirx
from tvm.script import tirx as T

from ...definition.signature import Signature, View
from ...problem.spec import AttentionSpec
from .builder import CudaKernel, Tensor, assign, emit, loop_while, store
from .parameters import parameter_tensors
from .program import Launch

# Bits of a sum; of a float32's exponent: its place and its value for 1.
_BITS, _EXPONENT, _ONE = 60, 23, 127
_BLOCKS, _WARPS = 64, 8


class FloatSums:
    """red.add.f32 into dtable, which is zero before."""

    def __init__(self, sig: Signature):
        self.sig = sig
        self.units: dict[int, list] = {}

    def tensors(self) -> list[Tensor]:
        return [
            Tensor(f"dtable{n}", View(tuple(x.shape), ()), "float32")
            for n, x in self.sig.table_gradients.items()
        ]

    def start(self, kernel: CudaKernel) -> None:
        """What a block holds from its start on."""

    def add(self, kernel: CudaKernel, table: int, index: tuple, value) -> None:
        target = kernel.buffers[f"dtable{table}"].ptr_to([0, *index])
        emit(T.ptx["red.global.add.f32"](target, value))


class LargestNumbers(FloatSums):
    """The bits of the largest number that is added to each table, NaN above all."""

    def tensors(self) -> list[Tensor]:
        return [Tensor("largest", View((len(self.sig.table_gradients),), ()), "int32")]

    def add(self, kernel: CudaKernel, table: int, index: tuple, value) -> None:
        bits = tirx.bitwise_and(tirx.reinterpret("int32", value), tirx.const(0x7FFFFFFF, "int32"))
        target = kernel.buffers["largest"].ptr_to([_place(self.sig, table)])
        emit(T.ptx["red.global.max.s32"](target, bits))


class IntegerSums(FloatSums):
    """Sums of int64 in ``fixed``, of units made of the largest number and of how many there are."""

    def tensors(self) -> list[Tensor]:
        sums = [
            Tensor(f"fixed{n}", View(tuple(x.shape), ()), "int64")
            for n, x in self.sig.table_gradients.items()
        ]
        return [*LargestNumbers(self.sig).tensors(), *sums]

    def start(self, kernel: CudaKernel) -> None:
        for n in self.sig.table_gradients:
            exponent = kernel.scalar(_exponent_of(kernel, self.sig, n), "int32")
            factors = _power(-exponent), _power(_spare_bits(self.sig))
            self.units[n] = [kernel.scalar(x, "float32") for x in factors]

    def add(self, kernel: CudaKernel, table: int, index: tuple, value) -> None:
        of_largest, of_unit = self.units[table]
        number = tirx.Cast("int64", tirx.nearbyint(value * of_largest * of_unit))
        target = kernel.buffers[f"fixed{table}"].ptr_to([0, *index])
        emit(T.ptx["red.global.add.u64"](target, tirx.reinterpret("uint64", number)))


def _place(sig: Signature, table: int) -> int:
    """Where a table stands among those that learn."""
    return list(sig.table_gradients).index(table)


def _exponent_of(kernel: CudaKernel, sig: Signature, table: int):
    """e of the largest number that is added to a table, 2^e <= it < 2^(e + 1)."""
    bits = kernel.buffers["largest"][_place(sig, table)]
    exponent = tirx.shift_right(bits, tirx.const(_EXPONENT, "int32")) - _ONE
    # 2^-e and its inverse shall both be normal numbers.
    return tirx.max(tirx.min(exponent, _ONE - 1), 2 - _ONE)


def _spare_bits(sig: Signature):
    """How many bits a number less than 4 may have before its point, that all pairs fit a sum."""
    keys = sig.sizes["Sk"] if "Sk" in sig.sizes else sig.sizes["total_k"]
    pairs = tirx.Cast("float32", sig.batch_rows * sig.heads * keys)
    bits = tirx.shift_right(tirx.reinterpret("int32", pairs), tirx.const(_EXPONENT, "int32"))
    return _BITS - 2 - (bits - (_ONE - 1))


def _power(exponent):
    """2^exponent, float32, of an int32 in -126 .. 127."""
    bits = tirx.shift_left(exponent + _ONE, tirx.const(_EXPONENT, "int32"))
    return tirx.reinterpret("float32", bits)


def fixed_to_float_launch(spec: AttentionSpec, symbol: str) -> Launch:
    """dtable of the sums in fixed; NaN where a number was not finite."""
    sig = Signature(spec)
    sizes = parameter_tensors(sig, ("q", "k"))
    tensors = [*sizes, *IntegerSums(sig).tensors(), *FloatSums(sig).tensors()]
    with CudaKernel(symbol, sig, tensors, lambda sizes: (_BLOCKS, 1, 1), _WARPS) as kernel:
        for table, gradient in sig.table_gradients.items():
            bits = kernel.buffers["largest"][_place(sig, table)]
            is_finite = kernel.scalar(bits < tirx.const(0x7F800000, "int32"), "bool")
            units = [_power(_exponent_of(kernel, sig, table)), _power(-_spare_bits(sig))]
            of_largest, of_unit = (kernel.scalar(x, "float32") for x in units)
            _, *shape = gradient.shape
            elements = reduce(mul, shape, tirx.const(1, "int64"))
            first = kernel.block * kernel.threads + kernel.thread
            number = kernel.scalar(tirx.Cast("int64", first), "int64")
            with loop_while(number < elements):
                at = (0, *_place_of(number, shape))
                fixed = tirx.Cast("float32", kernel.buffers[f"fixed{table}"][at])
                total = fixed * of_unit * of_largest
                value = tirx.Select(is_finite, total, T.float32(float("nan")))
                store(kernel.buffers[f"dtable{table}"], at, value)
                assign(number, number + _BLOCKS * kernel.threads)
    return kernel.launch()


def _place_of(number, shape) -> list:
    """Index of element ``number`` of a dense array of this shape."""
    place = []
    for extent in reversed(shape):
        place.insert(0, tirx.truncmod(number, extent))
        number = tirx.truncdiv(number, extent)
    return place
