"""The named masks in small, for pictures and for the list of cases."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt

import torch

from . import masks


def _documents(seqlen: int) -> torch.Tensor:
    """Four documents, of 1, 3, 5 and 7 sixteenths: their numbers by position."""
    return (16 * torch.arange(seqlen) / seqlen).sqrt().long()


def _some_global(seqlen: int) -> torch.Tensor:
    """The first position and one in the middle."""
    positions = torch.arange(seqlen)
    return (positions == 0) | (positions == seqlen // 2)


def _neighborhood(seqlen: int) -> Callable:
    """3 x 3 neighbours on a grid that is nearly a square."""
    width = isqrt(seqlen)
    shape = -(-seqlen // width), width
    return masks.neighborhood(shape, tuple(min(3, n) for n in shape))


# By name: the mask for a sequence of a length of 1 or more.
EXAMPLES: dict[str, Callable[[int], Callable]] = {
    "causal": lambda seqlen: masks.causal(),
    "sliding_window": lambda seqlen: masks.sliding_window(seqlen // 8, seqlen // 16),
    "dilated_window": lambda seqlen: masks.dilated_window(seqlen // 12, 3),
    "document": lambda seqlen: masks.document(_documents(seqlen)),
    "prefix_lm": lambda seqlen: masks.prefix_lm(seqlen // 3),
    "sink_window": lambda seqlen: masks.sink_window(max(seqlen // 16, 1), seqlen // 6),
    "longformer": lambda seqlen: masks.longformer(seqlen // 12, _some_global(seqlen)),
    "bigbird": lambda seqlen: masks.bigbird(
        seqlen, max(seqlen // 16, 1), global_blocks=1, random=min(2, seqlen), heads=4
    ),
    "neighborhood": lambda seqlen: _neighborhood(seqlen),
    "sparse_strided": lambda seqlen: masks.sparse_strided(max(seqlen // 8, 1)),
    "sparse_fixed": lambda seqlen: masks.sparse_fixed(max(seqlen // 8, 1)),
}
# What others are made of, and what is made of others, which have the cases: for pictures.
COMPOSED: dict[str, Callable[[int], Callable]] = {
    "random_blocks": lambda seqlen: masks.random_blocks(
        seqlen, max(seqlen // 16, 1), min(3, seqlen)
    ),
    "all_of": lambda seqlen: masks.all_of(EXAMPLES["document"](seqlen), masks.causal()),
    "any_of": lambda seqlen: masks.any_of(
        masks.sliding_window(seqlen // 8), masks.random_blocks(seqlen, max(seqlen // 16, 1), 1)
    ),
    "not_mask": lambda seqlen: masks.not_mask(masks.causal()),
}
