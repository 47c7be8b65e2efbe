"""Ours on packed, paged and cached sequences, and what it is to be compared with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from ...verify.layouts import in_pages
from ..contender import AS_DRAWN, OURS, Attention, Contender, Layout
from ..flex import compiled_flex
from .problems import AppendedProblem, CachedProblem, PackedProblem, StepProblem


def packed(problem: PackedProblem, device: str) -> Attention:
    """This package, all sequences in one call."""
    from ...frontend.flash_varlen import flash_attn_varlen_func

    longest, ends = problem.seqlen, _cumulative(problem, device)
    known = {"cu_seqlens_q": ends, "cu_seqlens_k": ends, "causal": problem.causal}
    return partial(flash_attn_varlen_func, max_seqlen_q=longest, max_seqlen_k=longest, **known)


def torch_varlen(problem: PackedProblem, device: str) -> Attention:
    """torch's attention of packed sequences, which calls FlashAttention."""
    from torch.nn.attention.varlen import varlen_attn

    longest, ends = problem.seqlen, _cumulative(problem, device)
    known: dict = {"enable_gqa": True} if problem.group > 1 else {}
    if problem.causal:
        has_window = "window_size" in signature(varlen_attn).parameters  # torch 2.10 has not
        known |= {"window_size": (-1, 0)} if has_window else {"is_causal": True}
    return lambda q, k, v: varlen_attn(q, k, v, ends, ends, longest, longest, **known)


def torch_paged(problem: CachedProblem, device: str) -> Attention:
    """torch's attention of packed sequences, their keys in pages."""
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.arange(problem.batch + 1, dtype=torch.int32, device=device) * problem.queries
    known = {
        "seqused_k": _lengths(problem, device), "block_table": problem.page_table().to(device),
        "enable_gqa": problem.group > 1,
    }  # fmt: skip
    sizes = (problem.queries, problem.seqlen)
    return lambda q, k, v: varlen_attn(q.flatten(0, 1), k, v, ends, None, *sizes, **known)


def flex_documents(problem: PackedProblem, device: str) -> Attention:
    """torch's flex_attention, compiled for rows that see those of their own sequence."""
    counts = _lengths(problem, device)
    number = torch.repeat_interleave(torch.arange(problem.batch, device=device), counts)

    def own(b, h, q_idx, k_idx):
        return (number[q_idx] == number[k_idx]) & ((q_idx >= k_idx) | (not problem.causal))

    return compiled_flex(problem, problem.total, own, device)


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

    table = problem.page_table().to(device) if paged else None
    lengths = _lengths(problem, device)
    known = {"cache_seqlens": lengths, "block_table": table, "causal": problem.causal}
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


def _lengths(problem, device: str = "cpu") -> torch.Tensor:
    return torch.tensor(problem.lengths, dtype=torch.int32, device=device)


def _cumulative(problem: PackedProblem, device: str) -> torch.Tensor:
    """(B + 1,) int32: where each sequence begins, and where the last one ends."""
    return F.pad(_lengths(problem, device).cumsum(0, dtype=torch.int32), (1, 0))


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


def _one_entry(problem, x: torch.Tensor) -> torch.Tensor:
    """(total, H, D) as (1, H, total, D)."""
    return x.transpose(0, 1)[None].contiguous()


def _in_pages(problem: CachedProblem, x: torch.Tensor) -> torch.Tensor:
    """(total, Hk, D) as (pages, page_size, Hk, D), by the problem's page table."""
    count, size = sum(problem.page_counts), problem.page_size
    return in_pages(x, problem.lengths, problem.page_table(), count, size)


def _by_sequence(problem: CachedProblem, x: torch.Tensor) -> torch.Tensor:
    """(B * Sq, H, D) as (B, Sq, H, D)."""
    return x.unflatten(0, (problem.batch, problem.queries))


_joined: Callable = lambda problem, parts: torch.cat([part[0] for part in parts])  # noqa: E731
_ENTRIES = Layout(_padded, _padded, lambda problem, x: x.flatten(0, 1))
_APART = Layout(_apart, _apart, _joined)
_HEADS_FIRST = Layout(_heads_first, _heads_first, _unpadded)
_PAGES = Layout(AS_DRAWN.queries, _in_pages, AS_DRAWN.rows)
_FLAT_PAGES = Layout(AS_DRAWN.queries, _in_pages, _by_sequence)
_ONE_ENTRY = Layout(_one_entry, _one_entry, lambda problem, x: x[0].transpose(0, 1))
_ROWS = Layout(AS_DRAWN.queries, _padded, AS_DRAWN.rows)

_CPU, _CUDA, _BOTH = ("cpu",), ("cuda",), ("cpu", "cuda")
SEQUENCE_CONTENDERS = (
    Contender(OURS, packed, AS_DRAWN, _BOTH, PackedProblem),
    Contender("dense", dense, _ENTRIES, _CPU, PackedProblem),
    Contender("one_by_one", one_by_one, _APART, _CPU, PackedProblem),
    Contender("sdpa_padded", sdpa_padded, _HEADS_FIRST, _BOTH, PackedProblem),
    Contender("torch_varlen", torch_varlen, AS_DRAWN, _CUDA, PackedProblem),
    Contender("flex", flex_documents, _ONE_ENTRY, _CUDA, PackedProblem),
    Contender(OURS, cached, _PAGES, _BOTH, CachedProblem),
    Contender("torch_varlen", torch_paged, _FLAT_PAGES, _CUDA, CachedProblem),
    Contender("contiguous", partial(cached, paged=False), _ROWS, _BOTH, CachedProblem),
    Contender("dense", dense, _ROWS, _CPU, CachedProblem),
    Contender(OURS, step, _PAGES, _CPU, StepProblem),
    Contender("apart", partial(step, apart=True), _PAGES, _CPU, StepProblem),
    Contender("read", read, AS_DRAWN, _BOTH, CachedProblem, computes=False),
    Contender(OURS, appended, AS_DRAWN, _CPU, AppendedProblem),
    Contender("copy", copy, AS_DRAWN, _CPU, AppendedProblem, computes=False),
)
