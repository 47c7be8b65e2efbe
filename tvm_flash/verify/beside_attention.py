"""Linear attention and the softmax of rows on trial: their kernels called with random numbers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from ..problem.arguments import arguments, named_sizes, names, size_values
from ..problem.spec import AttentionSpec
from ..reference import linear_reference
from ..runtime.call import completed, new_tensors
from .problems import Problem
from .rule import deviations
from .verdict import Counts, Outcome

if TYPE_CHECKING:
    from .trial import Candidate

Tensors = dict[str, torch.Tensor]
# Parts that linear attention divides the rows into.
_SPLITS = 2
# (lines, columns) of softmax: read in vectors and by elements, by a warp and by a block, and, the
# longest, in several rounds; the last fills all of a thread's pieces with shares that tell errors.
_ROWS = ((5, 1), (9, 300), (3, 1032), (2, 8197), (1, 16392), (5, 1024))


def problems_beside(candidate: Candidate, quick: bool = False) -> list[Problem]:
    """Lengths around the candidate's tile; causal calls have as many queries as keys."""
    if candidate.direction != "linear":
        rows = _ROWS[1:3] if quick else _ROWS
        return [Problem(f"{lines} x {columns}", lines, columns, 1, 1, 1) for lines, columns in rows]
    block = candidate.tile[0]
    lengths = [2 * block + 1] if quick else [1, block - 1, block, 2 * block + 1, 300]
    return [
        Problem(f"{rows}", rows, rows if candidate.spec.causal else rows + 9, 2, 4, 2)
        for rows in dict.fromkeys(lengths)
        if rows
    ]


def judge_beside(candidate: Candidate, problem: Problem, seed: int = 0) -> Outcome:
    """One run of ``candidate``. Whatever it raises is a verdict on it, not an error of ours."""
    ask = _ASKED[candidate.direction]
    given, exact, plain = ask(candidate.spec, problem, torch.Generator().manual_seed(seed))
    table = arguments(candidate.spec, candidate.direction)
    lines = problem.seqlen_q
    sizes = {"lines": lines, "shared_lines": lines, "gradient_lines": 2 * lines}
    sizes |= {"columns": problem.seqlen_k, "splits": _SPLITS, "Ds": candidate.spec.head_dim}
    values = size_values(candidate.spec, named_sizes(problem.sizes) | sizes, candidate.meta)
    call = completed(table, given, new_tensors(values))
    started = time.perf_counter()
    try:
        reports = candidate.run(call, names(table, "output", "workspace"))
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        return Outcome(problem, seconds=time.perf_counter() - started, failure=message)
    seconds = time.perf_counter() - started
    held = deviations(candidate.spec.dtype, {x: call[x] for x in exact}, exact, plain)
    failure = "; ".join(str(deviation) for deviation in held if not deviation.ok)
    return Outcome(problem, tuple(held), Counts.of(reports), seconds, failure=failure)


def _linear(
    spec: AttentionSpec, problem: Problem, generator: torch.Generator
) -> tuple[dict[str, Any], Tensors, Tensors]:
    """A normalised call, and what it gives in float64 and in the dtype of ``spec``."""
    batch, heads, kv_heads, rows, keys = problem.sizes

    def rand(*shape, dtype=torch.float32):
        return (torch.rand(shape, generator=generator) + 0.1).to(dtype)

    own, size = {"dtype": spec.element.torch}, spec.head_dim
    q, k = rand(batch, rows, heads, size, **own), rand(batch, keys, kv_heads, size, **own)
    v = rand(batch, keys, kv_heads, spec.head_dim_v, **own)
    decay = rand(heads).clamp(max=1) if spec.causal else torch.ones(heads)
    state = rand(batch, heads, size, spec.head_dim_v + 1)
    results = [
        linear_reference(
            q, k, v, causal=spec.causal, decay=decay, initial_state=state, upcast=upcast
        )
        for upcast in (torch.float64, None)
    ]
    of_queries, of_keys = (batch, heads, rows), (batch, kv_heads, keys)
    given = {
        "q": q, "k": k, "v": v, "decay": decay,
        "q_extra": torch.zeros(of_queries), "k_extra": torch.zeros(of_keys),
        "v_extra": torch.ones(of_keys), "key_weight": torch.ones(of_keys),
        "out_weight": torch.ones(of_queries), "reverse": 0, "normalize": 1, "state_age": 1,
        "state": state,
    }  # fmt: skip
    return given, *({"out": out, "state_out": behind} for out, behind in results)


def _softmax(
    spec: AttentionSpec, problem: Problem, generator: torch.Generator
) -> tuple[dict[str, Any], Tensors, Tensors]:
    """Rows, and their results in float64 and in the dtype of ``spec``."""
    shape = problem.seqlen_q, problem.seqlen_k
    x = (torch.randn(shape, generator=generator) * 4).to(spec.element.torch)
    exact, plain = (
        {"shares": torch.softmax(y, -1), "line_lse": torch.logsumexp(z, -1)}
        for y, z in ((x.double(), x.double()), (x, x.float()))
    )
    return {"x": x}, exact, plain


def _softmax_backward(
    spec: AttentionSpec, problem: Problem, generator: torch.Generator
) -> tuple[dict[str, Any], Tensors, Tensors]:
    """As many lines of shares as of x."""
    given, exact, plain = _softmax(spec, problem, generator)
    x, dtype = given["x"], spec.element.torch
    dshares = torch.randn(x.shape, generator=generator).to(dtype)
    dlse = torch.randn(x.shape[0], generator=generator)
    given |= {"shares": plain["shares"], "dshares": dshares}
    given |= {"line_lse": exact["line_lse"].float(), "dline_lse": dlse}

    def gradient(wide: torch.dtype | None, lse: torch.Tensor) -> torch.Tensor:
        shares, upstream = (y.to(wide or dtype) for y in (plain["shares"], dshares))
        through_shares = torch._softmax_backward_data(upstream, shares, -1, shares.dtype)
        through_lse = (x.to(lse.dtype) - lse[:, None]).exp() * dlse.to(lse.dtype)[:, None]
        return torch.cat([through_shares, through_lse.to(shares.dtype)])

    exact_lse, plain_lse = exact["line_lse"], plain["line_lse"]
    return (
        given,
        {"dx": gradient(torch.float64, exact_lse)},
        {"dx": gradient(None, plain_lse)},
    )


_ASKED = {"linear": _linear, "softmax": _softmax, "softmax_backward": _softmax_backward}
