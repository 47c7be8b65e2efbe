"""Products of warp groups: wgmma, its operands in shared memory, and what the compiler must know.

A product runs beside other instructions, on registers that the compiler believes to be at rest. So
each start of one is preceded by what orders the registers it takes, and each wait is followed by
what makes those it gave new ("pins": empty assembly, no instruction).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

from tvm import tirx
from tvm.script import tirx as T

from ....problem.dtype import DTYPES
from ..builder import CudaKernel, emit
from ..fragments import Accumulator
from ..tiling import round_up
from .box_tile import SWIZZLE_BYTES, BoxTile

# Rows of a product, those of a warp group; of them a warp's; columns that a step reduces.
GROUP_ROWS, WARP_ROWS, STEP = 64, 16, 16
# A descriptor counts bytes by 16 (PTX ISA, "matrix descriptor").
_UNIT = 16
_SWIZZLE_128B = 1 << 62
# Units from a step of 16 to the next: along 128-byte rows, and down 16 of these rows.
_ALONG, _DOWN = 2, 128
_STEPS_A_BOX = 4
# Columns of a box of 16-bit numbers.
BOX_COLUMNS = STEP * _STEPS_A_BOX


@dataclass(frozen=True)
class Operand:
    """A ``BoxTile`` as wgmma reads it: a descriptor in a register, to which places are added.

    One serves both majors: products read the distance of boxes only where the reduction goes down
    the rows, and the distance of 8 rows is the same in both.
    """

    tile: BoxTile
    start: tirx.Expr

    def along(self, step: int, stage=0):
        """The reduction along rows: columns of ``step``."""
        boxes, within = divmod(step, _STEPS_A_BOX)
        return self._at(stage, boxes * self._box + within * _ALONG)

    def down(self, step: int, stage=0):
        """The reduction down the rows: those of ``step``."""
        return self._at(stage, step * _DOWN)

    @property
    def _box(self) -> int:
        return self.tile.box_bytes // _UNIT

    def _at(self, stage, units: int):
        if isinstance(stage, int):
            units += stage * self.tile.stage_bytes // _UNIT
            return self.start + tirx.const(units, "uint64")
        stages = tirx.Cast("uint64", stage * (self.tile.stage_bytes // _UNIT))
        return self.start + stages + tirx.const(units, "uint64")


def operand(kernel: CudaKernel, tile: BoxTile, row=0, box=0, name: str = "") -> Operand:
    """``tile`` from ``row`` (a multiple of 8) and ``box`` on, int32: a warp group's own part."""
    start = T.cuda.cvta_generic_to_shared(tile.buffer.ptr_to([0, box, row, 0]))
    units = tirx.Cast("uint64", tirx.shift_right(start & T.uint32(0x3FFFF), T.uint32(4)))
    fixed = (tile.box_bytes // _UNIT) << 16 | (SWIZZLE_BYTES // _UNIT) << 32 | _SWIZZLE_128B
    whole = units | tirx.const(fixed, "uint64")
    return Operand(tile, kernel.scalar(whole, "uint64", name))


@dataclass(frozen=True)
class GroupProduct:
    """acc (64 x 8 n_tiles, float32) += A B, of 16-bit operands: wgmma.mma_async.m64nNk16.

    Accumulators are those of mma.m16n8, a warp having 16 of the 64 rows (PTX ISA, "wgmma
    register fragments"). Each method asks for a group of products, ``wait`` waits for them: what a
    group takes may not be touched before. Reductions go over ``steps`` of 16.
    """

    dtype: str

    def along(self, acc: Accumulator, a: Operand, b: Operand, width: int, stage) -> None:
        """acc = A B^T over ``width`` columns, B of ``stage``."""
        _start(fresh=[acc])
        steps = round_up(width, STEP) // STEP
        self._multiply(acc, steps, lambda step: (a.along(step), b.along(step, stage)), False, 0, 0)

    def down(self, acc: Accumulator, a: Operand, b: Operand, steps: int, stage) -> None:
        """acc = A B over rows of B, A of ``stage``."""
        _start(fresh=[acc])
        self._multiply(acc, steps, lambda step: (a.along(step, stage), b.down(step)), False, 0, 1)

    def add_down(self, acc: Accumulator, a: Callable, b: Operand, steps: int, stage) -> None:
        """acc += A B over rows of B, of ``stage``; a(step): a fragment, four words of this lane."""
        _start(kept=[acc], words=words_of(steps, a))
        self._multiply(acc, steps, lambda step: (*a(step), b.down(step, stage)), True, 1)

    def _multiply(
        self, acc: Accumulator, steps: int, operands: Callable, adds: bool, *down: int
    ) -> None:
        """down: of each operand in shared memory, whether its reduction goes down its rows."""
        # 1, 1: of neither operand the sign is changed.
        for step in range(steps):
            adds_here = T.bool(adds or step > 0)
            emit(T.ptx[self._name(acc)](*_registers(acc), *operands(step), adds_here, 1, 1, *down))
        emit(T.ptx.wgmma.commit_group.sync.aligned())

    def _name(self, acc: Accumulator) -> str:
        kind = DTYPES[self.dtype].operand
        return f"wgmma.mma_async.sync.aligned.m64n{8 * acc.n_tiles}k16.f32.{kind}.{kind}"


def words_of(steps: int, *fragments: Callable) -> list:
    """All words of ``fragments``, each a function of the step."""
    return [word for words in fragments for step in range(steps) for word in words(step)]


def wait(pending: int, *landed: Accumulator, words=()) -> None:
    """Until at most ``pending`` groups are in flight: ``landed`` is there, ``words`` are free."""
    emit(T.ptx.wgmma.wait_group.sync.aligned(pending))
    for register in chain(_all(landed), words):
        _pin(register)


def order_after(*values) -> None:
    """What follows comes after all that makes ``values``, float32 that are not below zero.

    ptxas else moves exponentials below the wait that they should run before: an empty pin does
    not hold it, a warp barrier whose mask it cannot know does. The mask is of all lanes for every
    such value, NaN too.
    """
    source = (
        "__device__ __forceinline__ void tvm_flash_order_after(float x) {"
        " unsigned mask = x < 0.0f ? 1u : 0xffffffffu;"
        ' asm volatile("bar.warp.sync %0;" :: "r"(mask) : "memory"); }'
    )
    total = sum(values[1:], start=values[0])
    emit(T.cuda.func_call("tvm_flash_order_after", total, source_code=source))


def _start(
    *, fresh: Iterable[Accumulator] = (), kept: Iterable[Accumulator] = (), words=()
) -> None:
    """Before products: what they set, what they add to, and the fragments that they read.

    ``fresh`` ones end there: nothing of them has to live through what comes before.
    """
    for register in _all(fresh):
        _pin(register, "=")
    for register in chain(_all(kept), words):
        _pin(register)
    emit(T.ptx.wgmma.fence.sync.aligned())


def _registers(acc: Accumulator) -> list:
    """Those of a warp group's accumulator, in the order of wgmma."""
    return [acc.registers[0, n, r] for n in range(acc.n_tiles) for r in range(4)]


def _all(accumulators: Iterable[Accumulator]) -> Iterable:
    return chain.from_iterable(map(_registers, accumulators))


def _pin(register, access: str = "+") -> None:
    """The register has another value from here on, made of its own ("+") or of nothing ("=")."""
    kind, letter = {"float32": ("float", "f"), "uint32": ("unsigned", "r")}[register.ty.dtype]
    name = f"tvm_flash_{'pin' if access == '+' else 'fresh'}_{kind}"
    source = (
        f"__device__ __forceinline__ void {name}({kind}& x)"
        f' {{ asm volatile("" : "{access}{letter}"(x) :: "memory"); }}'
    )
    emit(T.cuda.func_call(name, register, source_code=source))
