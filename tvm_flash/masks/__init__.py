"""Masks that papers name, for ``attention(..., mask_mod=...)``; ``python -m tvm_flash.masks`` draws
each."""

from ..score.mask_examples import EXAMPLES
from ..score.masks import (
    all_of,
    any_of,
    bigbird,
    causal,
    dilated_window,
    document,
    longformer,
    neighborhood,
    not_mask,
    prefix_lm,
    random_blocks,
    sink_window,
    sliding_window,
    sparse_fixed,
    sparse_strided,
)
from .picture import in_characters, save, visible_pairs

__all__ = [
    "EXAMPLES", "all_of", "any_of", "bigbird", "causal", "dilated_window", "document",
    "in_characters", "longformer", "neighborhood", "not_mask", "prefix_lm", "random_blocks", "save",
    "sink_window", "sliding_window", "sparse_fixed", "sparse_strided", "visible_pairs",
]  # fmt: skip
