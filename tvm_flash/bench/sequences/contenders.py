"""Ours on packed, paged and cached sequences, and what it is to be compared with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from ...verify.layouts import in_pages
from ..contender import AS_DRAWN, OURS, Attention, Contender, Layout
from .problems import AppendedProblem, CachedProblem, PackedProblem, StepProblem


def packed(problem: PackedProblem, device: str) -> Attention:
    """This package, all sequences in one call."""
    from ...frontend.flash_varlen import flash_attn_varlen_func

    longest = problem.seqlen
    cu_seqlens = F.pad(_lengths(problem).cumsum(0, dtype=torch.int32), (1, 0))
    known = {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens, "causal": problem.causal}
    return partial(flash_attn_varlen_func, max_seqlen_q=longest, max_seqlen_k=longest, **known)


def dense(problem: PackedProblem | CachedProblem, device: str) -> Attention:
    """This package on a dense batch, of sequences of one length."""
    from ...frontend.flash_attn import flash_attn_func

    return partial(flash_attn_func, causal=problem.causal)


def one_by_one(problem: PackedProblem, device: str) -> Attention:
    """This package, a dense call for each sequence."""
    function = dense(problem, device)
    return lambda q, k, v: [function(*parts) for parts in zip(q, k, v, strict=True)]


def sdpa_padded(problem: PackedProblem, device: str) -> Attention:
    """torch's SDPA on the sequences padded to the longest; a causal mask hides the padding."""
    if not problem.causal:
        raise ValueError("padded sequences without a causal mask need one of their own")
    return partial(F.scaled_dot_product_attention, is_causal=True)


def cached(problem: CachedProblem, device: str, paged: bool = True) -> Attention:
    """This package on a cache: in pages, or one of as many rows for each sequence."""
    from ...frontend.kvcache import flash_attn_with_kvcache

    table = problem.page_table() if paged else None
    known = {"cache_seqlens": _lengths(problem), "block_table": table, "causal": problem.causal}
    return partial(flash_attn_with_kvcache, **known)


def step(problem: StepProblem, device: str, apart: bool = False) -> Attention:
    """This package on a cache, all sequences in one call; apart: the prompt in one of its own."""
    from ...frontend.kvcache import flash_attn_with_kvcache

    table, lengths, rows = problem.page_table(), _lengths(problem), torch.tensor(problem.rows)
    counts = [1, problem.batch - 1] if apart else [problem.batch]
    split = (x.split(counts) for x in (rows, lengths, table))
    known = [
        {"cu_seqlens_q": F.pad(own.cumsum(0, dtype=torch.int32), (1, 0)), "cache_seqlens": keys,
         "block_table": pages, "causal": True}
        for own, keys, pages in zip(*split, strict=True)
    ]  # fmt: skip
    totals = [int(own.sum()) for own in rows.split(counts)]

    def calls(q, k, v):
        parts = zip(q.split(totals), known, strict=True)
        found = [flash_attn_with_kvcache(own, k, v, **given) for own, given in parts]
        return torch.cat(found) if apart else found[0]

    return calls


def read(problem: CachedProblem, device: str) -> Attention:
    """Every byte of all keys and values is read once: a sum in float32, whatever they mean."""

    def summed(q, k, v):
        return sum(x.flatten().view(torch.float32).sum() for x in (k, v))

    return summed


def appended(problem: AppendedProblem, device: str) -> Attention:
    """This package: k and v are new keys and values, k is rotated, both go into pages."""
    from ...frontend.kvcache import flash_attn_with_kvcache

    shape = (sum(problem.page_counts), problem.page_size, problem.key_heads, problem.head_dim)
    caches = [torch.zeros(shape, dtype=getattr(torch, problem.dtype)) for _ in range(2)]
    half = problem.head_dim // 2
    steps = torch.outer(
        torch.arange(problem.past + problem.seqlen), 1e-4 ** (torch.arange(half) / half)
    )
    past = torch.full((problem.batch,), problem.past, dtype=torch.int32)
    known = {
        "rotary_cos": steps.cos(), "rotary_sin": steps.sin(), "rotary_interleaved": False,
        "cache_seqlens": past, "block_table": problem.page_table(), "causal": True,
        "window_size": (0, 0),
    }  # fmt: skip
    return lambda q, k, v: flash_attn_with_kvcache(q, *caches, k, v, **known)


def copy(problem: AppendedProblem, device: str) -> Attention:
    """The bytes of k and v, copied to other memory."""
    _, keys = problem.drawn_shapes
    targets = [torch.zeros(keys, dtype=getattr(torch, problem.dtype)) for _ in range(2)]
    return lambda q, k, v: [x.copy_(y) for x, y in zip(targets, (k, v), strict=True)]


def _lengths(problem) -> torch.Tensor:
    return torch.tensor(problem.lengths, dtype=torch.int32)


def _apart(problem, x: torch.Tensor) -> list[torch.Tensor]:
    """(total, H, D) as one (1, S, H, D) for each sequence."""
    return [part[None] for part in x.split(list(problem.lengths))]


def _padded(problem, x: torch.Tensor) -> torch.Tensor:
    """(total, H, D) as (B, S, H, D), zeros past the end of each sequence."""
    return pad_sequence(list(x.split(list(problem.lengths))), batch_first=True)


def _heads_first(problem, x: torch.Tensor) -> torch.Tensor:
    return _padded(problem, x).transpose(1, 2).contiguous()


def _unpadded(problem, x: torch.Tensor) -> torch.Tensor:
    """(B, H, S, D) as (total, H, D)."""
    rows = zip(x.transpose(1, 2), problem.lengths, strict=True)
    return torch.cat([entry[:length] for entry, length in rows])


def _in_pages(problem: CachedProblem, x: torch.Tensor) -> torch.Tensor:
    """(total, Hk, D) as (pages, page_size, Hk, D), by the problem's page table."""
    count, size = sum(problem.page_counts), problem.page_size
    return in_pages(x, problem.lengths, problem.page_table(), count, size)


_joined: Callable = lambda problem, parts: torch.cat([part[0] for part in parts])  # noqa: E731
_ENTRIES = Layout(_padded, _padded, lambda problem, x: x.flatten(0, 1))
_APART = Layout(_apart, _apart, _joined)
_HEADS_FIRST = Layout(_heads_first, _heads_first, _unpadded)
_PAGES = Layout(AS_DRAWN.queries, _in_pages, AS_DRAWN.rows)
_ROWS = Layout(AS_DRAWN.queries, _padded, AS_DRAWN.rows)

_CPU = ("cpu",)
SEQUENCE_CONTENDERS = (
    Contender(OURS, packed, AS_DRAWN, _CPU, PackedProblem),
    Contender("dense", dense, _ENTRIES, _CPU, PackedProblem),
    Contender("one_by_one", one_by_one, _APART, _CPU, PackedProblem),
    Contender("sdpa_padded", sdpa_padded, _HEADS_FIRST, _CPU, PackedProblem),
    Contender(OURS, cached, _PAGES, _CPU, CachedProblem),
    Contender("contiguous", partial(cached, paged=False), _ROWS, _CPU, CachedProblem),
    Contender("dense", dense, _ROWS, _CPU, CachedProblem),
    Contender(OURS, step, _PAGES, _CPU, StepProblem),
    Contender("apart", partial(step, apart=True), _PAGES, _CPU, StepProblem),
    Contender("read", read, AS_DRAWN, _CPU, CachedProblem, computes=False),
    Contender(OURS, appended, AS_DRAWN, _CPU, AppendedProblem),
    Contender("copy", copy, AS_DRAWN, _CPU, AppendedProblem, computes=False),
)
