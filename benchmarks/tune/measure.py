"""Whether a config is right, by a process that may die of it, and how long its kernel takes."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import torch

from tvm_flash.codegen import jit
from tvm_flash.errors import TvmFlashError
from tvm_flash.loader import Kernel
from tvm_flash.schedules.select import Config
from tvm_flash.spec import AttentionSpec
from tvm_flash.verify.library import verify_library

from .search import Trial


def check(spec: AttentionSpec, direction: str, config: Config, threads: int) -> Trial:
    """Compile ``config`` and hold it to the error rule; run in a process that may die of it."""
    torch.set_num_threads(threads)
    try:
        path = jit.artifact_for(spec, direction, config)
    except (TvmFlashError, ValueError) as error:
        print(f"invalid: {error}", file=sys.stderr)
        return Trial("invalid")
    (kernel,) = verify_library(path).kernels
    numbers = (kernel.worst.error, kernel.worst.allowed) if kernel.worst else (None, None)
    # JSON has no infinity: null is an error without bound.
    finite = (x if x is not None and math.isfinite(x) else None for x in numbers)
    return Trial("ok" if kernel.ok else "wrong", *finite)


class Checker:
    """``check`` in a process of its own, and another one after a crash or ``timeout`` seconds."""

    def __init__(self, timeout: float):
        self.timeout = timeout
        self.pool: ProcessPoolExecutor | None = None

    def __call__(self, *arguments: Any) -> Trial:
        if self.pool is None:
            self.pool = ProcessPoolExecutor(1, get_context("spawn"))
        try:
            return self.pool.submit(check, *arguments).result(self.timeout)
        except BrokenProcessPool:
            self.close()
            return Trial("crash")
        except TookTooLong:
            self.close()
            return Trial("timeout")

    def close(self) -> None:
        """End the process, whatever it does."""
        if self.pool is not None:
            for process in list((self.pool._processes or {}).values()):
                process.kill()
            self.pool.shutdown(wait=True)
            self.pool = None


def timed_call(kernel: Kernel, sizes: Sequence[int], seed: int) -> Callable[[], None]:
    """A call of ``kernel`` on random data, with the zeroing that a backward asks of its caller."""
    batch, heads, kv_heads, seqlen_q, seqlen_k = sizes
    spec, dtype = kernel.spec, getattr(torch, kernel.spec.dtype)
    generator = torch.Generator().manual_seed(seed)

    def tensor(seqlen: int, count: int, width: int) -> torch.Tensor:
        return torch.randn(batch, seqlen, count, width, generator=generator).to(dtype)

    q = tensor(seqlen_q, heads, spec.head_dim)
    k, v = (tensor(seqlen_k, kv_heads, width) for width in (spec.head_dim, spec.head_dim_v))
    out = tensor(seqlen_q, heads, spec.head_dim_v)
    lse, scale = torch.full((batch, heads, seqlen_q), 8.0), spec.head_dim**-0.5
    if kernel.direction == "forward":
        return lambda: kernel.function(q, k, v, out, lse, scale)
    delta, sums = kernel.workspace(*sizes, torch.get_num_threads())
    dq_acc, delta = torch.zeros(sums), torch.empty(delta)
    grads = [torch.empty_like(x) for x in (q, k, v)]
    saved = (q, k, v, out, torch.randn_like(out), lse, torch.zeros_like(lse))

    def backward() -> None:
        dq_acc.zero_()
        kernel.function(*saved, *grads, delta, dq_acc, scale)

    return backward


def interleaved(
    candidate: Callable[[], None], incumbent: Callable[[], None], seconds: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds per call of both, in turns, for about ``seconds``."""
    calls = [candidate, incumbent]
    once = [min(_seconds(call, 1) for _ in range(3)) for call in calls]
    # Samples of a millisecond: the clock and the loop then cost nothing.
    repeats = max(1, round(1e-3 / max(once)))
    rounds = min(60, max(7, round(seconds / (sum(once) * repeats))))
    samples = [tuple(_seconds(call, repeats) for call in calls) for _ in range(rounds)]
    ours, theirs = zip(*samples, strict=True)
    return ours, theirs


def _seconds(call: Callable[[], None], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    # Four digits: more is noise, and people read the log.
    return float(f"{(time.perf_counter() - start) / repeats:.4g}")
