"""How long a kernel takes beside another one, on a machine that may have other work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

Call = Callable[[], object]


class Pairs(NamedTuple):
    """Repeats in turns, seconds per call, and what measuring them took."""

    seconds: list[float]
    reference_seconds: list[float]
    measure_seconds: float


def clock_name(threads: int) -> str:
    """The clock of ``time`` to use: of one thread, its own, which stands still while others run."""
    return "thread_time" if threads == 1 else "perf_counter"


def in_turns(call: Call, reference: Call, pairs: int, clock: str) -> Pairs:
    """``pairs`` samples of both, each of a millisecond or more; who is first takes turns."""
    now = getattr(time, clock)
    began = now()
    calls = (call, reference)
    once = min(_seconds(each, 1, now) for each in calls for _ in range(2))
    repeats = max(1, round(1e-3 / once))
    samples: list[dict[int, float]] = []
    for number in range(pairs):
        order = (0, 1) if number % 2 else (1, 0)
        samples.append({place: _seconds(calls[place], repeats, now) for place in order})
    ours, theirs = ([_short(sample[place]) for sample in samples] for place in (0, 1))
    return Pairs(ours, theirs, _short(now() - began))


def _seconds(call: Call, repeats: int, now: Callable[[], float]) -> float:
    start = now()
    for _ in range(repeats):
        call()
    return (now() - start) / repeats


def _short(seconds: float) -> float:
    """Four digits: more is noise, and the table is kept for ever."""
    return float(f"{seconds:.4g}")
