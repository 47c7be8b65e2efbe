"""AMX micro-kernel: a 32 x 32 block of float32 sums of bf16 pair products, in four tiles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from .micro_tile import IN_REGISTERS, MicroTile, description

# Intel SDM vol. 1, chapter 18: a tile is 16 rows of 64 bytes; TDPBF16PS adds to a 16 x 16 float32
# tile the products of 16 x 16 words (pairs of bf16) by 16 x 16 words.
TILE = 16
BLOCK = 2 * TILE


def tile_call(name: str, *args):
    """One AMX instruction. Tests replace it by a call of their software tiles."""
    return tirx.call_llvm_intrin("void", f"llvm.x86.{name}", *args)


@dataclass(frozen=True)
class AmxTile:
    """C[32, 32] (+)= A[32, depth] . B[depth, 32] over words of bf16 pairs; depth in words.

    fresh: the sum starts at zero, not at what C holds.
    """

    depth: int
    fresh: bool = False

    @property
    def name(self) -> str:
        return f"tvm_flash_amx_{BLOCK}x{BLOCK}x{self.depth}{'_fresh' if self.fresh else ''}"

    def product(self, operand) -> MicroTile:
        """The same product in vectors."""
        sizes = (BLOCK, BLOCK, self.depth, TILE)
        return MicroTile(*sizes, fresh=self.fresh, operand=operand)


@cache
def register_amx(tile: AmxTile, operand) -> str:
    """Register the tensor intrinsic of ``tile`` and return its name."""
    both = description(tile.product(operand)), _implementation(tile, operand)
    TensorIntrin.register(tile.name, *both, override=True)
    return tile.name


@cache
def register_start(rows: int, lanes: int) -> str:
    """An intrinsic that zeroes ``rows`` of ``lanes`` and sets up this thread's tiles.

    The tile configuration belongs to the thread, so it is loaded inside the parallel body, with the
    first zeros that a task writes.
    """
    name = f"tvm_flash_amx_start_{rows}x{lanes}"
    TensorIntrin.register(name, *_start(rows, lanes), override=True)
    return name


def _implementation(tile: AmxTile, operand) -> tirx.PrimFunc:
    depth, product = tile.depth, tile.product(operand)

    def stride(words):
        return tirx.Cast("int64", words) * tirx.const(4, "int64")

    def move(name, number, address, row):
        return tile_call(name, _i8(number), address, stride(row))

    def start(number, address, row):
        if tile.fresh:
            return tile_call("tilezero", _i8(number))
        return move("tileloadd64", number, address, row)

    def multiply(c, a, b):
        return tile_call("tdpbf16ps", _i8(c), _i8(a), _i8(b))

    @T.prim_func(s_tir=True)
    def implementation(a: T.handle, b: T.handle, c: T.handle):
        a_row = T.int32()
        b_row = T.int32()
        c_row = T.int32()
        A = T.match_buffer(a, (BLOCK, depth), "int32", offset_factor=1, strides=[a_row, 1])
        B = T.match_buffer(b, (depth, BLOCK), "int32", offset_factor=1, strides=[b_row, 1])
        C = T.match_buffer(c, (BLOCK, BLOCK), "float32", offset_factor=1, strides=[c_row, 1])
        with T.sblock("root"):
            T.reads(product.reads(A, B, C))
            T.writes(C[0:BLOCK, 0:BLOCK])
            # Tiles 0-3 hold C by quarters, 4 and 5 two bands of A, 6 and 7 two of B.
            T.evaluate(start(0, T.address_of(C[0, 0]), c_row))
            T.evaluate(start(1, T.address_of(C[0, TILE]), c_row))
            T.evaluate(start(2, T.address_of(C[TILE, 0]), c_row))
            T.evaluate(start(3, T.address_of(C[TILE, TILE]), c_row))
            for k in T.unroll(depth // TILE):
                T.evaluate(move("tileloadd64", 4, T.address_of(A[0, k * TILE]), a_row))
                T.evaluate(move("tileloadd64", 6, T.address_of(B[k * TILE, 0]), b_row))
                T.evaluate(move("tileloadd64", 5, T.address_of(A[TILE, k * TILE]), a_row))
                T.evaluate(move("tileloadd64", 7, T.address_of(B[k * TILE, TILE]), b_row))
                T.evaluate(multiply(0, 4, 6))
                T.evaluate(multiply(1, 4, 7))
                T.evaluate(multiply(2, 5, 6))
                T.evaluate(multiply(3, 5, 7))
            T.evaluate(move("tilestored64", 0, T.address_of(C[0, 0]), c_row))
            T.evaluate(move("tilestored64", 1, T.address_of(C[0, TILE]), c_row))
            T.evaluate(move("tilestored64", 2, T.address_of(C[TILE, 0]), c_row))
            T.evaluate(move("tilestored64", 3, T.address_of(C[TILE, TILE]), c_row))

    return implementation


def _start(rows: int, lanes: int) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    @T.prim_func(s_tir=True)
    def zero(a: T.handle):
        A = T.match_buffer(a, (rows, lanes), "float32", offset_factor=1)
        with T.sblock("root"):
            T.reads()
            T.writes(A[0:rows, 0:lanes])
            for r, i in T.grid(rows, lanes):
                with T.sblock("zero"):
                    vr, vi = T.axis.remap("SS", [r, i])
                    A[vr, vi] = T.float32(0)

    @T.prim_func(s_tir=True)
    def zero_and_configure(a: T.handle):
        row = T.int32()
        A = T.match_buffer(a, (rows, lanes), "float32", offset_factor=1, strides=[row, 1])
        with T.sblock("root"):
            T.reads()
            T.writes(A[0:rows, 0:lanes])
            # Palette 1; bytes per row (uint16) from byte 16, rows (uint8) from byte 48.
            palette = T.alloc_buffer((64,), "uint8", annotations=IN_REGISTERS)
            for i in T.serial(64):
                palette[i] = T.uint8(0)
            palette[0] = T.uint8(1)
            for i in T.serial(8):
                palette[16 + 2 * i] = T.uint8(4 * TILE)
                palette[48 + i] = T.uint8(TILE)
            T.evaluate(tile_call("ldtilecfg", T.address_of(palette[0])))
            for r, i in T.grid(rows, lanes):
                A[r, i] = T.float32(0)

    return zero, zero_and_configure


def _i8(value: int):
    return tirx.const(value, "int8")
