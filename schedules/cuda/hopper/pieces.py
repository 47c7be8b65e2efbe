"""What consumers do to a tile besides products: its signs, its end, and the way of its rows out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from ..builder import assign, emit, when
from ..copies import words_of
from ..rows import Rows, pointer
from .box_tile import BoxTile
from .roles import GROUP_THREADS, Roles
from .tensor_maps import proxy_fence, stores_read
from .wgmma import GROUP_ROWS

_VECTOR = "v4.b32"
# Signs of the two elements of a word.
_SIGNS = 0x8000_8000


def store_boxes(roles: Roles, *stored: tuple[BoxTile, Any, Sequence]) -> None:
    """This consumer's rows, which all its threads have written, by TMA: of a tile, map and place.

    A place is that of the consumer's first row.
    """
    thread = stored[0][0].kernel.thread
    with when(thread % GROUP_THREADS == 0):
        for tile, tensor_map, place in stored:
            tile.store(tensor_map, roles.row, place)
        stores_read()


def negate_rows(tile: BoxTile, roles: Roles) -> None:
    """Change the signs of this consumer's rows, which its products may read after it."""
    thread = tile.kernel.thread % GROUP_THREADS
    for row, box, _, place in tile.pieces(thread, GROUP_THREADS, GROUP_ROWS):
        address = tile.buffer.ptr_to([0, box, roles.row + row, place])
        words = _load(tile, address)
        for word in words:
            assign(word, word ^ tirx.const(_SIGNS, "uint32"))
        emit(T.ptx[f"st.shared.{_VECTOR}"](address, *words))
    proxy_fence()
    roles.meet()


def zero_rows(tile: BoxTile, stage, first, roles: Roles) -> None:
    """Zeros for rows from ``first`` on, by all consumers, whose products may read them after it.

    A box of packed rows ends with the next entry's, of which a weight of 0 makes 0 only where they
    are finite.
    """
    threads = roles.consumers * GROUP_THREADS
    zeros = [T.uint32(0)] * 4
    for row, box, _, place in tile.pieces(tile.kernel.thread, threads, tile.rows):
        with when(tirx.And(row >= first, row < tile.rows)):
            address = tile.buffer.ptr_to([stage, box, row, place])
            emit(T.ptx[f"st.shared.{_VECTOR}"](address, *zeros))
    proxy_fence()
    roles.meet_all()


def store_rows(tile: BoxTile, target: Rows, first, left, roles: Roles) -> None:
    """This consumer's rows to rows first .. of ``target``, of which there are ``left``."""
    thread = tile.kernel.thread % GROUP_THREADS
    for row, box, column, place in tile.pieces(thread, GROUP_THREADS, GROUP_ROWS):
        at = box * tile.box_columns + column
        with when(tirx.And(row < left, at < target.columns)):
            words = _load(tile, tile.buffer.ptr_to([0, box, roles.row + row, place]))
            address = pointer(target.address(first + row, at))
            emit(T.ptx[f"st.global.{_VECTOR}"](address, *words))


def _load(tile: BoxTile, address) -> list:
    words = words_of(tile.kernel, _VECTOR)
    emit(T.ptx[f"ld.shared.{_VECTOR}"](*words, address))
    return words
