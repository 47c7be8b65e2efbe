"""Checks of packed and paged calls, of tensors and of numbers, before any kernel runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..problem.arguments import TABLES, given_sizes, shape_of
from ..problem.lengths import MAX_SEQLEN
from ..score.layouts import check_dense
from .checks import check_alike, check_first, check_heads, check_like, check_tables

AXES = ("q", "k")


def check_ragged_call(kind: str, direction: str, given: Mapping[str, Any]) -> None:
    """Raise unless the tensors of an operator of packed or paged sequences fit each other.

    given: its parameters by name; the numbers in its spans are checked where they can be read.
    """
    q, k, v = given["q"], given["k"], given["v"]
    check_first(q, 3)
    check_alike("k", k, q, 4 if kind == "paged" else 3)
    check_alike("v", v, q, k.ndim)
    if k.shape[:-1] != v.shape[:-1]:
        shapes = f"k has {tuple(k.shape)}, v has {tuple(v.shape)}"
        raise ValueError(f"{shapes}: each key needs one value, of as many heads")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"head_dim of q is {q.shape[-1]}, of k {k.shape[-1]}: make them equal")
    check_heads(q.shape[-2], k.shape[-2])
    _check_span_tensors(given)
    check_tables(given["tables"], q, k)
    if direction == "backward":
        _check_saved(kind, given)


def _check_saved(kind: str, given: Mapping[str, Any]) -> None:
    """As ``check_backward_call``, of a kind whose sizes the tensors name."""
    table = TABLES[kind]["backward"]
    wanted = [a for a in table if a.role in ("input", "saved") and "total" in str(a.shape)]
    sizes = given_sizes([a for a in wanted if a.name in ("q", "k", "v")], given)
    for a in wanted:
        x, shape = given[a.name], shape_of(a, sizes)
        dtype = getattr(torch, a.dtype) if a.dtype else given["q"].dtype
        if x is not None and not (a.optional and x.numel() == 0):
            check_like(a.name, x, shape, dtype, given["q"])


def _check_span_tensors(given: Mapping[str, Any]) -> None:
    """Raise unless the spans (B,) int32 and page_table (B, most) fit each other, beside q."""
    q = given["q"]
    names = [f"{side}_{axis}" for axis in AXES for side in ("starts", "ends")]
    for name in [*names, *(["page_table"] if "page_table" in given else [])]:
        x, rank = given[name], 2 if name == "page_table" else 1
        check_dense(name, x)
        if x.dtype != torch.int32:
            raise TypeError(f"{name}.dtype={x.dtype} must be torch.int32: call .int()")
        if x.ndim != rank:
            raise ValueError(f"{name} of shape {tuple(x.shape)} must have {rank} dimension(s)")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device}, q on {q.device}: move one")
        if x.shape[0] != given["starts_q"].shape[0]:
            raise ValueError(
                f"{name} of shape {tuple(x.shape)} must be of {given['starts_q'].shape[0]} entries"
            )


def check_spans(given: Mapping[str, Any], longest_k: int) -> tuple[int, int]:
    """(longest queries, longest keys) of the spans on a CPU, whose numbers are checked.

    RuntimeError for a page that does not exist (as FlashAttention), ValueError for all others.
    longest_k: max_seqlen_k of the call, which may not be exceeded.
    """
    rows = given["q"].shape[0]
    longest_q, _ = _checked("q", given, rows, in_order=True)
    table = given.get("page_table")
    if table is None:
        longest, _ = _checked("k", given, given["k"].shape[0], in_order=True)
    else:
        capacity = table.shape[1] * given["k"].shape[1]
        longest, ends = _checked("k", given, capacity, in_order=False)
        _check_pages(table, ends, *given["k"].shape[:2])
    if longest > longest_k:
        raise ValueError(f"max_seqlen_k={longest_k} is too small: a sequence has {longest} keys")
    return longest_q, longest


def have_gaps(given: Mapping[str, Any], axis: str) -> bool:
    """Whether rows of the packed q or k (``axis``) on a CPU belong to no entry."""
    starts, ends = given[f"starts_{axis}"].numpy(), given[f"ends_{axis}"].numpy()
    return int((ends - starts).sum()) != given[axis].shape[0]


def _checked(axis: str, given: Mapping[str, Any], total: int, in_order: bool) -> tuple:
    """(longest, ends) of the spans of an axis, which lie in 0 .. total, apart if ``in_order``."""
    starts, ends = given[f"starts_{axis}"].numpy(), given[f"ends_{axis}"].numpy()
    if len(starts) == 0:
        return 0, ends
    lengths = ends.astype(np.int64) - starts
    if starts.min() < 0 or lengths.min() < 0 or ends.max() > total:
        entry = int(np.argmax((starts < 0) | (lengths < 0) | (ends > total)))
        raise ValueError(
            f"sequence {entry} has rows {starts[entry]} .. {ends[entry]} of {axis}, which has "
            f"{total}: cumulative lengths must begin at 0, not decrease and stay within the tensor"
        )
    if in_order and (starts[1:] < ends[:-1]).any():
        entry = int(np.argmax(starts[1:] < ends[:-1])) + 1
        raise ValueError(
            f"sequence {entry} begins at row {starts[entry]} of {axis}, before the end "
            f"{ends[entry - 1]} of the one before it"
        )
    longest = int(lengths.max())
    if longest > MAX_SEQLEN:
        raise ValueError(f"a sequence has {longest} rows of {axis}, the limit is {MAX_SEQLEN}")
    return longest, ends


def _check_pages(table: torch.Tensor, ends, pages: int, page_size: int) -> None:
    """RuntimeError unless every page that an entry reaches exists."""
    numbers = table.numpy()
    used = np.arange(numbers.shape[1]) < -(-ends.astype(np.int64)[:, None] // max(page_size, 1))
    wrong = used & ((numbers < 0) | (numbers >= pages))
    if wrong.any():
        entry, place = np.argwhere(wrong)[0]
        raise RuntimeError(
            f"block_table[{entry}, {place}]={numbers[entry, place]} must lie in 0 .. {pages - 1}: "
            f"there are {pages} pages"
        )
