"""A BlockMask, ours or torch's, as ours."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch

from ..problem.block_maker import from_torch
from ..problem.block_mask import BlockMask, longest
from .observers import run_by_compiler
from .packed_rows import is_readable

# Ours by torch's, which a model hands to each of its layers.
_known: WeakKeyDictionary[Any, BlockMask] = WeakKeyDictionary()
# Those whose lists were looked at.
_checked: WeakSet[BlockMask] = WeakSet()


def is_block_mask(given: Any) -> bool:
    """Whether ``given`` is a BlockMask of ours or of torch's."""
    return isinstance(given, BlockMask) or (
        hasattr(given, "kv_num_blocks") and hasattr(given, "mask_mod")
    )


@run_by_compiler
def parts_of(given: Any) -> tuple:
    """block, shape and stored lists of a BlockMask, which the compiler takes for constants."""
    mask = as_block_mask(given)
    if mask not in _checked:
        _check_lists(mask)
        _checked.add(mask)
    return mask.block, mask.shape, mask.stored


def _check_lists(mask: BlockMask) -> None:
    """TypeError, ValueError for lists that cannot be those of a mask; numbers on GPUs are not
    read."""
    for x in mask.stored:
        if x.dtype != torch.int32:
            raise TypeError(f"lists of block_mask have {x.dtype}, must have torch.int32")
    places = [-(-longest(n) // own) for n, own in zip(mask.shape[2:], mask.block, strict=True)]
    names = ("key_starts", "key_blocks", "query_starts", "query_blocks")
    for first, own, other in ((0, *places), (2, *places[::-1])):
        name, of_blocks = names[first : first + 2]
        starts, blocks = mask.stored[first : first + 2]
        shape = (*mask.shape[:2], own + 1)
        if tuple(starts.shape) != shape or blocks.ndim != 1:
            raise ValueError(
                f"{name} of block_mask has shape {tuple(starts.shape)}, must have {shape}, and "
                f"{of_blocks} one dimension"
            )
        if not (is_readable(starts) and is_readable(blocks)):
            continue
        if (starts.diff() < 0).any() or starts.min() < 0 or starts.max() > len(blocks):
            raise ValueError(
                f"{name} of block_mask must ascend from 0 or more to {len(blocks)} at most, the "
                f"numbers in {of_blocks}"
            )
        if len(blocks) and not 0 <= blocks.min() <= blocks.max() < 2 * other:
            raise ValueError(
                f"{of_blocks} of block_mask has {blocks.min()} to {blocks.max()}, must have 2 * a "
                f"block, or 1 more, of 0..{other - 1}"
            )


def as_block_mask(given: Any) -> BlockMask:
    """``given`` as ours; TypeError for what is none, ValueError as ``from_torch``."""
    if isinstance(given, BlockMask):
        return given
    if not is_block_mask(given):
        raise TypeError(
            f"block_mask of {type(given).__name__} must be a BlockMask, of tvm_flash.block_mask or "
            "torch.nn.attention.flex_attention"
        )
    if given not in _known:
        _known[given] = from_torch(given)
    return _known[given]
