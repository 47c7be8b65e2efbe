"""A BlockMask, ours or torch's, as ours."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from ..problem.block_maker import from_torch
from ..problem.block_mask import BlockMask
from .observers import run_by_compiler

# Ours by torch's, which a model hands to each of its layers.
_known: WeakKeyDictionary[Any, BlockMask] = WeakKeyDictionary()


def is_block_mask(given: Any) -> bool:
    """Whether ``given`` is a BlockMask of ours or of torch's."""
    return isinstance(given, BlockMask) or (
        hasattr(given, "kv_num_blocks") and hasattr(given, "mask_mod")
    )


@run_by_compiler
def parts_of(given: Any) -> tuple:
    """block, shape and stored lists of a BlockMask, which the compiler takes for constants."""
    mask = as_block_mask(given)
    return mask.block, mask.shape, mask.stored


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
