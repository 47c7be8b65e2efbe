"""Whether a built kernel is right, and how long it takes beside the best one so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch

from ..problem.spec import AttentionSpec
from ..runtime.loader import Kernel, opened
from ..verify.library import verify_library
from ..verify.problems import Problem
from ..verify.tables import random_tables
from ..verify.verdict import KernelVerdict
from .trial import Sizes, Trial

Call = Callable[[], object]
# Seconds per call of so many calls.
Stopwatch = Callable[[int], float]

_ROUNDS = (5, 60)
# A candidate that is so much slower in each of so many rounds is no match: more would tell nothing.
_HOPELESS, _HOPELESS_ROUNDS = 1.5, 3


class Tensors(NamedTuple):
    """Of the timed problem: (B, S, H, D) in the spec's dtype; lse (B, H, Sq) float32."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    out: torch.Tensor
    dout: torch.Tensor
    lse: torch.Tensor
    tables: tuple[torch.Tensor, ...]


def judged_and_timed(
    path: Path, incumbent: Path, sizes: Sizes, threads: int, seconds: float
) -> Trial:
    """The trial of the artifact at ``path``, which has one kernel, beside that at ``incumbent``.

    Wrong ones are not timed. May die of it: for a process of its own.
    """
    torch.set_num_threads(threads)
    (kernel,) = verify_library(path).kernels
    verdict = verdict_trial(kernel)
    if verdict.outcome != "ok":
        return verdict
    ours, theirs = (timed_call(_kernel(library), sizes) for library in (path, incumbent))
    times = interleaved(partial(_seconds, ours), partial(_seconds, theirs), seconds)
    return Trial("ok", verdict.error, verdict.allowed, *times)


def interleaved(
    candidate: Stopwatch, incumbent: Stopwatch, seconds: float, sample: float = 1e-3
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds per call of both, in turns, for about ``seconds``, after a warm-up.

    sample: the least seconds of one; in a millisecond the clock and the loop cost nothing.
    """
    watches = (candidate, incumbent)
    once = [_warmed(watch) for watch in watches]
    low, high = _ROUNDS
    repeats = max(1, round(max(sample, seconds / (2 * high)) / max(once)))
    rounds = min(high, max(low, round(seconds / (sum(once) * repeats))))
    samples: list[tuple[float, ...]] = []
    while len(samples) < rounds and not _is_hopeless(samples):
        samples.append(_both(watches, repeats, len(samples) % 2))
    ours, theirs = zip(*samples, strict=True)
    return ours, theirs


def timed_call(kernel: Kernel, sizes: Sizes) -> Call:
    """A call of ``kernel`` on random data, with the zeroing that a backward asks of its caller."""
    t = _tensors(kernel.spec, sizes)
    scale = kernel.spec.head_dim**-0.5
    if kernel.direction == "forward":
        results = [torch.empty_like(t.lse) for _ in kernel.spec.forward_statistics]
        return lambda: kernel.function(t.q, t.k, t.v, t.out, *results, *t.tables, scale)
    delta, sums = kernel.workspace(*sizes, torch.get_num_threads())
    dq_acc, work = torch.zeros(sums), torch.empty(delta)
    grads = [torch.empty_like(x) for x in (t.q, t.k, t.v)]
    low = [torch.zeros_like(t.lse) for _ in kernel.spec.saved_statistics[1:]]
    saved = (t.q, t.k, t.v, t.out, t.dout, t.lse, *low, torch.zeros_like(t.lse))

    def backward() -> None:
        dq_acc.zero_()
        kernel.function(*saved, *grads, work, dq_acc, *t.tables, scale)

    return backward


def verdict_trial(kernel: KernelVerdict) -> Trial:
    """The outcome, ok or wrong, and by how much; times are still to come."""
    worst = kernel.worst
    # JSON has no infinity: null is an error without bound.
    numbers = (worst.error, worst.allowed) if worst else ()
    error, allowed = (x if math.isfinite(x) else None for x in numbers) if numbers else (None, None)
    return Trial("ok" if kernel.ok else "wrong", error, allowed, note=_complaint(kernel))


def _complaint(kernel: KernelVerdict) -> str:
    failed = [outcome for outcome in kernel.outcomes if not outcome.ok]
    return f"{failed[0].problem.name}: {failed[0].failure}"[:300] if failed else ""


@lru_cache(maxsize=8)
def _kernel(path: Path) -> Kernel:
    (kernel,) = opened(path).kernels
    return kernel


@lru_cache(maxsize=1)
def _tensors(spec: AttentionSpec, sizes: Sizes) -> Tensors:
    """The same memory for every candidate: where it lies would be part of the time."""
    batch, heads, kv_heads, seqlen_q, seqlen_k = sizes
    generator = torch.Generator().manual_seed(0)

    def tensor(seqlen: int, count: int, width: int) -> torch.Tensor:
        drawn = torch.randn(batch, seqlen, count, width, generator=generator)
        return drawn.to(getattr(torch, spec.dtype))

    problem = Problem("timed", seqlen_q, seqlen_k, batch, heads, kv_heads)
    return Tensors(
        q=tensor(seqlen_q, heads, spec.head_dim),
        k=tensor(seqlen_k, kv_heads, spec.head_dim),
        v=tensor(seqlen_k, kv_heads, spec.head_dim_v),
        out=tensor(seqlen_q, heads, spec.head_dim_v),
        dout=tensor(seqlen_q, heads, spec.head_dim_v),
        # Of the size that it has for such data: exp(score - lse) is neither 0 nor infinite.
        lse=torch.full((batch, heads, seqlen_q), 8.0),
        tables=tuple(random_tables(spec, problem, generator)),
    )


def _both(watches: tuple[Stopwatch, Stopwatch], repeats: int, first: int) -> tuple[float, ...]:
    """Seconds per call of each. Who runs second finds the first one's caches: so in turns."""
    taken = {n: watches[n](repeats) for n in (first, 1 - first)}
    # Four digits: more is noise, and people read the log.
    return float(f"{taken[0]:.4g}"), float(f"{taken[1]:.4g}")


def _is_hopeless(samples: list[tuple[float, ...]]) -> bool:
    slow = [ours > _HOPELESS * theirs for ours, theirs in samples]
    return len(samples) >= _HOPELESS_ROUNDS and all(slow)


def _warmed(watch: Stopwatch) -> float:
    """Least seconds of some calls: the first ones touch new pages, and raise the clock."""
    taken, started = [], time.perf_counter()
    while len(taken) < 2 or (time.perf_counter() - started < 0.02 and len(taken) < 100):
        taken.append(watch(1))
    return min(taken)


def _seconds(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
