"""Signs of a tile's rows in shared memory."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from ..builder import assign, emit
from ..copies import words_of
from .box_tile import BoxTile
from .roles import GROUP_THREADS, Roles
from .tensor_maps import BOX_BYTES, proxy_fence
from .wgmma import GROUP_ROWS

_PIECE = 16
_PIECES = BOX_BYTES // _PIECE
_ROWS_A_PASS = GROUP_THREADS // _PIECES
# Signs of the two elements of a word.
_SIGNS = 0x8000_8000


def negate_rows(tile: BoxTile, roles: Roles) -> None:
    """Change the signs of this consumer's rows, which its products may read after it."""
    thread = tile.kernel.thread % GROUP_THREADS
    column = thread % _PIECES * (_PIECE // tile.element_bytes)
    for box in range(tile.boxes):
        for first in range(0, GROUP_ROWS, _ROWS_A_PASS):
            row = roles.row + first + thread // _PIECES
            place = tile.buffer.ptr_to([0, box, row, column])
            words = words_of(tile.kernel, "v4.b32")
            emit(T.ptx["ld.shared.v4.b32"](*words, place))
            for word in words:
                assign(word, word ^ tirx.const(_SIGNS, "uint32"))
            emit(T.ptx["st.shared.v4.b32"](place, *words))
    proxy_fence()
    roles.meet()
