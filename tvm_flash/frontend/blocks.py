"""The block mask of a call: checked, its functions as others have them, its lists as tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ..problem.block_maker import from_torch
from ..problem.block_mask import BlockMask
from .captured import Captured, captured_on

# Block masks by torch's, which a model hands to each of its layers.
_known: WeakKeyDictionary[Any, BlockMask] = WeakKeyDictionary()


def with_blocks(
    given: Any, features: tuple, q: torch.Tensor, k: torch.Tensor,
    score_mod: Callable | Captured | None, mask_mod: Callable | None,
) -> tuple[tuple, Captured, list[torch.Tensor]]:  # fmt: skip
    """``features`` up to the kind of softmax with the blocks of a call, its functions, its lists.

    given: a BlockMask, ours or torch's, whose mask_mod is the call's. Raises TypeError, ValueError
    for one that is none or of another problem.
    """
    mask = given if isinstance(given, BlockMask) else _of_torch(given)
    if mask_mod is not None:
        raise ValueError("block_mask has its own mask_mod: give the mask_mod to block_mask()")
    _check(mask, q, k)
    mods = score_mod
    if not isinstance(score_mod, Captured):
        mods = Captured() if score_mod is None else _captured_score(q.device, score_mod)
    if mods.mask_mod is not None:
        raise ValueError("block_mask has its own mask_mod: capture the score_mod alone")
    mods = Captured(mods.score_mod, mask.program, (*mods.tables, *mask.tables))
    return (*features, "dense", mask.block), mods, mask.lists(q.shape[0], q.shape[2])


def _check(mask: BlockMask, q: torch.Tensor, k: torch.Tensor) -> None:
    """ValueError, TypeError unless ``mask`` is of the sizes and the device of q and k."""
    batch, heads, seqlen_q, seqlen_k = mask.shape
    if (seqlen_q, seqlen_k) != (q.shape[1], k.shape[1]):
        raise ValueError(
            f"block_mask is of {seqlen_q} queries and {seqlen_k} keys, q and k have {q.shape[1]} "
            f"and {k.shape[1]}: make one of these lengths"
        )
    for name, own, wanted in (("entries", batch, q.shape[0]), ("heads", heads, q.shape[2])):
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


def _captured_score(device: torch.device, score_mod: Callable) -> Captured:
    return captured_on(device, score_mod, None)


# Run by the compiler, not traced; as in ``problem``.
_captured_score._dynamo_marked_constant = True
