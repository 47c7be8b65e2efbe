"""Into how many parts a call on a GPU divides its keys: chosen by sizes and device, or given."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch

from ..problem.splits import LEAST_TILE, chosen_splits
from . import placement


def splits_on(
    device: str, q: torch.Tensor, sizes: Mapping[str, int], longest_k: int, asked: int = 0
) -> int:
    """Parts of the keys for a call with queries ``q``; 0 where the plain forward takes it.

    sizes: of the call by name. longest_k: keys that no entry exceeds. asked: what the caller gave,
    0 where that is left to us; an entry has the same parts whatever the others are.
    """
    if device != "cuda" or asked == 1:
        return 0
    if asked:
        return min(asked, max(-(-longest_k // LEAST_TILE), 1))
    return _chosen(tuple(sizes.items()), longest_k, placement.processors_of(q))


@lru_cache(maxsize=4096)
def _chosen(sizes: tuple, longest_k: int, processors: int) -> int:
    return chosen_splits(dict(sizes), longest_k, processors)
