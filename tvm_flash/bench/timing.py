"""Timing in turns: each round times every call once, so that drift hits all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

Call = Callable[[], object]
Clock = Callable[[], float]
# Seconds per call of so many calls in a row: of a call that is given, and of one that it holds.
Stopwatch = Callable[[Call, int], float]
Watch = Callable[[int], float]
Samples = dict[str, list[float]]

# Times have settled when the medians of two windows of samples differ by less than this.
SETTLED = 0.01
WINDOW = 10


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median of ``rounds`` and the middle half's width over it."""

    median: float
    spread: float
    rounds: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Summary of at least one sample."""
        median = statistics.median(seconds)
        if len(seconds) < 4:
            return cls(median, (max(seconds) - min(seconds)) / median, len(seconds))
        low, _, high = statistics.quantiles(seconds, n=4)
        return cls(median, (high - low) / median, len(seconds))


@dataclass(frozen=True)
class Patience:
    """How long to sample: at least ``min_rounds``, then until ``seconds`` or ``max_rounds``.

    steady: while a spread is wider, rounds go on until ``budget`` seconds are over.
    shortest: seconds that a sample lasts at least; a shorter call is repeated within its sample.
    """

    min_rounds: int = 5
    max_rounds: int = 30
    seconds: float = 2.0
    steady: float = math.inf
    budget: float = 0.0
    shortest: float = 0.0

    def ends(self, samples: Mapping[str, list[float]], rounds: int, elapsed: float) -> bool:
        """Whether ``rounds`` rounds, which took ``elapsed`` seconds, are enough."""
        if rounds < self.min_rounds or (rounds < self.max_rounds and elapsed <= self.seconds):
            return False
        return elapsed > self.budget or widest(map(Timing.of, samples.values())) <= self.steady


def widest(timings) -> float:
    """The largest spread."""
    return max(timing.spread for timing in timings)


def in_turns(
    watches: Mapping[str, Watch],
    repeats: Mapping[str, int],
    enough: Callable[[Samples, int], bool],
    failed: dict[str, str] | None = None,
) -> Samples:
    """Seconds per call of every watch: each round all of them, in rotating order, once or more.

    enough(samples, rounds) ends it. failed: takes the reasons of those that raise, which leave the
    later rounds; None: what they raise is raised.
    """
    samples: Samples = {name: [] for name in watches}
    turn = 0
    while samples and (not turn or not enough(samples, turn)):
        # Who runs second finds the caches and the clock as the first left them: take turns.
        start, names = turn % len(samples), list(samples)
        for name in names[start:] + names[:start]:
            try:
                samples[name].append(watches[name](repeats[name]))
            except Exception as error:
                if failed is None:
                    raise
                failed[name] = reason(error)
                del samples[name]
        turn += 1
    return samples


def interleaved(
    calls: Mapping[str, Call],
    patience: Patience,
    *,
    warm: Mapping[str, float] | None = None,
    clock: Clock = time.perf_counter,
    stopwatch: Stopwatch | None = None,
    failed: dict[str, str] | None = None,
) -> dict[str, Timing]:
    """Timing of every call in ``calls``, in turns, after one untimed warm-up each.

    warm: seconds of a call of each that was warmed up already. clock: of ``patience``, and of the
    calls unless there is a ``stopwatch``. failed: as for ``in_turns``.
    """
    watch = stopwatch or partial(host_seconds, clock=clock)
    warm = warm or {name: watch(call, 1) for name, call in calls.items()}
    repeats = {name: max(1, math.ceil(patience.shortest / warm[name])) for name in calls}
    started = clock()
    samples = in_turns(
        {name: partial(watch, call) for name, call in calls.items()},
        repeats,
        lambda taken, rounds: patience.ends(taken, rounds, clock() - started),
        failed,
    )
    return {name: Timing.of(values) for name, values in samples.items()}


def settle(stopwatch: Stopwatch, call: Call, seconds: float = 3.0) -> int:
    """Repeat ``call`` until its time no longer drifts, at most for ``seconds``; the samples taken.

    A GPU raises its clocks under load and lowers them when it grows hot.
    """
    started, before, count = time.perf_counter(), math.inf, 0
    while time.perf_counter() - started < seconds:
        now = statistics.median(stopwatch(call, 1) for _ in range(WINDOW))
        count += WINDOW
        if abs(now - before) <= SETTLED * before < math.inf:
            break
        before = now
    return count


def host_seconds(call: Call, repeats: int = 1, clock: Clock = time.perf_counter) -> float:
    """Seconds per call of ``repeats`` calls on the host: its ``Stopwatch``."""
    started = clock()
    for _ in range(repeats):
        call()
    return (clock() - started) / repeats


def four_digits(seconds: float) -> float:
    """``seconds`` as logs and tables keep it: more digits are noise, and people read them."""
    return float(f"{seconds:.4g}")


def reason(error: Exception) -> str:
    """One line that says why a contender is missing."""
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first}"[:300]
