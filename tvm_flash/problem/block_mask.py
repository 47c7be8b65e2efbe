"""Block masks: which blocks of keys each block of queries visits, as lists that kernels read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace

import torch

from ..score.program import ScoreProgram
from .field_checks import check_block

# States of a block: no pair of it is visible, all are, some may be.
HIDDEN, FULL, PARTIAL = range(3)
# A block of the picture in each state.
_SHADES = (" ", "█", "░")
# Places in the lists are int32.
_MOST_VISITS = 2**31 - 1


def shared_lists(stored: tuple[torch.Tensor, ...], batch: int, heads: int) -> list[torch.Tensor]:
    """``BlockMask.stored`` for so many entries and heads: views of what all share."""
    keys, key_blocks, queries, query_blocks = stored
    return [
        keys.expand(batch, heads, -1),
        key_blocks,
        queries.expand(batch, heads, -1),
        query_blocks,
    ]


@dataclass(frozen=True, eq=False)
class BlockMask:
    """The visited blocks of attention between ``seqlen_q`` queries and ``seqlen_k`` keys.

    Of packed sequences these are tuples, of the length of each: an entry is a sequence, and blocks
    are counted from its first position; lists are as many as the longest needs.

    Made by ``block_mask``, ``top_blocks`` or of torch's BlockMask; good for any number of layers
    and steps. block: (queries, keys) of a block. key_starts (B or 1, H or 1, blocks of queries + 1)
    int32: where the list of each block of queries begins and the next one's does; key_blocks
    (visits,) int32: all lists, 2 * block of keys, in ascending order, and 1 more where mask_mod
    may hide a pair. query_starts, query_blocks: the same lists by block of keys. An extent of 1 is
    for all entries or heads.
    mask_mod: hides pairs of partial blocks (None: of none); program, tables: that, traced.
    """

    seqlen_q: int | tuple[int, ...]
    seqlen_k: int | tuple[int, ...]
    block: tuple[int, int]
    key_starts: torch.Tensor
    key_blocks: torch.Tensor
    query_starts: torch.Tensor
    query_blocks: torch.Tensor
    mask_mod: Callable | None = None
    program: ScoreProgram | None = None
    tables: tuple[torch.Tensor, ...] = ()

    @property
    def shape(self) -> tuple:
        """Entries and heads that have lists of their own, queries, keys."""
        return (*self.key_starts.shape[:2], self.seqlen_q, self.seqlen_k)

    @property
    def visits(self) -> int:
        """How many blocks the lists name."""
        return int((self.key_starts[..., -1] - self.key_starts[..., 0]).sum())

    @property
    def density(self) -> float:
        """Visited blocks among all."""
        entries, heads = self.key_starts.shape[:2]
        blocks = heads * sum(math.prod(self.blocks_of(b)) for b in range(entries))
        return self.visits / max(blocks, 1)

    def blocks_of(self, b: int) -> tuple[int, int]:
        """How many blocks of queries and of keys entry ``b`` has."""
        lengths = (x if isinstance(x, int) else x[b] for x in (self.seqlen_q, self.seqlen_k))
        return tuple(-(-n // size) for n, size in zip(lengths, self.block, strict=True))

    def lists(self, batch: int, heads: int) -> list[torch.Tensor]:
        """What kernels take for a call with so many entries and heads: views."""
        return shared_lists(self.stored, batch, heads)

    @property
    def stored(self) -> tuple[torch.Tensor, ...]:
        """key_starts, key_blocks, query_starts, query_blocks."""
        return self.key_starts, self.key_blocks, self.query_starts, self.query_blocks

    def to(self, device: torch.device | str) -> BlockMask:
        """This mask on ``device``, its captured tensors too."""
        moved = {
            f.name: x.to(device)
            for f in fields(self)
            if isinstance(x := getattr(self, f.name), torch.Tensor)
        }
        return replace(self, **moved, tables=tuple(x.to(device) for x in self.tables))

    def states(self, b: int = 0, h: int = 0) -> torch.Tensor:
        """HIDDEN, FULL or PARTIAL of each block of one head, uint8 (blocks of queries, of keys).

        For pictures and tests: the one thing here that takes memory for all blocks.
        """
        states = torch.zeros(self.blocks_of(b), dtype=torch.uint8)
        starts = self.key_starts[b, h, : len(states) + 1].long().cpu()
        own = self.key_blocks[starts[0] : starts[-1]].long().cpu()
        rows = torch.arange(len(states)).repeat_interleave(starts.diff())
        states[rows, own // 2] = (own % 2 + 1).to(torch.uint8)
        return states

    def __str__(self) -> str:
        """Sizes, density, and a picture of the first head of the first entry."""
        return f"{self!r}\n{_in_characters(self.states())}"

    def __repr__(self) -> str:
        batch, heads, seqlen_q, seqlen_k = self.shape
        blocks = "{} x {}".format(*self.block)
        return (
            f"BlockMask({batch=}, {heads=}, {seqlen_q=}, {seqlen_k=}, blocks of {blocks}, "
            f"{self.density:.1%} visited)"
        )


def mask_of_lists(
    seqlen_q: int | tuple[int, ...],
    seqlen_k: int | tuple[int, ...],
    block: tuple[int, int],
    counts: torch.Tensor,
    visited: torch.Tensor,
    **functions,
) -> BlockMask:
    """A BlockMask of ``counts`` (B, H, blocks of queries), which say how many of ``visited``
    (visits,) each block of queries has: the numbers of ``BlockMask.key_blocks``.

    Raises ValueError for more visits than places are counted in.
    """
    block = check_block("block", block)
    if len(visited) > _MOST_VISITS:
        raise ValueError(f"{len(visited)} visited blocks exceed {_MOST_VISITS}: use larger blocks")
    keys = -(-longest(seqlen_k) // block[1])
    rows = torch.arange(counts.numel(), device=counts.device).repeat_interleave(counts.flatten())
    query_blocks, heads = rows % counts.shape[-1], rows // counts.shape[-1]
    place = heads * keys + visited // 2
    turned = (query_blocks * 2 + visited % 2)[place.argsort(stable=True)]
    turned_counts = place.bincount(minlength=counts[..., 0].numel() * keys)
    return BlockMask(
        seqlen_q, seqlen_k, block,
        _starts(counts), _not_empty(visited),
        _starts(turned_counts.view(*counts.shape[:2], keys)), _not_empty(turned),
        **functions,
    )  # fmt: skip


def longest(seqlen: int | tuple[int, ...]) -> int:
    """The most positions of an entry."""
    return seqlen if isinstance(seqlen, int) else max(seqlen)


def visits_of(states: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(counts, visited) of ``states``, each of some rows of blocks (rows, blocks of keys)."""
    counts, visited = [], []
    for part in states:
        rows, blocks = part.nonzero(as_tuple=True)
        counts.append((part != HIDDEN).sum(1))
        visited.append(blocks * 2 + (part[rows, blocks] == PARTIAL))
    return torch.cat(counts), torch.cat(visited)


def _starts(counts: torch.Tensor) -> torch.Tensor:
    """Where each list of (B, H, blocks) ``counts`` begins, and its next one, (B, H, blocks + 1)."""
    ends = counts.flatten().cumsum(0).view(counts.shape)
    return torch.cat([ends[..., :1] - counts[..., :1], ends], -1).to(torch.int32)


def _not_empty(lists: torch.Tensor) -> torch.Tensor:
    """``lists`` as kernels read them: int32, of one element at least."""
    return (lists if len(lists) else lists.new_zeros(1)).to(torch.int32)


def _in_characters(states: torch.Tensor, width: int = 40) -> str:
    """Blocks as text, two characters a square of them, which are alike or shown as partial."""
    side = max(-(-max(states.shape) // width), 1)
    lines = []
    for rows in states.split(side):
        squares = [x.unique() for x in rows.split(side, dim=1)]
        shades = (_SHADES[x.item() if len(x) == 1 else PARTIAL] for x in squares)
        lines.append("".join(2 * shade for shade in shades).rstrip())
    return "\n".join(lines)
