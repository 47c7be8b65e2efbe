"""Appending on GPUs: a warp takes the keys of a new row, which it rotates, or the values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from ...definition.arithmetic import int32
from ...definition.rotation import members, rotated
from ...definition.signature import Signature
from ...problem.arguments import TABLES
from ...problem.spec import AttentionSpec
from .arch import WARP, CudaArch
from .builder import CudaKernel, emit, leave_unless, loop, store, warp_barrier, when
from .entries import find_packed_row, packed_row_work
from .pages import in_int32
from .parameters import parameter_tensors
from .pieces import Piece
from .product import Product
from .program import Grid, Launch, blocks
from .row_config import RowConfig
from .rows import vector_bytes
from .tensor_core import product_for
from .tiling import round_up

_WARPS = 4
# Those of a row's keys, those of its values.
_PARTS = 2


@dataclass(frozen=True)
class AppendConfig(RowConfig):
    """Rows are moved one by one."""

    schedule = "cuda.append"


def append_grid() -> Grid:
    """Blocks for all warps of ``packed_row_work``."""
    return lambda sizes: (blocks(packed_row_work(sizes, _PARTS).count, _WARPS), 1, 1)


def append_launch(spec: AttentionSpec, arch: CudaArch, symbol: str) -> Launch:
    """Rows to their places, as schedules/cpu/forms/append.py says it."""
    sig = Signature(spec, "append")
    names = [a.name for a in TABLES["paged"]["append"] if a.name not in sig.spans]
    # min_blocks=1: left to itself ptxas keeps to 64 registers on some architectures, and spills.
    with CudaKernel(
        symbol, sig, parameter_tensors(sig, names), append_grid(), _WARPS, min_blocks=1
    ) as kernel:
        _Append(kernel, spec, product_for(spec.dtype, turing=not arch.asynchronous_copy)).write()
    return kernel.launch()


class _Append:
    """The body of the kernel: ``write`` is all of it."""

    def __init__(self, kernel: CudaKernel, spec: AttentionSpec, product: Product):
        self.kernel, self.spec, self.product = kernel, spec, product
        sizes = kernel.sig.sizes
        exact, rounded = (int32(sizes[name]) for name in ("pairs", "rounded_pairs"))
        self.pairs = kernel.scalar(tirx.max(exact, rounded), name="pairs")
        columns = round_up(max(spec.head_dim // 2, 1), 4)
        self.turn = kernel.shared((_WARPS, 2, columns), "float32", "turn")

    def write(self) -> None:
        kernel = self.kernel
        place = find_packed_row(kernel, _PARTS)
        sequences, row = in_int32(kernel, place.sequences), place.first
        leave_unless(tirx.Not(sequences.lacks_place(place.entry, row)))
        page, inner, *_ = sequences.key(place.entry, 0, row, 0)
        self.target = kernel.scalar(page, name="page"), kernel.scalar(inner, name="inner")
        self.source = kernel.scalar(place.sequences.query(place.entry, 0, row, 0)[0])
        with when(place.head == 0):
            position = tirx.Cast("int64", kernel.buffers["rotary_seqlens"][place.entry])
            self._take_angles(kernel.scalar(position + tirx.Cast("int64", row), "int64"))
            width = self._width(self.spec.head_dim)
            fits = tirx.truncmod(self.pairs, width) == 0
            with when(fits):
                self._keys(width)
            if width > 1:
                with when(tirx.Not(fits)):
                    self._keys(1)
        with when(place.head == 1):
            width = self._width(self.spec.head_dim_v)
            self._copy("v", int32(kernel.sig.sizes["Hv"]), 0, self.spec.head_dim_v // width, width)

    def _width(self, columns: int) -> int:
        """Elements of the widest access that rows of so many allow."""
        size = self.spec.element.bytes
        return vector_bytes(columns, size) // size

    def _take_angles(self, position) -> None:
        """cos and sin of ``position``, float32, to shared memory; of no angle where it has none."""
        kernel, found = self.kernel, self.kernel.registers((2,), "float32")
        for start in range(0, self.spec.head_dim // 2, WARP):
            column = kernel.lane + start
            store(found, (0,), T.float32(1))
            store(found, (1,), T.float32(0))
            for prefix in ("", "rounded_"):
                tables = [kernel.buffers[f"{prefix}{name}"] for name in ("cos", "sin")]
                rows, columns = tables[0].shape
                inside = tirx.And(position >= 0, position < rows)
                with when(tirx.And(inside, tirx.Cast("int64", column) < columns)):
                    for number, table in enumerate(tables):
                        store(found, (number,), tirx.Cast("float32", table[position, column]))
            with when(column < self.pairs):
                for number in range(2):
                    store(self.turn, (kernel.warp, number, column), found[number])
        warp_barrier()

    def _keys(self, width: int) -> None:
        """The keys of all heads, in pieces of ``width``, of which pairs are a multiple."""
        heads = int32(self.kernel.sig.kv_heads)
        self._rotate(heads, width)
        first = 2 * self.pairs
        self._copy("k", heads, first, tirx.truncdiv(self.spec.head_dim - first, width), width)

    def _rotate(self, heads, width: int) -> None:
        """Two pieces at once, which are ``width`` pairs."""
        kernel, interleaved = self.kernel, self.kernel.sig.numbers["interleaved"] != 0
        with self._pieces(heads, tirx.truncdiv(self.pairs, width)) as (head, number):
            pair = kernel.scalar(number * width)
            columns = [
                kernel.scalar(tirx.Select(interleaved, 2 * pair + width * n, pair + self.pairs * n))
                for n in range(2)
            ]
            parts = [Piece(kernel, self.product, width) for _ in columns]
            for part, column in zip(parts, columns, strict=True):
                part.load(self._new("k", head, column))
            angles = [self._angles(number, pair, width) for number in range(2)]
            before = [value for part in parts for value in part.values()]
            after = kernel.registers((2 * width,), "float32")
            for is_interleaved in (False, True):
                with when(interleaved if is_interleaved else tirx.Not(interleaved)):
                    for n in range(width):
                        both = members(n, width, is_interleaved)
                        turned = rotated(*(before[m] for m in both), *(x[n] for x in angles))
                        for member, value in zip(both, turned, strict=True):
                            store(after, (member,), value)
            for n, (part, column) in enumerate(zip(parts, columns, strict=True)):
                part.set([after[n * width + m] for m in range(width)])
                part.store(self._old("k", head, column))

    def _angles(self, number: int, pair, width: int) -> list:
        """cos (number 0) or sin of ``width`` pairs, registers."""
        found = self.kernel.registers((width,), "float32")
        step = 4 if width % 4 == 0 else 1
        for n in range(0, width, step):
            at = self.turn.ptr_to([self.kernel.warp, number, pair + n])
            kind = "ld.shared.v4.f32" if step == 4 else "ld.shared.f32"
            emit(T.ptx[kind](*(found[n + m] for m in range(step)), at))
        return [found[n] for n in range(width)]

    def _copy(self, name: str, heads, first, pieces, width: int) -> None:
        """Columns from ``first`` on as they are, so many pieces."""
        with self._pieces(heads, pieces) as (head, number):
            piece, column = Piece(self.kernel, self.product, width), first + number * width
            piece.load(self._new(name, head, column))
            piece.store(self._old(name, head, column))

    @contextmanager
    def _pieces(self, heads, each) -> Iterator[tuple]:
        """What the lanes of the warp do to the pieces of all heads: (head, number) of each."""
        kernel = self.kernel
        each, count = kernel.scalar(each), kernel.scalar(heads * each)
        with loop(blocks(count, WARP), "round") as turn:
            own = kernel.scalar(kernel.lane + turn * WARP)
            with when(own < count):
                head = kernel.scalar(tirx.truncdiv(own, each))
                yield head, kernel.scalar(own - head * each)

    def _new(self, name: str, head, column) -> Callable:
        return self.kernel.buffers[f"{name}_new"].ptr_to([self.source, head, column])

    def _old(self, name: str, head, column) -> Callable:
        return self.kernel.buffers[f"{name}_pages"].ptr_to([*self.target, head, column])
