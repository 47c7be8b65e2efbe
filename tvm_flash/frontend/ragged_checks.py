"""Checks of packed and paged calls, of tensors and of numbers, before any kernel runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ..problem.arguments import arguments, shape_of, sizes_of_shapes
from ..problem.sequences import KINDS
from ..problem.size_checks import check_packed_sizes
from .checks import (
    check_like,
    check_rng,
    check_sink,
    check_tables,
    check_tensors,
)
from .packed_rows import Extent, check_int32, extent_of, longest_of, read
from .spec_names import spec_of

# Kinds of sequences (problem.sequences).
PACKED, PAGED = "packed", "paged"


def check_ragged_call(kind: str, direction: str, given: Mapping[str, Any]) -> None:
    """Raise unless the tensors of an operator of packed or paged sequences fit each other.

    given: its parameters by name; the numbers in its spans are checked where they can be read.
    """
    check_rows(given["q"], given["k"], given["v"], 4 if kind == PAGED else 3)
    _check_span_tensors(kind, given)
    if len(given["starts_q"]):  # else nothing reads them
        check_tables(given["tables"], given["q"], given["k"])
    spec = spec_of(given["spec"])
    if "sink" in given:
        check_sink(spec, given["sink"], given["q"])
    check_rng(spec, given["rng"], given["q"])
    if direction == "backward":
        _check_saved(given)


def check_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rank: int) -> None:
    """Raise unless packed q and the keys and values of this rank fit each other."""
    check_tensors(q, k, v, 3, rank)
    check_packed_sizes(q.shape, k.shape, v.shape)


def _check_saved(given: Mapping[str, Any]) -> None:
    """As ``check_backward_call``, of sequences whose sizes the tensors name."""
    q = given["q"]
    shapes = q.shape, given["k"].shape, given["v"].shape
    try:
        expected = _expected(given["spec"], *shapes)
    except TypeError:  # symbolic sizes have no hash
        expected = _expected.__wrapped__(given["spec"], *shapes)
    for name, shape, dtype, optional in expected:
        x = given.get(name)
        if x is not None and not (optional and x.numel() == 0):
            check_like(name, x, shape, dtype, q)


@lru_cache(maxsize=1024)
def _expected(text: str, query, key, value) -> list[tuple]:
    """Name, shape, dtype and whether it may be absent, of what is saved."""
    spec = spec_of(text)
    found = [a for a in arguments(spec, "backward") if a.role in ("input", "saved")]
    found = [a for a in found if not a.is_table]
    sizes = sizes_of_shapes(found, {"q": query, "k": key, "v": value})
    spans = KINDS[spec.sequences].shapes.own
    return [
        (a.name, shape_of(a, sizes), getattr(torch, a.dtype), a.optional)
        for a in found
        if a.name not in ("q", "k", "v") and a not in spans
    ]


def _check_span_tensors(kind: str, given: Mapping[str, Any]) -> None:
    """Raise unless what says where entries lie, of as many entries each, is int32 beside q."""
    entries = given["starts_q"].shape[:1]
    for argument in KINDS[kind].shapes.own:
        x, name, rank = given[argument.name], argument.name, len(argument.shape)
        check_int32(name, x, given["q"].device)
        if x.ndim != rank:
            raise ValueError(f"{name} of shape {tuple(x.shape)} must have {rank} dimension(s)")
        if x.shape[:1] != entries:
            raise ValueError(f"{name} of shape {tuple(x.shape)} must be of {entries[0]} entries")


def check_spans(given: Mapping[str, Any]) -> tuple[Extent, Extent]:
    """The extents of queries and of keys of spans that can be read, whose numbers are checked.

    RuntimeError for a page that does not exist (as FlashAttention), ValueError for all others.
    """
    queries, k = _in_order("q", given, given["q"].shape[0]), given["k"]
    if (table := given.get("page_table")) is None:
        return queries, _in_order("k", given, k.shape[0])
    return queries, check_pages(given["starts_k"], given["ends_k"], table, k)


def _in_order(axis: str, given: Mapping[str, Any], total: int) -> Extent:
    """The extent of spans that lie in rows 0 .. total one behind the other; else ValueError."""
    starts, ends = read(given[f"starts_{axis}"]), read(given[f"ends_{axis}"])
    # The ends of all entries in order, between the ends of the tensor: none may go back.
    places = np.empty(2 * len(starts) + 2, np.int64)
    places[0], places[-1], places[1:-1:2], places[2:-1:2] = 0, total, starts, ends
    steps = places[1:] - places[:-1]
    if longest_of(steps) > total:  # not so where none goes back
        wanted = "cumulative lengths must not decrease and stay within the tensor"
        _refuse_span(axis, starts, ends, total, wanted)
        entry = int(np.argmax(starts[1:] < ends[:-1])) + 1
        raise ValueError(
            f"sequence {entry} begins at row {starts[entry]} of {axis}, before the end "
            f"{ends[entry - 1]} of the one before it"
        )
    return extent_of(steps[1::2])


def check_pages(starts, ends, table: torch.Tensor, k: torch.Tensor) -> Extent:
    """The extent of keys starts .. ends (B,) in the pages k (pages, page_size, ...) of ``table``.

    ValueError for keys outside of the table's pages; RuntimeError for a page that does not exist.
    """
    starts, ends = read(starts), read(ends)
    wanted = "seqused_k and leftpad_k must stay within the pages of block_table"
    _refuse_span("k", starts, ends, table.shape[1] * k.shape[1], wanted)
    check_pages_exist(table, ends, k)
    return extent_of(ends.astype(np.int64) - starts)


def _refuse_span(axis: str, starts, ends, total: int, wanted: str) -> None:
    """ValueError names the first entry that does not lie in 0 .. total, and what is ``wanted``."""
    wrong = (starts < 0) | (ends < starts) | (ends > total)
    if wrong.any():
        entry = int(np.argmax(wrong))
        raise ValueError(
            f"sequence {entry} has rows {starts[entry]} .. {ends[entry]} of {axis}, which has "
            f"{total}: {wanted}"
        )


def check_pages_exist(
    table: torch.Tensor, ends, k: torch.Tensor, name: str = "block_table[{}, {}]",
    unit: str = "pages",
) -> None:  # fmt: skip
    """RuntimeError where a number in table (B, most) is of no page of k (pages, page_size, ...).

    ends: past the last position of each entry, a numpy array (B,); pages that none reaches count
    not. name: of a number, made of its entry and its place. unit: what it is a number of.
    """
    numbers, (pages, page_size) = read(table), k.shape[:2]
    used = np.arange(numbers.shape[1]) < -(-ends.astype(np.int64)[:, None] // max(page_size, 1))
    wrong = used & ((numbers < 0) | (numbers >= pages))
    if wrong.any():
        entry, place = np.argwhere(wrong)[0]
        raise RuntimeError(
            f"{name.format(entry, place)}={numbers[entry, place]} must lie in 0 .. {pages - 1}: "
            f"the cache has {pages} {unit}"
        )
