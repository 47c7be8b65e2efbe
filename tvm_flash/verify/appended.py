"""Appending on trial: rows in their pages, keys rotated, and all other memory as it was."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..problem.arguments import arguments
from ..problem.spec import AttentionSpec
from .problems import Problem
from .rule import deviations
from .verdict import Counts, Outcome

if TYPE_CHECKING:
    from .trial import Candidate

# Rows of a page: no power of two.
PAGE_SIZE = 5
_NAMES = ("k_pages", "v_pages")


class Form(NamedTuple):
    """How keys are rotated.

    share: columns of cos over head_dim / 2. rounded: whether angles have the dtype of the keys.
    """

    share: float
    interleaved: bool
    rounded: bool


FORMS = {
    "all_in_halves": Form(1, interleaved=False, rounded=False),
    "all_interleaved": Form(1, interleaved=True, rounded=True),
    "some_in_halves": Form(0.4, interleaved=False, rounded=True),
    "some_interleaved": Form(0.6, interleaved=True, rounded=False),
    "not_rotated": Form(0, interleaved=False, rounded=False),
    "one_head": Form(1, interleaved=True, rounded=False),
    "many_entries": Form(1, interleaved=True, rounded=False),
    "many_heads": Form(0.4, interleaved=False, rounded=False),
}
# New rows, rows before them, entries and heads: of two entries, of more than lanes, some of which
# begin at position 0; so many heads that a warp moves 32 columns of 16 bits in four rounds, which
# compilers write out.
_SIZES = {"one_head": (5, 9, 2, 1), "many_entries": (3, 9, 45, 1), "many_heads": (3, 9, 6, 29)}


def append_problems(quick: bool = False) -> list[Problem]:
    """A problem of each of ``FORMS``, by its name: up to 11 new rows behind up to 23."""
    names = ["all_interleaved"] if quick else list(FORMS)
    sizes = ((name, *_SIZES.get(name, (11, 23, 6, 3))) for name in names)
    return [Problem(*known, heads, heads) for *known, heads in sizes]


class Appending(NamedTuple):
    """A call of the kernel by the names of its arguments, and its pages as they shall be.

    exact: in float64. plain: rounded as torch's float32 gives them. Rows that nobody writes are
    NaN, before too.
    """

    call: dict[str, Any]
    exact: dict[str, torch.Tensor]
    plain: dict[str, torch.Tensor]


def appending(spec: AttentionSpec, problem: Problem, seed: int = 0) -> Appending:
    """``problem`` for a kernel of ``spec``, on rows that are views of a wider tensor."""
    generator = torch.Generator().manual_seed(seed)
    form, dtype = FORMS[problem.name], spec.element.torch
    entries = _entries(problem, generator)
    angles = torch.rand(problem.seqlen_k + 4, int(spec.head_dim // 2 * form.share)) * 6
    tables = [x.to(dtype if form.rounded else torch.float32) for x in (angles.cos(), angles.sin())]
    nothing = [torch.empty(0, 0, dtype=torch.float32 if form.rounded else dtype)] * 2
    named = ("cos", "sin", "rounded_cos", "rounded_sin")
    known = [*nothing, *tables] if form.rounded else [*tables, *nothing]
    total, pages = int(entries["ends_q"].max()) + 2, int(entries["page_table"].max())
    call: dict[str, Any] = {}
    for name, columns in (("k", spec.head_dim), ("v", spec.head_dim_v)):
        wide = torch.randn(total, 2 * problem.heads, columns, generator=generator).to(dtype)
        call[f"{name}_new"] = wide[:, problem.heads :]
        shape = (pages, PAGE_SIZE, problem.heads, columns)
        call[f"{name}_pages"] = torch.full(shape, torch.nan, dtype=dtype)
    call |= dict(zip(named, known, strict=True)) | entries | {"interleaved": int(form.interleaved)}
    call = {argument.name: call[argument.name] for argument in arguments(spec, "append")}
    exact, plain = (_appended(call, tables, wide) for wide in (torch.float64, torch.float32))
    return Appending(call, exact, {name: x.to(dtype) for name, x in plain.items()})


def _entries(problem: Problem, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Where rows lie and where they go: fewer and fewer, with gaps between the entries.

    Of five or more, entry 1 has no rows, 2 is at the end of its pages, 3 before their beginning,
    and a page of 4 does not exist. The last two rows of 0 have no angles.
    """
    batch, most = problem.batch, -(-(problem.seqlen_q + problem.seqlen_k) // PAGE_SIZE)
    counts = [max(problem.seqlen_q - 2 * b, 2) for b in range(batch)]
    first = [max(problem.seqlen_k - 4 * b, 0) for b in range(batch)]
    table = torch.randperm(batch * most, generator=generator).int().view(batch, most)
    if batch > 4:
        counts[1], first[2], first[3] = 0, most * PAGE_SIZE - 3, -2
        table[4, first[4] // PAGE_SIZE] = batch * most
    starts = [sum(counts[:b]) + b + 1 for b in range(batch)]
    numbers = {
        "starts_q": starts,
        "ends_q": [start + count for start, count in zip(starts, counts, strict=True)],
        "starts_k": first,
        "ends_k": [most * PAGE_SIZE + 9] * batch,
        "rotary_seqlens": [problem.seqlen_k + 4 - (counts[0] - 2), *first[1:]],
    }
    spans = {name: torch.tensor(x, dtype=torch.int32) for name, x in numbers.items()}
    return {**spans, "page_table": table}


def _appended(call, tables, wide: torch.dtype) -> dict[str, torch.Tensor]:
    """The pages after ``call``, in ``wide``."""
    k, v = call["k_new"].to(wide), call["v_new"].to(wide)
    pages = {name: call[name].to(wide) for name in _NAMES}
    cos, sin = (x.to(wide) for x in tables)
    for entry, row, position, page in _placed_rows(call):
        angle = int(call["rotary_seqlens"][entry]) + position - int(call["starts_k"][entry])
        key = k[row]
        if 0 <= angle < len(cos):
            key = _turned(key, torch.complex(cos[angle], sin[angle]), call["interleaved"])
        pages["k_pages"][page, position % PAGE_SIZE] = key
        pages["v_pages"][page, position % PAGE_SIZE] = v[row]
    return pages


def _placed_rows(call) -> Iterator[tuple[int, int, int, int]]:
    """(entry, row, position, page) of each new row that has a place."""
    table = call["page_table"]
    spans = zip(*(call[name].tolist() for name in ("starts_q", "ends_q", "starts_k")), strict=True)
    for entry, (start, end, first) in enumerate(spans):
        for row in range(start, end):
            position = first + row - start
            if first < 0 or position >= table.shape[1] * PAGE_SIZE:
                continue
            page = int(table[entry, position // PAGE_SIZE])
            if 0 <= page < len(call["k_pages"]):
                yield entry, row, position, page


def _turned(key: torch.Tensor, turn: torch.Tensor, interleaved: int) -> torch.Tensor:
    """key (H, D) with pairs of its first columns multiplied by ``turn``, complex numbers."""
    count = len(turn)
    places = (slice(0, 2 * count, 2), slice(1, 2 * count, 2))
    places = places if interleaved else (slice(0, count), slice(count, 2 * count))
    pairs, turned = torch.complex(*(key[:, place] for place in places)) * turn, key.clone()
    for place, part in zip(places, (pairs.real, pairs.imag), strict=True):
        turned[:, place] = part
    return turned


def judge_append(candidate: Candidate, problem: Problem, seed: int = 0) -> Outcome:
    """One run of ``candidate``. Whatever it raises is a verdict on it, not an error of ours."""
    call, exact, plain = appending(candidate.spec, problem, seed)
    started = time.perf_counter()
    try:
        reports = candidate.run(call, _NAMES)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        return Outcome(problem, seconds=time.perf_counter() - started, failure=message)
    seconds = time.perf_counter() - started
    failures = []
    for name in _NAMES:
        if not torch.equal(call[name].isnan(), exact[name].isnan()):
            failures.append(f"{name}: rows were left out, or others written")
    found, exact, plain = (
        {name: x[name].nan_to_num() for name in _NAMES} for x in (call, exact, plain)
    )
    held = deviations(candidate.spec.dtype, found, exact, plain)
    failures += [str(deviation) for deviation in held if not deviation.ok]
    return Outcome(problem, tuple(held), Counts.of(reports), seconds, failure="; ".join(failures))
