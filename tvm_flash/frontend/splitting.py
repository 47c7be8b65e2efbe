"""Into how many parts a call on a GPU divides its keys: chosen by sizes and device, or given."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch

from ..problem.splits import chosen_splits
from . import placement


def splits_on(device: str, q: torch.Tensor, sizes: Mapping[str, int], longest_k: int) -> int:
    """Parts of the keys for a call with queries ``q``; 0 where nothing shall be divided.

    sizes: of the call by name. longest_k: keys that no entry exceeds.
    """
    if device != "cuda":
        return 0
    return _chosen(tuple(sizes.items()), longest_k, placement.processors_of(q))


@lru_cache(maxsize=4096)
def _chosen(sizes: tuple, longest_k: int, processors: int) -> int:
    return chosen_splits(dict(sizes), longest_k, processors)


def parts_of(kernel, splits: int, longest_k: int) -> dict[str, int]:
    """The size of workspaces for ``splits`` parts, of which no entry can have more than tiles."""
    tiles = -(-longest_k // kernel.meta.get("block_k", 1))
    return {"splits": max(min(splits, tiles), 1)}
