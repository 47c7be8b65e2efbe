"""Seconds on the device: cold caches, settled clocks, contenders in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from tvm_flash.bench import Patience, Timing

Call = Callable[[], object]
Stopwatch = Callable[[Call], float]

PATIENCE = Patience(min_rounds=10, max_rounds=50, seconds=1.5)
HASTE = Patience(min_rounds=3, max_rounds=5, seconds=0.2)
# Clocks have settled when the medians of two windows of samples differ by less than this.
SETTLED = 0.01
WINDOW = 10


class DeviceStopwatch:
    """Seconds of one call between two CUDA events, its inputs not in the L2 cache.

    Before each call a buffer of 1 GiB is cleared. That evicts every cache, and takes a third of a
    millisecond or more, in which the host enqueues the call: what is timed is the device, not
    Python.
    """

    def __init__(self, flush_bytes: int = 2**30):
        _, total = torch.cuda.mem_get_info()
        self.buffer = torch.empty(min(flush_bytes, total // 16), dtype=torch.int8, device="cuda")

    def __call__(self, call: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.buffer.zero_()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3


def host_stopwatch(call: Call) -> float:
    """Wall time, for a device that is the host."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def settle(stopwatch: Stopwatch, call: Call, seconds: float = 3.0) -> int:
    """Repeat ``call`` until its time no longer drifts, at most for ``seconds``; the samples taken.

    A GPU raises its clocks under load and lowers them when it grows hot.
    """
    started, before, count = time.perf_counter(), float("inf"), 0
    while time.perf_counter() - started < seconds:
        now = statistics.median(stopwatch(call) for _ in range(WINDOW))
        count += WINDOW
        if abs(now - before) <= SETTLED * before < float("inf"):
            break
        before = now
    return count


def interleaved(
    calls: Mapping[str, Call], stopwatch: Stopwatch, patience: Patience
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Timings of ``calls``, each round all of them in rotating order, and reasons of those that
    raised (these leave the later rounds)."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    failed: dict[str, str] = {}
    started = time.perf_counter()
    for turn in range(patience.max_rounds):
        for name in _rotated([name for name in calls if name not in failed], turn):
            try:
                samples[name].append(stopwatch(calls[name]))
            except Exception as error:
                failed[name] = reason(error)
        if turn + 1 >= patience.min_rounds and time.perf_counter() - started > patience.seconds:
            break
    timings = {name: Timing.of(found) for name, found in samples.items() if name not in failed}
    return timings, failed


def reason(error: Exception) -> str:
    """One line that says why a contender is missing."""
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first}"[:300]


def _rotated(names: list[str], turn: int) -> list[str]:
    start = turn % len(names) if names else 0
    return names[start:] + names[:start]
