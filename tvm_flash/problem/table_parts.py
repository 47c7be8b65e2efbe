"""Into how many copies gradients of tables are summed, where tasks would add to one element."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from .spec import AttentionSpec

# Bytes that all copies but the first may take.
BUDGET = 64 * 2**20
# Rows of a tile, about; tasks for a thread, so that unequal ones even out.
_ROWS, _TASKS = 64, 4


def table_parts(spec: AttentionSpec, sizes: Mapping[str, int], elements: int, threads: int) -> int:
    """Copies of ``elements`` float32 for a call of ``spec`` with these ``sizes`` on ``threads``.

    As many as give the threads work, where the places that own their elements are too few. The
    bits of a sum depend on it.
    """
    rows = sizes["Sq"] if "Sq" in sizes else sizes["total_q"]
    tiles = -(-rows // _ROWS)
    places = {"b": sizes["B"], "h": sizes["H"], "q_idx": tiles}
    if "Sq" not in sizes:  # tiles of packed entries are found by a search: heads alone are owned
        places = {"h": sizes["H"], "": tiles + sizes["B"]}
    owned = prod(n for name, n in places.items() if name in spec.owned_symbols)
    shared = prod(n for name, n in places.items() if name not in spec.owned_symbols)
    wanted = -(-_TASKS * threads // max(owned, 1))
    return max(1, min(wanted, shared, 1 + BUDGET // (4 * max(elements, 1))))
