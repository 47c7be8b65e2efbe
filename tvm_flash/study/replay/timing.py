"""How long a kernel takes beside another one, on a machine that may have other work."""

from __future__ import annotations

import time
from functools import partial
from typing import NamedTuple

from ...bench.timing import Call, four_digits, host_seconds
from ...bench.timing import in_turns as timed_in_turns


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
    watches = {
        name: partial(host_seconds, each, clock=now)
        for name, each in (("reference", reference), ("ours", call))
    }
    once = min(watch(1) for watch in watches.values() for _ in range(2))
    repeats = dict.fromkeys(watches, max(1, round(1e-3 / once)))
    samples = timed_in_turns(watches, repeats, lambda _, rounds: rounds >= pairs)
    theirs, ours = (list(map(four_digits, taken)) for taken in samples.values())
    return Pairs(ours, theirs, four_digits(now() - began))
