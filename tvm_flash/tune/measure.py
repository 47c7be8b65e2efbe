"""Whether a built kernel is right, and how long it takes beside the best one so far."""

from __future__ import annotations

import math
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from ..bench.timing import Call, Watch, four_digits, host_seconds, in_turns
from ..problem.arguments import (
    TABLE,
    Argument,
    arguments,
    names,
    shape_of,
    size_values,
    values_before,
)
from ..problem.spec import AttentionSpec
from ..runtime.call import completed, new_tensors
from ..runtime.loader import Kernel, opened
from ..verify.library import verify_library
from ..verify.problems import Problem
from ..verify.tables import random_tables
from ..verify.verdict import KernelVerdict
from .trial import Sizes, Trial

# lse of the size that it has for such data: exp(score - lse) is neither 0 nor infinite.
ROW_VALUES = {"lse": 8.0}

_ROUNDS = (5, 60)
# A candidate that is so much slower in each of so many rounds is no match: more would tell nothing.
_HOPELESS, _HOPELESS_ROUNDS = 1.5, 3


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
    times = interleaved(partial(host_seconds, ours), partial(host_seconds, theirs), seconds)
    return Trial("ok", verdict.error, verdict.allowed, *times)


def interleaved(
    candidate: Watch, incumbent: Watch, seconds: float, sample: float = 1e-3
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds per call of both, in turns, for about ``seconds``, after a warm-up.

    sample: the least seconds of one; in a millisecond the clock and the loop cost nothing.
    """
    watches = {"ours": candidate, "theirs": incumbent}
    once = [_warmed(watch) for watch in watches.values()]
    low, high = _ROUNDS
    repeats = max(1, round(max(sample, seconds / (2 * high)) / max(once)))
    rounds = min(high, max(low, round(seconds / (sum(once) * repeats))))
    samples = in_turns(
        watches,
        dict.fromkeys(watches, repeats),
        lambda taken, done: done >= rounds or _is_hopeless(*taken.values()),
    )
    ours, theirs = (tuple(map(four_digits, taken)) for taken in samples.values())
    return ours, theirs


def timed_call(kernel: Kernel, sizes: Sizes) -> Call:
    """A call of ``kernel`` on random data, with the zeroing that a backward asks of its caller."""
    values = kernel.sizes(sizes, torch.get_num_threads())
    call = completed(kernel.arguments, given_arguments(kernel.spec, sizes), new_tensors(values))
    zeroed = [call[name] for name in values_before(kernel.arguments)]
    inputs = tuple(call.values())

    def run() -> None:
        for tensor in zeroed:
            tensor.zero_()
        kernel.function(*inputs)

    return run


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
def given_arguments(spec: AttentionSpec, sizes: Sizes) -> dict[str, Any]:
    """What calls on the timed problem are given, by name, in both directions.

    The same memory for every candidate: where it lies would be part of the time.
    """
    generator, values = torch.Generator().manual_seed(0), size_values(spec, sizes)

    def drawn(argument: Argument) -> torch.Tensor:
        shape, dtype = shape_of(argument, values), getattr(torch, argument.dtype)
        if argument.dense:
            return torch.full(shape, ROW_VALUES.get(argument.name, 0.0), dtype=dtype)
        return torch.randn(shape, generator=generator).to(dtype)

    problem = Problem.of_sizes("timed", sizes)
    tables = random_tables(spec, problem, generator)
    own = names(TABLE["backward"], "input", "saved")
    found = {a.name: drawn(a) for a in arguments(spec, "backward") if a.name in own}
    found |= {f"table{n}": table for n, table in enumerate(tables)}
    return found | problem.numbers(spec.head_dim)


def _is_hopeless(ours: list[float], theirs: list[float]) -> bool:
    slow = [a > _HOPELESS * b for a, b in zip(ours, theirs, strict=True)]
    return len(slow) >= _HOPELESS_ROUNDS and all(slow)


def _warmed(watch: Watch) -> float:
    """Least seconds of some calls: the first ones touch new pages, and raise the clock."""
    taken, started = [], time.perf_counter()
    while len(taken) < 2 or (time.perf_counter() - started < 0.02 and len(taken) < 100):
        taken.append(watch(1))
    return min(taken)
