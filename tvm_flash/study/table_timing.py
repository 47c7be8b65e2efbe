"""How long a kernel takes beside another one, on a machine that may have other work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from ..loader import Kernel
from ..tune.trial import Sizes

Call = Callable[[], object]


class Pairs(NamedTuple):
    """Repeats in turns, seconds per call, and what measuring them took."""

    seconds: list[float]
    reference_seconds: list[float]
    measure_seconds: float


def clock_name(threads: int) -> str:
    """The clock of ``time`` to use: of one thread, its own, which stands still while others run."""
    return "thread_time" if threads == 1 else "perf_counter"


def prepared(kernel: Kernel, sizes: Sizes, threads: int, seed: int = 0) -> Call:
    """A call of ``kernel`` on random data, with the zeroing that a backward asks of its caller."""
    batch, heads, kv_heads, seqlen_q, seqlen_k = sizes
    spec, dtype = kernel.spec, getattr(torch, kernel.spec.dtype)
    generator = torch.Generator().manual_seed(seed)

    def tensor(seqlen: int, count: int, width: int) -> torch.Tensor:
        return torch.randn(batch, seqlen, count, width, generator=generator).to(dtype)

    q = tensor(seqlen_q, heads, spec.head_dim)
    k, v = (tensor(seqlen_k, kv_heads, width) for width in (spec.head_dim, spec.head_dim_v))
    out = tensor(seqlen_q, heads, spec.head_dim_v)
    # Any finite lse will do: the time of a backward does not depend on it.
    lse, scale = torch.full((batch, heads, seqlen_q), 8.0), spec.head_dim**-0.5
    if kernel.direction == "forward":
        return lambda: kernel.function(q, k, v, out, lse, scale)
    delta, sums = kernel.workspace(*sizes, threads)
    dq_acc, work = torch.zeros(sums), torch.empty(delta)
    saved = (q, k, v, out, torch.randn_like(out), lse, torch.zeros_like(lse))
    grads = [torch.empty_like(x) for x in (q, k, v)]

    def backward() -> None:
        dq_acc.zero_()
        kernel.function(*saved, *grads, work, dq_acc, scale)

    return backward


def in_turns(call: Call, reference: Call, pairs: int, clock: str) -> Pairs:
    """``pairs`` samples of both, one after the other, each of a millisecond or more."""
    now = getattr(time, clock)
    began = now()
    once = min(_seconds(each, 1, now) for each in (call, reference) for _ in range(2))
    repeats = max(1, round(1e-3 / once))
    samples = [[_seconds(each, repeats, now) for each in (call, reference)] for _ in range(pairs)]
    ours, theirs = ([_short(x) for x in column] for column in zip(*samples, strict=True))
    return Pairs(ours, theirs, _short(now() - began))


def _seconds(call: Call, repeats: int, now: Callable[[], float]) -> float:
    start = now()
    for _ in range(repeats):
        call()
    return (now() - start) / repeats


def _short(seconds: float) -> float:
    """Four digits: more is noise, and the table is kept for ever."""
    return float(f"{seconds:.4g}")
