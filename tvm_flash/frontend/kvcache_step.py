"""What the numbers of a call of flash_attn_with_kvcache say, checked where they can be read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import pad

from .append_ops import Places
from .kvcache_pages import cache_pages, check_cache_numbers, number_of_each
from .last_call import LastCall
from .observers import is_plain_call
from .packed_rows import check_cu_seqlens, equal_cu_seqlens, sequence_and_position
from .rotary import Rotation, check_reach
from .spans import Lengths, Ragged, ragged_of


class InUse(NamedTuple):
    """What callers say of the rows in use and of the new ones, by the names of the keywords.

    angles: rows of rotary_cos, None without. moves: whether the queries of a sequence are rotated
    by a position each, and not all by the first.
    """

    cache_seqlens: int | torch.Tensor | None
    cache_batch_idx: torch.Tensor | None
    cache_leftpad: torch.Tensor | None
    table: torch.Tensor | None
    cu_seqlens_q: torch.Tensor | None
    max_seqlen_q: int | torch.Tensor | None
    cu_seqlens_k_new: torch.Tensor | None
    rotary_seqlens: torch.Tensor | None
    angles: int | None
    moves: bool


class Step(NamedTuple):
    """Where the rows of a call lie, and what they are rotated by.

    ragged: the queries, and all keys, new ones included. places: of the new rows. offsets (B,)
    int32: the position that the first of them is rotated by. rotation: of the queries, None where
    nothing is rotated.
    """

    ragged: Ragged
    places: Places | None
    offsets: torch.Tensor
    rotation: Rotation | None


def step_of(q: torch.Tensor, pages: tuple, k: torch.Tensor | None, given: InUse) -> Step:
    """The step of a call on checked tensors; k: new rows (B, S, H, D), or packed.

    The layers of a model share one, as long as the numbers stay the same. Raises TypeError and
    ValueError for what does not fit, RuntimeError for a full cache and pages that do not exist.
    """
    tensors = tuple([x if isinstance(x, torch.Tensor) else None for x in given])
    known = [x for x in tensors if x is not None]
    if torch.compiler.is_compiling() or not is_plain_call(q, *pages, known):
        return _step(q, pages, k, given)
    if not (q.is_cpu and all(x.is_cpu for x in known)):
        return _step(q, pages, k, given)
    # Layers differ in their pages, not in what is looked at here.
    plain = tuple([x for x in given if not isinstance(x, torch.Tensor)])
    sizes = q.shape[:-1], pages[0].shape, None if k is None else k.shape, plain
    if (step := _last.answer(tensors, sizes)) is None:
        step = _step(q, pages, k, given)
        _last.keep(tensors, sizes, step)
    return step


_last = LastCall()


def _step(q, pages, k, given: InUse) -> Step:
    cu_q = _cumulative("_q", q, given.cu_seqlens_q)
    entries = len(cu_q) - 1
    in_use = given.cache_seqlens, given.cache_batch_idx, given.cache_leftpad, given.table
    cache = cache_pages(q, *pages, *in_use, entries)
    cu_k, ends = None, cache.past
    if k is not None:
        cu_k = _cumulative("_k_new", k, given.cu_seqlens_k_new)
        if len(cu_k) - 1 != entries:
            raise ValueError(f"k has {len(cu_k) - 1} sequences, q has {entries}")
        ends = cache.past + (k.shape[1] if k.ndim == 4 else cu_k[1:] - cu_k[:-1])
    check_cache_numbers(cache, cu_k, is_full=given.cache_seqlens is None)
    offsets = cache.past
    if given.rotary_seqlens is not None:
        offsets = number_of_each("rotary_seqlens", given.rotary_seqlens, entries, q.device)
    rotation = None
    if given.angles is not None:
        rotation = _of_queries(q, cu_q, offsets, given.moves)
        name = "cache_seqlens" if given.rotary_seqlens is None else "rotary_seqlens"
        check_reach(offsets, cu_k, given.angles, name)
        check_reach(rotation.offsets, rotation.cu_seqlens, given.angles, name)
    ends = ends.clamp(max=cache.capacity)
    lengths = Lengths(
        cu_seqlens_q=cu_q, seqused_k=ends, block_table=cache.table, leftpad_k=cache.first
    )
    ragged = ragged_of(q if q.ndim == 3 else q.flatten(0, 1), *pages, lengths, given.max_seqlen_q)
    places = None
    if cu_k is not None:
        places = Places(cu_k[:-1], cu_k[1:], cache.past, ends, cache.table)
    return Step(ragged, places, offsets, rotation)


def _cumulative(axis: str, x: torch.Tensor, cu_seqlens) -> torch.Tensor:
    """Cumulative lengths (B + 1,) int32 of ``x`` (B, S, H, D), or those given of packed rows."""
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens, x, axis=axis)
        return cu_seqlens
    return equal_cu_seqlens(x)


def _of_queries(q: torch.Tensor, cu_seqlens, offsets, moves: bool) -> Rotation:
    """The rotation of ``q``: where its sequences do not move, each row is one of its own."""
    if not (moves or (q.ndim == 4 and q.shape[1] == 1)):
        total = q.shape[:-2].numel()
        sequence, _ = sequence_and_position(cu_seqlens, total)
        cu_seqlens = torch.arange(total + 1, dtype=torch.int32, device=q.device)
        offsets = pad(offsets, (0, 1))[sequence]
    return Rotation(cu_seqlens, offsets, Places.one_by_one(cu_seqlens))
