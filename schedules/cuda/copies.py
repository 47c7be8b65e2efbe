"""Rows between global and shared memory: cp.async with zero fill, or through registers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from tvm import tirx
from tvm.script import tirx as T

from .builder import CudaKernel, assign, barrier, emit, store, when
from .rows import Cursor, Piece, RowCursor, Rows
from .shared_tile import SharedTile

# Bytes of a vector access, and the suffix PTX gives it.
VECTOR = {16: "v4.b32", 8: "v2.b32", 4: "b32", 2: "b16"}

# Signs of the elements in a word, by its type and an element's bytes.
_SIGN_BITS = {("uint16", 2): 0x8000, ("uint32", 2): 0x8000_8000, ("uint32", 4): 0x8000_0000}


def load_rows(
    kernel: CudaKernel, tile: SharedTile, stage, source: Rows, first, end, asynchronous: bool = True
) -> None:
    """Rows first .. first + tile.rows - 1 of ``source`` into the tile, all threads together.

    Rows from ``end`` on and columns past the row's are zeros. With cp.async the data have landed
    after a wait of ``commit``'s group and a barrier; otherwise after a barrier.
    """
    each(
        _parts(RowCursor(kernel, tile, source, first, once=True), stage, asynchronous, end - first)
    )


def _parts(
    cursor: Cursor, stage, asynchronous: bool, left=None, wanted=None
) -> list[Callable[[], None]]:
    """The copies of the tile at hand; ``left`` and ``wanted`` are of ``Cursor.pieces``."""

    def copy(context: AbstractContextManager[Piece]) -> None:
        with context as piece:
            copy_piece(
                cursor.kernel, piece.place(stage), piece.pointer, cursor.access_bytes,
                piece.inside, asynchronous,
            )  # fmt: skip

    return [partial(copy, context) for context in cursor.pieces(left, wanted)]


def each(parts: Iterable[Callable[[], None]]) -> None:
    """Do all ``parts``, one after the other."""
    for part in parts:
        part()


def store_rows(kernel: CudaKernel, tile: SharedTile, target: Rows, first, end) -> None:
    """The tile to rows first .. of ``target``, as far as they lie before ``end``."""
    cursor = RowCursor(kernel, tile, target, first, once=True)
    kind = VECTOR[cursor.access_bytes]
    for context in cursor.pieces(end - first):
        with context as piece, when(piece.inside):
            words = words_of(kernel, kind)
            emit(T.ptx[f"ld.shared.{kind}"](*words, piece.place(0)))
            emit(T.ptx[f"st.global.{kind}"](piece.pointer, *words))


class Copies:
    """Tiles on their way into shared memory: by cp.async, or where there is none by registers.

    The order of calls, by all threads of a block: ``rows`` and ``parts`` ask for tiles, ``commit``
    ends a group of them, other work goes on, ``landed`` waits for every group. After it
    all threads may read the tiles; what they read before it may be overwritten by the next copies.
    """

    def __init__(self, kernel: CudaKernel, asynchronous: bool):
        self.kernel, self.asynchronous = kernel, asynchronous

    def rows(self, tile: SharedTile, stage, source: Rows, first, end) -> None:
        """Ask for rows first .. of ``source``; zeros from row ``end`` on (``load_rows``)."""
        load_rows(self.kernel, tile, stage, source, first, end, self.asynchronous)

    def tile(self, cursor: Cursor, stage, left=None) -> None:
        """The same for the tile at hand of ``cursor``; ``left`` is of ``Cursor.pieces``."""
        each(self.parts(cursor, stage, left))

    def parts(self, cursor: Cursor, stage, left=None, wanted=None) -> list[Callable[[], None]]:
        """The same in parts, to be asked for in order between other work.

        ``left`` and ``wanted`` are of ``Cursor.pieces``: zeros from row ``left`` of the tile on,
        or everywhere.
        """
        parts = _parts(cursor, stage, self.asynchronous, left, wanted)
        if self.asynchronous:
            return parts
        # Stores to the tile wait for memory: the loads before them go out together.
        return [partial(each, parts)]

    def piece(self, target, origin, size: int, inside) -> None:
        """Ask for ``size`` bytes; zeros unless ``inside``."""
        copy_piece(self.kernel, target, origin, size, inside, self.asynchronous)

    def negate(self, cursor: Cursor) -> None:
        """Change the signs of what this thread brought to the tile of ``cursor``, once landed.

        All threads may read it after the next ``landed``.
        """
        self.drain()
        kind, tile = VECTOR[cursor.access_bytes], cursor.tile
        signs = tirx.const(_SIGN_BITS[_word_type(kind), tile.element_bytes], _word_type(kind))
        for context in cursor.pieces():
            with context as piece:
                words = words_of(self.kernel, kind)
                place = piece.place(0)
                emit(T.ptx[f"ld.shared.{kind}"](*words, place))
                for word in words:
                    assign(word, word ^ signs)
                emit(T.ptx[f"st.shared.{kind}"](place, *words))

    def commit(self) -> None:
        """End the group of what was asked for since the last ``commit``."""
        if self.asynchronous:
            commit()

    def landed(self) -> None:
        """Wait until all groups of all threads have landed; all threads of the block meet."""
        self.drain()
        barrier()

    def drain(self) -> None:
        """Wait until this thread's own groups have landed, as it must before it ends."""
        if self.asynchronous:
            wait()


def commit() -> None:
    """Close the group of the copies since the last one (cp.async.commit_group)."""
    emit(T.ptx.cp.async_.commit_group())


def wait(pending: int = 0) -> None:
    """Until at most ``pending`` groups of this thread are in flight (cp.async.wait_group)."""
    emit(T.ptx.cp.async_.wait_group(pending))


def copy_piece(kernel: CudaKernel, target, origin, size: int, inside, asynchronous: bool) -> None:
    """``size`` bytes to shared memory, by cp.async where that moves so few; zeros unless
    ``inside``."""
    if asynchronous and size >= 4:
        copy_async(target, origin, size, inside)
    else:
        _copy_through_registers(kernel, target, origin, size, inside)


def copy_async(target, origin, size: int, inside) -> None:
    """``size`` bytes, 4, 8 or 16, to shared memory; zeros unless ``inside``, None being always."""
    # .cg skips L1, which holds nothing that is read again; it takes 16 bytes only.
    name = "cp.async.cg.shared.global.L2::128B" if size == 16 else "cp.async.ca.shared.global"
    whole = T.uint32(size)
    count = whole if inside is None else tirx.Select(inside, whole, T.uint32(0))
    emit(T.ptx[name](target, origin, size, count))


def _copy_through_registers(kernel: CudaKernel, target, origin, size: int, inside) -> None:
    kind = VECTOR[size]
    words = kernel.registers((max(size // 4, 1),), _word_type(kind))
    values = [words[n] for n in range(max(size // 4, 1))]
    for n in range(len(values)):
        store(words, (n,), tirx.const(0, _word_type(kind)))
    with when(inside) if inside is not None else nullcontext():
        emit(T.ptx[f"ld.global.{kind}"](*values, origin))
    emit(T.ptx[f"st.shared.{kind}"](target, *values))


def words_of(kernel: CudaKernel, kind: str) -> list:
    """Registers for what an access of this suffix moves."""
    count = {"v4.b32": 4, "v2.b32": 2}.get(kind, 1)
    words = kernel.registers((count,), _word_type(kind))
    return [words[n] for n in range(count)]


def _word_type(kind: str) -> str:
    return "uint16" if kind == "b16" else "uint32"
