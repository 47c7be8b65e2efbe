"""Rows of a whole sequence to the ranks that share it, and back."""

from __future__ import annotations

import torch
import torch.distributed as dist

from .partition import check_layout, chunks
from .ranks import Ranks, ranks_of


def shard_sequence(
    x: torch.Tensor, dim: int = 1, *, group=None, layout: str = "zigzag"
) -> torch.Tensor:
    """This rank's rows of ``x``, in memory of their own; differentiable.

    x: the whole sequence along ``dim``, tokens (B, S), embeddings (B, S, features) or, with dim=0,
    packed rows (total, ...); on every rank. group, layout: as for ``ring_attention``.

    ValueError unless the length is a multiple of the ranks, with "zigzag" of twice the ranks.
    """
    ranks = ranks_of(group)
    parts = _chunked(x, dim, ranks.world, layout)
    return torch.cat([parts[n] for n in chunks(layout, ranks.rank, ranks.world)], dim)


def unshard_sequence(
    x: torch.Tensor, dim: int = 1, *, group=None, layout: str = "zigzag"
) -> torch.Tensor:
    """The whole sequence of each rank's rows ``x``: what ``shard_sequence`` has divided.

    Differentiable: the gradient of a rank's rows is summed over what the ranks do with the whole
    sequence, so that a loss which all of them compute counts as often as there are ranks.
    """
    ranks = ranks_of(group)
    check_layout(layout)
    return _Gathered.apply(x, dim, ranks, layout)


def sequence_positions(
    seqlen: int, *, group=None, layout: str = "zigzag", device: torch.device | str | None = None
) -> torch.Tensor:
    """The positions in a sequence of ``seqlen`` of this rank's rows, (seqlen / ranks,) int64."""
    return shard_sequence(torch.arange(seqlen, device=device), 0, group=group, layout=layout)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dim: int, ranks: Ranks, layout: str):
        ctx.how = dim, ranks, layout
        x = x.contiguous()
        found = [torch.empty_like(x) for _ in range(ranks.world)]
        dist.all_gather(found, x, group=ranks.group)
        count = len(chunks(layout, 0, ranks.world))
        parts = [None] * (ranks.world * count)
        for rank, rows in enumerate(found):
            numbers = chunks(layout, rank, ranks.world)
            for number, part in zip(numbers, rows.chunk(count, dim), strict=True):
                parts[number] = part
        return torch.cat(parts, dim)

    @staticmethod
    def backward(ctx, grad):
        dim, ranks, layout = ctx.how
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ranks.group)
        parts = _chunked(grad, dim, ranks.world, layout)
        own = torch.cat([parts[n] for n in chunks(layout, ranks.rank, ranks.world)], dim)
        return own, None, None, None


def _chunked(x: torch.Tensor, dim: int, world: int, layout: str) -> tuple[torch.Tensor, ...]:
    """``x`` in its chunks; ValueError unless it is a multiple of them."""
    check_layout(layout)
    count, length = world * len(chunks(layout, 0, world)), x.shape[dim]
    if length % count:
        raise ValueError(
            f"a sequence of {length} does not divide into {count} chunks (layout={layout!r}, "
            f"{world} ranks): pad it to {-(-length // count) * count}"
        )
    return x.chunk(count, dim)
