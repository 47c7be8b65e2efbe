"""Exchange of rows for heads (Ulysses; Jacobs et al., 2023): a rank has all rows of its heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from ..frontend.checks import check_tensors
from ..frontend.functional import LAYOUTS
from ..frontend.functional import attention as attention_of_one
from ..frontend.values import as_dropout, autocast
from ..problem.size_checks import check_heads
from .own_heads import of_own_heads
from .ranks import Ranks, check_agreement, ranks_of


@torch.compiler.disable
def ulysses_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    group=None,
    attention: Callable = attention_of_one,
    layout: str = "bshd",
    return_lse: bool = False,
    **options: Any,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """``attention`` of a sequence that the ranks of ``group`` share, each with its rows of it.

    q (B, Sq / ranks, H, D), k (B, Sk / ranks, Hk, D), v (B, Sk / ranks, Hk, Dv): this rank's rows,
    contiguous parts in the order of ranks (``shard_sequence(layout="contiguous")``), or packed,
    (total / ranks, heads, D). Ranks exchange them, so that each has all rows of H / ranks heads;
    H is a multiple of the ranks. Where Hk is not, key heads are repeated until it is.

    options: every keyword of ``tvm_flash.attention`` but pages, as for the whole call:
    cumulative lengths of whole sequences, slopes, sinks and biases of all heads, functions of all
    positions and heads. Gradients of such tensors are those of this rank's heads; their sum over
    the ranks is the whole one. dropout_p: each rank draws for itself, so that which weights are
    dropped depends on the number of ranks. block_mask: one for all heads.
    group: a ProcessGroup or DeviceMesh of one dimension; None is that of all processes. attention:
    computes the heads; ``partial(ring_attention, group=...)`` divides the sequence once more, the
    parts of which the ranks of this group then share.

    Returns out, this rank's rows, and with ``return_lse`` lse (B, H, Sq / ranks), packed (H, total
    / ranks). Every rank must call it, and its backward, in the same order. Under torch.compile the
    graph is broken here.

    Raises as ``attention``; ValueError too where ranks differ.
    """
    ranks = ranks_of(group)
    q, k, v = autocast(q), autocast(k), autocast(v)
    rows, heads = _axes(q, k, v, layout, options, ranks)
    check_agreement(ranks, q, {"q": q.shape, "k": k.shape, "v": v.shape}, (layout, *options))
    options = of_own_heads(options, ranks, q.shape[heads], q.device)
    if options.get("dropout_p"):
        options |= _dropout_of_rank(options["dropout_p"], options.get("rng"), q, ranks)
    repeats = math.lcm(k.shape[heads], ranks.world) // k.shape[heads]
    if repeats > 1:
        k, v = (x.repeat_interleave(repeats, heads) for x in (k, v))
    q, k, v = (_Exchanged.apply(x, heads, rows, ranks) for x in (q, k, v))
    if layout != "bshd":
        options["layout"] = layout
    found = attention(q, k, v, return_lse=return_lse, **options)
    out, *lse = found if return_lse else (found,)
    out = _Exchanged.apply(out, rows, heads, ranks)
    # Heads before rows.
    return (out, _Exchanged.apply(*lse, q.ndim - 2, q.ndim - 3, ranks)) if return_lse else out


def _axes(q, k, v, layout: str, options, ranks: Ranks) -> tuple[int, int]:
    """The dimensions of rows and heads, once it is checked that these can be divided."""
    if layout not in LAYOUTS:
        raise ValueError(f"{layout=} must be one of {', '.join(LAYOUTS)}")
    if options.get("block_table") is not None:
        raise ValueError("block_table: keys in pages are not divided among ranks")
    is_packed = options.get("cu_seqlens_q") is not None
    if is_packed and layout != "bshd":
        raise ValueError(f"{layout=} is of dense tensors: packed ones are (total, H, D)")
    rank = 3 if is_packed else 4
    check_tensors(q, k, v, rank, rank)
    rows, heads = (rank - 3, rank - 2) if layout == "bshd" else (rank - 2, rank - 3)
    check_heads(num_heads := q.shape[heads], k.shape[heads])
    if num_heads % ranks.world:
        raise ValueError(
            f"num_heads={num_heads} of q must be a multiple of the {ranks.world} ranks that share "
            "them: use fewer ranks, or ring_attention"
        )
    return rows, heads


def _dropout_of_rank(dropout_p, rng: torch.Tensor | None, q, ranks: Ranks) -> dict:
    """Words of a rank's own: its heads are numbered from 0, as those of the others are."""
    dropout_p, rng = as_dropout(dropout_p, rng, q)
    if rng is None:
        return {"dropout_p": dropout_p}
    # The high half of the offset, which callers count up from 0.
    return {"dropout_p": dropout_p, "rng": rng + rng.new_tensor([0, ranks.rank << 32])}


class _Exchanged(torch.autograd.Function):
    """A tensor divided along one dimension, its parts from all ranks one behind the other along
    another."""

    @staticmethod
    def forward(ctx, x, divided: int, joined: int, ranks: Ranks):
        ctx.how = divided, joined, ranks
        return _exchanged(x, divided, joined, ranks)

    @staticmethod
    def backward(ctx, grad):
        divided, joined, ranks = ctx.how
        return _exchanged(grad, joined, divided, ranks), None, None, None


def _exchanged(x: torch.Tensor, divided: int, joined: int, ranks: Ranks) -> torch.Tensor:
    """Part n of ``x`` goes to rank n; returned are the parts that came, in the order of ranks."""
    if ranks.world == 1:
        return x
    parts = x.unflatten(divided, (ranks.world, -1)).movedim(divided, 0).contiguous()
    found = torch.empty_like(parts)
    dist.all_to_all_single(found, parts, group=ranks.group)
    return found.movedim(0, joined).flatten(joined, joined + 1)
