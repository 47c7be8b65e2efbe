"""The sections of the suite "sequences", with their targets."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from ..cells import MASKS, Cell, Section, Target
from ..contender import OURS
from ..rows import DIRECTIONS
from .length_lists import CACHED, LISTS
from .problems import (
    AppendedProblem,
    CachedProblem,
    PackedProblem,
    SequencesProblem,
    StepProblem,
)

DTYPES = ("float32", "bfloat16")
GROUPED = {"heads": 32, "kv_heads": 8}


def _cell(
    section: str,
    problem: SequencesProblem,
    direction: str,
    threads: int,
    ratio: float,
    *others: str,
) -> Cell:
    """Ours beside ``others``, of whom none may be missing; the fastest of them is the measure."""
    names = (OURS, *others)
    return Cell(section, problem, direction, threads, Target(ratio), names, required=names)


def _equal(threads: int) -> Iterator[Cell]:
    sizes = ((16, 256), (4, 1024))
    for dtype, direction, causal, (batch, seqlen) in product(DTYPES, DIRECTIONS, MASKS, sizes):
        problem = PackedProblem.of([seqlen] * batch, "equal", dtype, 64, causal=causal)
        yield _cell("equal", problem, direction, threads, 0.97, "dense")


def _mixed(threads: int) -> Iterator[Cell]:
    for dtype, direction, (listed, lengths) in product(DTYPES, DIRECTIONS, LISTS.items()):
        problem = PackedProblem.of(lengths, listed, dtype, 64, causal=True)
        yield _cell("mixed", problem, direction, threads, 0.9, "one_by_one")


def _padding(threads: int) -> Iterator[Cell]:
    for direction, (listed, lengths) in product(DIRECTIONS, LISTS.items()):
        problem = PackedProblem.of(lengths, listed, "float32", 64, causal=True)
        yield _cell("padding", problem, direction, threads, problem.padding, "sdpa_padded")


# By size of a page.
_PAGED = {16: 0.9, 128: 0.97}


def _paged(threads: int) -> Iterator[Cell]:
    for dtype, (page_size, ratio) in product(DTYPES, _PAGED.items()):
        decode = {"seqlen_q": 1, "page_size": page_size, **GROUPED}
        prefill = {"causal": True, "page_size": page_size}
        for lengths, fields in (([4096] * 8, decode), ([2048] * 2, prefill)):
            problem = CachedProblem.of(lengths, "equal", dtype, 128, **fields)
            yield _cell("paged", problem, "forward", threads, ratio, "contiguous", "dense")


def _append(threads: int) -> Iterator[Cell]:
    for dtype, page_size in product(DTYPES, _PAGED):
        fields = {"page_size": page_size, **GROUPED}
        problem = AppendedProblem.of([1024] * 8, "equal", dtype, 128, **fields)
        yield _cell("append", problem, "forward", threads, 0.7, "copy")


def _decode(threads: int) -> Iterator[Cell]:
    for dtype, page_size in (("bfloat16", 16), ("bfloat16", 128), ("float32", 128)):
        fields = {"seqlen_q": 1, "page_size": page_size, **GROUPED}
        problem = CachedProblem.of(CACHED, "100..8000", dtype, 128, **fields)
        yield _cell("decode", problem, "forward", threads, 0.8, "read")


def _step(threads: int) -> Iterator[Cell]:
    for dtype, (head_dim, kv_heads) in product(DTYPES, ((64, 8), (128, 2))):
        fields = {"causal": True, "heads": 8, "kv_heads": kv_heads}
        problem = StepProblem.of([2048] * 65, "equal", dtype, head_dim, **fields)
        yield _cell("step", problem, "forward", threads, 0.9, "apart")


def _overhead(threads: int) -> Iterator[Cell]:
    problem = PackedProblem.of([16], "equal", "float32", 64, heads=1)
    # At most 1.3 times the dense function's time.
    yield _cell("overhead", problem, "forward", threads, 1 / 1.3, "dense")


SECTIONS = (
    Section("equal", "packed sequences of one length beside a dense batch", _equal, True),
    Section("mixed", "packed beside a dense call for each sequence", _mixed, True),
    Section("padding", "packed beside SDPA on padded sequences", _padding, True),
    Section("paged", "keys in pages beside contiguous ones", _paged, True),
    Section("append", "new keys, rotated into pages, beside a copy of them", _append, True),
    Section("decode", "32 queries on keys of 100 to 8000, beside reading them", _decode, True),
    Section("step", "a prompt and 64 queries in one call, beside two calls", _step, True),
    Section("overhead", "a packed call on 16 positions beside a dense one", _overhead, True),
)
