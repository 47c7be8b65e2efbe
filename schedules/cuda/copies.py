"""Rows between global and shared memory: cp.async with zero fill, or through registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from math import gcd

from tvm import tirx
from tvm.script import tirx as T

from .builder import CudaKernel, barrier, emit, store, when
from .shared_tile import SharedTile

# Words of a vector access and the suffix PTX gives it.
_VECTOR = {16: "v4.b32", 8: "v2.b32", 4: "b32", 2: "b16"}


@dataclass(frozen=True)
class Rows:
    """Rows of ``columns`` elements in ``buffer``, where index(row, column) places an element."""

    buffer: tirx.Buffer
    columns: int
    index: Callable[..., tuple]

    def pointer(self, row, column):
        """Address of one element."""
        return self.buffer.ptr_to(list(self.index(row, column)))


def vector_bytes(columns: int, element_bytes: int) -> int:
    """Widest access that rows of ``columns`` contiguous elements allow: 16, 8, 4 or 2 bytes."""
    return gcd(columns * element_bytes, 16)


def row_copies(
    kernel: CudaKernel, tile: SharedTile, stage, source: Rows, first, end, asynchronous: bool = True
) -> list[Callable[[], None]]:
    """Rows first .. first + tile.rows - 1 of ``source`` into the tile, all threads together, in
    pieces: a copy of each thread.

    Rows from ``end`` on and columns past the row's are zeros. With cp.async the data have landed
    after a wait of ``commit``'s group and a barrier; otherwise after a barrier.
    """

    def copy(row, chunk, offset, column, guard) -> None:
        inside = first + row < end
        if source.columns < tile.columns:
            inside = tirx.And(inside, column < source.columns)
        with guard:
            target = tile.pointer(stage, row, chunk, offset)
            origin = source.pointer(first + row, column)
            size = vector_bytes(source.columns, tile.element_bytes)
            if asynchronous and size >= 4:
                _copy_async(target, origin, size, inside)
            else:
                _copy_through_registers(kernel, target, origin, size, inside)

    return [partial(copy, *piece) for piece in _pieces(kernel, tile, source)]


def load_values(
    kernel: CudaKernel, target: tirx.Buffer, stage, source: tirx.Buffer, index: Callable,
    first, end, asynchronous: bool = True,
) -> None:  # fmt: skip
    """float32 statistics of rows first .., at index(row), into target[stage]; zeros from end."""
    count = int(target.shape[1])
    for start in range(0, count, kernel.threads):
        row = kernel.thread + start
        wanted = row < count if start + kernel.threads > count else None
        place, inside = target.ptr_to([stage, row]), first + row < end
        origin = source.ptr_to(list(index(first + row)))
        if asynchronous:
            _copy_async(place, origin, 4, inside, wanted)
        else:
            with nullcontext() if wanted is None else when(wanted):
                _copy_through_registers(kernel, place, origin, 4, inside)


def store_rows(kernel: CudaKernel, tile: SharedTile, target: Rows, first, end) -> None:
    """The tile to rows first .. of ``target``, as far as they lie before ``end``."""
    for row, chunk, offset, column, guard in _pieces(kernel, tile, target):
        inside = first + row < end
        if target.columns < tile.columns:
            inside = tirx.And(inside, column < target.columns)
        with guard, when(inside):
            kind = _VECTOR[vector_bytes(target.columns, tile.element_bytes)]
            words = _words(kernel, kind)
            emit(T.ptx[f"ld.shared.{kind}"](*words, tile.pointer(0, row, chunk, offset)))
            emit(T.ptx[f"st.global.{kind}"](target.pointer(first + row, column), *words))


class Copies:
    """Tiles on their way into shared memory: by cp.async, or where there is none by registers.

    The order of calls, by all threads of a block: ``rows`` and ``values`` ask for tiles, ``commit``
    ends a group of them, other work goes on, ``landed`` waits for every group. After it all threads
    may read the tiles; what they read before it may be overwritten by the next ``rows``.
    """

    def __init__(self, kernel: CudaKernel, asynchronous: bool):
        self.kernel, self.asynchronous = kernel, asynchronous

    def rows(self, tile: SharedTile, stage, source: Rows, first, end) -> None:
        """Ask for rows first .. of ``source``; zeros from row ``end`` on (``row_copies``)."""
        for piece in self.pieces(tile, stage, source, first, end):
            piece()

    def pieces(self, tile: SharedTile, stage, source: Rows, first, end) -> list[Callable]:
        """``rows`` in pieces, to be called one after the other."""
        return row_copies(self.kernel, tile, stage, source, first, end, self.asynchronous)

    def values(self, target: tirx.Buffer, stage, source: tirx.Buffer, index, first, end) -> None:
        """Ask for float32 statistics of rows first ..; zeros from ``end`` on (``load_values``)."""
        load_values(self.kernel, target, stage, source, index, first, end, self.asynchronous)

    def commit(self) -> None:
        """End the group of what was asked for since the last ``commit``."""
        if self.asynchronous:
            commit()

    def landed(self) -> None:
        """Wait until all groups of all threads have landed; all threads of the block meet."""
        if self.asynchronous:
            wait()
        barrier()


def commit() -> None:
    """Close the group of the copies since the last one (cp.async.commit_group)."""
    emit(T.ptx.cp.async_.commit_group())


def wait(pending: int = 0) -> None:
    """Until at most ``pending`` groups of this thread are in flight (cp.async.wait_group)."""
    emit(T.ptx.cp.async_.wait_group(pending))


def _pieces(kernel: CudaKernel, tile: SharedTile, rows: Rows) -> Iterator[tuple]:
    """(row, chunk, element in the chunk, column, guard) of each access of this thread."""
    size = vector_bytes(rows.columns, tile.element_bytes)
    elements = size // tile.element_bytes
    per_row = tile.columns // elements
    total = tile.rows * per_row
    for start in range(0, total, kernel.threads):
        index = kernel.thread + start
        row, piece = index // per_row, index % per_row
        column = piece * elements
        guard = when(index < total) if start + kernel.threads > total else nullcontext()
        yield row, column // tile.per_chunk, column % tile.per_chunk, column, guard


def _copy_async(target, origin, size: int, inside, wanted=None) -> None:
    """``size`` bytes, zeros unless ``inside``; wanted: a predicate, where a branch would cost."""
    # .cg skips L1, which holds nothing that is read again; it takes 16 bytes only.
    name = "cp.async.cg.shared.global.L2::128B" if size == 16 else "cp.async.ca.shared.global"
    emit(T.ptx[name](target, origin, size, tirx.Select(inside, T.uint32(size), T.uint32(0)), pred=wanted))


def _copy_through_registers(kernel: CudaKernel, target, origin, size: int, inside) -> None:
    kind = _VECTOR[size]
    words = kernel.registers((max(size // 4, 1),), _word_type(kind))
    values = [words[n] for n in range(max(size // 4, 1))]
    for n in range(len(values)):
        store(words, (n,), tirx.const(0, _word_type(kind)))
    with when(inside):
        emit(T.ptx[f"ld.global.{kind}"](*values, origin))
    emit(T.ptx[f"st.shared.{kind}"](target, *values))


def _words(kernel: CudaKernel, kind: str) -> list:
    count = {"v4.b32": 4, "v2.b32": 2}.get(kind, 1)
    words = kernel.registers((count,), _word_type(kind))
    return [words[n] for n in range(count)]


def _word_type(kind: str) -> str:
    return "uint16" if kind == "b16" else "uint32"
