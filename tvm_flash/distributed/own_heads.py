"""Options of attention over all heads, as they are for the heads of one rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from ..frontend.captured import Captured, capture
from ..frontend.given_masks import as_block_mask
from ..problem.block_maker import reads
from .ranks import Ranks

# Which dimension of what has one for heads.
_OF_HEADS = {"alibi_slopes": -1, "sink": -1, "bias": -3}


def of_own_heads(
    options: Mapping[str, Any], ranks: Ranks, num_heads: int, device: torch.device
) -> dict[str, Any]:
    """``options`` for a rank's part of ``num_heads``: tensors cut, functions told the true head."""
    own, count = dict(options), num_heads // ranks.world
    first = ranks.rank * count
    # A tensor, not a constant: all ranks then have one kernel.
    number = torch.tensor(first, dtype=torch.int32, device=device)
    for name, dim in _OF_HEADS.items():
        x = own.get(name)
        if isinstance(x, torch.Tensor) and x.ndim >= -dim and x.shape[dim] == num_heads:
            own[name] = x.narrow(dim, first, count)
    for name, shifted in (("score_mod", _shifted_score), ("mask_mod", _shifted_mask)):
        if own.get(name) is not None and ranks.world > 1:
            own[name] = _of_true_heads(name, own[name], shifted, number)
    if own.get("block_mask") is not None:
        _check_lists(own["block_mask"], ranks)
    return own


def _of_true_heads(name: str, mod: Callable | Captured, shifted: Callable, first):
    """``mod``, called with the number of a head among all; TypeError for one traced before."""
    captured = mod if isinstance(mod, Captured) else capture(**{name: mod})
    programs = (captured.score_mod, captured.mask_mod)
    if not any(program is not None and reads(program, "h") for program in programs):
        return mod
    if isinstance(mod, Captured):
        raise TypeError(
            f"a Captured whose {name} knows heads: give the function, which is called with the "
            "number of a head among those of all ranks"
        )
    return partial(shifted, mod, first)


def _shifted_score(score_mod, first, score, b, h, q_idx, k_idx):
    return score_mod(score, b, h + first, q_idx, k_idx)


def _shifted_mask(mask_mod, first, b, h, q_idx, k_idx):
    return mask_mod(b, h + first, q_idx, k_idx)


def _check_lists(block_mask, ranks: Ranks) -> None:
    """ValueError for block lists of single heads, or a mask_mod of theirs."""
    mask = as_block_mask(block_mask)
    knows_heads = mask.program is not None and reads(mask.program, "h")
    if ranks.world > 1 and (mask.shape[1] != 1 or knows_heads):
        raise ValueError(
            "block_mask tells heads apart, which the ranks divide: give one whose mask_mod does "
            "not, or the mask_mod alone"
        )
