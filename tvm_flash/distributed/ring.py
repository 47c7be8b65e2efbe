"""Ring attention: each rank keeps its queries, and keys and values come to it in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..frontend.checks import as_softmax, check_tensors
from ..frontend.functional import Window
from ..frontend.packed_rows import check_cu_seqlens
from ..frontend.values import NO_WINDOW, as_flag, autocast
from ..problem.size_checks import check_sizes
from .kernels import Kernels
from .options import as_numbers, check_unserved
from .partition import Stream, check_layout, chunk_rows
from .plan import Division, plan_of
from .positions import functions_of
from .ranks import check_agreement, ranks_of
from .rounds import RingAttention
from .sink import with_sink


@torch.compiler.disable
def ring_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    group=None,
    layout: str = "zigzag",
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = NO_WINDOW,
    softcap: float = 0.0,
    score_mod: Callable | None = None,
    mask_mod: Callable | None = None,
    sink: torch.Tensor | None = None,
    cu_seqlens_q: torch.Tensor | Sequence[int] | None = None,
    cu_seqlens_k: torch.Tensor | Sequence[int] | None = None,
    deterministic: bool = False,
    return_lse: bool = False,
    **unserved: Any,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """``attention`` of a sequence that the ranks of ``group`` share, each with its rows of it.

    q (B, Sq / ranks, H, D), k (B, Sk / ranks, Hk, D), v (B, Sk / ranks, Hk, Dv): this rank's rows,
    as ``shard_sequence`` gives them; as many on every rank. Dtypes, sizes and options are those of
    ``attention`` (also under autocast), and equal on all ranks; masks and functions are of
    positions in the whole sequence.

    group: a ProcessGroup or DeviceMesh of one dimension; None is that of all processes. layout:
    which rows a rank has. "contiguous": one part of the sequence. "zigzag": of twice as many parts
    one from either end, so that with a causal mask all ranks have as much to do.
    cu_seqlens_q, cu_seqlens_k (documents + 1,): q, k and v are packed, (total / ranks, heads, D),
    and this is where the documents of the whole sequence lie, not of this rank's rows. Rows past
    the last one are padding. Read by the host, so better not on a GPU. cu_seqlens_k: default
    cu_seqlens_q. Functions are called with the entry of the batch, packed with the document, and
    positions inside it; tensors they capture are read as they are on this rank, without gradients.
    sink (H,): as in ``attention``; its gradient is that of this rank's rows. unserved: the other
    keywords of ``attention``, which may be what they are by default.

    Keys and values go from rank to rank while others are computed: only rows that a rank's queries
    may see, never all of them at once. Returns out, this rank's rows, and with ``return_lse`` lse
    (B, H, Sq / ranks), packed (H, total / ranks). Every rank must call it, and its backward, in the
    same order. Under torch.compile the graph is broken here.

    Raises as ``attention``; ValueError too where ranks differ.
    """
    ranks = ranks_of(group)
    check_unserved(unserved)
    check_layout(layout)
    q, k, v = autocast(q), autocast(k), autocast(v)
    is_packed = cu_seqlens_q is not None
    if cu_seqlens_k is not None and not is_packed:
        raise ValueError("cu_seqlens_k needs cu_seqlens_q: where the documents of q lie")
    check_tensors(q, k, v, *(3, 3) if is_packed else (4, 4))
    if is_packed:
        q, k, v = (x.unsqueeze(0) for x in (q, k, v))
    check_sizes(q.shape, k.shape, v.shape)
    if sink is not None:
        _, sink = as_softmax("softmax", sink, q, return_lse)
    streams = _streams(q, k, (cu_seqlens_q, cu_seqlens_k), ranks.world, layout)
    functions = functions_of(score_mod, mask_mod, len(streams[0].ends) - 1)
    window, scale, softcap = as_numbers(causal, window_size, softcap, softmax_scale, q.shape[-1])
    kernels = Kernels(scale, softcap, as_flag("deterministic", deterministic), functions)
    division = Division(layout, ranks.world, *streams, window, functions is not None)
    shapes = {"q": q.shape, "k": k.shape, "v": v.shape}
    check_agreement(ranks, q, shapes, (is_packed, scale, softcap, division))

    rows = (x.flatten(0, 1) for x in (q, k, v))
    out, lse = RingAttention.apply(*rows, ranks, plan_of(division, ranks.rank), kernels)
    if sink is not None:
        out, lse = with_sink(out, lse, sink, division, ranks.rank)
    if not is_packed:
        sizes = q.shape[:2]
        out, lse = out.unflatten(0, sizes), lse.unflatten(1, sizes).transpose(0, 1)
    return (out, lse) if return_lse else out


def _streams(q, k, cumulative, world: int, layout: str) -> tuple[Stream, Stream]:
    """The rows of queries and keys; ValueError unless they can be divided."""
    of_queries, of_keys = cumulative
    of_keys = of_queries if of_keys is None else of_keys
    streams = _stream(q, "_q", of_queries, world), _stream(k, "_k", of_keys, world)
    for stream in streams:
        chunk_rows(layout, stream.rows)
    if len(streams[0].ends) != len(streams[1].ends):
        raise ValueError(
            f"cu_seqlens_q is of {len(streams[0].ends) - 1} documents, cu_seqlens_k of "
            f"{len(streams[1].ends) - 1}: make them as many"
        )
    return streams


def _stream(x: torch.Tensor, axis: str, ends, world: int) -> Stream:
    """The rows of ``x`` (B, rows, heads, columns), of documents that end at ``ends`` if any do."""
    entries, rows = x.shape[:2]
    if ends is None:
        return Stream(rows, entries, (0, rows * world))
    numbers = torch.as_tensor(ends, dtype=None if isinstance(ends, torch.Tensor) else torch.int32)
    numbers = numbers.detach().cpu()
    check_cu_seqlens(numbers, x.new_empty(0, device="cpu"), total=rows * world, axis=axis)
    return Stream(rows, entries, tuple(numbers.tolist()))
