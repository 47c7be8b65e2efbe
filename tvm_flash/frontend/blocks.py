"""The block mask of a call: checked, its lists as tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ..problem.block_mask import shared_lists
from .captured import Captured
from .given_masks import parts_of
from .ragged_checks import PAGED
from .spans import Ragged


class Blocks(NamedTuple):
    """The block lists of a call. size: (queries, keys) of a block, None without lists; lists: the
    tables that kernels read, as ``problem.block_mask.shared_lists`` gives them."""

    size: tuple[int, int] | None = None
    lists: Sequence[torch.Tensor] = ()


NO_BLOCKS = Blocks()


def with_blocks(
    given: Any, q: torch.Tensor, k: torch.Tensor, ragged: Ragged | None,
    score_mod: Callable | Captured | None, mask_mod: Callable | None,
) -> Blocks:  # fmt: skip
    """The lists of a call with the BlockMask ``given``, whose mask_mod is the call's.

    ragged: where the entries of a packed call lie. Raises TypeError, ValueError for one that is
    none or of another problem, and for functions that have a mask_mod too.
    """
    block, shape, stored = parts_of(given)
    if mask_mod is not None:
        raise ValueError("block_mask has its own mask_mod: give the mask_mod to block_mask()")
    if isinstance(score_mod, Captured) and score_mod.mask_mod is not None:
        raise ValueError("block_mask has its own mask_mod: capture the score_mod alone")
    entries = q.shape[0] if ragged is None else ragged.entries
    _check(shape, stored, q, entries)
    _check_lengths(shape[2:], q, k, ragged)
    return Blocks(block, shared_lists(stored, entries, q.shape[-2]))


def _check_lengths(of_mask: tuple, q, k, ragged: Ragged | None) -> None:
    """ValueError unless a mask is of the lengths of q and k; those on GPUs are not read."""
    if ragged is None:
        if of_mask != (q.shape[1], k.shape[1]):
            raise ValueError(
                f"block_mask is of {of_mask[0]!r:.80} queries and {of_mask[1]!r:.80} keys, q and k "
                f"have {q.shape[1]} and {k.shape[1]}: make one of these lengths"
            )
        return
    if ragged.kind == PAGED:
        raise ValueError("block_mask is of dense or packed tensors: keys in pages have none")
    if ragged.extents is None:
        return
    for axis, lengths, place in (("q", of_mask[0], 0), ("k", of_mask[1], 2)):
        starts, ends = ragged.spans[place : place + 2]
        own = ends - starts
        if not torch.equal(own, own.new_tensor(lengths).expand(own.shape)):
            raise ValueError(
                f"block_mask is of sequences of {lengths!r:.80} positions, those of {axis} have "
                f"{own.tolist()!r:.80}: make one of these lengths"
            )


def _check(shape: tuple, stored: tuple, q: torch.Tensor, entries: int) -> None:
    """ValueError, TypeError unless a mask is of the entries, heads and the device of q."""
    batch, heads, *_ = shape
    for name, own, wanted in (("entries", batch, entries), ("heads", heads, q.shape[-2])):
        if own not in (1, wanted):
            raise ValueError(f"block_mask has lists of {own} {name}, q has {wanted}: 1 or as many")
    for x in stored:
        if x.device != q.device:
            raise ValueError(
                f"block_mask is on {x.device}, q on {q.device}: block_mask.to(q.device) moves it"
            )
