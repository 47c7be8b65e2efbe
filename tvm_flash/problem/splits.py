"""How many parts the keys of a call are divided into, so that few queries occupy a whole GPU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from .sequences import kind_of
from .work import Work

# Rows of a group and keys of a tile, as the kernels have them that divide keys.
TILE_ROWS, TILE_KEYS = 64, 64
# No kernel's tile has fewer keys: an entry has no more parts than tiles.
LEAST_TILE = 16
# Blocks that an SM works on at once: each has a tile of K and V in flight, which between them
# cover the latency of device memory.
BLOCKS_PER_SM = 2
# In times of a tile of keys: what a part costs besides its own (Q, its states), and the merge.
PART_TILES, MERGE_TILES = 2, 4
# Workspaces hold a row of the output for each query, head and part: at most so many of each query,
# and together as many tiles of them as a device works on in so many rounds.
MOST_SPLITS, MOST_ROUNDS = 128, 2
# Keys for each query from which on division is considered. Self-attention has one, and would have
# to compile a second forward.
_LEAST_RATIO = 4


def chosen_splits(sizes: Mapping[str, int], longest_k: int, processors: int) -> int:
    """Parts of the keys for a call; 0 where the kernel that divides nothing is faster.

    sizes: B, H, Hk and queries by name. longest_k: keys that no entry exceeds. processors: SMs of
    the device. It asks for nothing that lies in the device's memory.
    """
    if not (sizes["B"] and sizes["Hk"] and longest_k):
        return 0
    kind, group = kind_of(sizes), sizes["H"] // sizes["Hk"]
    each = kind.as_equal(sizes)
    queries = -(-each["Sq"] * each["B"] // sizes["B"])  # of an entry, on average
    if not queries or _LEAST_RATIO * queries > longest_k:
        return 0
    blocks = Work(kind.axes("q", sizes, sizes["Hk"], TILE_ROWS, group)).count
    splits = splits_of(blocks, -(-longest_k // TILE_KEYS), processors * BLOCKS_PER_SM)
    # Heads of a group read the same keys: in one tile they do so once.
    shares = group > 1 and queries * group <= TILE_ROWS
    return splits if splits > 1 or shares else 0


@lru_cache(maxsize=4096)
def splits_of(blocks: int, key_tiles: int, places: int) -> int:
    """Parts of ``key_tiles`` tiles of keys, of which ``blocks`` blocks are busy with each.

    places: blocks that a device runs at once. The least of the numbers that take the least time,
    counted in tiles of keys: one where blocks fill the device by themselves, and never more than
    there are tiles.
    """
    if blocks >= places:
        return 1
    most = min(key_tiles, MOST_SPLITS, MOST_ROUNDS * places // blocks)

    def cost(splits: int) -> int:
        rounds, tiles = -(-blocks * splits // places), -(-key_tiles // splits)
        return rounds * key_tiles if splits == 1 else rounds * (tiles + PART_TILES) + MERGE_TILES

    return min(range(1, most + 1), key=cost)
