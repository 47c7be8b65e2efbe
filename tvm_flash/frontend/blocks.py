"""The block mask of a call: checked, its functions as others have them, its lists as tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ..problem.block_maker import from_torch
from ..problem.block_mask import BlockMask
from .captured import Captured, captured_on
from .ragged_checks import PAGED
from .spans import Ragged

# Block masks by torch's, which a model hands to each of its layers.
_known: WeakKeyDictionary[Any, BlockMask] = WeakKeyDictionary()


def with_blocks(
    given: Any, q: torch.Tensor, k: torch.Tensor, ragged: Ragged | None,
    score_mod: Callable | Captured | None, mask_mod: Callable | None,
) -> tuple[tuple[int, int], Captured, list[torch.Tensor]]:  # fmt: skip
    """(block, functions, lists) of a call.

    given: a BlockMask, ours or torch's, whose mask_mod is the call's. ragged: where the entries of
    a packed call lie. Raises TypeError, ValueError for one that is none or of another problem.
    """
    mask = given if isinstance(given, BlockMask) else _of_torch(given)
    if mask_mod is not None:
        raise ValueError("block_mask has its own mask_mod: give the mask_mod to block_mask()")
    entries = q.shape[0] if ragged is None else ragged.entries
    _check(mask, q, entries)
    _check_lengths(mask, q, k, ragged)
    mods = score_mod
    if not isinstance(score_mod, Captured):
        mods = Captured() if score_mod is None else captured_on(q.device, score_mod, None)
    if mods.mask_mod is not None:
        raise ValueError("block_mask has its own mask_mod: capture the score_mod alone")
    mods = Captured(mods.score_mod, mask.program, (*mods.tables, *mask.tables))
    return mask.block, mods, mask.lists(entries, q.shape[-2])


def _check_lengths(mask: BlockMask, q, k, ragged: Ragged | None) -> None:
    """ValueError unless ``mask`` is of the lengths of q and k; those on GPUs are not read."""
    of_mask = mask.seqlen_q, mask.seqlen_k
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
    for axis, lengths, place in (("q", mask.seqlen_q, 0), ("k", mask.seqlen_k, 2)):
        starts, ends = ragged.spans[place : place + 2]
        own = ends - starts
        if not torch.equal(own, own.new_tensor(lengths).expand(own.shape)):
            raise ValueError(
                f"block_mask is of sequences of {lengths!r:.80} positions, those of {axis} have "
                f"{own.tolist()!r:.80}: make one of these lengths"
            )


def _check(mask: BlockMask, q: torch.Tensor, entries: int) -> None:
    """ValueError, TypeError unless ``mask`` is of the entries, heads and the device of q."""
    batch, heads, *_ = mask.shape
    for name, own, wanted in (("entries", batch, entries), ("heads", heads, q.shape[-2])):
        if own not in (1, wanted):
            raise ValueError(f"block_mask has lists of {own} {name}, q has {wanted}: 1 or as many")
    for x in (mask.key_starts, mask.key_blocks, mask.query_starts, mask.query_blocks):
        if x.device != q.device:
            raise ValueError(
                f"block_mask is on {x.device}, q on {q.device}: block_mask.to(q.device) moves it"
            )
        if x.dtype != torch.int32:
            raise TypeError(f"lists of block_mask have {x.dtype}, must have torch.int32")


def _of_torch(given: Any) -> BlockMask:
    if not (hasattr(given, "kv_num_blocks") and hasattr(given, "mask_mod")):
        raise TypeError(
            f"block_mask of {type(given).__name__} must be a BlockMask, of tvm_flash.block_mask or "
            "torch.nn.attention.flex_attention"
        )
    if given not in _known:
        _known[given] = from_torch(given)
    return _known[given]
