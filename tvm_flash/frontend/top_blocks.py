"""Selected blocks: those of keys whose mean suits the mean of a block of queries best."""

from __future__ import annotations

import torch

from ..problem.block_mask import BlockMask, mask_of_lists
from ..problem.field_checks import check_block
from ..problem.size_checks import check_sizes
from .checks import check_alike, check_first
from .values import as_flag

# Scores of pairs of blocks that exist at once: some rows of blocks against all of the keys.
_SCORES = 1 << 22


def top_blocks(
    q: torch.Tensor, k: torch.Tensor, block: tuple[int, int], top: int, *, causal: bool = False
) -> BlockMask:
    """The ``top`` blocks of keys for each block of queries of each head, for ``attention``.

    q (B, Sq, H, D), k (B, Sk, Hk, D). A block scores the dot product of its mean key with the mean
    query (mixture of block attention, Lu et al., 2025, section 2.2, by blocks of queries).
    causal: only of blocks that the last query of a block sees, its own always among them, and
    ``attention`` is given causal=True too; the last query is on the last key. Memory is linear in
    the lengths: never a score for all pairs of blocks at once. Without gradients: selection has
    none. Raises TypeError, ValueError for what is no q, k, block or top.
    """
    block, causal = check_block("block", block), as_flag("causal", causal)
    check_first(q)
    check_alike("k", k, q)
    check_sizes(q.shape, k.shape, k.shape)
    for name, x in (("q", q), ("k", k)):
        if x.numel() == 0:
            raise ValueError(f"{name} has no rows: nothing can be selected")
    if type(top) is not int:
        raise TypeError(f"{top=!r:.60} must be an int")
    if top < 1:
        raise ValueError(f"{top=} must be at least 1")
    rows, keys = (_means(x.detach(), size) for x, size in zip((q, k), block, strict=True))
    keys = keys.repeat_interleave(q.shape[2] // k.shape[2], 1)
    blocks, lengths = rows.shape[2], (q.shape[1], k.shape[1])
    last = (torch.arange(1, blocks + 1, device=q.device) * block[0]).clamp(max=lengths[0]) - 1
    # The block of the key that the last query of each block is on; negative: before the first.
    own = (last + (lengths[1] - lengths[0])).div(block[1], rounding_mode="floor")
    own = own if causal else None
    step = max(_SCORES // keys.shape[2], 1)
    parts = [
        _selected(head_rows[first : first + step], head_keys.T, top,
                  None if own is None else own[first : first + step])
        for head_rows, head_keys in zip(rows.flatten(0, 1), keys.flatten(0, 1), strict=True)
        for first in range(0, blocks, step)
    ]  # fmt: skip
    counts, visited = (torch.cat(found) for found in zip(*parts, strict=True))
    return mask_of_lists(*lengths, block, counts.view(*rows.shape[:3]), visited * 2)


def _means(x: torch.Tensor, size: int) -> torch.Tensor:
    """The means of blocks of ``size`` rows of ``x`` (B, S, H, D), float32 (B, H, blocks, D)."""
    parts = [part.float().mean(1) for part in x.split(size, 1)]
    return torch.stack(parts, 2)


def _selected(rows, keys, top: int, own) -> tuple[torch.Tensor, torch.Tensor]:
    """How many blocks each of ``rows`` has, and which, in ascending order.

    own: the last block that a row sees, and always has; None: each sees all.
    """
    with torch.autocast(rows.device.type, enabled=False):  # scores of 16 bits are often equal
        scores = rows @ keys
    if own is not None:
        number = torch.arange(scores.shape[1], device=scores.device)
        scores.masked_fill_(number > own[:, None], -torch.inf)
        scores.masked_fill_(number == own[:, None], torch.inf)
    found = scores.topk(min(top, scores.shape[1]))
    is_seen = found.values != -torch.inf  # NaN is seen: rows shall show it
    order = found.indices.masked_fill(~is_seen, scores.shape[1]).sort(1).values
    return is_seen.sum(1), order[order < scores.shape[1]]
